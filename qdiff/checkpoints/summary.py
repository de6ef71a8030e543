"""What a calibrated file tells about itself, whoever wrote it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from qdiff.errors import UserError
from qdiff.policy import QuantPolicy


class Layer(NamedTuple):
    """A quantized layer.

    Args:
        shape: of its weight, (out, in, ...).
        bits: of its weight, 2..8.
        split: input channels of each slice that has its own quantizers; empty for a layer that is not split.
    """

    shape: tuple[int, ...]
    bits: int
    split: tuple[int, ...] = ()


@dataclass(frozen=True)
class Activations:
    """How activations are quantized unless a rule or a later phase says otherwise; bits are None if not in the file."""

    symmetric: bool
    bits: int | None = None
    softmax_bits: int | None = None


@dataclass(frozen=True)
class CheckpointSummary:
    """What is quantized how.

    Attributes:
        weight_bits: 2..8, of the layers that no rule gives other bits.
        split: whether shortcut layers have quantizers for each of their two slices.
        activations: None if they stay in floating point.
        layers: the quantized layers by path, in the file's order.
        parameters: number of parameters of the network in full precision.
        policy: with its rules and phases; None for files that do not hold it (the original's).
    """

    weight_bits: int
    split: bool
    activations: Activations | None
    layers: dict[str, Layer]
    parameters: int
    policy: QuantPolicy | None

    @property
    def fp32_bytes(self) -> int:
        """Size of the network in float32."""
        return 4 * self.parameters

    def check_flags(
        self, path: str | Path, weight_bit: int | None, act_bit: int | None, a_sym: bool, split: bool, sm_abit: int
    ) -> None:
        """Check the command-line flags against the file.

        Args:
            path: the file, for the error message.
            weight_bit: None if the flag was not given.
            act_bit: None to load the weights alone; then `a_sym` and `sm_abit` do not count.

        Raises:
            UserError: the file says something else; the message names the flag to change.
        """
        for contradiction in self._contradictions(weight_bit, act_bit, a_sym, split, sm_abit):
            raise UserError(f"'{path}' {contradiction}")

    def _contradictions(
        self, weight_bit: int | None, act_bit: int | None, a_sym: bool, split: bool, sm_abit: int
    ) -> Iterator[str]:
        if weight_bit not in (None, self.weight_bits):
            yield f"has weights of {self.weight_bits} bits: give --weight_bit {self.weight_bits}"
        if split != self.split:
            yield _switch("--split", self.split)
        act = self.activations
        if act_bit is None:
            return
        if act is None:
            yield "has no step sizes for activations: leave out --quant_act, or calibrate them with --resume_w"
            return
        if a_sym != act.symmetric:
            yield _switch("--a_sym", act.symmetric)
        if act.bits is not None and act_bit not in self._act_bits:
            bits = " or ".join(map(str, self._act_bits))
            yield f"has activations of {bits} bits: give --act_bit {bits}"
        if act.softmax_bits not in (None, sm_abit):
            yield f"has {act.softmax_bits} bits after the softmax: give --sm_abit {act.softmax_bits}"

    @property
    def _act_bits(self) -> list[int]:
        """Bits of activations in the file, ascending: several if they differ by timestep."""
        later = [bits for _, bits in self.policy.act_phases] if self.policy else []
        first = [self.activations.bits] if self.activations and self.activations.bits else []
        return sorted({*first, *later})


def _switch(flag: str, used: bool) -> str:
    return f"was calibrated with {flag}: add it" if used else f"was calibrated without {flag}: leave it out"
