"""Noise schedules beta_t of DDPM and related models, by the names that configuration files use."""

import torch
from torch import Tensor


def _linear(start: float, end: float, n: int) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float64)


def _quad(start: float, end: float, n: int) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2


def _const(start: float, end: float, n: int) -> Tensor:
    return torch.full((n,), end, dtype=torch.float64)


def _jsd(start: float, end: float, n: int) -> Tensor:
    return 1.0 / torch.linspace(n, 1, n, dtype=torch.float64)


def _sigmoid(start: float, end: float, n: int) -> Tensor:
    return torch.linspace(-6, 6, n, dtype=torch.float64).sigmoid() * (end - start) + start


SCHEDULES = {"linear": _linear, "quad": _quad, "const": _const, "jsd": _jsd, "sigmoid": _sigmoid}


def beta_schedule(name: str, start: float, end: float, num_timesteps: int) -> Tensor:
    """Compute the variances beta_t of the forward process (Ho et al. 2020, section 2).

    `jsd` removes 1/T of the initial signal at every t (Sohl-Dickstein et al. 2015, section 2.4.1).

    Args:
        name: one of `SCHEDULES`.
        start: beta at t = 0, in (0, 1); `const` and `jsd` ignore it.
        end: beta at the last t, in (0, 1); `jsd` ignores it.
        num_timesteps: T, at least 1.

    Returns:
        float64 of shape (T,), each in (0, 1].

    Raises:
        ValueError: the name is unknown, or a number is outside its range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"beta_schedule '{name}' is unknown: use one of {', '.join(SCHEDULES)}")
    if not (0 < start < 1 and 0 < end < 1 and num_timesteps >= 1):
        raise ValueError(
            f"beta_start={start}, beta_end={end} must lie in (0, 1), num_timesteps={num_timesteps} must be >= 1"
        )
    return SCHEDULES[name](start, end, num_timesteps)


def alphas_cumprod(betas: Tensor) -> Tensor:
    """Compute the signal power abar_t = prod_{s <= t} (1 - beta_s) at every t; shape (T,) -> float64, shape (T,)."""
    return (1 - betas.double()).cumprod(0)
