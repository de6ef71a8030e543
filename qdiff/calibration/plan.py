"""What a calibration will take: blocks, sizes, memory, disk and time, known before it starts."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from qdiff.calibration.settings import CalibrationSettings
from qdiff.errors import UserError

BACKWARD = 2.0  # a backward pass takes about two forward passes
OPTIMIZER = 4  # alpha, its gradient and Adam's two moments: tensors like the weights of the block in work
GIB = 2**30
BATCH = "lower --cali_batch_size, or --cali_range_n"


@dataclass(frozen=True)
class BlockPlan:
    """One block, in numbers.

    Args:
        path: its name in the quantized model.
        weights: how many it has.
        sites: activation sites whose step is learned.
        sample_bytes: captured per sample.
        iteration_bytes: tensors alive at the peak of an iteration on a batch.
        seconds: of its forward on a batch.
        way: of the forward from the beginning of the network to its end.
        short_way: of that from behind the blocks that have been passed (see `qdiff.calibration.prefix_cache`).
    """

    path: str
    weights: int
    sites: int
    sample_bytes: int
    iteration_bytes: int
    seconds: float
    way: float
    short_way: float


@dataclass(frozen=True)
class Plan:
    """The cost of calibrating a network.

    Args:
        blocks: in the order in which they are reconstructed.
        samples: size of the calibration set.
        settings: of the calibration.
        forward_bytes: tensors alive at the peak of the network's largest forward.
        budget: bytes of memory for captured activations; files take what exceeds it.
        cached_samples: samples of which the outputs of finished blocks are kept (see `qdiff.calibration.prefix_cache`).
        cached_bytes: what is kept, at its peak.
        data_bytes: of the calibration set, which is in memory before the calibration starts.
    """

    blocks: list[BlockPlan]
    samples: int
    settings: CalibrationSettings
    forward_bytes: int
    budget: int = 0
    cached_samples: int = 0
    cached_bytes: int = 0
    data_bytes: int = 0

    @property
    def captured(self) -> int:
        """Bytes of the largest block's captured inputs and outputs."""
        return self.samples * max(self.blocks[i].sample_bytes for _, i in self.units) if self.units else 0

    @property
    def in_memory(self) -> int:
        """Bytes of them that memory may hold."""
        return min(self.captured, self.budget)

    @property
    def on_disk(self) -> int:
        """Bytes of them that files may take beyond the budget: no tensor is cut, so all of them."""
        return self.captured if self.captured > self.budget else 0

    @property
    def learning(self) -> int:
        """Bytes of the largest block's rounding variables with their optimiser."""
        return 4 * OPTIMIZER * max(b.weights for b in self.blocks) if self.settings.rounding else 0

    @property
    def working(self) -> int:
        """Bytes of tensors alive while a block is learned or the network runs, whichever takes more."""
        return max(self.forward_bytes, self.learning + max(b.iteration_bytes for b in self.blocks))

    def block_seconds(self, index: int, stage: str) -> float:
        """Estimated time of one block's reconstruction: capture on the way to it, then the iterations.

        The way is gone by the quantized and by the FP network.
        """
        schedule = self.settings.rounding if stage == "weights" else self.settings.steps
        size, block = self.settings.batch_size, self.blocks[index]
        whole, short = -(-(self.samples - self.cached_samples) // size), -(-self.cached_samples // size)
        capture = 2 * (whole * block.way + short * block.short_way)
        return capture + (1 + BACKWARD) * schedule.iterations * block.seconds

    @property
    def units(self) -> list[tuple[str, int]]:
        """(stage, block index) of everything that is reconstructed."""
        weights = [("weights", i) for i in range(len(self.blocks))] if self.settings.rounding else []
        steps = [("steps", i) for i, b in enumerate(self.blocks) if b.sites] if self.settings.steps else []
        return weights + steps

    @property
    def seconds(self) -> float:
        """Estimated time of the whole job."""
        return sum(self.block_seconds(i, stage) for stage, i in self.units)

    def check(self, folder: Path, free_on_gpu: int | None) -> None:
        """Refuse what cannot fit.

        Args:
            folder: where captured activations go that exceed the budget.
            free_on_gpu: bytes free on a GPU with memory of its own; None where the machine's memory is computed in.

        Raises:
            UserError: too little memory or disk, with the flag to change.
        """
        free, needed = psutil.virtual_memory().available, self.in_memory + self.cached_bytes
        if free_on_gpu is None:
            needed += self.working
        else:
            _require(self.working, free_on_gpu, "GPU memory", BATCH)
        _require(needed, free, "memory", BATCH if self.working > free else "lower --cali_memory, or --cali_n")
        disk = shutil.disk_usage(folder).free
        if self.on_disk > disk:
            raise UserError(
                f"captured activations need {self.on_disk / GIB:.1f} GiB on the disk of {folder}, "
                f"{disk / GIB:.1f} are free: raise --cali_memory, or lower --cali_n"
            )

    def table(self) -> str:
        """For people: a line a block, then the totals."""
        width = max(len(b.path) for b in self.blocks)
        rows = [f"{'block':{width}}  {'weights':>10}  {'captured':>10}  {'time':>8}"]
        for i, b in enumerate(self.blocks):
            seconds = sum(self.block_seconds(j, stage) for stage, j in self.units if j == i)
            captured = f"{self.samples * b.sample_bytes / 2**20:.1f} MiB"
            rows.append(f"{b.path:{width}}  {b.weights:>10,}  {captured:>10}  {clock(seconds):>8}")
        return "\n".join(
            [
                *rows,
                f"{len(self.blocks)} blocks, {self.samples} calibration samples",
                f"memory for calibration data: {self.data_bytes / GIB:.2f} GiB",
                f"memory for captured activations: {self.in_memory / GIB:.2f} GiB, "
                f"on disk up to {self.on_disk / GIB:.2f} GiB; for computing {self.working / GIB:.2f} GiB",
                f"memory for outputs of finished blocks: {self.cached_bytes / GIB:.2f} GiB, "
                f"those of {self.cached_samples} samples",
                f"estimated time: {clock(self.seconds)}",
            ]
        )


def default_budget(others: int) -> int:
    """Bytes for captured activations: half of what is free once others, as computing, have taken so many bytes."""
    return max(0, psutil.virtual_memory().available - others) // 2


def _require(needed: int, free: int, what: str, remedy: str) -> None:
    if needed > free:
        raise UserError(f"calibration needs {needed / GIB:.1f} GiB of {what}, {free / GIB:.1f} are free: {remedy}")


def clock(seconds: float) -> str:
    """h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
