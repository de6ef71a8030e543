"""Quantizes the layers of a block in closed form, each once the network before it is quantized."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff.block_recon import Captured, Outcome
from qdiff.calibration.partial_forward import block_call
from qdiff.closed_form import solve_layer
from qdiff.columns import choose_columns
from qdiff.moments import Moments
from qdiff.phases import per_phase, set_phase
from qdiff.quant_block import QuantBlock
from qdiff.quant_layer import QuantModule
from qdiff.quant_model import QuantModel

SOLVED = ("codes", "bias", "weight_quantizer.")  # what is chosen of a layer, by the names of its state dict


@dataclass(frozen=True)
class BlockSolver:
    """Chooses codes, step sizes and biases of blocks.

    Args:
        model: whose activations are calibrated.
        bands: (3, N), weights of the errors of each sample; see `Spectrum.bands`.
        image: height and width of the network's input.
        columns: single positions of each layer's output that its moments are taken from.
        mismatch: see `solve_layer`.
        batch_size: samples per forward.
    """

    model: QuantModel
    bands: Tensor
    image: tuple[int, int]
    columns: int
    mismatch: bool
    batch_size: int

    def solve(self, block: QuantBlock, captured: Captured, generator: torch.Generator) -> Outcome:
        """Quantize the weights of a block, in the order in which it computes.

        Args:
            block: with its full-precision weights and calibrated activations.
            captured: its arguments for N samples, in the quantized network and, as target, in full precision.
            generator: CPU generator that draws the columns.

        Returns:
            the squared errors of the layers' outputs in relation to these outputs, to nearest and as solved.
        """
        errors = []
        for layer in _called(block, captured):
            errors.append(solve_layer(layer, self._moments(layer, block, captured, generator), mismatch=self.mismatch))
        power = sum(error.power for error in errors)
        return Outcome(sum(error.nearest for error in errors) / power, sum(error.solved for error in errors) / power)

    @torch.no_grad()
    def _moments(
        self, layer: QuantModule, block: QuantBlock, captured: Captured, generator: torch.Generator
    ) -> Moments:
        weight, groups = layer.fp_weight, layer.operation.groups
        matrix = weight.flatten(1).unflatten(0, (groups, -1))  # (G, O / G, K)
        moments = Moments(groups, matrix.shape[2], matrix.shape[1], centred=layer.bias is not None, like=weight)
        share = self.columns / self.bands[0].sum().item()
        for rows, x, original in self._inputs(layer, block, captured):
            kernel = tuple(weight.shape[2:])
            windows = layer.operation.windows(x, kernel)
            positions = (windows.shape[2], windows.shape[3])
            chosen = choose_columns(self.bands[:, rows], share, positions, self.image, generator).to(weight.device)
            x_columns, original_columns = (
                chosen.of(w).unflatten(1, (groups, -1)).transpose(0, 1).flatten(2)
                for w in (windows, layer.operation.windows(original, kernel))
            )
            moments.add(x_columns, original_columns @ matrix.transpose(1, 2), chosen.all_weights)
        return moments.finish()

    def _inputs(
        self, layer: QuantModule, block: QuantBlock, captured: Captured
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield samples with the layer's inputs, quantized and in full precision."""
        device, phased = layer.fp_weight.device, per_phase(block.module)
        for phase, rows in captured.batches(self.batch_size):
            set_phase(phased, phase)
            # copies, because a block may change its input in place
            x = block_call(block.module, layer, captured.inputs[rows].to(device, copy=True)).args[0]
            with self.model.full_precision():
                original = block_call(block.module, layer, captured.target[rows].to(device, copy=True)).args[0]
            yield rows, x if layer.act_quantizer is None else layer.act_quantizer(x), original


def _called(block: QuantBlock, captured: Captured) -> list[QuantModule]:
    """Return the layers of a block in the order in which it calls them. Raises ValueError for one not called once."""
    called: list[QuantModule] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: called.append(layer)) for layer in block.layers.values()
    ]
    try:
        with torch.no_grad():
            device = next(block.module.parameters()).device
            captured.inputs[:1].to(device, copy=True)(block.module)
    finally:
        for hook in hooks:
            hook.remove()
    for path, layer in block.layers.items():
        if (times := called.count(layer)) != 1:
            raise ValueError(f"the network calls {path} {times} times: a layer that is solved must be called once")
    return called


@dataclass(frozen=True)
class SolvedBlock:
    """What is solved of a block, for the journal.

    Args:
        block: the block.
    """

    block: QuantBlock

    def state(self) -> dict[str, Tensor]:
        """Return codes, uint8, step sizes, zero points and biases by name."""
        return {
            f"{path}.{name}": x.detach()
            for path, layer in self.block.layers.items()
            for name, x in layer.state_dict().items()
            if name.startswith(SOLVED)
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Set what `state` returned."""
        for path, layer in self.block.layers.items():
            if layer.bias is not None:
                layer.set_bias(state[f"{path}.bias"])
            for i, quantizer in enumerate(layer.weight_quantizer.quantizers()):
                prefix = f"{path}.weight_quantizer." + (f"parts.{i}." if layer.split else "")
                quantizer.delta.copy_(state[f"{prefix}delta"])
                quantizer.zero_point.copy_(state[f"{prefix}zero_point"])
            layer.set_codes(state[f"{path}.codes"])
