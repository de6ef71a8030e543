"""What a calibrated file says about itself, whoever wrote it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from qdiff.errors import UserError
from qdiff.policy import QuantPolicy


class Layer(NamedTuple):
    """A quantized layer.

    Args:
        shape: of its weight, (out, in, ...).
        bits: of its weight codes, 2..8.
        split: input channels of each slice that has its own quantizer; empty for a layer that is not split.
    """

    shape: tuple[int, ...]
    bits: int
    split: tuple[int, ...] = ()


@dataclass(frozen=True)
class Activations:
    """How activations are quantized; bit widths are None where the file does not tell them."""

    symmetric: bool
    bits: int | None = None
    softmax_bits: int | None = None


@dataclass(frozen=True)
class Facts:
    """What is quantized how.

    Attributes:
        weight_bits: 2..8, of the layers that no rule gives other ones.
        split: whether shortcut layers have a quantizer for each slice.
        activations: None where they stay in floating point.
        layers: the quantized layers by path, in the file's order.
        parameters: of the network in full precision.
        policy: None where the file does not have it.
    """

    weight_bits: int
    split: bool
    activations: Activations | None
    layers: dict[str, Layer]
    parameters: int
    policy: QuantPolicy | None

    @property
    def fp32_bytes(self) -> int:
        """Size of the full-precision network."""
        return 4 * self.parameters

    def compare(
        self, path: str | Path, weight_bit: int | None, act_bit: int | None, a_sym: bool, split: bool, sm_abit: int
    ) -> None:
        """Check that the flags of the command line say what the file says.

        Args:
            path: the file, for the error message.
            weight_bit, act_bit: None where nothing was asked; without `act_bit`, `a_sym` and `sm_abit` do not count.

        Raises:
            UserError: they do not; it names the flag to change.
        """
        bits, act = self.weight_bits, self.activations
        checks = [
            (weight_bit in (None, bits), f"has weights of {bits} bits", f"give --weight_bit {bits}"),
            (split <= self.split, "was calibrated without --split", "leave it out"),
            (split >= self.split, "was calibrated with --split", "add it"),
        ]
        if act_bit is not None and act is None:
            remedy = "leave out --quant_act, or calibrate them with --resume_w"
            checks.append((False, "has no step sizes for activations", remedy))
        elif act_bit is not None:
            checks += [
                (a_sym <= act.symmetric, "was calibrated without --a_sym", "leave it out"),
                (a_sym >= act.symmetric, "was calibrated with --a_sym", "add it"),
                (act.bits in (None, act_bit), f"has activations of {act.bits} bits", f"give --act_bit {act.bits}"),
                (
                    act.softmax_bits in (None, sm_abit),
                    f"has {act.softmax_bits} bits after the softmax",
                    f"give --sm_abit {act.softmax_bits}",
                ),
            ]
        for agrees, fact, remedy in checks:
            if not agrees:
                raise UserError(f"'{path}' {fact}: {remedy}")
