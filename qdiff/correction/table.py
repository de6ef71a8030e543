"""The correction of a quantized network's predictions, step by step, and its use in a sampler."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from qdiff.correction.parts import PARTS, Part

FITS = ("ptqd", "trajectory")
TENSORS = ("bias", "bias_error", "slope", "slope_error", "std", "std_error")


@dataclass(frozen=True)
class Fitted:
    """What a fit found, of S network calls and C channels; all numbers as measured, also those of parts that are off.

    Attributes:
        slope, bias: float64 of shape (S, C); slope > -1.
        std: standard deviation of what is left of eps_q, before the division, float64 of shape (S,), >= 0.
        slope_error, bias_error, std_error: standard errors of the three, over samples.
        parts: name in `PARTS` -> whether it is used, and why.
    """

    slope: Tensor
    slope_error: Tensor
    bias: Tensor
    bias_error: Tensor
    std: Tensor
    std_error: Tensor
    parts: Mapping[str, Part]

    @property
    def used(self) -> tuple[str, ...]:
        """The parts that are on."""
        return tuple(name for name in PARTS if self.parts[name].on)

    @property
    def effective(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slope (S, C), bias (S, C) and the error that is left after the division, (S,); 0 where a part is off."""
        on = {name: float(part.on) for name, part in self.parts.items()}
        slope = self.slope * on["slope"]
        return slope, self.bias * on["bias"], on["variance"] * self.std / (1 + slope).mean(1)

    def only(self, parts: Collection[str]) -> Self:
        """Return the correction with no other parts than these; those that are off stay off."""
        off = {name: replace(part, on=part.on and name in parts) for name, part in self.parts.items()}
        return replace(self, parts=off)


@dataclass(frozen=True)
class CorrectionTable(Fitted):
    """A correction of every network call of a sampler: eps' = (eps_q - bias) / (1 + slope), with an error `std` left.

    PTQD, He et al. 2023, section 3.3. The numbers are those of `Fitted`.

    Args:
        fit: how it was fitted: "ptqd", on trajectories of the network in full precision, or "trajectory", on those of
            the quantized network.
        timesteps: of the S network calls, in the order of sampling.
        log_snr: log(abar / (1 - abar)) there, S numbers.
        made_for: what the correction belongs to, JSON values by name: network, sampler, guidance.
        provenance: where the numbers come from, JSON values: settings of the fit, digest of the weights.

    Raises:
        ValueError: a shape does not fit the others, or a number is outside its range.
    """

    fit: str
    timesteps: tuple[float, ...]
    log_snr: tuple[float, ...]
    made_for: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        steps = len(self.timesteps)
        if self.fit not in FITS:
            raise ValueError(f"its fit is {self.fit!r}")
        if set(self.parts) != set(PARTS):
            raise ValueError(f"its parts are {', '.join(self.parts)}")
        if not steps or len(self.log_snr) != steps or self.slope.ndim != 2:
            raise ValueError(f"it has {steps} timesteps, {len(self.log_snr)} noise levels")
        for name in TENSORS:
            x, shape = getattr(self, name), (steps,) if name.startswith("std") else (steps, self.slope.shape[1])
            if x.dtype != torch.float64 or tuple(x.shape) != tuple(shape):
                raise ValueError(f"{name} is {x.dtype} of shape {tuple(x.shape)}, not float64 of {tuple(shape)}")
            if not x.isfinite().all() or (name not in ("slope", "bias") and (x < 0).any()):
                raise ValueError(f"{name} is not finite, or negative")
        if (self.slope <= -1).any() or not np.isfinite([*self.timesteps, *self.log_snr]).all():
            raise ValueError("a slope, timestep or noise level is outside its range")

    def at(self, timesteps: Sequence[float], log_snr: Sequence[float]) -> "CorrectionTable":
        """Interpolate to other steps, linearly over log-SNR; beyond the ends, the values there.

        Args:
            timesteps, log_snr: of the other steps, see the class.
        """
        known, place = np.unique(np.array(self.log_snr), return_inverse=True)

        def values(x: Tensor) -> Tensor:
            columns = x.reshape(len(x), -1).numpy().T  # steps that repeat a noise level are averaged
            each = [np.bincount(place, c) / np.bincount(place) for c in columns]
            found = np.stack([np.interp(log_snr, known, y) for y in each], -1)
            return torch.from_numpy(found).reshape(len(log_snr), *x.shape[1:])

        numbers: dict[str, Any] = {name: values(getattr(self, name)) for name in TENSORS}
        return replace(self, timesteps=tuple(timesteps), log_snr=tuple(log_snr), **numbers)


class StepCorrection:
    """A `diffusion.steps.Correction` from what was fitted. Steps that nothing is done to return the prediction itself.

    Args:
        fitted: the correction.
        timesteps: of its S network calls.
    """

    def __init__(self, fitted: Fitted, timesteps: Sequence[float]):
        self.timesteps = timesteps
        slope, bias, std = fitted.effective
        self.std = std.tolist()
        self.idle = ((slope == 0) & (bias == 0)).all(1).tolist()
        self.bias, self.factor = bias, 1 / (1 + slope)

    def __call__(self, index: int, t: float, eps: Tensor) -> tuple[Tensor, float]:
        """Correct the prediction of a network call, (B, C, ...). Raises ValueError at another timestep than fitted."""
        if index >= len(self.timesteps) or t != self.timesteps[index]:
            raise ValueError(f"the correction has no step {index} at timestep {t}: fit it for this sampler")
        if self.idle[index]:
            return eps, self.std[index]
        if self.bias.device != eps.device or self.bias.dtype != eps.dtype:  # once
            self.bias, self.factor = (x.to(eps.dtype).to(eps.device) for x in (self.bias, self.factor))
        shape = -1, *[1] * (eps.ndim - 2)
        return (eps - self.bias[index].view(shape)) * self.factor[index].view(shape), self.std[index]
