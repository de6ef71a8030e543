"""The golden networks: their tensors are drawn by a rule from each parameter's name instead of being stored."""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


class GoldenCase(NamedTuple):
    """`settings` has the model's `config`, `weight_bit`, `act_bit`, `a_sym`, `split`, `sm_abit`; `tensors` the
    inputs, the outputs `fp_output`, `w_output`, `wa_output` and the step sizes `scale.<key>`."""

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
