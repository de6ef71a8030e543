"""Configurations of latent models: overrides, and what of the published code is not here."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from qdiff.config.latent import build_latent, find_checkpoint, load_latent_config
from qdiff.errors import UserError

ROOT = Path(__file__).parents[3]
EMOJI = ROOT / "models" / "ldm" / "emoji64" / "config.yaml"
CONFIGS = sorted([*ROOT.glob("configs/*/*.yaml"), *ROOT.glob("models/ldm/*/config.yaml")])
UNET, FIRST, COND = (f"model.params.{name}_config.params" for name in ("unet", "first_stage", "cond_stage"))


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        build_latent(load_latent_config(path, overrides), path, empty=True)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_configurations_can_be_built(path):
    build_latent(load_latent_config(path), path, empty=True)


@pytest.mark.parametrize(
    "word",
    [
        "model.params.use_ema=true",
        "model.params.v_posterior=0.5",
        "model.params.v_posterior=0",
        f"{UNET}.dropout=0.1",
        f"{UNET}.num_classes=null",
        f"{UNET}.channel_mult=[1,1,2]",
        f"{COND}.null_class=3",
        f"{COND}.null_class=null",
    ],
)
def test_an_override_of_a_parameter_of_the_class(word):
    key, _, value = word.partition("=")
    config = load_latent_config(EMOJI, [word])
    assert OmegaConf.select(config, key) == OmegaConf.select(OmegaConf.from_dotlist([word]), key)
    assert value == "null" or OmegaConf.select(config, key) is not None
    build_latent(config, EMOJI, empty=True)


def test_an_override_reaches_the_model():
    latent = build_latent(load_latent_config(EMOJI, ["model.params.use_ema=true", f"{COND}.null_class=3"]), EMOJI)
    assert latent.model_ema is not None and latent.cond_stage_model.null_class == 3
    text = ROOT / "configs" / "stable-diffusion" / "v1-inference.yaml"
    word = f"{COND}.max_length=50"
    assert "params" not in load_latent_config(text).model.params.cond_stage_config, "a section without parameters"
    assert build_latent(load_latent_config(text, [word]), text, empty=True).cond_stage_model.max_length == 50


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.params.use_emma=true", "did you mean model.params.use_ema?"),
        (f"{UNET}.drop=0.1", f"did you mean {UNET}.dropout?"),
        ("model.params.use_ema=1", "has model.params.use_ema: False, a truth value"),
        ("model.params.v_posterior=true", "model.params.v_posterior takes a number"),
        ("model.params.v_posterior=much", "model.params.v_posterior takes a number"),
        (f"{UNET}.dropout=[1]", f"{UNET}.dropout takes a number"),
        (f"{UNET}.num_classes=2.5", f"{UNET}.num_classes takes a whole number or null"),
        ("model.params.timesteps=null", "has model.params.timesteps: 1000, a whole number"),
        ("model.params.concat_mode=null", "model.params.concat_mode takes a truth value"),
        (f"{COND}.null_class=10", "null_class is 10, the classes are 0..9"),
        ("model.params.unet_config=3", "has no key 'model.params.unet_config'"),
        (f"{UNET}.use_fp16=true", "has no key"),  # it has no effect
        (f"{UNET}.num_heads.x=3", "has no key"),
        (f"{FIRST}.ddconfig.out_ch=2", "the first stage gives images of 2 channels: they have 1 (grey) or 3 (RGB)"),
    ],
)
def test_overrides_that_are_refused(word, said):
    assert said in refusal(EMOJI, word)


def test_grey_images_are_taken():
    words = [f"{FIRST}.ddconfig.{key}=1" for key in ("in_channels", "out_ch")]
    latent = build_latent(load_latent_config(EMOJI, words), EMOJI, empty=True)
    assert latent.first_stage_model.decoder.conv_out.out_channels == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("cond_stage_config.target", "ldm.modules.encoders.modules.BERTEmbedder", "BERT"),
        ("cond_stage_config.target", "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder", "Stable Diffusion 2"),
        ("parameterization", "v", "v-prediction (parameterization: v)"),
        ("unet_config.params.use_linear_in_transformer", True, "use_linear_in_transformer: True (UNetModel)"),
        ("first_stage_config.params.ddconfig.attn_type", "none", "attn_type: none (ddconfig)"),
    ],
)
def test_what_of_the_published_code_is_not_here_is_named(key, value, said, tmp_path):
    config, path = OmegaConf.load(EMOJI), tmp_path / "c.yaml"
    OmegaConf.update(config, f"model.params.{key}", value)
    OmegaConf.save(config, path)
    found = refusal(path)
    assert said in found and "is not available: give the configuration of another model" in found
    assert "did you mean" not in found and "correct its section" not in found


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=f"no model in -r '{tmp_path}': give a checkpoint"):
        find_checkpoint(tmp_path, "-r")
    (tmp_path / "model_index.json").touch()
    with pytest.raises(UserError, match=f"--ckpt {tmp_path} is a model in the folder layout of diffusers"):
        find_checkpoint(tmp_path, "--ckpt")
    (tmp_path / "model.safetensors").touch()
    assert find_checkpoint(tmp_path, "-r") == tmp_path / "model.safetensors"
