"""Corrects the biases of quantized layers, so that what they return has the mean that it has in full precision.

Nagel et al. 2019 (arXiv 1906.04721, section 4.2). Rounded weights shift the mean of a layer's output. A block's squared
error hardly sees a shift, but sampling adds that of eps up over its steps, as an error of the image's colours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff.block_recon import Captured, Outcome
from qdiff.calls import Call
from qdiff.phases import per_phase, set_phase
from qdiff.quant_block import QuantBlock
from qdiff.quant_layer import QuantModule
from qdiff.quant_model import QuantModel


@dataclass(frozen=True)
class BiasCorrector:
    """Corrects the biases of blocks.

    Args:
        model: with its quantized weights and, if any, activations.
        weights: of each sample in the means, (N,), >= 0.
        batch_size: samples per forward.
    """

    model: QuantModel
    weights: Tensor
    batch_size: int

    @torch.no_grad()
    def correct(self, block: QuantBlock, captured: Captured[Call]) -> Outcome:
        """Correct the biases of a block's layers, each on the inputs that it gets from those corrected before it.

        Args:
            block: the block.
            captured: its arguments for N samples, in the quantized network and, as target, in full precision.

        Returns:
            the squared errors of the means in relation to the means, before and after.

        Raises:
            ValueError: the block does not call each of its layers once.
        """
        with self.model.full_precision():
            wanted = self._means(block, captured, captured.target)
        power = sum(mean.square().sum().item() for mean in wanted.values()) or 1.0
        found = self._means(block, captured, captured.inputs)
        before = _distance(found, wanted)
        for layer, mean in wanted.items():  # in the order in which they are called
            if layer.bias is not None:
                layer.set_bias(layer.bias + mean - found[layer])
                found = self._means(block, captured, captured.inputs)
        return Outcome(before / power, _distance(found, wanted) / power)

    def _means(self, block: QuantBlock, captured: Captured[Call], calls: Call) -> dict[QuantModule, Tensor]:
        """Return the weighted mean of what each layer returns in so many calls of its block, (O,)."""
        phased, shares = per_phase(block.module), self.weights / self.weights.sum()
        found: dict[QuantModule, Tensor] = {}

        def add(layer: QuantModule, x: Tensor, y: Tensor) -> None:
            mean = layer.operation.positions(y).x.flatten(2).mean(2)
            found[layer] = found.get(layer, 0) + shares[rows].to(mean) @ mean

        for phase, rows in captured.batches(self.batch_size):
            set_phase(phased, phase)
            block.run(calls[rows], add)
        return found


def _distance(found: Mapping[QuantModule, Tensor], wanted: Mapping[QuantModule, Tensor]) -> float:
    return sum((found[layer] - mean).square().sum().item() for layer, mean in wanted.items())


@dataclass(frozen=True)
class CorrectedBiases:
    """The biases of a block, for the journal.

    Args:
        block: the block.
    """

    block: QuantBlock

    def state(self) -> dict[str, Tensor]:
        """Return the biases by name."""
        biases = ((path, layer.bias) for path, layer in self.block.layers.items())
        return {f"{path}.bias": bias.detach() for path, bias in biases if bias is not None}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set what `state` returned."""
        for name, bias in state.items():
            self.block.layers[name.removesuffix(".bias")].set_bias(bias)
