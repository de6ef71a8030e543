"""The golden networks: their tensors are drawn by a rule from each parameter's name instead of being stored."""

import copy
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.modules.diffusionmodules.util import GroupNorm32
from qdiff.quant_layer import UniformAffineQuantizer

GOLDEN = Path(__file__).parent / "golden"


class GoldenCase(NamedTuple):
    """`settings` has the model's `config`, `weight_bit`, `act_bit`, `a_sym`, `split`, `sm_abit`, `boundaries`;
    `tensors` the inputs, the outputs `fp_output`, `w_output`, `wa_output` and the step sizes `scale.<key>`."""

    settings: DictConfig
    tensors: dict[str, Tensor]


def _draw(key: str, shape: Sequence[int]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape)).astype(np.float32)


def _parameter(key: str, shape: Sequence[int]) -> Tensor:
    z = _draw(key, shape)
    if len(shape) > 1:
        z = z * np.float32(1.2 / math.prod(shape[1:]) ** 0.5)
    elif key.endswith("weight"):
        z = np.float32(1) + np.float32(0.2) * z
    else:
        z = np.float32(0.1) * z
    return torch.from_numpy(z)


def golden_state_dict(keys_and_shapes: Mapping[str, Sequence[int]], prefix: str = "") -> dict[str, Tensor]:
    """float32 parameters of a golden network under the given keys; `prefix` goes before each key where it is drawn."""
    return {key: _parameter(prefix + key, shape) for key, shape in keys_and_shapes.items()}


def golden_alpha(key: str, shape: Sequence[int]) -> Tensor:
    """The learned-rounding variable, float32; `key` as in a calibrated checkpoint, `<path>.weight_quantizer.alpha`."""
    return torch.from_numpy(_draw(key, shape))


def load_case(name: str) -> GoldenCase:
    """The case in the folder `name` of tests/golden."""
    settings = OmegaConf.create(json.loads((GOLDEN / name / "case.json").read_text()))
    return GoldenCase(settings, load_file(GOLDEN / name / "golden.safetensors"))


def inputs(case: GoldenCase) -> list[Tensor]:
    """What the network of the case is called with: x, t and, where it has one, the condition."""
    return [case.tensors[name] for name in ("x", "t", "context") if name in case.tensors]


def exact_output(model: nn.Module, case: GoldenCase) -> Tensor:
    """The output of a quantized network for the inputs of a golden case, computed in float64.

    In float32 it depends on the processor, the number of threads and the version of PyTorch: sums differ by 1e-7, an
    activation that lies so near to the boundary of two codes takes either, and behind it all values change, the output
    by up to 8 % (L2), which is as much as quantized activations change at all. In float64 nothing flips. The golden
    outputs were computed in float32; the few activations that took the other code there, all less than 2e-5 steps from
    a boundary, are in the settings as `boundaries`: path of the quantizer -> flat index -> round(x / delta).
    """
    exact = copy.deepcopy(model).double()
    for path, steps in case.settings.get("boundaries", {}).items():
        exact.get_submodule(path).register_forward_hook(partial(_round_as_golden, steps))
    with torch.no_grad(), mock.patch.object(GroupNorm32, "forward", nn.GroupNorm.forward):
        return exact(*(x.double() if x.is_floating_point() else x for x in inputs(case)))


def _round_as_golden(steps: DictConfig, quantizer: UniformAffineQuantizer, args: tuple, output: Tensor) -> Tensor:
    values, rounded = args[0].flatten() / quantizer.delta, output.flatten()
    for index, step in steps.items():
        assert 0.5 < abs(values[int(index)] - step) < 0.5 + 2e-5, "no boundary"
        rounded[int(index)] = step * quantizer.delta
    return rounded.view_as(output)
