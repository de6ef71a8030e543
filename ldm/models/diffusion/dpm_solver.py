"""`DPMSolverSampler`."""

from collections.abc import Iterator

from torch import Tensor

from ldm.models.diffusion.sampler import LatentSampler, refuse_eta
from ldm.samplers import Correction, Model, Noise, Step, dpm_solver


class DPMSolverSampler(LatentSampler):
    """DPM-Solver++, see `ddim.dpm_solver.dpm_solver`, whose `order`, `method`, `skip_type` and `lower_order_final` are
    options of `sample`; by default it is the multistep method of order 2.
    """

    def _steps(
        self,
        model: Model,
        x_T: Tensor,
        S: int,
        *,
        eta: float,
        noise: Noise,
        correct: Correction,
        order: int = 2,
        **options,
    ) -> tuple[int, Iterator[Step]]:
        refuse_eta(eta, "DPM-Solver")
        return S, dpm_solver(model, x_T, self.model.alphas_cumprod, S, order=order, correct=correct, **options)
