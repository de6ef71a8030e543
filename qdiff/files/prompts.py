"""Files with a prompt in each line."""

from pathlib import Path

from qdiff.errors import UserError


def as_text(prompt: str) -> str:
    """A prompt without halves of surrogate pairs, which a command line may hold and no file; a "?" for each."""
    return prompt.encode("utf-8", "replace").decode()


def read_prompts(path: Path, flag: str) -> list[str]:
    """The lines of a file that hold more than blanks, without their ends. Raises UserError if there are none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read {flag} {path} ({e}): give a text file in UTF-8 with a prompt in each line") from e
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"{flag} {path} holds no prompt: write one in each line")
    return prompts
