"""Recognises checkpoints that are not weights of our networks, by names, dtypes and shapes of their tensors."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from qdiff.files.dtypes import FLOATS, dtype_name

REMEDY = "give a full-precision checkpoint, or one calibrated here or by Q-Diffusion"
FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"
# Input channels of that convolution -> kind of model; a plain latent model has 4
INPUTS = {
    5: "a depth-to-image model",
    8: "an InstructPix2Pix model",
    9: "an inpainting model",
}


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        names: pattern found in the names of its tensors.
        what: what it is, and what to do.
    """

    names: re.Pattern
    what: str


def _quantized(names: str, tool: str) -> Kind:
    return Kind(re.compile(names), f"quantized by another tool ({tool}), whose format is not supported: {REMEDY}")


def _other(names: str, what: str) -> Kind:
    return Kind(re.compile(names), what)


KINDS = (
    _quantized(r"\.[wa]qtizer", "TFMQ-DM, 'wqtizer'"),
    _quantized(r"(^|[._])_?amax$", "NVIDIA Model Optimizer, '_amax'"),
    _quantized(r"\.(absmax|nested_absmax|quant_map|SCB)$|\.quant_state\.", "bitsandbytes, 'absmax'"),
    _quantized(r"\.(qweight|qzeros|g_idx)$", "GPTQ or AWQ, 'qweight'"),
    _quantized(r"\._(data|scale|shift)$", "optimum-quanto, '_scale'"),
    _quantized(
        r"\.(weight|input|output)_scale(_2)?$|\.(scale_weight|scale_input)$|(^|\.)scaled_fp8$", "separate scales"
    ),
    _quantized(r"_packed_params|activation_post_process|fake_quant", "torch.ao"),
    _quantized(r"\.weight\.(int_data|scale|zero_point|q?data)$", "torchao"),
    _other(
        r"(^|[._])lora[._]|\.(hada_w|lokr_w|oft_)",
        "a LoRA, not a model: merge it into its model, and give that",
    ),
    _other(
        r"(^|\.)(down|up)_blocks\.\d+\.(resnets|attentions)",
        "a network in the layout of diffusers, which is not supported: convert the whole model with diffusers' "
        "scripts/convert_diffusers_to_original_stable_diffusion.py, and give that",
    ),
    _other(r"^conditioner\.embedders\.", "a Stable Diffusion XL model, which is not available"),
    _other(r"^cond_stage_model\.model\.", "a Stable Diffusion 2 model, whose text encoder (OpenCLIP) is not available"),
    _other(r"^model\.diffusion_model\.joint_blocks\.", "a Stable Diffusion 3 model, which is not available"),
    _other(r"(^|\.)double_blocks\.\d+\.img_attn", "a FLUX model, which is not available"),
    _other(
        r"^(control_model\.|input_hint_block|zero_convs)",
        "a ControlNet, not a model: give the model that it controls",
    ),
    _other(
        r"^(emb_params|\*|<.+>)$",
        "a textual inversion, not a model: give the model",
    ),
    _other(r"(^|\.)adaLN_modulation\.", "a diffusion transformer, which is not available"),
)


def kind_of(tensors: Mapping[str, Tensor]) -> str | None:
    """Return what the tensors are and what to do, if they are recognised as not being weights of our networks.

    Args:
        tensors: name -> tensor of any shape and dtype; the values are not read.

    Returns:
        text that continues "the file is"; None if nothing is recognised.
    """
    for kind in KINDS:
        if any(kind.names.search(name) for name in tensors):
            return kind.what
    first = tensors.get(FIRST_CONVOLUTION)
    channels = first.shape[1] if first is not None and first.dim() == 4 else 4
    if channels in INPUTS:
        return f"{INPUTS[channels]} (its first convolution takes {channels} channels), which is not available"
    weights = ((name, x) for name, x in tensors.items() if name.endswith("weight") and x.dim() > 1)
    return next((_other_numbers(name, x) for name, x in weights if x.dtype not in FLOATS), None)


def _other_numbers(name: str, x: Tensor) -> str:
    return f"stored in a type that does not hold weights ('{name}' is {dtype_name(x.dtype)}): {REMEDY}"
