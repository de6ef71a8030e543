"""What a calibration will take, known before it starts: blocks, sizes, memory, disk and time."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from qdiff.calibration.settings import CalibrationSettings
from qdiff.errors import UserError

BACKWARD = 2.0  # a backward pass takes about two forward passes
ROUNDING = 6  # alpha, its gradient, two moments of Adam, and both neighbours: tensors the size of the weights
GIB = 2**30
BATCH = "lower --cali_batch_size, or --cali_range_n"


@dataclass(frozen=True)
class BlockPlan:
    """The cost of one block.

    Args:
        path: its name in the quantized model.
        weights: number of its weights.
        sites: number of activations in it whose step size is learned.
        sample_bytes: bytes captured per sample.
        iteration_bytes: peak bytes of the tensors of an iteration on a batch.
        seconds: time of its forward on a batch.
        prefix_seconds: time of a forward on a batch from the network's input through this block.
        cached_prefix_seconds: the same from behind the blocks in the prefix cache (`qdiff.calibration.prefix_cache`).
        layers: number of its layers.
        solve_seconds: time of quantizing its weights in closed form, besides its forwards.
        solve_bytes: peak bytes of tensors meanwhile.
    """

    path: str
    weights: int
    sites: int
    sample_bytes: int
    iteration_bytes: int
    seconds: float
    prefix_seconds: float
    cached_prefix_seconds: float
    layers: int = 1
    solve_seconds: float = 0.0
    solve_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """The cost of calibrating a network.

    Args:
        blocks: in the order in which they are reconstructed.
        samples: size of the calibration set.
        settings: of the calibration.
        forward_bytes: peak bytes of the tensors of the network's largest forward.
        budget: bytes of memory for captured activations; files take what exceeds it.
        cached_samples: samples for which the outputs of finished blocks are kept.
        cached_bytes: peak bytes of these outputs.
        data_bytes: bytes of the calibration set, which is in memory before the calibration starts.
        before: what is measured before -> the network calls, of one image each, that this takes.
        processes: that share the learning. Each captures all samples for itself: bytes and budget are those of one, and
            so are times, as if it learned alone.
    """

    blocks: list[BlockPlan]
    samples: int
    settings: CalibrationSettings
    forward_bytes: int
    budget: int = 0
    cached_samples: int = 0
    cached_bytes: int = 0
    data_bytes: int = 0
    before: Mapping[str, int] = field(default_factory=dict)
    processes: int = 1

    @property
    def captured_bytes(self) -> int:
        """Bytes of the largest block's captured inputs and outputs."""
        return self.samples * max(self.blocks[i].sample_bytes for _, i in self.units) if self.units else 0

    @property
    def in_memory_bytes(self) -> int:
        """Bytes of them that memory may hold."""
        return min(self.captured_bytes, self.budget)

    @property
    def on_disk_bytes(self) -> int:
        """Bytes of them that files may hold: all, because no tensor is divided between memory and a file."""
        return self.captured_bytes if self.captured_bytes > self.budget else 0

    @property
    def learning_bytes(self) -> int:
        """Bytes of the largest block's rounding variables with their optimizer."""
        return 4 * ROUNDING * max(b.weights for b in self.blocks) if self.settings.rounding else 0

    @property
    def working_bytes(self) -> int:
        """Peak bytes of tensors while a block is learned or the network runs, whichever takes more."""
        solving = max(b.iteration_bytes + b.solve_bytes for b in self.blocks)
        return max(self.forward_bytes, self.learning_bytes + max(b.iteration_bytes for b in self.blocks), solving)

    def iterations(self, stage: str) -> int:
        """Return the iterations per block of a stage: "weights" or "steps", or one of "solve" and "biases"."""
        if stage in ("solve", "biases"):
            return 1
        schedule = self.settings.rounding if stage == "weights" else self.settings.steps
        return schedule.iterations if schedule else 0

    def block_seconds(self, index: int, stage: str) -> float:
        """Return the estimated time of one block in a stage: two forwards up to it, then its own work.

        The quantized and the FP network each run up to the block once. To solve, the block runs once in full precision,
        and up to each of its layers; to correct biases, twice and once for each layer.
        """
        size, block = self.settings.batch_size, self.blocks[index]
        whole, cached = -(-(self.samples - self.cached_samples) // size), -(-self.cached_samples // size)
        capture = 2 * (whole * block.prefix_seconds + cached * block.cached_prefix_seconds)
        if stage == "solve":
            forwards = 1 + (block.layers + 1) / 2
            return capture + (whole + cached) * forwards * block.seconds + block.solve_seconds
        if stage == "biases":
            return capture + (whole + cached) * (2 + block.layers) * block.seconds
        return capture + (1 + BACKWARD) * self.iterations(stage) * block.seconds

    @property
    def units(self) -> list[tuple[str, int]]:
        """(stage, block index) of every part of the work."""
        solve = [("solve", i) for i in range(len(self.blocks))] if self.settings.closed_form else []
        weights = [("weights", i) for i in range(len(self.blocks))] if self.settings.rounding else []
        steps = [("steps", i) for i, b in enumerate(self.blocks) if b.sites] if self.settings.steps else []
        biases = [("biases", i) for i in range(len(self.blocks))] if self.settings.correct_bias else []
        return solve + weights + steps + biases

    @property
    def seconds(self) -> float:
        """Estimated time of the whole job, without what comes before."""
        return sum(self.block_seconds(i, stage) for stage, i in self.units)

    @property
    def seconds_before(self) -> float:
        """Estimated time of what comes before."""
        return self.forward_seconds(sum(self.before.values()))

    def forward_seconds(self, calls: int) -> float:
        """Return the estimated time of so many network calls, of one image each."""
        return calls * max(b.prefix_seconds for b in self.blocks) / self.settings.batch_size

    def check(self, folder: Path, free_on_gpu: int | None) -> None:
        """Refuse a calibration that does not fit.

        Args:
            folder: for captured activations that exceed the budget.
            free_on_gpu: bytes free on a GPU with its own memory; None if the network runs in the machine's memory.

        Raises:
            UserError: too little memory or disk, with the flag to change.
        """
        free, working = psutil.virtual_memory().available, self.processes * self.working_bytes
        needed = self.processes * (self.in_memory_bytes + self.cached_bytes)
        fewer = f", or --cali_devices {self.processes}" if self.processes > 1 else ""
        if free_on_gpu is None:
            needed += working
        else:
            _require(self.working_bytes, free_on_gpu, "GPU memory", BATCH)
        _require(needed, free, "memory", (BATCH if working > free else "lower --cali_memory, or --cali_n") + fewer)
        disk, on_disk = shutil.disk_usage(folder).free, self.processes * self.on_disk_bytes
        if on_disk > disk:
            raise UserError(
                f"captured activations need {on_disk / GIB:.1f} GiB on the disk of {folder}, "
                f"{disk / GIB:.1f} are free: raise --cali_memory, or lower --cali_n{fewer}"
            )

    def table(self) -> str:
        """Return a table for people: one line per block, then the totals."""
        width = max(len(b.path) for b in self.blocks)
        rows = [f"{'block':{width}}  {'weights':>10}  {'captured':>10}  {'time':>8}"]
        for i, b in enumerate(self.blocks):
            seconds = sum(self.block_seconds(j, stage) for stage, j in self.units if j == i)
            captured = f"{self.samples * b.sample_bytes / 2**20:.1f} MiB"
            rows.append(f"{b.path:{width}}  {b.weights:>10,}  {captured:>10}  {format_duration(seconds):>8}")
        return "\n".join(
            [
                *rows,
                f"{len(self.blocks)} blocks, {self.samples} calibration samples",
                *self._processes_line(),
                f"memory for calibration data: {self.data_bytes / GIB:.2f} GiB",
                f"memory for captured activations: {self.in_memory_bytes / GIB:.2f} GiB, "
                f"on disk up to {self.on_disk_bytes / GIB:.2f} GiB; for computing {self.working_bytes / GIB:.2f} GiB",
                f"memory for outputs of finished blocks: {self.cached_bytes / GIB:.2f} GiB, "
                f"for {self.cached_samples} samples",
                *self._lines_before(),
                f"estimated time: {format_duration(self.seconds)}",
            ]
        )

    def _processes_line(self) -> list[str]:
        if self.processes == 1:
            return []
        return [
            f"{self.processes} processes share the learning; each takes what is said below of activations, computing "
            "and outputs, and the time is that of a single one"
        ]

    def _lines_before(self) -> list[str]:
        return [
            f"{what}, before: {calls:,} network calls, {format_duration(self.forward_seconds(calls))}"
            for what, calls in self.before.items()
        ]


def default_budget(reserved: int) -> int:
    """Return the bytes for captured activations: half of the free memory left after `reserved` bytes."""
    return max(0, psutil.virtual_memory().available - reserved) // 2


def _require(needed: int, free: int, what: str, remedy: str) -> None:
    if needed > free:
        raise UserError(f"calibration needs {needed / GIB:.1f} GiB of {what}, {free / GIB:.1f} are free: {remedy}")


def format_duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
