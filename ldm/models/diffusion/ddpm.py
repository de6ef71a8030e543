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

    Attributes:
        num_timesteps: T of the schedule; its buffers are those of `diffusion_coefficients`.
        image_size, channels: edge and channels of the latents.
        scale_factor: latents are multiplied by it before diffusion; a number, or a buffer if `scale_by_std`.
        cond_stage_key: key of the condition in a batch.
        model: wrapper of the UNet, which is `model.diffusion_model`.
        model_ema: averaged weights; None without.
        first_stage_model, cond_stage_model: autoencoder and conditioner; the latter is None in an unconditional model.

    Args:
        unet_config, first_stage_config, cond_stage_config: see `instantiate_from_config`; the last one may be
            "__is_unconditional__", or "__is_first_stage__" to encode the condition like an image.
        timesteps: T of the schedule.
        beta_schedule, linear_start, linear_end, cosine_s: see `make_beta_schedule`.
        v_posterior: see `diffusion_coefficients`.
        image_size, channels: edge and channels of the latents.
        conditioning_key: a key of `CONDITIONING`; None: "concat" or "crossattn", depending on `concat_mode`. Ignored in
            an unconditional model.
        concat_mode: whether `conditioning_key` is "concat" by default.
        cond_stage_key: key of the condition in a batch.
        scale_factor: latents are multiplied by it before diffusion.
        scale_by_std: `scale_factor` is a buffer, loaded with the checkpoint.
        use_ema: the checkpoint has averaged weights.
        parameterization: "eps": the network predicts the noise.

    Raises:
        ValueError: a name is unknown, or a number is outside its range.
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
            raise ValueError(f"parameterization '{parameterization}' is not available: only 'eps' is")
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
        """Predict the noise.

        Args:
            x_noisy: z_t, shape (B, channels, H, W).
            t: timesteps in 0..num_timesteps - 1, shape (B,).
            cond: condition from `get_learned_conditioning`, or a list of such tensors, or a mapping with the lists
                `c_concat` and `c_crossattn`; None for an unconditional model.

        Returns:
            shape (B, channels, H, W).

        Raises:
            ValueError: the condition is missing, unexpected or of the wrong kind.
        """
        if cond is None:
            cond = {}
        elif not isinstance(cond, Mapping):
            key = "c_concat" if self.model.conditioning_key == "concat" else "c_crossattn"
            cond = {key: cond if isinstance(cond, list) else [cond]}
        return self.model(x_noisy, t, **cond)

    @torch.no_grad()
    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Decode latents of the diffusion process, (B, channels, h, w), to images about -1..1, (B, 1 or 3, H, W)."""
        return self.first_stage_model.decode(z / self.scale_factor)

    @torch.no_grad()
    def encode_first_stage(self, x: Tensor) -> Tensor | DiagonalGaussianDistribution:
        """Encode images in -1..1, (B, C, H, W), with the first stage; `scale_factor` is not applied."""
        return self.first_stage_model.encode(x)

    def get_learned_conditioning(self, c: Any) -> Tensor:
        """Return a condition in the form that the UNet takes.

        Args:
            c: input of the conditioner: prompts for `FrozenCLIPEmbedder`, `{key: class numbers}` for `ClassEmbedder`.

        Returns:
            shape (B, tokens, width); for a condition that is encoded like an image, a latent (B, C, h, w).

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
        """Use the averaged weights within the context; without averages, the model's own."""
        if self.model_ema is None:
            yield
        else:
            with self.model_ema.swapped_into(self.model):
                yield

    def adopt_ema(self) -> None:
        """Replace the model's weights by the averaged ones, permanently; without averages, do nothing."""
        if self.model_ema is not None:
            self.model_ema.copy_to(self.model)
            self.model_ema = None
