"""Quantizes the layers of a block in closed form, each once the network before it is quantized."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff.block_recon import Captured, Outcome
from qdiff.calibration.partial_forward import block_call
from qdiff.calls import Call
from qdiff.closed_form.columns import Columns, choose_columns
from qdiff.closed_form.layer import matrices, solve_layer
from qdiff.closed_form.moments import Moments
from qdiff.errors import UserError
from qdiff.phases import per_phase, set_phase
from qdiff.quant_block import QuantBlock
from qdiff.quant_layer import QuantModule
from qdiff.quant_model import QuantModel

FINE_BITS = 8  # from which on the rounding of weights or activations is a small error
SOLVED = ("codes", "bias", "weight_quantizer.")  # what is chosen of a layer, by the names of its state dict


@dataclass(frozen=True)
class BlockSolver:
    """Chooses codes, step sizes and biases of blocks.

    Args:
        model: whose activations are calibrated.
        bands: (3, N), weights of the errors of each sample; see `Spectrum.bands`.
        image: height and width of the network's input.
        columns: single positions of each layer's output that its moments are taken from.
        batch_size: samples per forward.
    """

    model: QuantModel
    bands: Tensor
    image: tuple[int, int]
    columns: int
    batch_size: int

    def solve(self, block: QuantBlock, captured: Captured[Call], generator: torch.Generator) -> Outcome:
        """Quantize the weights of a block, in the order in which it computes.

        Args:
            block: with its full-precision weights and calibrated activations.
            captured: its arguments for N samples, in the quantized network and, as target, in full precision.
            generator: CPU generator that draws the columns.

        Returns:
            the squared errors of the layers' outputs in relation to these outputs, to nearest and as solved.

        Raises:
            UserError: inputs or outputs of a layer are not finite.
            ValueError: the block does not call each of its layers once.
        """
        chosen = self._chosen(block, captured, generator)
        mismatch = aims_at_outputs(self.model)
        errors = [
            solve_layer(layer, self._moments(layer, block, captured, columns), mismatch=mismatch)
            for layer, columns in chosen.items()
        ]
        power = sum(error.power for error in errors) or 1.0  # 0 if the outputs are the same at all columns
        return Outcome(sum(error.nearest for error in errors) / power, sum(error.solved for error in errors) / power)

    @torch.no_grad()
    def _chosen(
        self, block: QuantBlock, captured: Captured[Call], generator: torch.Generator
    ) -> dict[QuantModule, list[tuple[Columns, Tensor]]]:
        """Draw the columns of every batch, with the outputs in full precision there, by layer as they are called."""
        share = self.columns / self.bands[0].sum().item()
        chosen: dict[QuantModule, list[tuple[Columns, Tensor]]] = {}

        def choose(layer: QuantModule, x: Tensor, output: Tensor) -> None:
            y = layer.operation.positions(output)
            seen = layer.operation.windows(x, tuple(layer.fp_weight.shape[2:])).x.shape[2:]
            image = self.image if seen == y.shape else y.shape  # a kernel along a row of tokens sees it as a row
            columns = choose_columns(self.bands[:, rows], share, y.shape, image, generator).to(output.device)
            chosen.setdefault(layer, []).append((columns, _grouped(layer, columns.of(y))))

        with self.model.full_precision():
            for _, rows in captured.batches(self.batch_size):
                block.run(captured.target[rows], choose)
        return chosen

    @torch.no_grad()
    def _moments(
        self, layer: QuantModule, block: QuantBlock, captured: Captured[Call], chosen: list[tuple[Columns, Tensor]]
    ) -> Moments:
        weight, phased = layer.fp_weight.detach(), per_phase(block.module)
        moments = Moments(matrices(weight, layer.operation.groups), centred=layer.bias is not None)
        for (phase, rows), (columns, y) in zip(captured.batches(self.batch_size), chosen):
            set_phase(phased, phase)
            # a copy, because a block may change its input in place
            (x,) = block_call(block.module, layer, captured.inputs[rows].to(weight.device, copy=True)).args
            x = x if layer.act_quantizer is None else layer.act_quantizer(x)
            windows = layer.operation.windows(x, tuple(weight.shape[2:]))
            units = moments.spread.units(windows.x)[columns.all_samples]
            moments.add(_grouped(layer, columns.of(windows)), y, columns.all_weights, units)
        moments.finish()
        if not (math.isfinite(moments.power) and moments.hessian.isfinite().all()):
            path = next(path for path, other in block.layers.items() if other is layer)
            raise UserError(
                f"{path}: its inputs or outputs are not finite; check the weights and --cali_data_path for values that "
                "overflow"
            )
        return moments


def aims_at_outputs(model: QuantModel) -> bool:
    """Return whether weights make up for the errors of their inputs, see `solve_layer`.

    They can for what coarse weights before them do. Rounded activations err like noise, for which a fit to noisy inputs
    only makes weights too small; where they are coarse, or nothing else errs, weights keep their own values as aim.
    """
    acts = [spec.bits for site in model.sites() for spec in site.specs]
    return model.policy.weight.bits < FINE_BITS <= min(acts, default=FINE_BITS)


def _grouped(layer: QuantModule, columns: Tensor) -> Tensor:
    """Return columns (n, C, kh, kw) by group of the layer, (G, n, K)."""
    return columns.unflatten(1, (layer.operation.groups, -1)).transpose(0, 1).flatten(2)


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
