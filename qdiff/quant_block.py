"""Quantized attention products, the sites of activations, and the blocks that are reconstructed together."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qdiff.adapters import ProductKind
from qdiff.calls import Call
from qdiff.observers import Observer
from qdiff.phases import ActQuantizer, PerPhase, PhaseQuantizer, phase_names
from qdiff.policy import QuantSpec
from qdiff.quant_layer import PerSlice, Quantizer, QuantLeaf, QuantModule, SplitQuantizer, quantizer_from


class QuantProduct(QuantLeaf):
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
        for name in kind.operands:
            setattr(self, f"act_quantizer_{name}", None)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return product(q(a), q(b)), in the product's shapes; operands without a quantizer stay as they are."""
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
        specs: how it is quantized, in each phase of the policy.
        split: channels of each slice that has its own quantizer; None without.
        is_softmax: whether the activation is attention after its softmax.
    """

    path: str
    owner: nn.Module
    name: str
    specs: tuple[QuantSpec, ...]
    split: tuple[int, ...] | None = None
    is_softmax: bool = False

    @property
    def spec(self) -> QuantSpec:
        """How it is quantized in the first phase, the only one unless the policy has several."""
        return self.specs[0]

    @property
    def step_is_learned(self) -> bool:
        """Whether its step size is worth learning, in one phase at least."""
        return any(spec.step_is_learned for spec in self.specs)

    @property
    def quantizer(self) -> nn.Module | None:
        """What stands here now: a quantizer, observers during calibration, or None."""
        return getattr(self.owner, self.name)

    @property
    def calibrated(self) -> ActQuantizer:
        """The quantizer. Raises ValueError if there is none yet."""
        quantizer = self.quantizer
        if not isinstance(quantizer, ActQuantizer):
            raise ValueError(f"{self.path}.{self.name} is not calibrated")
        return quantizer

    def set(self, quantizer: nn.Module | None) -> None:
        """Put a quantizer or an observer here, or None for floating point."""
        setattr(self.owner, self.name, quantizer)

    def observe(self, make: Callable[[QuantSpec], Observer]) -> None:
        """Put an observer here, or one for each phase and slice."""
        phases = [[make(spec) for _ in self.split or (0,)] for spec in self.specs]
        parts = [PerSlice(observers, self.split) if self.split else observers[0] for observers in phases]
        self.set(PerPhase(parts) if len(parts) > 1 else parts[0])

    def freeze(self) -> None:
        """Replace the observers by their quantizers. Raises RuntimeError if no forward pass came here."""
        observed = self.quantizer
        observers = [m for m in observed.modules() if isinstance(m, Observer)] if observed is not None else []
        found = [observer.quantizer for observer in observers if observer.quantizer]
        if not found or len(found) < len(observers):
            raise RuntimeError(f"{self.path}.{self.name} was never computed, so its range is unknown")
        slices = len(observers) // len(self.specs)
        phases = [found[i : i + slices] for i in range(0, len(found), slices)]
        self._set_phases([SplitQuantizer(parts, self.split) if self.split else parts[0] for parts in phases])

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Put here the quantizer of a state dict, step size of shape (). Raises as `QuantModel.from_state`."""
        names = phase_names(f"{self.path}.{self.name}", len(self.specs))
        phases = [quantizer_from(state, name, spec, self.split) for name, spec in zip(names, self.specs)]
        self._set_phases([quantizer.to(device) for quantizer in phases])

    def _set_phases(self, quantizers: list[Quantizer]) -> None:
        self.set(PhaseQuantizer(quantizers) if len(quantizers) > 1 else quantizers[0])


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

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.module.parameters()).device

    def run(self, call: Call, after: Callable[[QuantModule, Tensor, Tensor], None]) -> None:
        """Call the block, and `after` with each layer, its input and its output, in the order of the calls.

        Args:
            call: arguments of the block, on any device.
            after: must not change the tensors.

        Raises:
            ValueError: the block does not call each of its layers once.
        """
        calls: Counter[QuantModule] = Counter()

        def hook(layer: QuantModule, args: tuple[Tensor], output: Tensor) -> None:
            calls[layer] += 1
            after(layer, *args, output)

        handles = [layer.register_forward_hook(hook) for layer in self.layers.values()]
        try:
            call.to(self.device, copy=True)(self.module)  # a copy, because a block may change its input in place
        finally:
            for handle in handles:
                handle.remove()
        for path, layer in self.layers.items():
            if calls[layer] != 1:
                raise ValueError(f"{path} is called {calls[layer]} times by its block: it must be called once")
