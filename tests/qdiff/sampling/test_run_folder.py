import errno
import logging
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from qdiff.errors import UserError
from qdiff.files import atomic
from qdiff.sampling.images import sample_images
from qdiff.sampling.rank import ALONE, Rank
from qdiff.sampling.run_folder import RunFolder

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
RESUMABLE = ("batch_size", "model.name")


def record(path: Path, config: dict, **options) -> None:
    with RunFolder.open(path, **options) as run:
        run.record_config(config, RESUMABLE)


def refused(path: Path, config: dict, **options) -> str:
    """Return the one line with which a run is refused."""
    with pytest.raises(UserError) as caught:
        record(path, config, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_yaml(config: dict) -> dict:
    """Return the configuration as YAML holds it: without paths and tuples."""
    return {**config, "config": str(config["config"]), "classes": list(config["classes"])}


def changed(name: str, value: object) -> dict:
    if name.startswith("model."):
        return {**CONFIG, "model": {**CONFIG["model"], name.removeprefix("model."): value}}
    return {**CONFIG, name: value}


def test_configuration_is_recorded_and_the_same_command_continues(tmp_path):
    path = tmp_path / "new" / "run"
    record(path, CONFIG)
    text = (path / "config.yaml").read_text(encoding="utf-8")
    plain = as_yaml(CONFIG)
    assert yaml.safe_load(text) == plain
    assert list(yaml.safe_load(text)) == list(CONFIG)
    record(path, CONFIG)
    record(path, plain)
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
    record(tmp_path, CONFIG)
    text = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=rf"'{tmp_path}' .*\b{name} was {before} and is {now} now.* with --outdir$"):
        record(tmp_path, changed(name, value), flag="--outdir")
    assert (tmp_path / "config.yaml").read_bytes() == text


def test_every_changed_setting_is_named_where_they_are_few(tmp_path):
    record(tmp_path, CONFIG)
    less = {k: v for k, v in changed("seed", 0).items() if k != "split"} | {"dpm_order": 3}
    line = refused(tmp_path, less)
    for part in (
        "seed was 1234 and is 0 now",
        "split was True and is nothing now",
        "dpm_order was nothing and is 3 now",
    ):
        assert part in line
    assert "another folder with -l" in line and "eta" not in line


STORY = "a painting of a very small red apple that lies on a table in an old house "


def test_many_and_long_changes_are_one_short_line(tmp_path):
    before = {"config": {f"key{i}": i for i in range(200)}, "flags": {"prompt": STORY * 9 + "at night", "old": 1}}
    record(tmp_path, {"flags": before["flags"], "config": before["config"]})
    now = {"flags": {"prompt": STORY * 9 + "by day", "seed": 2}, "config": {f"key{i}": -i for i in range(1, 300)}}
    line = refused(tmp_path, now)
    assert "flags.prompt was ...d house at night' and is ...d house by day' now" in line
    assert "flags.old was 1 and is nothing now, flags.seed was nothing and is 2 now" in line, "before the configuration"
    assert re.search(r"now and \d+ more; change that back", line) and len(line) - len(str(tmp_path)) < 260
    only = refused(tmp_path, {"flags": before["flags"], "config": {"k" * 200: STORY}})
    assert "config.key0 was 0 and is nothing now" in only and len(only) - len(str(tmp_path)) < 300
    listed, more = re.search(r"run: (.*) and (\d+) more", only).groups()
    assert listed.count(" was ") + int(more) == 201


def test_one_change_is_named_however_long_it_is(tmp_path):
    record(tmp_path, {"k" * 200: 1})
    assert f"{'k' * 200} was 1 and is 2 now; change" in refused(tmp_path, {"k" * 200: 2})


@pytest.mark.parametrize("path", ["o/日本", "o/bad\udcff"])
def test_any_file_name_is_recorded_and_recognised(path, tmp_path):
    config = {"logdir": Path(path), "prompt": path, "nested": {path: [path]}}
    record(tmp_path / path, config)
    record(tmp_path / path, config)
    assert yaml.safe_load((tmp_path / path / "config.yaml").read_text(encoding="utf-8"))["logdir"] == path
    assert f"prompt was {path!r} and is 1 now" in refused(tmp_path / path, {**config, "prompt": 1})


@pytest.mark.parametrize(("name", "value"), [("batch_size", 8), ("model.name", "x")])
def test_a_setting_that_changes_no_result_may_change(name, value, tmp_path):
    record(tmp_path, CONFIG)
    record(tmp_path, changed(name, value))
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert stored == as_yaml(changed(name, value))


@pytest.mark.parametrize("content", [b"a: [1", b"- 1\n", b"", b"\xff\xfe\x00", b"!!python/object/apply:os.getcwd []"])
def test_a_foreign_config_is_refused_and_kept(content, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content)
    assert f"'{tmp_path}/config.yaml' is not the configuration of a run" in refused(tmp_path, CONFIG)
    assert (tmp_path / "config.yaml").read_bytes() == content


def test_images_of_unknown_origin_are_refused(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "000000.png").write_bytes(b"")
    assert "no config.yaml says how they were made" in refused(tmp_path, CONFIG)
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize(
    ("rank", "kept"), [(ALONE, []), (Rank(0, 2), ["image"]), (Rank(1, 2), ["image", "config.yaml"])]
)
def test_leftovers_of_a_killed_process_are_removed(rank, kept, tmp_path):
    """Where no other process can be writing them."""
    leftovers = {"config.yaml": tmp_path / f"config.yaml.4711{atomic.PARTIAL}"}
    leftovers["image"] = tmp_path / "img" / f"000001.png.4711{atomic.PARTIAL}"
    (tmp_path / "img").mkdir()
    for leftover in leftovers.values():
        leftover.write_text("half")
    with RunFolder.open(tmp_path, rank=rank):
        assert [name for name in ("image", "config.yaml") if leftovers[name].exists()] == kept


