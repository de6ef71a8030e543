"""Quantized attention products, places of activations, and the blocks that are reconstructed together."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from qdiff.adapters import ProductKind
from qdiff.observers import Observer
from qdiff.policy import QuantSpec
from qdiff.quant_layer import Quantizer, QuantModule, SplitQuantizer


class QuantProduct(nn.Module):
    """A product of two activations (query and key, or values and attention weights) with both operands quantized.

    Args:
        product: the parameter-free module that it replaces, called with two tensors.
        kind: names its operands, which name the quantizers: `act_quantizer_<name>`.
    """

    def __init__(self, product: nn.Module, kind: ProductKind):
        super().__init__()
        self.product = product
        self.kind = kind
        self.quantizing = True
        for name in kind.operands:
            setattr(self, f"act_quantizer_{name}", None)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """product(q(a), q(b))."""
        if self.quantizing:
            a, b = (
                x if (q := getattr(self, f"act_quantizer_{name}")) is None else q(x)
                for name, x in zip(self.kind.operands, (a, b))
            )
        return self.product(a, b)


@dataclass(frozen=True)
class ActSite:
    """A place where an activation is quantized: the attribute `name` of `owner` holds its quantizer or None.

    Args:
        path: of `owner` in the quantized model.
        owner: a quantized layer or attention product.
        name: `act_quantizer` of a layer, `act_quantizer_<operand>` of a product.
        spec: how it is quantized.
        split: channels of each slice that has its own quantizer; None without.
        is_softmax: whether the activation is attention after its softmax.
    """

    path: str
    owner: nn.Module
    name: str
    spec: QuantSpec
    split: tuple[int, ...] | None = None
    is_softmax: bool = False

    @property
    def quantizer(self) -> Quantizer | None:
        """What quantizes it now."""
        return getattr(self.owner, self.name)

    def set(self, quantizer: nn.Module | None) -> None:
        """Quantize it with this from now on."""
        setattr(self.owner, self.name, quantizer)

    def observe(self, make: Callable[[QuantSpec], Observer]) -> None:
        """Look for the range in what comes by."""
        if self.split:
            self.set(SplitQuantizer([make(self.spec) for _ in self.split], self.split))
        else:
            self.set(make(self.spec))

    def settle(self) -> None:
        """Replace the observers by what they found. Raises RuntimeError if no forward came by."""
        seen = self.quantizer
        found = [part.found for part in (seen.parts if self.split else [seen])]
        if None in found:
            raise RuntimeError(f"{self.path}.{self.name} was never reached, so its range is unknown")
        self.set(SplitQuantizer(found, self.split) if self.split else found[0])


@dataclass(frozen=True)
class QuantBlock:
    """Layers that are reconstructed together: an untouched residual, attention or transformer block, or a single layer.

    Args:
        path: its name in the quantized model.
        module: called in the network's forward; its input and output are what reconstruction matches.
        layers: the quantized layers within, in definition order, by path.
        sites: the places within where activations are quantized.
    """

    path: str
    module: nn.Module
    layers: dict[str, QuantModule]
    sites: list[ActSite]
