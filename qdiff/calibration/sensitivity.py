"""Measures the sensitivity spectrum: samples images again with an error in one prediction of the network."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.steps import Correction, uncorrected
from qdiff.calibration.collect import SamplerStep
from qdiff.files.journal import Journal
from qdiff.spectrum import GRIDS, Spectrum

ERROR = 0.02  # standard deviation of the error, in relation to the noise that the network predicts
BASELINE = "baseline"

Trajectory = Callable[[Sequence[int], Correction, Sequence[Tensor]], Iterable[SamplerStep]]
"""`trajectory(images, correct, known)` samples images by their indices, which may repeat; `correct` changes each
prediction; `known` are the first predictions, (B, ...), which need no network."""


def measured_calls(calls: int) -> list[int]:
    """Return the network calls at which sensitivity is measured, of so many: 0, 4, 16, 64, ... and the last."""
    powers = [0, *(4**i for i in range(1, calls.bit_length()))]
    return sorted({i for i in powers if i < calls} | {calls - 1})


def perturbed_calls(calls: int) -> int:
    """Return the network calls an image that a measurement takes, that of the images themselves included."""
    return calls + len(GRIDS) * sum(calls - 1 - i for i in measured_calls(calls))


def measure_spectrum(
    trajectory: Trajectory,
    calls: int,
    images: int,
    journal: Journal,
    generator: Callable[[int], torch.Generator],
    progress: Callable[[int], object] = lambda calls: None,
) -> Spectrum:
    """Measure how far the result of a sampler moves when one of its predictions is off.

    Args:
        trajectory: samples with the network in full precision, guidance included.
        calls: network calls per image.
        images: number of images, >= 1.
        journal: finished measurements; those of an earlier run are taken from it.
        generator: number of a network call -> CPU generator of the errors there.
        progress: called with the number of network calls done, one image each.
    """
    indices = range(images)
    steps = _baseline(trajectory, indices, journal, lambda: progress(images))
    found: dict[float, list[float]] = {}
    for i in measured_calls(calls):
        recorded = journal.read(f"sensitivity-{i:04d}")
        if recorded:
            values = recorded[0]["values"]
        else:
            values = _sensitivities(trajectory, indices, i, steps, generator(i))
            journal.write(f"sensitivity-{i:04d}", {"values": values})
        progress(len(GRIDS) * images * (calls - 1 - i))
        found[steps["t"][i].item()] = values.tolist()
    t = tuple(sorted(found))
    return Spectrum(t, *zip(*(found[x] for x in t)))


def _baseline(
    trajectory: Trajectory, indices: Sequence[int], journal: Journal, progress: Callable[[], object]
) -> dict[str, Tensor]:
    """Return predictions, (calls, B, ...), timesteps, (calls,), and the result, (B, ...), of undisturbed sampling."""
    recorded = journal.read(BASELINE)
    if recorded:
        return recorded[0]
    eps, t = [], []
    for step in trajectory(indices, uncorrected, ()):
        eps.append(step.eps.cpu())
        t.append(step.t)
        progress()
    steps = {"eps": torch.stack(eps), "t": torch.tensor(t, dtype=torch.float64), "result": step.x_prev.cpu()}
    journal.write(BASELINE, steps)
    return steps


def _sensitivities(
    trajectory: Trajectory, indices: Sequence[int], call: int, steps: dict[str, Tensor], generator: torch.Generator
) -> Tensor:
    """Return |change of the result| / |error| for each of `GRIDS`, (3,), with errors in one network call."""
    eps = steps["eps"][: call + 1]
    errors = torch.cat([_error(eps[0], blocks, generator) for blocks in GRIDS])
    known = [*eps.repeat(1, len(GRIDS), *[1] * (eps.ndim - 2))]

    def disturb(index: int, t: float, eps: Tensor) -> tuple[Tensor, float]:
        return (eps + errors.to(eps) if index == call else eps), 0.0

    for step in trajectory([*indices] * len(GRIDS), disturb, known):
        result = step.x_prev
    change = result.cpu() - steps["result"].repeat(len(GRIDS), *[1] * (result.ndim - 1))
    norms = [x.unflatten(0, (len(GRIDS), -1)).flatten(1).norm(dim=1) for x in (change, errors)]
    return norms[0] / norms[1]


def _error(like: Tensor, blocks: int | None, generator: torch.Generator) -> Tensor:
    """Draw an error that is constant on blocks x blocks parts of an image, or differs at every pixel."""
    if blocks is None:
        return ERROR * torch.randn(like.shape, generator=generator)
    drawn = ERROR * torch.randn((*like.shape[:2], blocks, blocks), generator=generator)
    return F.interpolate(drawn, size=like.shape[2:], mode="nearest")
