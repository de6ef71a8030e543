"""QuantModel: a network whose leaves are quantized."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qdiff.adapters import Adapter
from qdiff.calls import Call
from qdiff.observers import Observer, TwoPass
from qdiff.operations import OPERATIONS
from qdiff.phases import PerPhase, set_phase
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_block import ActSite, QuantBlock, QuantProduct
from qdiff.quant_layer import QuantLeaf, QuantModule, fit_quantizer, quantizer_from

MakeLayer = Callable[[str, nn.Module, tuple[int, ...] | None], QuantModule]


class QuantModel(nn.Module):
    """A network whose convolutions, linear layers and attention products are replaced by quantized ones, in place.

    Weights are rounded to nearest at once; activations stay in floating point until they are calibrated.

    Args:
        model: the network in full precision. It is changed, and shares its parameters with the result.
        policy: what is quantized how.
        adapter: describes the network's family; `qdiff.adapters.adapter_for(model)` knows those of `ddim` and `ldm`.
        make_layer: makes the quantized layer from its path in `model`, the layer, and the input channels of its slices
            (None if it is not split). The default rounds the weight to nearest.

    Raises:
        ValueError: a module owns parameters and is neither quantized nor listed as plain by the adapter, or stands at
            two paths, or a rule of the policy matches nothing; nothing is changed then.
    """

    def __init__(self, model: nn.Module, policy: QuantPolicy, adapter: Adapter, make_layer: MakeLayer | None = None):
        super().__init__()
        self.policy, self.adapter = policy, adapter
        self.provenance: Mapping[str, Any] = {}  # where the numbers come from, JSON values; goes into its file
        _check_leaves(model, adapter)
        _check_rules(model, policy, adapter)
        splits = adapter.splits(model) if policy.split else {}
        make_layer = make_layer or self._round_to_nearest
        for path, module in list(model.named_modules()):
            if type(module) in OPERATIONS:
                _replace(model, path, make_layer(path, module, splits.get(path)))
            elif type(module) in adapter.products:
                _replace(model, path, QuantProduct(module, adapter.products[type(module)]))
        self.model = model
        self._leaves: dict[str, QuantLeaf] = {p: m for p, m in self.named_modules() if isinstance(m, QuantLeaf)}
        self.requires_grad_(False)
        self.train(model.training)

    def _round_to_nearest(self, path: str, layer: nn.Module, split: tuple[int, ...] | None) -> QuantModule:
        assert isinstance(layer.weight, Tensor)  # as every layer in OPERATIONS has
        return QuantModule(layer, fit_quantizer(layer.weight, self.policy.weight_for(f"model.{path}"), split))

    def forward(self, *args, **kwargs) -> Tensor:
        """Call the quantized network; arguments and result are those of the original one.

        Raises:
            ValueError: activations are quantized by phase, and the samples are in several or the timestep is not known.
        """
        if self.policy.act_phases:
            self._enter_phase(args, kwargs)
        return self.model(*args, **kwargs)

    def _enter_phase(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make the phase of these arguments the active one; reads the timesteps, which synchronises a GPU."""
        if not (parts := self._per_phase()):
            return
        phases = sorted(set(self._phases_at(self.adapter.timestep(*args, **kwargs))))
        if len(phases) > 1:
            timesteps = " and ".join(self.policy.timesteps_of(phase) for phase in phases)
            raise ValueError(f"a batch has timesteps {timesteps}, where activations differ in their bits: divide it")
        set_phase(parts, phases[0])

    def _per_phase(self) -> list[PerPhase]:
        """Return what depends on the phase now: nothing before activations are calibrated, or in full precision."""
        leaves = (leaf for leaf in self._leaves.values() if leaf.quantizing)
        return [part for leaf in leaves for part in leaf.children() if isinstance(part, PerPhase)]

    def _phases_at(self, t: Any) -> list[int]:
        return [self.policy.phase_of(x) for x in (t.flatten().tolist() if isinstance(t, Tensor) else [t])]

    @property
    def has_phases(self) -> bool:
        """Whether activations are quantized by phase, so that all samples of a batch must be in the same one."""
        return bool(self._per_phase())

    def phases_of(self, call: Call) -> list[int]:
        """Return the number of the phase that each sample of a call is in. Raises ValueError as `Adapter.timestep`."""
        phases = self._phases_at(call(self.adapter.timestep))
        return phases * len(call) if len(phases) == 1 else phases

    def layers(self) -> dict[str, QuantModule]:
        """Return the quantized layers by path, in definition order."""
        return {path: m for path, m in self.named_modules() if isinstance(m, QuantModule)}

    def leaves(self) -> dict[str, QuantLeaf]:
        """Return the quantized layers and attention products by path, in definition order; also executed ones."""
        return dict(self._leaves)

    def replace_leaf(self, path: str, leaf: QuantLeaf) -> None:
        """Put another quantized leaf in the place of the one at `path`."""
        self.set_submodule(path, leaf)
        self._leaves[path] = leaf

    def sites(self) -> list[ActSite]:
        """Return where the policy quantizes activations, in definition order."""
        return list(self._sites(self, ""))

    def _sites(self, module: nn.Module, path: str) -> Iterator[ActSite]:
        for p, m in _named(module, path):
            if isinstance(m, QuantModule):
                specs = [self.policy.act_for(p, phase=phase) for phase in self.policy.phases]
                yield from _site(p, m, "act_quantizer", specs, split=m.split)
            elif isinstance(m, QuantProduct):
                for operand in m.kind.operands:
                    specs = [m.kind.spec(self.policy, p, operand, phase) for phase in self.policy.phases]
                    yield from _site(p, m, f"act_quantizer_{operand}", specs, is_softmax=operand == m.kind.softmax)

    def blocks(self) -> list[QuantBlock]:
        """Return what is reconstructed together, in definition order; a layer outside every block is one by itself."""
        blocks: list[QuantBlock] = []
        for path, module in self.named_modules():
            inside = any(path.startswith(f"{b.path}.") for b in blocks[-1:])
            if not inside and (type(module) in self.adapter.blocks or isinstance(module, QuantModule)):
                layers = {p: m for p, m in _named(module, path) if isinstance(m, QuantModule)}
                blocks.append(QuantBlock(path, module, layers, list(self._sites(module, path))))
        return blocks

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Switch all quantizers off inside the context. Raises ValueError if the FP weights were given up."""
        leaves = list(self._leaves.values())
        if not all(leaf.has_full_precision for leaf in leaves):
            raise ValueError("this model holds integer weights only; full precision needs the original checkpoint")
        before = [leaf.quantizing for leaf in leaves]
        try:
            for leaf in leaves:
                leaf.quantizing = False
            yield
        finally:
            for leaf, value in zip(leaves, before):
                leaf.quantizing = value

    @contextmanager
    def unrounded(self) -> Iterator[None]:
        """Take the weights in full precision inside, while activations are quantized. Raises as `full_precision`."""
        layers = self.layers().values()
        try:
            for layer in layers:
                layer.dequantized = layer.fp_weight.detach()
            yield
        finally:
            for layer in layers:
                layer.set_codes(layer.codes)

    def forget_full_precision(self) -> None:
        """Free the full-precision weights, half of the memory; `full_precision` is no longer possible."""
        for layer in self.layers().values():
            layer.forget_full_precision()

    @contextmanager
    def observing(self, kind: type[Observer], sites: Sequence[ActSite] | None = None) -> Iterator[None]:
        """Calibrate activation ranges from the forward passes run inside the context, without gradients.

        Args:
            kind: of the observers.
            sites: where; all by default. After an error they have the quantizers that they had before.

        Raises:
            RuntimeError: no forward pass computed the activation of a site.
        """
        sites, two_pass = self.sites() if sites is None else sites, TwoPass()
        before = [site.quantizer for site in sites]
        for site in sites:
            site.observe(partial(kind, two_pass=two_pass, second_pass=site.is_softmax))
        try:
            with torch.no_grad(), self.adapter.repeat_slices(two_pass):
                yield
            for site in sites:
                site.freeze()
        except BaseException:
            for site, quantizer in zip(sites, before):
                site.set(quantizer)
            raise

    def quantized_state(self) -> dict[str, Tensor]:
        """Return the state dict without FP weights, for `from_state`; codes are uint8 in the shape of the weight."""
        replaced = {f"{path}.{name}" for path in self.layers() for name in ("weight", "fp_bias")}
        return {key: value for key, value in self.state_dict().items() if key not in replaced}

    @classmethod
    def from_state(
        cls,
        model: nn.Module,
        policy: QuantPolicy,
        adapter: Adapter,
        state: Mapping[str, Tensor],
        *,
        keep_weights: bool = False,
        activations: bool = True,
        layer_type: type[QuantModule] = QuantModule,
    ) -> "QuantModel":
        """Rebuild a quantized network; no data and no forward pass are needed.

        Args:
            model: the network, changed in place; its parameters may hold anything unless `keep_weights`.
            policy, adapter: those of the network that `state` comes from; activations that `policy` leaves in floating
                point are not read.
            state: as `quantized_state` returns it, on any device.
            keep_weights: keep all parameters of `model`, so that `full_precision` works; take from `state` only the
                quantizers, the codes and the biases that go with them.
            activations: restore the activation quantizers; otherwise they are still to be calibrated.
            layer_type: class of the quantized layers.

        Raises:
            KeyError: `state` lacks a tensor.
            ValueError: a step size is not positive, a zero point is not an integer, or as the constructor.
        """

        device = next(model.parameters()).device
        if not keep_weights:  # now, because loading them into finished layers would dequantize those again
            layers = [path for path, module in model.named_modules() if type(module) in OPERATIONS]
            replaced = {f"{path}.{name}" for path in layers for name in ("weight", "bias")}
            others = [key for key in model.state_dict() if key not in replaced]
            model.load_state_dict({key: state[f"model.{key}"] for key in others}, strict=False)

        def restore(path: str, layer: nn.Module, split: tuple[int, ...] | None) -> QuantModule:
            prefix = f"model.{path}"
            quantizer = quantizer_from(state, f"{prefix}.weight_quantizer", policy.weight_for(prefix), split)
            restored = layer_type(layer, quantizer.to(device), state[f"{prefix}.codes"])
            if restored.bias is not None:  # a new tensor, because another network may share that of the layer
                restored.set_bias(state[f"{prefix}.bias"])
            if not keep_weights:
                restored.forget_full_precision()
            return restored

        quantized = cls(model, policy, adapter, make_layer=restore)
        for site in quantized.sites() if activations else []:
            site.restore(state, device)
        return quantized


def _check_leaves(model: nn.Module, adapter: Adapter) -> None:
    """Check that every module with parameters is known, and has one path, so that it can be replaced."""
    seen: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if next(module.parameters(recurse=False), None) is None or type(module) in adapter.plain:
            continue
        name = f"{path} ({type(module).__name__})"
        if type(module) not in OPERATIONS:
            raise ValueError(f"{name} owns parameters, but nothing says how to quantize it")
        if id(module) in seen:
            raise ValueError(f"{name} is also {seen[id(module)]}: a layer at two paths cannot be quantized")
        seen[id(module)] = path


def _check_rules(model: nn.Module, policy: QuantPolicy, adapter: Adapter) -> None:
    types = {path: type(module) for path, module in model.named_modules(prefix="model")}
    products = {path: adapter.products[t].operands for path, t in types.items() if t in adapter.products}
    operands = [f"{path}.{operand}" for path, names in products.items() for operand in names]
    policy.check_rules([path for path, t in types.items() if t in OPERATIONS], [*products, *operands])


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _site(path: str, owner: nn.Module, name: str, specs: Sequence[QuantSpec | None], **about: Any) -> Iterator[ActSite]:
    """Yield the site, unless its activation stays in floating point."""
    if quantized := tuple(spec for spec in specs if spec):
        yield ActSite(path, owner, name, quantized, **about)


def _named(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    return module.named_modules(prefix=path)
