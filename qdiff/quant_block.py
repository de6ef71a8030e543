"""Quantized attention products, the sites of activations, and the blocks that are reconstructed together."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from qdiff.adapters import ProductKind
from qdiff.observers import Observer
from qdiff.policy import QuantSpec
from qdiff.quant_layer import PerSlice, Quantizer, QuantModule, SplitQuantizer


class QuantProduct(nn.Module):
    """A product of two activations (query and key, or values and attention weights), both of them quantized.

    The quantizer of an operand is the attribute `act_quantizer_<operand>`, None until it is calibrated.

    Args:
        product: the parameter-free module to replace, called with two tensors.
        kind: names the operands.
    """

    def __init__(self, product: nn.Module, kind: ProductKind):
        super().__init__()
        self.product = product
        self.kind = kind
        self.quantizing = True
        for name in kind.operands:
            setattr(self, f"act_quantizer_{name}", None)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return product(q(a), q(b)); operands without a quantizer stay as they are."""
        if self.quantizing:
            a, b = (
                x if (q := getattr(self, f"act_quantizer_{name}")) is None else q(x)
                for name, x in zip(self.kind.operands, (a, b))
            )
        return self.product(a, b)


@dataclass(frozen=True)
class ActSite:
    """A place where an activation is quantized: the attribute `name` of `owner` holds its quantizer.

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
    def quantizer(self) -> Quantizer | Observer | PerSlice[Observer] | None:
        """What stands here now: a quantizer, an observer during calibration, or None."""
        return getattr(self.owner, self.name)

    @property
    def calibrated(self) -> Quantizer:
        """The quantizer. Raises ValueError if there is none yet."""
        quantizer = self.quantizer
        if not isinstance(quantizer, Quantizer):
            raise ValueError(f"{self.path}.{self.name} is not calibrated")
        return quantizer

    def set(self, quantizer: nn.Module | None) -> None:
        """Put a quantizer or an observer here, or None for floating point."""
        setattr(self.owner, self.name, quantizer)

    def observe(self, make: Callable[[QuantSpec], Observer]) -> None:
        """Put an observer here, or one for each slice."""
        observers = [make(self.spec) for _ in self.split or (0,)]
        self.set(PerSlice(observers, self.split) if self.split else observers[0])

    def freeze(self) -> None:
        """Replace the observers by their quantizers. Raises RuntimeError if no forward pass came here."""
        observed = self.quantizer
        observers = [m for m in observed.modules() if isinstance(m, Observer)] if observed is not None else []
        quantizers = [observer.quantizer for observer in observers if observer.quantizer]
        if not quantizers or len(quantizers) < len(observers):
            raise RuntimeError(f"{self.path}.{self.name} was never computed, so its range is unknown")
        self.set(SplitQuantizer(quantizers, self.split) if self.split else quantizers[0])


@dataclass(frozen=True)
class QuantBlock:
    """Layers that are reconstructed together: an untouched residual, attention or transformer block, or a single layer.

    Args:
        path: in the quantized model.
        module: the block; reconstruction matches its output in full precision.
        layers: its quantized layers by path, in definition order.
        sites: where its activations are quantized, in definition order.
    """

    path: str
    module: nn.Module
    layers: dict[str, QuantModule]
    sites: list[ActSite]
