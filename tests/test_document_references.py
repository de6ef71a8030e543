"""What the documents refer to exists: links, files, names, flags, and the rooms of the README."""

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

import pytest

from tests.markdown import ROOT, TEXTS, anchors, blocks, links, read, spans
from tests.test_imports import FLOW

ELSEWHERE = {"models/ldm/stable-diffusion-v1/model.ckpt"}  # files that users bring
FLAGS_ELSEWHERE = {"--choices", "--only", "--batch", "--init", "--devices", "--sizes"}  # of benchmarks and of training


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    for link in links(TEXTS[name]):
        file, _, anchor = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(read(target)), link


@pytest.mark.parametrize("name", TEXTS)
def test_files_exist(name):
    folders = "qdiff|ddim|ldm|diffusion|scripts|tests|docs|configs|models|benchmarks"
    for span in {*spans(TEXTS[name])} - ELSEWHERE:
        if re.fullmatch(rf"({folders})/[\w./*-]+", span):
            assert any(ROOT.glob(span)), span


def resolved(name: str) -> object:
    """Return what a dotted name means. Raises AttributeError if it means nothing."""
    parts = name.split(".")
    modules = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    module = next(m for m in modules if is_module(m))
    found = import_module(module)
    for part in parts[module.count(".") + 1 :]:
        found = getattr(found, part)
    return found


def is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


MOVED = re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", TEXTS["CHANGELOG.md"], re.MULTILINE)


@pytest.mark.parametrize("name", TEXTS)
def test_names_exist(name):
    for span in {*spans(TEXTS[name])} - {before for before, _ in MOVED}:
        if re.fullmatch(r"(qdiff|ddim|ldm|diffusion)(\.\w+)+", span):
            resolved(span)


def test_modules_moved_as_the_changelog_says():
    assert len(MOVED) > 20
    assert [before for before, _ in MOVED if is_module(before)] == []
    assert [now for _, now in MOVED if not is_module(now)] == []


def test_documents_that_are_read_first_are_short():
    assert len(TEXTS["README.md"].splitlines()) <= 150
    assert len(TEXTS["CONTRIBUTING.md"].splitlines()) <= 40


def tree() -> tuple[list[str], list[str]]:
    """Return the rooms of the README's architecture block: folders of the repository, and rooms of qdiff."""
    (block,) = [block for block in blocks(TEXTS["README.md"], "") if "qdiff/ " in block]
    names = [re.match(r"( *)(.+?)  ", line).groups() for line in block.splitlines()]
    return [name for indent, name in names if not indent], [n for i, names_ in names if i for n in names_.split(", ")]


def test_the_tree_is_that_of_the_repository():
    folders, rooms = tree()
    assert set(folders) == {f"{path.name}/" for path in ROOT.glob("[a-z]*") if any(path.glob("*.py"))}
    modules = {path.stem for path in (ROOT / "qdiff").glob("*.py")} - {"__init__"}
    packages = {f"{path.parent.name}/" for path in (ROOT / "qdiff").glob("*/__init__.py")}
    assert sorted(rooms) == sorted(modules | packages)


def test_each_line_of_the_tree_imports_only_lines_above_it():
    line = {room: i for i, rooms in enumerate(FLOW) for room in rooms}
    order = [line[room.rstrip("/")] for room in tree()[1]]
    assert order == sorted(order)


def flags() -> Iterator[tuple[str, str]]:
    for name, text in TEXTS.items():
        yield from ((name, span.split()[0]) for span in spans(text) if re.match("--?[a-z]", span))


def test_flags_exist():
    known = FLAGS_ELSEWHERE.union(
        *(re.findall(r"(?<!\S)--?\w[\w-]*", read(path)) for path in (ROOT / "docs" / "help").iterdir())
    )
    assert [(name, flag) for name, flag in flags() if flag not in known] == []
