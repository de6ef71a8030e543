"""What a calibration will take: blocks, sizes, memory, disk and time, measured before it starts."""

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from qdiff.calibration import CalibrationSettings
from qdiff.errors import UserError
from qdiff.quant_block import QuantBlock
from qdiff.quant_model import QuantModel

BACKWARD = 2.0  # a backward pass takes about two forward passes
OPTIMIZER = 4  # alpha, its gradient and Adam's two moments: tensors like the weights of the block in work
GIB = 2**30


@dataclass(frozen=True)
class BlockPlan:
    """One block: numbers of weights and activation sites, bytes captured per sample, seconds per forward of a batch."""

    path: str
    weights: int
    sites: int
    sample_bytes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The cost of calibrating a network.

    Args:
        blocks: in the order in which they are reconstructed.
        samples: size of the calibration set.
        settings: of the calibration.
        forward: seconds of one forward of the network on a batch.
    """

    blocks: list[BlockPlan]
    samples: int
    settings: CalibrationSettings
    forward: float

    @property
    def captured(self) -> int:
        """Bytes of the largest block's captured inputs and outputs."""
        return self.samples * max(self.blocks[i].sample_bytes for _, i in self.units) if self.units else 0

    def on_disk(self, budget: int) -> int:
        """Bytes of them that files may take beyond a budget of memory: no tensor is cut, so all of them."""
        return self.captured if self.captured > budget else 0

    @property
    def learning(self) -> int:
        """Bytes of the largest block's rounding variables with their optimiser."""
        return 4 * OPTIMIZER * max(b.weights for b in self.blocks) if self.settings.rounding else 0

    def block_seconds(self, index: int, stage: str) -> float:
        """Estimated time of one block's reconstruction: capture on the way to it, then the iterations."""
        schedule = self.settings.rounding if stage == "weights" else self.settings.steps
        batches = -(-self.samples // self.settings.batch_size)
        way = sum(b.seconds for b in self.blocks[: index + 1])
        return 2 * batches * way + (1 + BACKWARD) * schedule.iterations * self.blocks[index].seconds

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

    def check(self, folder: Path, budget: int) -> None:
        """Refuse what cannot fit.

        Args:
            folder: where captured activations go that exceed the budget.
            budget: bytes of memory for captured activations.

        Raises:
            UserError: too little memory or disk, with the flag to change.
        """
        free = psutil.virtual_memory().available
        needed = min(self.captured, budget) + self.learning
        if needed > free:
            raise UserError(
                f"calibration needs {needed / GIB:.1f} GiB of memory, {free / GIB:.1f} are free: "
                "lower --cali_memory, or --cali_n"
            )
        disk = shutil.disk_usage(folder).free
        if self.on_disk(budget) > disk:
            raise UserError(
                f"captured activations need {self.on_disk(budget) / GIB:.1f} GiB on the disk of {folder}, "
                f"{disk / GIB:.1f} are free: raise --cali_memory, or lower --cali_n"
            )

    def table(self, budget: int) -> str:
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
                f"memory for captured activations: {min(self.captured, budget) / GIB:.2f} GiB, "
                f"on disk up to {self.on_disk(budget) / GIB:.2f} GiB; for learning {self.learning / GIB:.2f} GiB",
                f"estimated time: {clock(self.seconds)}",
            ]
        )


def clock(seconds: float) -> str:
    """h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def make_plan(model: QuantModel, batch: Sequence[Tensor], samples: int, settings: CalibrationSettings) -> Plan:
    """Measure one forward of a batch, block by block.

    Args:
        model: in evaluation mode.
        batch: inputs as in calibration, on the model's device.
        samples: size of the calibration set.
        settings: of the calibration.
    """
    started: dict[str, float] = {}
    measured: dict[str, tuple[int, float]] = {}

    def before(path: str):
        def hook(module, args):
            started[path] = time.perf_counter()

        return hook

    def after(path: str):
        def hook(module, args, output):
            size = sum(x.numel() * x.element_size() // len(x) for x in (*args, output))
            measured[path] = (size, time.perf_counter() - started[path])

        return hook

    blocks = model.blocks()
    with ExitStack() as hooks, torch.no_grad():
        model(*batch)  # the first forward also prepares kernels
        for block in blocks:
            hooks.callback(block.module.register_forward_pre_hook(before(block.path)).remove)
            hooks.callback(block.module.register_forward_hook(after(block.path)).remove)
        start = time.perf_counter()
        model(*batch)
        forward = time.perf_counter() - start
    plans = [_block_plan(block, *measured[block.path], scale=settings.batch_size / len(batch[0])) for block in blocks]
    return Plan(plans, samples, settings, forward * settings.batch_size / len(batch[0]))


def _block_plan(block: QuantBlock, sample_bytes: int, seconds: float, scale: float) -> BlockPlan:
    return BlockPlan(
        path=block.path,
        weights=sum(layer.codes.numel() for layer in block.layers.values()),
        sites=sum(site.spec.step_is_learned for site in block.sites),
        sample_bytes=sample_bytes,
        seconds=seconds * scale,
    )
