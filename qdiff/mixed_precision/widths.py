"""A network with activations of several widths, one at a time, and the errors of its predictions."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from diffusion.steps import Model, Step
from qdiff.calibration.act_ranges import find_ranges
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.phases import by_phase
from qdiff.calibration.settings import CalibrationSettings
from qdiff.files.journal import Journal
from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel
from qdiff.spectrum import squares


@dataclass(frozen=True)
class Widths:
    """The quantizers of a network's activations for each width.

    Args:
        model: quantized, with the weights whose errors count; its policy and quantizers change.
        policies: bits -> the policy with these bits at all steps.
    """

    model: QuantModel
    policies: Mapping[int, QuantPolicy]
    found: dict[int, list[nn.Module | None]] = field(default_factory=dict)

    def find(self, data: CalibrationSet, settings: CalibrationSettings, journal: Callable[[int], Journal]) -> None:
        """Find the ranges of every width, each as it would be calibrated alone.

        Args:
            data: inputs of the network.
            settings: how ranges are searched.
            journal: bits -> record of the ranges.

        Raises:
            UserError: an activation is not finite, or a group of steps has no samples.
        """
        for bits, policy in self.policies.items():
            self.model.policy = policy
            find_ranges(self.model, by_phase(self.model, data), settings, journal(bits))
            self.found[bits] = [site.quantizer for site in self.model.sites()]

    def use(self, bits: int) -> None:
        """Put the quantizers of a width in place, whose ranges are found."""
        self.model.policy = self.policies[bits]
        for site, quantizer in zip(self.model.sites(), self.found[bits], strict=True):
            site.set(quantizer)

    @torch.no_grad()
    def errors(self, steps: Iterable[Step], predict: Model, progress: Callable[[], object]) -> dict[str, Tensor]:
        """Measure the errors of all widths along a trajectory of full precision.

        Args:
            steps: of that trajectory, B images at a time.
            predict: calls `model`, guidance included.
            progress: called after each step.

        Returns:
            of each step: `t` (n,), `signal` (n,), |eps|^2, and `errors` (n, widths, 3), see `squares`; float64.
        """
        t, signal, errors = [], [], []
        for step in steps:
            t.append(step.t)
            signal.append(squares(step.eps)[0])
            found = []
            for bits in self.policies:
                self.use(bits)
                found.append(squares(step.predicted_by(predict) - step.eps))
            errors.append(found)
            progress()
        values = {"t": t, "signal": signal, "errors": errors}
        return {name: torch.tensor(x, dtype=torch.float64) for name, x in values.items()}


def of_width(policy: QuantPolicy, bits: int) -> QuantPolicy:
    """Return a policy with other bits of activations in all its phases. Raises ValueError if it quantizes none."""
    if policy.act is None:
        raise ValueError("bits by step are for activations, which this policy leaves in floating point")
    phases = tuple((first, bits) for first, _ in policy.act_phases)
    return replace(policy, act=replace(policy.act, bits=bits), act_phases=phases)
