"""Networks for engines to execute, used by backends.py."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from calibration import HELD_OUT, load, settings_of
from networks import inputs, network
from torch import Tensor, nn

import qdiff
from qdiff.adapters import Adapter, adapter_of
from qdiff.config.networks import load_network
from qdiff.observers import Observer
from qdiff.pipelines.pipeline import Pipeline
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel

CIFAR = Path("configs/cifar10.yml")
SD = Path("configs/stable-diffusion/v1-inference.yaml")
RESIDUAL, TRANSFORMER = 0, 2  # blocks of the adapter
SPREAD = 6  # images whose trajectories give a bundled model's inputs

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """A network to execute.

    Args:
        network: in full precision.
        quantized: makes the calibrated network anew.
        samples: draws inputs for a number of samples.
        batch: samples of a call.
        pipeline: that samples with the network; None if there is none.
    """

    network: nn.Module
    quantized: Callable[[], QuantModel]
    samples: Callable[[int], Inputs]
    batch: int
    pipeline: Pipeline | None = None


def calibrated(fp: nn.Module, adapter: Adapter, given: Inputs, bits: tuple[int, int]) -> QuantModel:
    """Quantize a network with random weights, to nearest, with split shortcuts and the extremes of given inputs."""
    weight, act = QuantSpec(bits[0], per_channel=True, range_search="minmax"), QuantSpec(bits[1], range_search="minmax")
    model = QuantModel(fp, QuantPolicy(weight, act, split=True), adapter).eval()
    with model.observing(Observer):
        model(*given)
    model.forget_full_precision()
    return model


def cifar10(batch: int, bits: tuple[int, int]) -> Subject:
    """Return the published architecture for CIFAR-10 with random weights."""
    samples = partial(inputs, CIFAR)
    made = lambda: calibrated(network(CIFAR), adapter_of("ddim"), samples(batch), bits)  # noqa: E731
    return Subject(network(CIFAR), made, samples, batch)


def block(kind: int, batch: int, bits: tuple[int, int]) -> Subject:
    """Return the first block of a kind of Stable Diffusion's UNet, 320 channels at 64 x 64, with random weights."""
    adapter = adapter_of("ldm")

    def make() -> nn.Module:
        torch.manual_seed(0)
        return next(m for m in load_network(SD)[1].modules() if type(m) is adapter.blocks[kind]).eval()

    def samples(count: int) -> Inputs:
        if kind == RESIDUAL:
            return torch.randn(count, 320, 64, 64), torch.randn(count, 1280)
        return torch.randn(count, 64 * 64, 320), torch.randn(count, 77, 768)

    return Subject(make(), lambda: calibrated(make(), adapter, samples(batch), bits), samples, batch)


def bundled(name: str, batch: int, bits: tuple[int, int]) -> Subject:
    """Return a bundled model, solved in closed form; its inputs are those of full-precision trajectories."""
    pipe = load(name).with_sampling(seed=HELD_OUT, batch_size=max(1, batch))
    settings = {"weight_bits": bits[0], "act_bits": bits[1], "timesteps": 10, "samples": max(1, 6 // pipe.cfg_copies)}
    calls: list[Inputs] = []
    handle = pipe.network.register_forward_pre_hook(lambda module, given: calls.append(given))
    pipe.sample(SPREAD)
    handle.remove()
    rows = [torch.cat(column) for column in zip(*calls)]
    order = torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(0))

    def samples(count: int) -> Inputs:
        return tuple(row[order[:count]] for row in rows)

    quantized = qdiff.quantize(pipe, **settings, **settings_of("gptq"))
    model = quantized.network
    assert isinstance(model, QuantModel)
    model.forget_full_precision()
    return Subject(pipe.network, lambda: copy.deepcopy(model), samples, batch, pipe)


SUBJECTS: dict[str, Callable[[int, tuple[int, int]], Subject]] = {
    "cifar10": cifar10,
    "res": partial(block, RESIDUAL),
    "transformer": partial(block, TRANSFORMER),
    **{name: partial(bundled, name) for name in ("pixel", "latent", "text")},
}
