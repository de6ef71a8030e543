"""Processes that share the learning of a calibration, one for each GPU or several on the CPU."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Thread
from typing import TYPE_CHECKING

import torch
from torch import multiprocessing

from qdiff.block_recon import Outcome
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.reporter import Reporter
from qdiff.calibration.settings import CalibrationSettings
from qdiff.errors import UserError
from qdiff.files.atomic import PARTIAL
from qdiff.files.journal import Journal
from qdiff.files.names import utf8_name
from qdiff.parallel import Shared
from qdiff.quant_model import QuantModel

if TYPE_CHECKING:
    from lightning_fabric import Fabric

RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")  # where and how processes meet


def check_devices(devices: int, settings: CalibrationSettings, device: torch.device) -> None:
    """Check that so many processes can share a calibration.

    Args:
        devices: processes, >= 1.
        settings: of the calibration.
        device: of the network; GPUs are counted from it.

    Raises:
        UserError: nothing is learned, the batch cannot be divided evenly, there are fewer GPUs, this is a prompt or
            notebook, from which processes cannot start, or a package is missing.
    """
    if devices == 1:
        return
    flag = f"--cali_devices {devices}"
    if not (settings.rounding or settings.steps):
        raise UserError(f"{flag}: only --quant_mode qdiff learns and has work to share: leave --cali_devices out")
    if settings.batch_size % devices:
        raise UserError(f"{flag} does not divide --cali_batch_size {settings.batch_size}: change one of them")
    if device.type != "cpu":
        count = torch.accelerator.device_count() - (device.index or 0)
        if devices > count:
            raise UserError(f"{flag} is more than the GPUs from --device {device} on, {count}: lower it")
    if hasattr(sys, "ps1"):
        raise UserError(f"{flag} starts processes, which a prompt or notebook cannot: run a script, or leave it out")
    try:
        import lightning_fabric  # noqa: F401
    except ImportError as e:
        raise UserError(f"{flag} needs a package ({e}): pip install 'qdiff[train]'") from e


def calibrate_shared(
    devices: int,
    model: QuantModel,
    data: CalibrationSet,
    settings: CalibrationSettings,
    journal: Journal,
    *,
    memory: int,
    reporter: Reporter,
) -> None:
    """Do a calibration in several processes. The results are in the journal, from which `calibrate` takes them.

    Args:
        devices: processes, see `check_devices`. On GPUs, the first one takes the model's, the others those that follow.
        model, data, settings, journal, reporter: see `calibrate`.
        memory: see there, for each process.

    Raises:
        UserError: as `calibrate`, or a process is killed.
        RuntimeError: the main script calls this where it is imported; see `torch.multiprocessing`.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    device = next(model.parameters()).device
    first = device.index or 0
    fabric = Fabric(
        accelerator=device.type,
        devices=devices if device.type == "cpu" else list(range(first, first + devices)),
        strategy="ddp_spawn",
        plugins=[LightningEnvironment()],  # these processes alone, also in a job of a cluster
    )
    job = _Job(model.cpu(), data, settings, journal, memory)  # its GPU has room for the first process now
    try:
        with _written(job) as file, _rendezvous_of_its_own(), _Listener(reporter) as listener:
            fabric.launch(partial(_work, file=file, events=listener.events))
    except multiprocessing.ProcessExitedException as e:
        raise UserError(
            f"--cali_devices {devices}: {e}; follow the messages above, or if there are none lower --cali_memory"
        ) from e
    finally:
        model.to(device)


@dataclass(frozen=True)
class _Job:
    model: QuantModel
    data: CalibrationSet
    settings: CalibrationSettings
    journal: Journal
    memory: int


@contextmanager
def _written(job: _Job) -> Iterator[Path]:
    """Yield a file of the job, which processes map: they share what none changes. Shared memory may be too small."""
    with NamedTemporaryFile(dir=job.journal.folder, suffix=PARTIAL) as file:
        torch.save(job, file)
        file.flush()
        yield Path(file.name)


@contextmanager
def _rendezvous_of_its_own() -> Iterator[None]:
    """Let processes started inside meet on this machine, at a free port, whatever torchrun set for this process."""
    before = {name: os.environ.pop(name) for name in RENDEZVOUS if name in os.environ}
    try:
        yield
    finally:
        for name in RENDEZVOUS:
            os.environ.pop(name, None)
        os.environ.update(before)


def _work(fabric: "Fabric", file: Path, events: SimpleQueue) -> None:
    """Do one process's part of a job."""
    try:
        with utf8_name(file) as name:
            job = torch.load(name, mmap=True, weights_only=False)  # this program wrote it, in `_written`
        calibrate(
            fabric.to_device(job.model),
            job.data,
            job.settings,
            job.journal,
            memory=job.memory,
            reporter=_Sender(events) if fabric.is_global_zero else None,
            parallel=Shared(fabric.device),
        )
    except Exception as error:
        events.put(error)
        raise


class _Sender(Reporter):
    """Sends progress to the process that started this one."""

    def __init__(self, events: SimpleQueue):
        self.events = events

    def start(self, block: str, stage: str) -> None:
        self.events.put(("start", block, stage))

    def advance(self, iterations: int) -> None:
        self.events.put(("advance", iterations))

    def finish(self, block: str, stage: str, outcome: Outcome, resumed: bool) -> None:
        self.events.put(("finish", block, stage, outcome, resumed))


class _Listener:
    """Passes on, inside, the progress that processes send. At the end it raises their first error, the cause of others.

    Attributes:
        events: where to send progress and errors.
    """

    def __init__(self, reporter: Reporter):
        self.reporter = reporter
        self.events: SimpleQueue = multiprocessing.get_context("spawn").SimpleQueue()
        self.errors: list[Exception] = []
        self.thread = Thread(target=self._listen)

    def __enter__(self) -> "_Listener":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.events.put(None)
        self.thread.join()
        if self.errors and kind in (None, multiprocessing.ProcessRaisedException):
            raise self.errors[0] from None

    def _listen(self) -> None:
        for event in iter(self.events.get, None):
            if isinstance(event, Exception):
                self.errors.append(event)
                continue
            name, *values = event
            try:
                getattr(self.reporter, name)(*values)
            except Exception as error:  # the processes must not wait for a reader that is gone
                self.errors.append(error)
