import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from qdiff.errors import UserError
from qdiff.files import atomic
from qdiff.run_folder import RunFolder
from qdiff.sampling import sample_images

CONFIG = {
    "config": Path("configs/emoji32.yml"),
    "seed": 1234,
    "cali_lr": 4e-4,
    "eta": 0.0,
    "split": True,
    "cali_ckpt": None,
    "batch_size": 64,
    "classes": (0, 207),
    "model": {"ch": 32, "ch_mult": [1, 2, 4], "loss": {}, "name": "Smileys & Emotion: 🍎"},
}
FREE = ("batch_size", "model.name")


def settle(path: Path, config: dict, **options) -> None:
    with RunFolder.open(path, **options) as run:
        run.settle(config, FREE)


def refused(path: Path, config: dict, **options) -> str:
    """The one line with which a run is refused."""
    with pytest.raises(UserError) as caught:
        settle(path, config, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_yaml(config: dict) -> dict:
    """What reading the file gives: no path and no tuple."""
    return {**config, "config": str(config["config"]), "classes": list(config["classes"])}


def changed(name: str, value: object) -> dict:
    if name.startswith("model."):
        return {**CONFIG, "model": {**CONFIG["model"], name.removeprefix("model."): value}}
    return {**CONFIG, name: value}


def test_configuration_is_kept_and_the_same_command_goes_on(tmp_path):
    path = tmp_path / "new" / "run"
    settle(path, CONFIG)
    text = (path / "config.yaml").read_text(encoding="utf-8")
    plain = as_yaml(CONFIG)
    assert yaml.safe_load(text) == plain
    assert list(yaml.safe_load(text)) == list(CONFIG)
    settle(path, CONFIG)
    settle(path, plain)
    assert (path / "config.yaml").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("name", "value", "before", "now"),
    [
        ("seed", 41, "1234", "41"),
        ("eta", 0.5, "0.0", "0.5"),
        ("cali_ckpt", Path("a.pth"), "None", "'a.pth'"),
        ("config", "two\nlines", "'configs/emoji32.yml'", r"'two\\nlines'"),
        ("classes", [0], r"\[0, 207\]", r"\[0\]"),
        ("model.ch_mult", [1, 2], r"\[1, 2, 4\]", r"\[1, 2\]"),
        ("model.loss", {"p": 2}, "{}", "nothing"),
    ],
)
def test_another_setting_is_refused_by_name(name, value, before, now, tmp_path):
    settle(tmp_path, CONFIG)
    text = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=rf"'{tmp_path}' .*\b{name} was {before} and is {now} now.* with --outdir$"):
        settle(tmp_path, changed(name, value), flag="--outdir")
    assert (tmp_path / "config.yaml").read_bytes() == text


def test_every_changed_setting_is_named(tmp_path):
    settle(tmp_path, CONFIG)
    less = {k: v for k, v in changed("seed", 0).items() if k != "split"} | {"dpm_order": 3}
    line = refused(tmp_path, less)
    for part in (
        "seed was 1234 and is 0 now",
        "split was True and is nothing now",
        "dpm_order was nothing and is 3 now",
    ):
        assert part in line
    assert "another folder with -l" in line and "eta" not in line


@pytest.mark.parametrize(("name", "value"), [("batch_size", 8), ("model.name", "x")])
def test_a_setting_that_changes_no_result_may_change(name, value, tmp_path):
    settle(tmp_path, CONFIG)
    settle(tmp_path, changed(name, value))
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert stored == as_yaml(changed(name, value))


@pytest.mark.parametrize("content", [b"a: [1", b"- 1\n", b"", b"\xff\xfe\x00", b"!!python/object/apply:os.getcwd []"])
def test_a_foreign_config_is_refused_and_kept(content, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content)
    assert f"'{tmp_path}/config.yaml' is not the configuration of a run" in refused(tmp_path, CONFIG)
    assert (tmp_path / "config.yaml").read_bytes() == content


def test_pictures_of_unknown_origin_are_refused(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "000000.png").write_bytes(b"")
    assert "no config.yaml says how they were made" in refused(tmp_path, CONFIG)
    assert not (tmp_path / "config.yaml").exists()


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / f"config.yaml.4711{atomic.PARTIAL}").write_text("half")
    settle(tmp_path, CONFIG)
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.yaml", "log.txt"]


