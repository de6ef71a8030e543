"""The common part of `DDIMSampler`, `PLMSSampler` and `DPMSolverSampler`, which sample latents."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion.steps import Correction, Model, Noise, Step, uncorrected
from ldm.guidance import Condition, batch_sizes, guided


class LatentModel(Protocol):
    """The part of `LatentDiffusion` that a sampler uses: abar_t, shape (T,), and the network."""

    alphas_cumprod: Tensor

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Predict the noise; see `LatentDiffusion.apply_model`."""
        ...


def gaussian(seed: int) -> Noise:
    """Return a stream of Gaussian noise, drawn on the CPU in float32, so that every device gets the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator).to(x)


@dataclass(frozen=True)
class Start:
    """The arguments that all samplers share; see `ldm.samplers`."""

    model: Model
    x_T: Tensor
    eta: float
    noise: Noise
    correct: Correction

    def refuse_eta(self, sampler: str) -> None:
        """Raise ValueError unless eta is 0."""
        if self.eta != 0:
            raise ValueError(f"eta={self.eta} must be 0: {sampler} is deterministic")


class LatentSampler(ABC):
    """Base of the samplers of latents.

    Args:
        model: see `LatentModel`.
        seed: of the noise for calls of `sample` without `noise`; all of them draw from one stream.
    """

    def __init__(self, model: LatentModel, seed: int = 0):
        self.model = model
        self.noise = gaussian(seed)

    @abstractmethod
    def _steps(self, start: Start, S: int) -> tuple[int, Iterator[Step]]:
        """Return the number of network calls, and the steps; subclasses add keywords for their own options."""

    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Condition = None,
        *,
        eta: float = 0.0,
        x_T: Tensor | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Condition = None,
        noise: Noise | None = None,
        correct: Correction = uncorrected,
        log_every_t: int = 100,
        verbose: bool = True,
        **options,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Sample a batch of latents; the interface is that of Rombach et al., apart from the noise.

        Args:
            S: number of steps.
            batch_size: B.
            shape: (C, H, W) of the latents.
            conditioning: condition as `apply_model` takes it, B rows; None for an unconditional model.
            eta: noise of DDIM, 0 (deterministic) to 1; 0 for the other samplers.
            x_T: initial noise, (B, C, H, W); None: drawn in float32.
            unconditional_guidance_scale, unconditional_conditioning: see `guided`.
            noise: source of all noise, x_T included; None: the stream of the sampler's seed.
            correct: improves each prediction, after guidance; see `Correction`.
            log_every_t: keep every such step in the intermediates, counted from the end, and the first step.
            verbose: show a progress bar on a terminal.
            options: options of the sampler, see its class.

        Returns:
            latents (B, C, H, W), and the intermediates: `x_inter`, the latents after the steps that are kept, and
            `pred_x0`, the x0 predicted in them; both lists begin with x_T.

        Raises:
            ValueError: an argument is outside its range or inconsistent with the others.
            TypeError: the sampler has no such option.
        """
        noise = noise or self.noise
        if x_T is None:
            x_T = noise(torch.empty(batch_size, *shape, device=self.model.alphas_cumprod.device))
        elif x_T.shape != (batch_size, *shape):
            raise ValueError(f"x_T has shape {tuple(x_T.shape)}, batch_size and shape say {(batch_size, *shape)}")
        for condition in (conditioning, unconditional_conditioning):
            if not batch_sizes(condition) <= {batch_size}:
                raise ValueError(f"a condition has {sorted(batch_sizes(condition))} rows, batch_size is {batch_size}")
        model = guided(self.model.apply_model, conditioning, unconditional_conditioning, unconditional_guidance_scale)
        calls, steps = self._steps(Start(model, x_T, eta, noise, correct), S, **options)

        intermediates = {"x_inter": [x_T], "pred_x0": [x_T]}
        for step in tqdm(steps, total=calls, disable=None if verbose else True):
            if step.index == 0 or (calls - 1 - step.index) % log_every_t == 0:
                intermediates["x_inter"].append(step.x_prev)
                intermediates["pred_x0"].append(step.x0)
        return step.x_prev, intermediates
