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
import torch.nn.functional as F
from torch import Tensor

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


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Interpolate linearly between the points (xs, ys), xs ascending; the end segments extend beyond them."""
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    left = right - 1
    return torch.lerp(ys[left], ys[right], (x - xs[left]) / (xs[right] - xs[left]))


class VPSchedule:
    """A variance-preserving noise schedule in continuous time, with log alpha linear between the discrete timesteps.

    Time has the network's units, 0..T-1, where Lu et al. write (t + 1) / T in (0, 1].

    Args:
        alphas_cumprod: abar_t = alpha_t^2, shape (T,), T >= 2, strictly decreasing within (0, 1).

    Raises:
        ValueError: `alphas_cumprod` is too short, outside (0, 1) or not strictly decreasing.
    """

    def __init__(self, alphas_cumprod: Tensor):
        abar = alphas_cumprod.detach().cpu().double()
        if len(abar) < 2 or not (abar.diff() < 0).all() or abar[0] >= 1 or abar[-1] <= 0:
            raise ValueError("alphas_cumprod must have at least two values, strictly decreasing within (0, 1)")
        self.log_alpha = 0.5 * abar.log()
        self.times = torch.arange(len(abar), dtype=torch.float64)

    def lam(self, t: Tensor) -> Tensor:
        """Return lambda = log(alpha_t / sigma_t) at times t; float64, shape of t."""
        log_alpha = _interpolate(t, self.times, self.log_alpha)
        return log_alpha - 0.5 * torch.log(-torch.expm1(2 * log_alpha))

    def time(self, lam: Tensor) -> Tensor:
        """Return the times at which the schedule has the values `lam`, the inverse of `self.lam`; float64."""
        return _interpolate(0.5 * F.logsigmoid(2 * lam), self.log_alpha.flip(0), self.times.flip(0))


def _time_uniform(schedule: VPSchedule, n: int) -> Tensor:
    return schedule.lam(torch.linspace(schedule.times[-1], 0, n + 1, dtype=torch.float64))


def _time_quadratic(schedule: VPSchedule, n: int) -> Tensor:
    root = torch.linspace(len(schedule.times) ** 0.5, 1, n + 1, dtype=torch.float64)  # of t + 1
    return schedule.lam(root**2 - 1)


def _log_snr(schedule: VPSchedule, n: int) -> Tensor:
    first, last = schedule.lam(schedule.times[[-1, 0]]).tolist()
    return torch.linspace(first, last, n + 1, dtype=torch.float64)


SKIP_TYPES = {"time_uniform": _time_uniform, "time_quadratic": _time_quadratic, "logSNR": _log_snr}


def singlestep_orders(steps: int, order: int) -> list[int]:
    """Return the orders of the singlestep updates, which sum to `steps`: `order` as often as it fits, then a lower one.

    Following Lu et al. (2022a, arXiv 2206.00927, section 3.4), a run of order 3 never ends with order 3: if `steps` is
    a multiple of three, it ends with orders 2, 1.
    """
    if order == 3 and steps % 3 == 0:
        return [3] * (steps // 3 - 1) + [2, 1]
    return [order] * (steps // order) + [steps % order] * (steps % order > 0)


# lambda at the steps + 1 points, float64; and for each call the ages of the states that its update uses, where age 0 is
# the newest state. The update starts from the first of them.
Plan = tuple[Tensor, list[tuple[int, ...]]]


def _multistep(schedule: VPSchedule, steps: int, order: int, skip_type: str, lower_order_final: bool) -> Plan:
    last = 1 if lower_order_final else order
    orders = [min(order, i + 1, steps - 1 - i + last) for i in range(steps)]
    return SKIP_TYPES[skip_type](schedule, steps), [tuple(range(k)) for k in orders]


def _singlestep(schedule: VPSchedule, steps: int, order: int, skip_type: str) -> Plan:
    orders = singlestep_orders(steps, order)
    if skip_type == "logSNR":
        ends = _log_snr(schedule, len(orders))
    else:
        ends = SKIP_TYPES[skip_type](schedule, steps)[torch.tensor([0, *orders]).cumsum(0)]
    points = [torch.linspace(s, t, k + 1, dtype=torch.float64)[:-1] for s, t, k in zip(ends, ends[1:], orders)]
    return torch.cat([*points, ends[-1:]]), [tuple(range(j, -1, -1)) for k in orders for j in range(k)]


def _plan(
    schedule: VPSchedule, steps: int, order: int, *, method: str, skip_type: str, lower_order_final: bool
) -> Plan:
    if steps < 1 or order not in (1, 2, 3):
        raise ValueError(f"steps={steps} must be at least 1, and order={order} must be 1, 2 or 3")
    if skip_type not in SKIP_TYPES:
        raise ValueError(f"skip_type '{skip_type}' is unknown: use one of {', '.join(SKIP_TYPES)}")
    if method == "multistep":
        return _multistep(schedule, steps, order, skip_type, lower_order_final)
    if method == "singlestep":
        return _singlestep(schedule, steps, order, skip_type)
    raise ValueError(f"method '{method}' is unknown: use multistep or singlestep")


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
    points, plan = _plan(
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
