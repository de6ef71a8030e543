"""DPM-Solver++ with data prediction (Lu et al. 2022b, arXiv 2211.01095): multistep and singlestep, orders 1 to 3.

With lambda = log(alpha / sigma) the probability-flow ODE has the solution (equation 9)

    x_t = sigma_t / sigma_s x_s + sigma_t int_{lambda_s}^{lambda_t} e^lambda x0(lambda) dlambda,

so an update only has to approximate the predicted image x0 between the two points.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.dpm_plan import VPSchedule, make_plan
from diffusion.steps import Correction, Model, Step, uncorrected


@dataclass(frozen=True)
class _State:
    """The point lambda, the network's input x there, and the image x0 that its prediction implies."""

    lam: float
    x: Tensor
    x0: Tensor


def _alpha(lam: float) -> float:
    return (1 + math.exp(-2 * lam)) ** -0.5


def _sigma(lam: float) -> float:
    return (1 + math.exp(2 * lam)) ** -0.5


def _update(states: list[_State], lam: float) -> Tensor:
    """Return x at `lam`, starting from the first state; x0 is the polynomial through all states (one, two or three).

    Order 2 weights the slope as algorithms 1 and 2 of the paper do. Order 3 integrates the parabola exactly; the
    authors' multistep code uses half its curvature, so that it is only second-order accurate.
    """
    s, *others = states
    h = lam - s.lam
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / h + 1
    phi_3 = phi_2 / h - 0.5
    x = _sigma(lam) / _sigma(s.lam) * s.x - _alpha(lam) * phi_1 * s.x0
    r = [(other.lam - s.lam) / h for other in others]
    d = [(other.x0 - s.x0) / r_i for other, r_i in zip(others, r)]
    if len(d) == 1:
        x = x - 0.5 * _alpha(lam) * phi_1 * d[0]
    elif len(d) == 2:
        curvature = (d[1] - d[0]) / (r[1] - r[0])  # half the second derivative
        slope = d[0] - r[0] * curvature
        x = x + _alpha(lam) * (phi_2 * slope - 2 * phi_3 * curvature)
    return x


@torch.no_grad()
def dpm_solver(
    model: Model,
    x_T: Tensor,
    alphas_cumprod: Tensor,
    steps: int,
    *,
    order: int = 3,
    method: str = "multistep",
    skip_type: str = "time_uniform",
    lower_order_final: bool = True,
    correct: Correction = uncorrected,
) -> Iterator[Step]:
    """Sample with DPM-Solver++ from t = T-1 to t = 0, with exactly `steps` network calls.

    The result, at t = 0, still contains the noise of abar_0, as in Lu et al.; `x0` of the last step contains none.

    Args:
        model: `model(x_t, t)` -> eps, where t has shape (B,), is floating point and need not be an integer.
        x_T: Gaussian noise, shape (B, ...).
        alphas_cumprod: abar_t, shape (T,), strictly decreasing within (0, 1).
        steps: number of network calls, at least 1.
        order: 1, 2 or 3; order 1 is DDIM with eta 0.
        method: "multistep" reuses the predictions of earlier calls, "singlestep" makes its own between two points.
        skip_type: spacing of the points, "time_uniform", "time_quadratic" or "logSNR".
        lower_order_final: end a multistep run with orders ..., 2, 1; Lu et al. advise it for fewer than 15 steps.
            How a singlestep run ends follows from `singlestep_orders`.
        correct: improves each prediction; the sampler is deterministic and ignores the error that remains.

    Yields:
        one `Step` per network call.

    Raises:
        ValueError: an argument is outside its range; at the first step.
    """
    schedule = VPSchedule(alphas_cumprod)
    points, plan = make_plan(
        schedule, steps, order, method=method, skip_type=skip_type, lower_order_final=lower_order_final
    )
    times, lams = schedule.time(points).tolist(), points.tolist()
    recent: deque[_State] = deque(maxlen=order)  # newest first
    x = x_T
    for i, used in enumerate(plan):
        t = torch.full((len(x),), times[i], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        eps, _ = correct(i, times[i], model(x, t))
        x0 = (x - _sigma(lams[i]) * eps) / _alpha(lams[i])
        recent.appendleft(_State(lams[i], x, x0))
        x_prev = _update([recent[age] for age in used], lams[i + 1])
        yield Step(i, times[i], x, eps, x0, x_prev)
        x = x_prev
