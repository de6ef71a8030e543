"""Networks for engines to execute, used by backends.py: made once, then loaded by the process of each engine."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from calibration import HELD_OUT, load, settings_of
from networks import inputs, network
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import qdiff
from qdiff.adapters import Adapter, adapter_of
from qdiff.checkpoints.load import load_as_written, save_quantized
from qdiff.config.networks import load_network
from qdiff.observers import Observer
from qdiff.pipelines.pipeline import Pipeline
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel

CIFAR = Path("configs/cifar10.yml")
SD = Path("configs/stable-diffusion/v1-inference.yaml")
RESIDUAL, TRANSFORMER = 0, 2  # blocks of the adapter
FLOAT = 32  # bits of activations that are not quantized
SPREAD = 6  # images whose trajectories give a bundled model's inputs
QUANTIZED, INPUTS = "quantized.safetensors", "inputs.safetensors"  # files in the folder of a subject

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """A network to execute.

    Args:
        adapter: describes its family.
        make: makes it in full precision.
        draw: draws inputs for a number of samples.
        pipeline: makes the pipeline that samples with it; None if there is none.
    """

    adapter: Adapter
    make: Callable[[], nn.Module]
    draw: Callable[[int], Inputs]
    pipeline: Callable[[], Pipeline] | None = None

    def prepare(self, folder: Path, batch: int, samples: int, bits: tuple[int, int], w_sym: bool) -> None:
        """Write the quantized network and inputs: a batch, and samples to calibrate other engines on."""
        given, others = self.draw(batch), self.draw(samples)
        save_quantized(folder / QUANTIZED, self._quantized(given, bits, w_sym))
        parts = {f"{kind}{i}": x.contiguous() for kind, xs in (("x", given), ("c", others)) for i, x in enumerate(xs)}
        save_file(parts, folder / INPUTS)

    def _quantized(self, given: Inputs, bits: tuple[int, int], w_sym: bool) -> QuantModel:
        acts = None if bits[1] == FLOAT else bits[1]
        if self.pipeline:
            pipe = self.pipeline()
            data = {"timesteps": 10, "samples": max(1, 6 // pipe.cfg_copies), "symmetric_weights": w_sym}
            quantized = qdiff.quantize(pipe, weight_bits=bits[0], act_bits=acts, **data, **settings_of("gptq"))
            assert isinstance(quantized.network, QuantModel)
            return quantized.network
        weight = QuantSpec(bits[0], w_sym, per_channel=True, range_search="minmax")
        policy = QuantPolicy(weight, QuantSpec(acts) if acts else None, split=True)
        model = QuantModel(self.make(), policy, self.adapter).eval()
        with model.observing(Observer):
            model(*given)
        return model

    def load(self, folder: Path) -> QuantModel:
        """Load the quantized network, its weights packed."""
        network = self.make().to("meta").to_empty(device="cpu")
        return load_as_written(network, folder / QUANTIZED, low_memory=True, adapter=self.adapter)


def read_inputs(folder: Path) -> tuple[Inputs, Inputs]:
    """Return the batch and the samples to calibrate on."""
    parts = load_file(folder / INPUTS)
    batch, samples = (tuple(parts[key] for key in sorted(parts) if key.startswith(kind)) for kind in "xc")
    return batch, samples


def cifar10() -> Subject:
    """Return the published architecture for CIFAR-10 with random weights."""
    return Subject(adapter_of("ddim"), partial(network, CIFAR), partial(inputs, CIFAR))


def block(kind: int) -> Subject:
    """Return the first block of a kind of Stable Diffusion's UNet, 320 channels at 64 x 64, with random weights."""
    adapter = adapter_of("ldm")

    def make() -> nn.Module:
        torch.manual_seed(0)
        return next(m for m in load_network(SD)[1].modules() if type(m) is adapter.blocks[kind]).eval()

    def draw(count: int) -> Inputs:
        if kind == RESIDUAL:
            return torch.randn(count, 320, 64, 64), torch.randn(count, 1280)
        return torch.randn(count, 64 * 64, 320), torch.randn(count, 77, 768)

    return Subject(adapter, make, draw)


def bundled(name: str) -> Subject:
    """Return a bundled model; its inputs are those of full-precision trajectories."""

    def pipeline() -> Pipeline:
        return load(name).with_sampling(seed=HELD_OUT)

    def draw(count: int) -> Inputs:
        pipe = pipeline()
        calls: list[Inputs] = []
        pipe.network.register_forward_pre_hook(lambda module, given: calls.append(given))
        pipe.sample(SPREAD)
        rows = [torch.cat(column) for column in zip(*calls)]
        order = torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(0))[:count]
        return tuple(row[order] for row in rows)

    family = "ddim" if name.startswith("pixel") else "ldm"
    return Subject(adapter_of(family), lambda: pipeline().network, draw, pipeline)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "cifar10": cifar10,
    "res": partial(block, RESIDUAL),
    "transformer": partial(block, TRANSFORMER),
    **{name: partial(bundled, name) for name in ("pixel", "latent", "text")},
}
