"""Where DPM-Solver++ evaluates the network, and which evaluations each update uses."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
        """Return the times, float64, of the values `lam` of the schedule, in their shape; the inverse of `self.lam`."""
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


def make_plan(
    schedule: VPSchedule, steps: int, order: int, *, method: str, skip_type: str, lower_order_final: bool
) -> Plan:
    """Plan a run with `steps` network calls; for the arguments and errors see `diffusion.dpm_solver.dpm_solver`."""
    if steps < 1 or order not in (1, 2, 3):
        raise ValueError(f"steps={steps} must be at least 1, and order={order} must be 1, 2 or 3")
    if skip_type not in SKIP_TYPES:
        raise ValueError(f"skip_type '{skip_type}' is unknown: use one of {', '.join(SKIP_TYPES)}")
    if method == "multistep":
        return _multistep(schedule, steps, order, skip_type, lower_order_final)
    if method == "singlestep":
        return _singlestep(schedule, steps, order, skip_type)
    raise ValueError(f"method '{method}' is unknown: use multistep or singlestep")
