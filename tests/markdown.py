"""The documents, and what a Markdown document contains: code, commands, links, headings."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
LAUNCHER = r"(?:torchrun|srun) (?:--\S+ )+(?:python )?"  # stands for python
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*((?:(?:python |{LAUNCHER})(?:(?:scripts|benchmarks)/|-m qdiff\b)|make\b).*)")


ROOT = Path(__file__).parents[1]


def read(path: Path) -> str:
    """Return the text of a document."""
    return path.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks in a language, "" for those without one."""
    return [body for found, body in FENCE.findall(text) if found == language]


def prose(text: str) -> str:
    """Return the text without its fenced blocks."""
    return FENCE.sub("", text)


def spans(text: str) -> list[str]:
    """Return the inline code, each on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command of this repository, in blocks and inline, with `<...>` filled in."""
    lines = [line for block in blocks(text, "") for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *spans(text)]:
        if found := COMMAND.fullmatch(line):
            command = re.sub(f"^{LAUNCHER}", "python ", found[1])
            filled = re.sub(r"<[^>]+>", "x", command.replace("<4 or 8>", "4"))
            yield shlex.split(filled, comments=True)


def links(text: str) -> list[str]:
    """Return the targets of links and images that are no addresses of the web."""
    return [target for target in LINK.findall(prose(text)) if "://" not in target]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "THIRD_PARTY_NOTICES.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "models").glob("*/*/README.md")),
]
TEXTS = {path.relative_to(ROOT).as_posix(): read(path) for path in DOCUMENTS}
