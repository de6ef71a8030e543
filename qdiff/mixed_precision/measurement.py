"""What widths of activations do to the predictions of a network at each step of a sampler, and what they cost."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import floor, inf
from typing import Any

import torch

from qdiff.spectrum import Spectrum

DIGITS = 6  # significant ones that are kept

Squares = tuple[float, float, float]  # as `qdiff.spectrum.squares` has them


@dataclass(frozen=True)
class Measurement:
    """Predictions eps in full precision, and the errors Delta_b of b-bit activations on the same x_t.

    Args:
        timesteps: of the n steps, ascending, rounded down to whole numbers; calls of a sampler that share one are one
            step.
        calls: network calls at each step.
        forward: SNR^F at each step, alpha_t^2 / sigma_t^2 of the forward process.
        signal: |eps|^2 at each step, of all images and calls.
        errors: bits, ascending -> squares of Delta at each step, likewise.
        bops: bits -> bit operations of a network call for an image, both rows of guidance included.
        images: number of images.

    Raises:
        ValueError: the values do not go together.
    """

    timesteps: tuple[int, ...]
    calls: tuple[int, ...]
    forward: tuple[float, ...]
    signal: tuple[float, ...]
    errors: Mapping[int, tuple[Squares, ...]]
    bops: Mapping[int, int]
    images: int

    def __post_init__(self):
        lengths = {len(x) for x in (self.calls, self.forward, self.signal, *self.errors.values())}
        if lengths != {len(self.timesteps)} or any(len(x) != 3 for steps in self.errors.values() for x in steps):
            raise ValueError("a measurement has a value of each kind at every timestep")
        if not self.errors or list(self.errors) != sorted(self.errors) or self.bops.keys() != self.errors.keys():
            raise ValueError("a measurement has errors and costs of the same widths, in ascending order")

    @classmethod
    def of_calls(
        cls,
        t: Sequence[float],
        forward: Sequence[float],
        signal: Sequence[float],
        errors: Mapping[int, Sequence[Sequence[float]]],
        bops: Mapping[int, int],
        images: int,
    ) -> "Measurement":
        """Return the measurement of a sampler's calls in any order, at timesteps `t`; other arguments as above."""
        at: dict[int, list[int]] = defaultdict(list)
        for call, timestep in enumerate(t):
            at[floor(timestep)].append(call)
        steps = [at[timestep] for timestep in sorted(at)]

        def total(values: Sequence[float]) -> tuple[float, ...]:
            return tuple(_rounded(sum(values[call] for call in step)) for step in steps)

        return cls(
            timesteps=tuple(sorted(at)),
            calls=tuple(map(len, steps)),
            forward=tuple(_rounded(forward[step[0]]) for step in steps),
            signal=total(signal),
            errors={bits: tuple(zip(*map(total, zip(*errors[bits])))) for bits in sorted(errors)},
            bops=bops,
            images=images,
        )

    @property
    def widths(self) -> list[int]:
        """The bits, ascending."""
        return list(self.errors)

    def snr(self, bits: int, ratio: str = "norm") -> list[float]:
        """Return SNR^Q of a width at each step: |eps| / |Delta| ("norm"), or its square ("power")."""
        exponent = {"norm": 0.5, "power": 1.0}[ratio]
        pairs = zip(self.signal, self.errors[bits])
        return [(signal / error[0]) ** exponent if error[0] else inf for signal, error in pairs]

    def image_errors(self, bits: int, spectrum: Spectrum) -> list[float]:
        """Return the squared error of an image, summed over its pixels, that a width at each step is predicted to add.

        Errors of different steps are taken as independent. Of latent models, the image is the latent.
        """
        weights = spectrum.bands(torch.tensor(self.timesteps)).T.double()
        found = (weights * torch.tensor(self.errors[bits], dtype=torch.float64)).sum(1) / self.images
        return found.tolist()

    def trajectory_bops(self, bits: Sequence[int]) -> int:
        """Return the bit operations of an image whose steps have these bits."""
        return sum(calls * self.bops[b] for calls, b in zip(self.calls, bits, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Measurement":
        """Return the measurement that `to_dict` described. Raises KeyError, TypeError or ValueError otherwise."""
        v = values
        return cls(
            timesteps=tuple(map(int, v["timesteps"])),
            calls=tuple(map(int, v["calls"])),
            forward=tuple(map(float, v["forward"])),
            signal=tuple(map(float, v["signal"])),
            errors={int(b): tuple(map(tuple, steps)) for b, steps in sorted(_by_bits(v["errors"]))},
            bops={b: int(cost) for b, cost in sorted(_by_bits(v["bops"]))},
            images=int(v["images"]),
        )


def _by_bits(values: Mapping[Any, Any]) -> list[tuple[int, Any]]:
    return [(int(bits), x) for bits, x in values.items()]  # keys of JSON are strings


def _rounded(x: float) -> float:
    return float(f"{x:.{DIGITS}g}")
