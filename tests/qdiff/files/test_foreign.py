"""What a checkpoint is instead of weights of ours: each kind by the keys that it is known for."""

import pytest
import torch

from ddim.models.diffusion import Model
from qdiff.files.foreign import kind_of
from tests.ldm.golden import golden_model
from tests.tiny import tiny_config

X = torch.ones(2, 2)
UNET = "model.diffusion_model"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.conv_in.wqtizer.delta", "TFMQ-DM"),
        ("conv_in.weight_quantizer._amax", "Model Optimizer"),
        ("out.weight.absmax", "bitsandbytes"),
        ("out.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("out.SCB", "bitsandbytes"),
        ("out.qweight", "GPTQ"),
        ("conv_in.weight._scale", "optimum-quanto"),
        ("out.weight_scale", "separate scales"),
        ("out.scale_weight", "separate scales"),
        ("scaled_fp8", "separate scales"),
        ("out._packed_params._packed_params", "torch.ao"),
        ("lora_unet_down_blocks_0_attentions_0_proj.lora_down.weight", "LoRA"),
        ("base_model.model.unet.to_q.lora_A.weight", "LoRA"),
        ("lora_unet_mid_block.hada_w1_a", "LoRA"),
        ("unet.down_blocks.0.attentions.0.attn1.processor.to_q_lora.down.weight", "LoRA"),
        ("down_blocks.0.resnets.0.conv1.weight", "diffusers"),
        ("encoder.down_blocks.0.resnets.0.conv1.weight", "diffusers"),
        ("unet.up_blocks.1.attentions.0.proj_in.weight", "diffusers"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "XL"),
        ("cond_stage_model.model.transformer.resblocks.0.ln_1.weight", "Stable Diffusion 2"),
        (f"{UNET}.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "FLUX"),
        ("control_model.input_blocks.0.0.weight", "ControlNet"),
        ("emb_params", "textual inversion"),
        ("*", "textual inversion"),
        ("blocks.0.adaLN_modulation.1.weight", "diffusion transformer"),
    ],
)
def test_kinds_by_key(key, name):
    assert name in kind_of({key: X, "other.weight": X})


@pytest.mark.parametrize(("channels", "name"), [(9, "inpainting"), (8, "InstructPix2Pix"), (5, "depth-to-image")])
def test_kinds_by_the_channels_that_they_take(channels, name):
    assert name in kind_of({f"{UNET}.input_blocks.0.0.weight": torch.ones(3, channels, 3, 3)})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.complex64])
def test_integer_weights(dtype):
    assert "'conv_in.weight' is" in kind_of({"step": torch.tensor(3), "conv_in.weight": X.to(dtype)})


def test_our_networks_and_published_extras_are_no_other_kind():
    extras = ("scale_factor", "model_ema.num_updates", "cond_stage_model.logit_scale", "ddim_sigmas", "logvar")
    assert kind_of(dict.fromkeys(extras, torch.tensor(1))) is None
    assert kind_of(Model(tiny_config()).state_dict()) is None
    for case in ("ldm_class_w4a8", "ldm_kl_w8a8", "sd_w4a8_split_sm16"):
        assert kind_of(golden_model(case)[0].state_dict()) is None
