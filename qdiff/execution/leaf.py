"""A leaf of an executed network, and the quantizers that it computes with."""

import torch

from qdiff.phases import ActQuantizer, PhaseQuantizer
from qdiff.quant_layer import Quantizer, QuantLeaf


class ExecutedLeaf(QuantLeaf):
    """A layer or product of an executed network.

    `state_dict` has no weights, because an executed network comes from a file and is not written to another one.

    Attributes:
        dtype: in which it computes.
        nbytes: what its weights take, step sizes included.
        reason: why it computes in floating point; empty where it computes with integers.
    """

    dtype: torch.dtype
    nbytes: int
    reason: str

    @property
    def has_full_precision(self) -> bool:
        """False: it holds integers only."""
        return False


def quantizers_of(activation: object) -> list[Quantizer]:
    """Return the quantizers in the place of an activation's, of each phase; none if it stays in floating point.

    Raises:
        ValueError: it is not calibrated yet.
    """
    if activation is None:
        return []
    if not isinstance(activation, ActQuantizer):
        raise ValueError("the calibration of this network is not finished")
    return list(activation) if isinstance(activation, PhaseQuantizer) else [activation]


def bits_of(phases: list[Quantizer]) -> int:
    """Return the most bits that an activation has in a phase."""
    return max(part.spec.bits for phase in phases for part in phase.quantizers())