# A second process


HOLD = """
import sys
from qdiff.run_folder import RunFolder
with RunFolder.open(sys.argv[1]):
    print("in", flush=True)
    input()
"""


def test_one_process_at_a_time(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        log = (tmp_path / "log.txt").read_bytes()
        line = refused(tmp_path, CONFIG)
        assert f"another process works in '{tmp_path}'" in line and "another folder with -l" in line
        assert not (tmp_path / "config.yaml").exists()
        assert (tmp_path / "log.txt").read_bytes() == log
        other.send_signal(signal.SIGKILL)
    settle(tmp_path, CONFIG)


def test_the_lock_is_given_back_whatever_happens(tmp_path):
    for error in (UserError("x"), KeyboardInterrupt(), ZeroDivisionError()):
        with pytest.raises(type(error)), RunFolder.open(tmp_path):
            raise error
    with RunFolder.open(tmp_path):
        pass


# Folders and disks that refuse


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        line = refused(path, CONFIG, flag="--outdir")
        assert line.startswith(f"cannot use '{path}' (") and line.endswith("another folder with --outdir")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_too_long(tmp_path):
    assert "File name too long" in refused(tmp_path / ("x" * 300), CONFIG)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused(tmp_path / "run", CONFIG)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_what_the_system_forbids_inside(number, tmp_path):
    line = r"^cannot use '/x/y' \(.*\): give another folder with -l$"
    with pytest.raises(UserError, match=line), RunFolder.open(tmp_path):
        raise OSError(number, os.strerror(number), "/x/y")


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), RunFolder.open(tmp_path):
        (tmp_path / "missing").read_bytes()


full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")


@full_disk
def test_a_full_disk_is_one_line_and_leaves_nothing_half(tmp_path):
    def draw(indices):
        if indices == [2]:
            partial = tmp_path / "img" / f"000002.png.{os.getpid()}{atomic.PARTIAL}"
            partial.symlink_to("/dev/full")
        yield torch.zeros(len(indices), 3, 4, 4)

    line = rf"^no space left to write '{tmp_path}': free some.*same command.*$"
    with pytest.raises(UserError, match=line), RunFolder.open(tmp_path) as run:
        run.settle(CONFIG)
        sample_images(draw, range(4), run.images, 1)
    assert sorted(os.listdir(tmp_path / "img")) == ["000000.png", "000001.png"]


@full_disk
def test_a_log_on_a_full_disk_is_the_same_line(tmp_path, capfd):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(UserError, match="no space left"), RunFolder.open(tmp_path):
        logging.getLogger("qdiff.sampling").info("hello")
    assert capfd.readouterr() == ("", "")
    (tmp_path / "log.txt").unlink()
    settle(tmp_path, CONFIG)


# The log


def log_all(path: Path, verbose: bool) -> list[str]:
    logger = logging.getLogger("qdiff.some.module")
    with RunFolder.open(path, verbose=verbose):
        logger.debug("tiny")
        logger.info("näws")
        logger.warning("careful")
    logger.warning("outside")
    return [line.split(" ", 2)[2] for line in (path / "log.txt").read_text(encoding="utf-8").splitlines()]


def test_log_is_continued_and_the_console_shows_warnings(tmp_path, capsys):
    assert log_all(tmp_path, verbose=False) == ["INFO näws", "WARNING careful"]
    assert capsys.readouterr().err == "WARNING: careful\n"
    assert log_all(tmp_path, verbose=True) == [
        *("INFO näws", "WARNING careful"),
        *("DEBUG tiny", "INFO näws", "WARNING careful"),
    ]
    assert capsys.readouterr().err == "DEBUG: tiny\nINFO: näws\nWARNING: careful\n"
    assert logging.getLogger("qdiff").handlers == []
    assert logging.getLogger("qdiff").level == logging.NOTSET


def test_log_tells_what_stopped_the_run(tmp_path):
    with pytest.raises(UserError), RunFolder.open(tmp_path):
        raise UserError("image 3 is not finite")
    assert (tmp_path / "log.txt").read_text().endswith("INFO stopped by UserError: image 3 is not finite\n")
