"""Settings of a calibration."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch

from qdiff.block_recon import Schedule


@dataclass(frozen=True)
class ClosedForm:
    """Weights quantized in closed form, see `qdiff.closed_form`.

    Args:
        columns: single positions of each layer's output, of all samples, that the moments of its inputs are taken from.
    """

    columns: int = 4000


@dataclass(frozen=True)
class CalibrationSettings:
    """How a network is calibrated. The defaults of the command line are the paper's values.

    Args:
        batch_size: samples per forward and per iteration.
        rounding: schedule of learned rounding; None keeps the weights as they are.
        steps: schedule of learned step sizes of activations; None keeps the ranges of the search. Phases of the policy
            share its iterations in proportion to their samples.
        p: exponent of the step-size loss.
        range_samples: samples, of each phase all in one forward, on which activation ranges are searched.
        running_stat: take activation ranges from averages over all data instead of that search.
        rs_sm_only: with `running_stat`, only for attention after its softmax.
        seed: seeds every draw.
        squant: round weights by SQuant, before anything else; see `qdiff.squant`.
        closed_form: how weights are quantized in closed form, before any rounding is learned; None does not.
        correct_bias: correct the biases of layers at the end, see `qdiff.calibration.biases`.
    """

    batch_size: int
    rounding: Schedule | None
    steps: Schedule | None
    p: float = 2.4
    range_samples: int = 256
    running_stat: bool = False
    rs_sm_only: bool = False
    seed: int = 0
    squant: bool = False
    closed_form: ClosedForm | None = None
    correct_bias: bool = False

    def forward_samples(self, act: bool) -> int:
        """Return the samples in the largest forward; `act` says whether activations are quantized."""
        searched = self.range_samples if act and (self.rs_sm_only or not self.running_stat) else 0
        return max(self.batch_size, searched)

    @property
    def changes_blocks(self) -> bool:
        """Whether anything is solved, learned or corrected block by block."""
        return bool(self.closed_form or self.rounding or self.steps or self.correct_bias)

    @property
    def weighs_errors(self) -> bool:
        """Whether a sensitivity spectrum weighs errors."""
        return bool(self.closed_form or self.correct_bias)

    def generator(self, unit: str) -> torch.Generator:
        """Return the CPU generator of a unit: each has its own stream, so a resumed job draws the same numbers."""
        digest = hashlib.sha256(f"{self.seed}/{unit}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; what is not used and came later is absent, so that older records stay valid."""
        later = {"squant", "closed_form", "correct_bias"}
        return {key: value for key, value in asdict(self).items() if value or key not in later}
