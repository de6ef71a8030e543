"""Runs that two processes share, compared byte for byte with those of one."""

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import pytest
import torch
from tqdm import tqdm

from qdiff.calibration import measure
from qdiff.files.images import write_image
from qdiff.sampling import folder_lock, images
from tests.command_line import Ended, qdiff
from tests.processes import forkserver
from tests.qdiff.cli.test_reproduce import table_of
from tests.tiny import sample_script, write_tiny

COUNT = 11  # images, of which the last batch of 2 lacks one
STEPS = 4


def _slow(*args: object) -> None:
    time.sleep(0.1)
    write_image(*args)


def _as_rank(rank: int, size: int, program: str, words: Sequence[object], ended: Path, slow: bool, away: float) -> None:
    """Run a command line as torchrun does, on one thread; write how it ended."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # not one of several processes, which kills would leak
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    folder_lock.AWAY, folder_lock.QUIET = away, 0
    if slow:
        images.write_image = _slow
    with mock.patch.object(measure, "_iteration_bytes", return_value=0):
        found = {"sample": sample_script, "qdiff": qdiff}[program](*words)
    ended.write_text(json.dumps(found))


class Job:
    """Processes that run the same command line, as ranks."""

    def __init__(
        self, folder: Path, size: int, *words: object, program: str = "sample", slow: bool = False, away: float = 60
    ):
        self.folder, self.size, self.words = folder, size, words
        self.program, self.slow, self.away = program, slow, away

    def start(self, rank: int) -> BaseProcess:
        ended = self.folder / f"ended{rank}"
        arguments = (rank, self.size, self.program, self.words, ended, self.slow, self.away)
        process = forkserver().Process(target=_as_rank, args=arguments)
        process.start()
        return process

    def ended(self, rank: int, process: BaseProcess) -> Ended:
        process.join(100)
        assert process.exitcode == 0
        return Ended(*json.loads((self.folder / f"ended{rank}").read_text()))

    def run(self) -> list[Ended]:
        """Run all ranks, the last one first; how they ended."""
        processes = {rank: self.start(rank) for rank in reversed(range(self.size))}
        return [self.ended(rank, processes[rank]) for rank in range(self.size)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"))


def words(model: Path, folder: Path, *more: object) -> list[object]:
    sampling = ("--timesteps", STEPS, "--max_images", COUNT, "--batch_size", 2, "--device", "cpu")
    return ["--config", model, *sampling, *more, "-l", folder]


def run_of(folder: Path) -> dict[str, bytes]:
    """Files of a run, without the times and folders that differ between runs."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    kept = [path for path in paths if not path.name.startswith(("log", "config.yaml"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


CALIBRATED = ("--ptq", "--quant_mode", "linear", "--weight_bit", 4, "--quant_act", "--cali_st", 2, "--cali_n", 4)


@pytest.fixture(scope="module", params=[(), CALIBRATED], ids=["full precision", "calibrated"])
def single(request, model, tmp_path_factory) -> tuple[list[object], dict[str, bytes]]:
    """Arguments of a run, and the files that one process makes with them."""
    folder = tmp_path_factory.mktemp("single")
    [ended] = Job(folder, 1, *words(model, folder / "run", *request.param)).run()
    assert ended.status == 0, ended.err
    return request.param, run_of(folder / "run")


def test_two_processes_make_what_one_makes(single, model, tmp_path):
    more, expected = single
    first, second = Job(tmp_path, 2, *words(model, tmp_path / "run", *more)).run()
    assert first.status == second.status == 0, first.err + second.err
    assert run_of(tmp_path / "run") == expected
    assert f"{COUNT} images in {tmp_path}/run/img" in first.out and second.out == ""
    logs = [(tmp_path / "run" / name).read_text() for name in ("log.txt", "log_rank1.txt")]
    assert ["calibrated before" in log for log in logs] == [False, bool(more)]
    made = [int(log.rpartition("all images exist, ")[2].split()[0]) for log in logs]
    assert sum(made) == COUNT


def test_one_of_two_processes_is_killed_and_started_again(single, model, tmp_path):
    more, expected = single
    run, job = tmp_path / "run", Job(tmp_path, 2, *words(model, tmp_path / "run", *more), slow=True)
    processes = [job.start(0), job.start(1)]
    log = run / "log_rank1.txt"
    while not (log.exists() and f"of {COUNT} images exist" in log.read_text()):
        time.sleep(0.01)
    time.sleep(0.25)
    processes[1].kill()
    processes[1].join()
    assert processes[1].exitcode == -signal.SIGKILL
    there = {name: data for name, data in run_of(run).items() if name.endswith(".png")}
    assert there.items() <= expected.items() and len(there) < COUNT, "killed too late to test anything"
    processes[1] = job.start(1)
    ended = [job.ended(rank, process) for rank, process in enumerate(processes)]
    assert [end.status for end in ended] == [0, 0]
    assert run_of(run) == expected


