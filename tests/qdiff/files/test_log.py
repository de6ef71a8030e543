import logging
from pathlib import Path

import pytest

from qdiff.files.log import logging_to


def log_all(path: Path, verbose: bool) -> list[str]:
    """Log some lines and return those of the file, without times."""
    logger = logging.getLogger("qdiff.some.module")
    with logging_to(path, verbose):
        logger.debug("tiny")
        logger.info("näws")
        logger.warning("careful")
    logger.warning("outside")
    return lines(path)


def lines(path: Path) -> list[str]:
    return [line.split(" ", 2)[2] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_log_is_continued_and_the_console_shows_warnings(tmp_path, capsys):
    assert log_all(tmp_path / "log", verbose=False) == ["INFO näws", "WARNING careful"]
    assert capsys.readouterr().err == "WARNING: careful\n"
    assert log_all(tmp_path / "log", verbose=True) == [
        *("INFO näws", "WARNING careful"),
        *("DEBUG tiny", "INFO näws", "WARNING careful"),
    ]
    assert capsys.readouterr().err == "DEBUG: tiny\nINFO: näws\nWARNING: careful\n"
    assert logging.getLogger("qdiff").handlers == []
    assert logging.getLogger("qdiff").level == logging.NOTSET


def test_bytes_of_a_path_that_are_no_text_are_escaped(tmp_path):
    with logging_to(tmp_path / "log", verbose=False):
        logging.getLogger("qdiff").info("%s", Path("日本/bad\udcff"))
    assert lines(tmp_path / "log") == [r"INFO 日本/bad\udcff"]


def test_a_log_tells_what_stopped_the_run(tmp_path):
    with pytest.raises(KeyError), logging_to(tmp_path / "log", verbose=False):
        raise KeyError("x")
    assert (tmp_path / "log").read_text().endswith("INFO stopped by KeyError: 'x'\n")
    assert logging.getLogger("qdiff").handlers == []
