"""Noise schedules, timestep embedding and normalization of latent diffusion models."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.blocks import GROUPS
from diffusion.schedules import beta_schedule


def _linear(n: int, start: float, end: float, cosine_s: float) -> Tensor:
    return beta_schedule("quad", start, end, n)


def _cosine(n: int, start: float, end: float, cosine_s: float) -> Tensor:
    t = torch.arange(n + 1, dtype=torch.float64) / n
    alphas_cumprod = ((t + cosine_s) / (1 + cosine_s) * math.pi / 2).cos() ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(0, 0.999)


def _sqrt_linear(n: int, start: float, end: float, cosine_s: float) -> Tensor:
    return beta_schedule("linear", start, end, n)


def _sqrt(n: int, start: float, end: float, cosine_s: float) -> Tensor:
    return beta_schedule("linear", start, end, n).sqrt()


SCHEDULES = {"linear": _linear, "cosine": _cosine, "sqrt_linear": _sqrt_linear, "sqrt": _sqrt}


def make_beta_schedule(
    schedule: str, n_timestep: int, linear_start: float = 1e-4, linear_end: float = 2e-2, cosine_s: float = 8e-3
) -> Tensor:
    """Compute the variances beta_t of the forward process.

    Args:
        schedule: "linear" (linear in sqrt(beta), unlike DDPM's), "sqrt_linear" (linear in beta), "sqrt" (the root of
            "sqrt_linear"), or "cosine" (Nichol and Dhariwal 2021, equation 17).
        n_timestep: T, at least 1.
        linear_start, linear_end: first and last beta, for "sqrt" their squares; in (0, 1); "cosine" ignores them.
        cosine_s: offset of "cosine".

    Returns:
        float64 of shape (T,), each in (0, 1).

    Raises:
        ValueError: the name is unknown, or a number is outside its range.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"beta_schedule '{schedule}' is unknown: use one of {', '.join(SCHEDULES)}")
    if not (0 < linear_start < 1 and 0 < linear_end < 1 and n_timestep >= 1):
        raise ValueError(
            f"linear_start={linear_start}, linear_end={linear_end} must lie in (0, 1), "
            f"timesteps={n_timestep} must be >= 1"
        )
    return SCHEDULES[schedule](n_timestep, linear_start, linear_end, cosine_s)


def diffusion_coefficients(betas: Tensor, v_posterior: float = 0.0) -> dict[str, Tensor]:
    """Compute the coefficients that DDPM derives from beta_t, under the names of the published checkpoints.

    With abar_t = prod_{s <= t} (1 - beta_s), these are the functions of abar_t in q(x_t | x_0), and the variance and
    the coefficients of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, equations 4, 6, 7).

    Args:
        betas: beta_t, shape (T,).
        v_posterior: weight of beta_t in the posterior's variance, in 0..1; 0 gives DDPM's beta~_t.

    Returns:
        float32 tensors of shape (T,), by name.
    """
    betas = betas.double()
    alphas = 1 - betas
    abar = alphas.cumprod(0)
    abar_prev = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    variance = (1 - v_posterior) * betas * (1 - abar_prev) / (1 - abar) + v_posterior * betas
    coefficients = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": abar_prev,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * abar_prev.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - abar_prev) * alphas.sqrt() / (1 - abar),
    }
    return {name: value.float() for name, value in coefficients.items()}


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000) -> Tensor:
    """Compute the sinusoidal embedding of timesteps (Vaswani et al. 2017, section 3.5).

    Args:
        timesteps: shape (B,), integer or float.
        dim: width of the embedding.
        max_period: approximate longest wavelength divided by 2 pi.

    Returns:
        float32 of shape (B, dim): the cosines of `dim // 2` frequencies, then their sines.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angle = timesteps.float()[:, None] * (-math.log(max_period) * exponent).exp()
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, dim % 2))


class GroupNorm32(nn.GroupNorm):
    """GroupNorm that computes in float32, whatever the dtypes of its input and parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, ...) -> the same shape and dtype."""
        h = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return h.to(x.dtype)


def normalization(channels: int) -> GroupNorm32:
    """Return the GroupNorm of the UNet. Raises ValueError unless `channels` is a multiple of 32."""
    return GroupNorm32(GROUPS, channels)


def zero_module(module: nn.Module) -> nn.Module:
    """Set the parameters of `module` to 0, so that the residual branch that ends in it starts as zero; return it."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module