def test_the_others_go_on_without_a_process_that_is_killed(single, model, tmp_path):
    more, expected = single
    run, job = tmp_path / "run", Job(tmp_path, 2, *words(model, tmp_path / "run", *more), slow=True)
    processes = [job.start(0), job.start(1)]
    while not any((run / "img").glob("*.png")):
        time.sleep(0.01)
    processes[0].kill()
    assert job.ended(1, processes[1]).status == 0
    made = {name: data for name, data in run_of(run).items() if not name.endswith(".partial")}
    assert made == {name: data for name, data in expected.items() if name != "grid.png"}
    assert job.ended(0, job.start(0)).status == 0
    assert run_of(run) == expected


def test_more_processes_than_images(model, tmp_path):
    ended = Job(tmp_path, 3, *words(model, tmp_path / "run", "--max_images", 1)).run()
    assert [end.status for end in ended] == [0, 0, 0]
    assert set(run_of(tmp_path / "run")) == {"img/000000.png", "grid.png"}


def test_if_the_first_process_cannot_calibrate_the_others_end(model, tmp_path):
    data = tmp_path / "data.pt"
    torch.save((torch.zeros(4, 3, 9, 9), torch.zeros(4)), data)
    more = (*CALIBRATED, "--cali_data_path", data)
    job = Job(tmp_path, 2, *words(model, tmp_path / "run", *more), away=1)
    processes = [job.start(0), job.start(1)]
    first, second = (job.ended(rank, process) for rank, process in enumerate(processes))
    assert first.status == second.status == 2
    assert first.err.startswith("error: ") and str(data) in first.err and first.err.count("\n") == 1
    waited, line = second.err.splitlines(keepends=True)[-2:]
    assert waited == f"WARNING: rank 1 waits for rank 0 to write '{tmp_path}/run/quantized.safetensors'\n"
    assert line == (
        f"error: rank 0 is not using '{tmp_path}/run' and has not written 'quantized.safetensors': see its output, "
        "and start all ranks again\n"
    )


def test_another_job_and_a_single_process_are_refused(model, tmp_path):
    job = Job(tmp_path, 2, *words(model, tmp_path / "run"), slow=True)
    process = job.start(1)
    while not (tmp_path / "run" / "log_rank1.txt").exists():
        time.sleep(0.01)
    for rank, size in ((1, 3), (0, 1)):
        (tmp_path / str(rank)).mkdir()
        other = Job(tmp_path / str(rank), size, *job.words)
        ended = other.ended(rank, other.start(rank))
        assert (ended.status, ended.err.partition(":")[2]) == (2, ended.err.removeprefix("error:"))
        assert f"another process is using '{tmp_path}/run'" in ended.err
    assert [job.ended(0, job.start(0)).status, job.ended(1, process).status] == [0, 0]


def test_nonsense_in_the_environment_is_one_line(model, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for ended in (sample_script(*words(model, tmp_path / "run")), qdiff("reproduce", "emoji32", "--dry-run")):
        assert (ended.status, ended.out) == (2, "")
        assert ended.err.startswith("error: RANK in the environment is '3'") and ended.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_first_process_alone_shows_a_plan(model, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert sample_script(*words(model, tmp_path / "run", "--dry_run")) == Ended(0, "", "")
    monkeypatch.setenv("RANK", "0")
    assert f"sampling: {COUNT} images" in sample_script(*words(model, tmp_path / "run", "--dry_run")).out


def test_processes_share_the_rows_of_a_table(tmp_path):
    presets = table_of(tmp_path)
    command = partial(Job, program="qdiff")
    runs = []
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        options = ("--presets", presets, "--out", folder / "out", "--device", "cpu")
        ended = command(folder, size, "reproduce", "mine", *options).run()
        assert [end.status for end in ended] == [0] * size, ended
        assert "written: " in ended[0].out
        told = [line for end in ended[1:] for line in end.out.splitlines() if line.strip()]
        assert all(line.strip().startswith("WARNING: rank 1 waits for rank 0") for line in told), told
        runs.append({**run_of(folder / "out" / "mine" / "fp"), **run_of(folder / "out" / "mine" / "linear")})
        assert (folder / "out" / "mine" / "table.csv").exists()
    assert runs[0] == runs[1]
