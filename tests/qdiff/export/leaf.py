"""Networks of one leaf, quantized with given numbers, and inputs that no engine can round to another code."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qdiff.adapters import Adapter, ProductKind
from qdiff.calls import Call
from qdiff.export.engines import ENGINES
from qdiff.export.onnx import export_graph
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_layer import SplitQuantizer, UniformAffineQuantizer
from qdiff.quant_model import QuantModel


class OneLayer(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class OneProduct(nn.Module):
    def __init__(self, product: nn.Module):
        super().__init__()
        self.product = product

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.product(a, b)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def act(delta: float, zero_point: int, bits: int = 8, symmetric: bool = False) -> UniformAffineQuantizer:
    return UniformAffineQuantizer(torch.tensor(delta), torch.tensor(float(zero_point)), QuantSpec(bits, symmetric))


def off_ties(shape: Sequence[int], quantizer: UniformAffineQuantizer, seed: int = 1) -> Tensor:
    """Values of all codes, and of some that are clipped, up to 0.4 of a step away from them."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (int(end - quantizer.zero_point) for end in (quantizer.lo, quantizer.hi))
    codes = torch.randint(low - 9, high + 10, tuple(shape), generator=generator)
    return (codes + 0.8 * torch.rand(tuple(shape), generator=generator) - 0.4) * quantizer.delta.detach()


def layer_model(
    layer: nn.Module,
    quantizers: Sequence[UniformAffineQuantizer] | None,
    weight_bits: int = 4,
    range_search: str = "max",
    sizes: tuple[int, ...] | None = None,
) -> QuantModel:
    """A network of one layer. Its weight is rounded to nearest; `quantizers` are those of its input's slices."""
    act_spec = quantizers[0].spec if quantizers else None
    policy = QuantPolicy(
        QuantSpec(weight_bits, per_channel=True, range_search=range_search), act_spec, split=sizes is not None
    )
    adapter = Adapter(family="leaf", splits=lambda model: {"layer": sizes} if sizes else {})
    model = QuantModel(OneLayer(layer).eval(), policy, adapter)
    if quantizers:
        model.sites()[0].set(SplitQuantizer(quantizers, sizes) if sizes else quantizers[0])
    return model


def product_model(
    product: nn.Module, kind: ProductKind, operands: Mapping[str, UniformAffineQuantizer | None]
) -> QuantModel:
    """A network of one attention product."""
    adapter = Adapter(family="leaf", products={type(product): kind})
    model = QuantModel(OneProduct(product).eval(), QuantPolicy(act=QuantSpec(8)), adapter)
    for site in model.sites():
        site.set(operands[site.name.removeprefix("act_quantizer_")])
    return model


def outputs(model: QuantModel, *inputs: Tensor) -> dict[str, Tensor]:
    """What each engine makes of the inputs."""
    graph = export_graph(model, Call(inputs))
    return {name: make(graph, threads=1)(*inputs) for name, make in ENGINES.items()}


def assert_agree(model: QuantModel, *inputs: Tensor, tolerance: float = 2e-6) -> None:
    """Both engines give what the simulated network gives, but for roundings of float32."""
    with torch.no_grad():
        wanted = model(*inputs)
    for name, found in outputs(model, *inputs).items():
        assert found.shape == wanted.shape and found.dtype == torch.float32
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max(), name
