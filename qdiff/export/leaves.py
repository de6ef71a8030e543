"""The leaves of a quantized network as an exported graph has them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qdiff.adapters import Contraction
from qdiff.export.linear_quantization import OPSET, Dequantize, QuantizeDequantize, quantize_dequantize
from qdiff.integers import ActIntegers, WeightIntegers, act_integers, weight_integers
from qdiff.quant_block import QuantProduct
from qdiff.quant_layer import Quantizer, QuantModule
from qdiff.quant_model import QuantModel


class ExportedSlice(nn.Module):
    """A layer, or what one slice of its input channels adds to its output.

    Args:
        layer: the quantized layer.
        weight: integers of the weight of the slice.
        act: those of its input; None for floating point.
    """

    shift: Tensor

    def __init__(self, layer: QuantModule, weight: WeightIntegers, act: ActIntegers | None):
        super().__init__()
        self.operation = layer.operation
        self.act = quantize_dequantize(act)
        self.weight = Dequantize(weight.values, weight.scale, 0)
        ones = Dequantize(torch.ones_like(weight.values[:1]), torch.ones(1), 0)  # whose products are sums of the input
        self.ones: nn.Module | None = ones if weight.shift.any() else None
        spatial = [1] * (weight.values.ndim - 2)  # of the output, behind its channels
        self.register_buffer("shift", (weight.shift * weight.scale).view(-1, *spatial))

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the layer to `x`, in its shapes; the shift of a weight multiplies the sums of the inputs."""
        x = self.act(x)
        y = self.operation(x, self.weight(), bias)
        return y if self.ones is None else y + self.operation(x, self.ones(), None) * self.shift


class ExportedLayer(nn.Module):
    """A convolution or linear layer; a split one is the sum of its slices.

    Args:
        layer: the quantized layer, whose input has its quantizer or stays in floating point.
    """

    def __init__(self, layer: QuantModule):
        super().__init__()
        weights, quantizer = weight_integers(layer), layer.act_quantizer
        assert isinstance(quantizer, Quantizer | None)  # policies with phases are refused
        acts = [None] * len(weights) if quantizer is None else [act_integers(q) for q in quantizer.quantizers()]
        self.sizes = layer.split
        self.slices = nn.ModuleList(ExportedSlice(layer, weight, act) for weight, act in zip(weights, acts))
        self.register_buffer("bias", _constant(layer.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x`, in its shapes."""
        parts = x.split(self.sizes, dim=1) if self.sizes else (x,)
        first, *others = (
            piece(part, self.bias if i == 0 else None) for i, (piece, part) in enumerate(zip(self.slices, parts))
        )
        return sum(others, start=first)


class PlainProduct(nn.Module):
    """An attention product of which engines compute at least one operand in floating point.

    Args:
        product: the quantized product.
    """

    def __init__(self, product: QuantProduct):
        super().__init__()
        self.product = product.product
        self.a, self.b = map(quantize_dequantize, _operands(product))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the product of the rounded operands, in its shapes."""
        return self.product(self.a(a), self.b(b))


class IntegerProduct(nn.Module):
    """An attention product of codes that keep their zero points, as one product of matrices.

    Engines multiply unsigned by signed codes in integers, but not where a zero point has to be subtracted from the
    second operand. A product is linear in both: with A = a + s and B = b + t for numbers s and t, the sum of a b over
    k terms is that of A B, less t times the sum of A and s times that of B, plus k s t.

    Args:
        product: the quantized product, both operands of 8 bits or fewer.
        contraction: what it computes.
    """

    def __init__(self, product: QuantProduct, contraction: Contraction):
        super().__init__()
        *indices, out = contraction.indices
        summed = contraction.summed
        self.left = next(i for i in range(2) if out[1] in indices[i])  # operand with the rows of the output
        self.scaled = contraction.scaled
        # whether the operands are transposed to (B, rows, k) and (B, k, columns)
        self.transposes = indices[self.left][1] == summed, indices[1 - self.left][2] == summed
        operands = [operand for operand in _operands(product) if operand is not None]
        self.a = QuantizeDequantize(operands[self.left], keep_zero_point=True)
        self.b = QuantizeDequantize(operands[1 - self.left], keep_zero_point=True, signed=True)

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the product of the rounded operands, in its shapes."""
        a, b = operands[self.left], operands[1 - self.left]
        a, b = (x.transpose(1, 2) if turn else x for x, turn in zip((a, b), self.transposes))
        terms = a.shape[2]
        scale = terms**-0.5 if self.scaled else 1.0
        a, b = self.a(a), self.b(b)
        s, t = self.a.excess, self.b.excess
        y = torch.bmm(a, b) * scale
        if t:
            y = y - a.sum(2, keepdim=True) * (t * scale)
        if s:
            y = y - (b.sum(1, keepdim=True) * (s * scale) - terms * s * t * scale)
        return y


def _operands(product: QuantProduct) -> list[ActIntegers | None]:
    found = (getattr(product, f"act_quantizer_{name}") for name in product.kind.operands)
    return [None if quantizer is None else act_integers(quantizer) for quantizer in found]


def exported_product(product: QuantProduct) -> nn.Module:
    """Return the product as a graph has it: in integers where both operands are and its contraction is known."""
    contraction = product.kind.contraction
    integers = all(operand and operand.bits <= 8 for operand in _operands(product))
    return IntegerProduct(product, contraction) if contraction and integers else PlainProduct(product)


class ExportedNorm(nn.Module):
    """GroupNorm as one node, which `qdiff.export.norms` lowers.

    Args:
        norm: with weight and bias.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.attributes: dict[str, Any] = {"num_groups": norm.num_groups, "epsilon": norm.eps}
        self.register_buffer("weight", _constant(norm.weight))
        self.register_buffer("bias", _constant(norm.bias))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, ...) -> the same shape."""
        inputs = x, self.weight, self.bias
        return torch.onnx.ops.symbolic(
            "GroupNormalization", inputs, self.attributes, dtype=torch.float32, shape=x.shape, version=OPSET
        )


def _constant(x: Tensor | None) -> Any:
    return None if x is None else x.detach().to("cpu", torch.float32, copy=True)


# Leaf -> what an exported graph has in its place, subclasses included
LEAVES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    QuantModule: ExportedLayer,
    QuantProduct: exported_product,
    nn.GroupNorm: ExportedNorm,
}


def with_exported_leaves(model: QuantModel) -> nn.Module:
    """Return a copy of the network with the leaves of an exported graph, on the CPU in float32; `model` stays."""
    replaced: dict[int, Any] = {}
    for module in model.model.modules():
        for kind, make in LEAVES.items():
            if isinstance(module, kind):
                replaced[id(module)] = make(module)
    return copy.deepcopy(model.model, replaced).float().cpu().eval()  # deepcopy takes what is in `replaced` instead
