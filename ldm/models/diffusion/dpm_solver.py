"""`DPMSolverSampler` under its published path."""

from collections.abc import Iterator

from diffusion.dpm_solver import dpm_solver
from diffusion.steps import Step
from ldm.models.diffusion.sampler import LatentSampler, Start


class DPMSolverSampler(LatentSampler):
    """DPM-Solver++ (`diffusion.dpm_solver.dpm_solver`); by default the multistep method of order 2.

    `order`, `method`, `skip_type` and `lower_order_final` are options of `sample`.
    """

    def _steps(self, start: Start, S: int, *, order: int = 2, **options) -> tuple[int, Iterator[Step]]:
        start.refuse_eta("DPM-Solver")
        abar = self.model.alphas_cumprod
        return S, dpm_solver(start.model, start.x_T, abar, S, order=order, correct=start.correct, **options)
