"""Latent diffusion models: schedule, UNet, first stage and conditioner under their published names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.guidance import Condition
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.modules.diffusionmodules.util import diffusion_coefficients, make_beta_schedule
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.util import instantiate_from_config


class LatentDiffusion(nn.Module):
    """A latent diffusion model (Rombach et al. 2022) with the state-dict names of the published checkpoints.

    Attributes that samplers read: the buffers of `diffusion_coefficients`, `num_timesteps`, `image_size`, `channels`
    (of the latents), `scale_factor`, `cond_stage_key`; `model.diffusion_model` is the UNet.

    Args:
        unet_config, first_stage_config, cond_stage_config: see `instantiate_from_config`; the last one may be
            "__is_unconditional__", or "__is_first_stage__" to encode the condition like an image.
        timesteps: length T of the schedule.
        beta_schedule, linear_start, linear_end, cosine_s: see `make_beta_schedule`.
        v_posterior: see `diffusion_coefficients`.
        image_size, channels: edge and channels of the latents.
        conditioning_key: a key of `CONDITIONING`; by default "concat" or "crossattn" as `concat_mode` says, None for
            an unconditional model.
        concat_mode: what `conditioning_key` is by default.
        cond_stage_key: where a batch keeps the condition.
        scale_factor: latents are multiplied by it before diffusion.
        scale_by_std: the factor comes with the checkpoint, as a buffer.
        use_ema: the checkpoint has averaged weights.
        parameterization: "eps", the network predicts the noise.

    Raises:
        ValueError: an unknown name, or a number outside its range.
    """

    def __init__(
        self,
        unet_config: Mapping,
        first_stage_config: Mapping,
        cond_stage_config: Mapping | str,
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        v_posterior: float = 0.0,
        image_size: int = 256,
        channels: int = 3,
        conditioning_key: str | None = None,
        concat_mode: bool = True,
        cond_stage_key: str = "image",
        scale_factor: float = 1.0,
        scale_by_std: bool = False,
        use_ema: bool = True,
        parameterization: str = "eps",
    ):
        super().__init__()
        if parameterization != "eps":
            raise ValueError(f"parameterization '{parameterization}' is not available: the samplers take 'eps'")
        self.num_timesteps = timesteps
        self.image_size, self.channels = image_size, channels
        self.cond_stage_key = cond_stage_key
        betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        for name, value in diffusion_coefficients(betas, v_posterior).items():
            self.register_buffer(name, value)
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(scale_factor))
        else:
            self.scale_factor = scale_factor

        if cond_stage_config == "__is_unconditional__":
            conditioning_key = None
        elif conditioning_key is None:
            conditioning_key = "concat" if concat_mode else "crossattn"
        self.model = DiffusionWrapper(instantiate_from_config(unet_config), conditioning_key)
        self.model_ema = LitEma(self.model) if use_ema else None
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self.cond_stage_model = instantiate_from_config(cond_stage_config)
        if cond_stage_config == "__is_first_stage__":
            self.cond_stage_model = self.first_stage_model

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """Predicted noise.

        Args:
            x_noisy: z_t, shape (B, channels, H, W).
            t: timesteps in 0..num_timesteps - 1, shape (B,).
            cond: what `get_learned_conditioning` returned, a list of such tensors, or a mapping with the lists
                `c_concat` and `c_crossattn`; None for an unconditional model.

        Returns:
            shape (B, channels, H, W).

        Raises:
            ValueError: the condition is missing, superfluous or of the wrong kind.
        """
        if cond is None:
            cond = {}
        elif not isinstance(cond, Mapping):
            key = "c_concat" if self.model.conditioning_key == "concat" else "c_crossattn"
            cond = {key: cond if isinstance(cond, list) else [cond]}
        return self.model(x_noisy, t, **cond)

    @torch.no_grad()
    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Latents of the diffusion process, (B, channels, h, w) -> images, about -1..1, (B, 3, H, W)."""
        return self.first_stage_model.decode(z / self.scale_factor)

    @torch.no_grad()
    def encode_first_stage(self, x: Tensor) -> Tensor | DiagonalGaussianDistribution:
        """Images in -1..1 -> what the first stage's `encode` returns; not multiplied by `scale_factor`."""
        return self.first_stage_model.encode(x)

    def get_learned_conditioning(self, c: Any) -> Tensor:
        """A condition as the UNet takes it.

        Args:
            c: what the conditioner takes, for `ClassEmbedder` a mapping `{cond_stage_key: class numbers}`.

        Raises:
            ValueError: the model is unconditional.
        """
        if self.cond_stage_model is None:
            raise ValueError("the model is unconditional: it takes no condition")
        if self.cond_stage_model is not self.first_stage_model:
            return self.cond_stage_model(c)
        z = self.encode_first_stage(c)
        return z.mode() if isinstance(z, DiagonalGaussianDistribution) else z

    @contextmanager
    def ema_scope(self) -> Iterator[None]:
        """The averaged weights inside, the model's own again afterwards; nothing for a model without averages."""
        if self.model_ema is None:
            yield
        else:
            with self.model_ema.swapped_into(self.model):
                yield

    def adopt_ema(self) -> None:
        """Keep the averaged weights for good and drop the model's own; nothing for a model without averages."""
        if self.model_ema is not None:
            self.model_ema.copy_to(self.model)
            self.model_ema = None
