"""Whose works the bundled models were made from, and on what terms: the cards, the notices and the wheel agree."""

import ast
import re
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTICES = ROOT / "THIRD_PARTY_NOTICES.md"
FOLDERS = sorted(ROOT.glob("models/*/emoji*"))
LICENCES = {"Apache License 2.0", "CC BY 4.0", "MIT License", "Unicode License v3"}


def section(path: Path, title: str) -> str:
    """What stands below a heading of a Markdown file, down to the next one of its level."""
    level, _ = title.split(" ", 1)
    return re.split(rf"^{level} ", path.read_text(encoding="utf-8").partition(f"\n{title}\n")[2], flags=re.M)[0]


def named(text: str) -> set[str]:
    return {licence for licence in LICENCES if licence in " ".join(text.split())}


def test_there_is_something_to_check():
    assert len(FOLDERS) == 4


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_a_card_names_its_licence_and_its_sources_as_the_notices_do(folder):
    own = section(folder / "README.md", "## Licence and attribution")
    assert "CC BY 4.0" in own.partition("Made from")[0]
    (link,) = re.findall(r"\]\((?!https:)(.+?)\)", own)
    assert (folder / link).resolve() == NOTICES
    sources = dict(re.findall(r"^- (.+?)(?: [\d.]+)?: (.+)$", own, flags=re.M))
    assert {"Noto Emoji", "Twemoji"} <= sources.keys()
    for source, terms in sources.items():
        assert named(terms) and named(terms) <= named(section(NOTICES, f"### {source}")), source


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_the_notices_list_every_bundled_file(folder):
    rows = [row for row in NOTICES.read_text(encoding="utf-8").splitlines() if f"`{folder.relative_to(ROOT)}`" in row]
    listed = {name for row in rows for name in re.findall(r"`([\w.]+\.\w+)`", row)}
    assert listed == {path.name for path in folder.iterdir()} - {"README.md", "config.yaml"}


def test_the_notices_refer_to_every_text_of_a_licence_and_to_no_other():
    referred = set(re.findall(r"`(LICENSES/.+?)`", NOTICES.read_text(encoding="utf-8")))
    assert referred == {path.relative_to(ROOT).as_posix() for path in (ROOT / "LICENSES").iterdir()}


def test_the_apache_license_is_whole():
    published = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # LICENSE-2.0.txt of apache.org
    assert sha256((ROOT / "LICENSES" / "Apache-2.0.txt").read_bytes()).hexdigest() == published


def test_the_wheel_has_the_licence_the_notices_and_the_texts():
    (patterns,) = re.findall(r"^license-files = (.+)$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    files = {path for pattern in ast.literal_eval(patterns) for path in ROOT.glob(pattern)}
    assert files == {ROOT / "LICENSE", NOTICES, *(ROOT / "LICENSES").iterdir()}


def test_the_documents_name_the_terms_of_weights():
    readme = section(ROOT / "README.md", "## Licence")
    assert "(THIRD_PARTY_NOTICES.md)" in readme and "(docs/paper_commands.md#terms-of-published-weights)" in readme
    commands = ROOT / "docs" / "paper_commands.md"
    assert "CreativeML Open RAIL-M" in section(commands, "## Terms of published weights")