def test_the_first_rank_records_the_configuration_and_the_others_compare(tmp_path):
    record(tmp_path, CONFIG, rank=Rank(0, 2))
    before = (tmp_path / "config.yaml").stat().st_mtime_ns
    record(tmp_path, changed("batch_size", 8), rank=Rank(1, 2))
    assert "seed was 1234 and is 41 now" in refused(tmp_path, changed("seed", 41), rank=Rank(1, 2))
    assert (tmp_path / "config.yaml").stat().st_mtime_ns == before
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.yaml", "log.txt", "log_rank1.txt"]
    assert "stopped by UserError" not in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "log_rank1.txt").read_text().count("stopped by UserError") == 1


# A second process


HOLD = """
import sys
from qdiff.sampling.run_folder import RunFolder
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
        assert f"another process is using '{tmp_path}'" in line and "another folder with -l" in line
        assert not (tmp_path / "config.yaml").exists()
        assert (tmp_path / "log.txt").read_bytes() == log
        other.send_signal(signal.SIGKILL)
    record(tmp_path, CONFIG)


def test_the_lock_is_released_whatever_happens(tmp_path):
    for error in (UserError("x"), KeyboardInterrupt(), ZeroDivisionError()):
        with pytest.raises(type(error)), RunFolder.open(tmp_path):
            raise error
    with RunFolder.open(tmp_path):
        pass


# Folders and disks that refuse


def test_a_file_is_not_a_folder(tmp_path):
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


def test_a_place_without_files():
    line = refused(Path("/proc/run"), CONFIG)
    assert line == (
        "cannot use '/proc/run' (No such file or directory): check that it exists, then the same command continues; or "
        "give another folder with -l"
    )


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ESTALE])
def test_a_disk_without_locks(number, tmp_path, monkeypatch):
    def lockf(*_args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", lockf)
    line = refused(tmp_path, CONFIG)
    assert line.startswith(f"cannot use '{tmp_path}/.lock' ({os.strerror(number)}): ") and "another folder" in line
    assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_the_system_refuses_inside(number, tmp_path):
    line = r"^cannot use '/x/y' \(.*\): .*give another folder with --outdir$"
    with pytest.raises(UserError, match=line), RunFolder.open(tmp_path, flag="--outdir"):
        raise OSError(number, os.strerror(number), "/x/y")


LIMITED = """
import resource, sys, torch
from qdiff.cli.parser import run
from qdiff.files.images import write_image
from qdiff.sampling.run_folder import RunFolder
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
def main():
    with RunFolder.open(sys.argv[1]) as folder:
        pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
        write_image(folder.image_dir / "000000.png", pixels[:, :8, :8])
        write_image(folder.image_dir / "000001.png", pixels)
run(main)
"""
TOO_LARGE = "(File too large): raise the limit (`ulimit -f`, or that of the disk), then the same command continues; or"


def test_an_image_that_grows_too_large_is_one_line_and_leaves_nothing_half(tmp_path):
    words = [sys.executable, "-c", LIMITED, tmp_path]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    line = f"error: cannot use '{tmp_path}/img/000001.png' {TOO_LARGE} give another folder with -l\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", line)
    assert os.listdir(tmp_path / "img") == ["000000.png"]


def test_a_log_that_grows_too_large_is_the_same_line(tmp_path, capfd):
    (tmp_path / "log.txt").write_bytes(bytes(4096))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError) as caught, RunFolder.open(tmp_path):
            logging.getLogger("qdiff.sampling.images").info("hello")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(f"cannot use '{tmp_path}/log.txt' {TOO_LARGE}")
    assert capfd.readouterr() == ("", "")


full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")


@full_disk
def test_a_full_disk_is_one_line_and_leaves_nothing_half(tmp_path):
    def sample(indices):
        if indices == [2]:
            partial = tmp_path / "img" / f"000002.png.{os.getpid()}{atomic.PARTIAL}"
            partial.symlink_to("/dev/full")
        yield torch.zeros(len(indices), 3, 4, 4)

    line = rf"^cannot use '{tmp_path}/img/000002.png' \(No space left on device\): free some space, then the same"
    with pytest.raises(UserError, match=line), RunFolder.open(tmp_path) as run:
        run.record_config(CONFIG)
        sample_images(sample, range(4), run.image_dir, (3, 4, 4), 1)
    assert sorted(os.listdir(tmp_path / "img")) == ["000000.png", "000001.png"]


@full_disk
def test_a_log_on_a_full_disk_is_the_same_line(tmp_path, capfd):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"log.txt' \(No space left on device\): free"), RunFolder.open(tmp_path):
        logging.getLogger("qdiff.sampling.images").info("hello")
    assert capfd.readouterr() == ("", "")
    (tmp_path / "log.txt").unlink()
    record(tmp_path, CONFIG)


def test_the_log_records_what_stopped_the_run(tmp_path):
    with pytest.raises(UserError), RunFolder.open(tmp_path):
        raise UserError("image 3 is not finite")
    assert (tmp_path / "log.txt").read_text().endswith("INFO stopped by UserError: image 3 is not finite\n")
