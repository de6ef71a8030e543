"""What the samplers by their well-known names have in common: from a `LatentDiffusion` to latents."""

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
    """What a sampler needs of `LatentDiffusion`: abar_t, shape (T,), and the network."""

    alphas_cumprod: Tensor

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Condition) -> Tensor: ...


def gaussian(seed: int) -> Noise:
    """One stream of Gaussian noise, drawn on the CPU in float32 and moved, so that every device sees the same."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator).to(x)


@dataclass(frozen=True)
class Start:
    """What every sampler starts with; see `ldm.samplers`."""

    model: Model
    x_T: Tensor
    eta: float
    noise: Noise
    correct: Correction

    def refuse_eta(self, sampler: str) -> None:
        """Raises ValueError unless eta is 0."""
        if self.eta != 0:
            raise ValueError(f"eta={self.eta} must be 0: {sampler} is deterministic")


class LatentSampler(ABC):
    """Samples latents from a model.

    Args:
        model: see `LatentModel`.
        seed: of the noise where a call brings none; one stream, which the calls use up one after the other.
    """

    def __init__(self, model: LatentModel, seed: int = 0):
        self.model = model
        self.noise = gaussian(seed)

    @abstractmethod
    def _steps(self, start: Start, S: int) -> tuple[int, Iterator[Step]]:
        """Number of network calls, and the steps; further keywords are the sampler's own."""

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
        """Samples a batch; its interface is that of Rombach et al., apart from the noise.

        Args:
            S: number of steps.
            batch_size: B.
            shape: (C, H, W) of the latents.
            conditioning: what `apply_model` takes, B rows; None for a model without conditions.
            eta: noise of DDIM, 0 (deterministic) to 1; 0 for the other samplers.
            x_T: noise to start from, (B, C, H, W); drawn in float32 if it is None.
            unconditional_guidance_scale, unconditional_conditioning: see `guided`.
            noise: where all noise comes from, x_T too; by default from the sampler's seed.
            correct: improves each prediction, after guidance; see `Correction`.
            log_every_t: what the intermediates keep, counted from the end; the first step is always among them.
            verbose: show a progress bar on a terminal.
            options: of the sampler, see its class.

        Returns:
            latents (B, C, H, W), and the intermediates: `x_inter`, the latents after the steps that are kept, and
            `pred_x0`, the x0 that these predict; both lists begin with x_T.

        Raises:
            ValueError: an argument is outside its range or does not fit the others.
            TypeError: an option that the sampler does not have.
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
