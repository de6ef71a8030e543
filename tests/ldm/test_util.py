"""Configurations: what they can build, and that nothing else comes of them."""

import inspect
import sys
from importlib import import_module

import pytest
from omegaconf import OmegaConf
from torch import nn

from ldm.models.autoencoder import AutoencoderKL, IdentityFirstStage
from ldm.modules.encoders.modules import ClassEmbedder
from ldm.published import TARGETS, UNAVAILABLE
from ldm.util import NotAvailable, construct, instantiate_from_config, parameter_types
from tests.golden_networks import load_case

EMBEDDER = "ldm.modules.encoders.modules.ClassEmbedder"


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_a_network_that_does_not_take_what_has_no_effect(target):
    module, _, name = target.rpartition(".")
    cls = getattr(import_module(module), name)
    assert issubclass(cls, nn.Module)
    assert not set(TARGETS[target].ignored) & set(inspect.signature(cls).parameters)


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create])
def test_class_and_parameters_are_those_of_the_configuration(wrap):
    embedder = instantiate_from_config(wrap({"target": EMBEDDER, "params": {"embed_dim": 4, "key": "label"}}))
    assert type(embedder) is ClassEmbedder
    assert embedder.key == "label"
    assert embedder.embedding.weight.shape == (1000, 4)


def test_parameters_may_be_missing():
    assert type(instantiate_from_config({"target": "ldm.models.autoencoder.IdentityFirstStage"})) is IdentityFirstStage


@pytest.mark.parametrize("word", ["__is_first_stage__", "__is_unconditional__"])
def test_words_for_nothing(word):
    assert instantiate_from_config(word) is None


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "ldm.util.import_module",
        "ldm.models.autoencoder.VectorQuantizer",
        f"{EMBEDDER}.__init__",
        "",
        None,
        ["os.system"],
    ],
)
def test_other_targets_are_refused_by_name(target):
    with pytest.raises(ValueError, match=r"target '.*' is not available") as error:
        instantiate_from_config({"target": target, "params": {"embed_dim": 4}})
    assert str(target) in str(error.value)


def test_module_of_a_refused_target_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "surprise.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    params = load_case("ldm_kl_w8a8").settings.config.model.params.first_stage_config.params
    for config in (
        {"target": "surprise.Box"},
        {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params | {"lossconfig": {"target": "surprise.L"}}},
    ):
        with pytest.raises(ValueError, match=r"'surprise\.\w+'"):
            instantiate_from_config(config)
    assert "surprise" not in sys.modules


@pytest.mark.parametrize("config", ["__is_first__", {}, {"params": {}}, None, 3, [{"target": EMBEDDER}]])
def test_no_target_is_an_error(config):
    with pytest.raises(ValueError, match="needs a `target`"):
        instantiate_from_config(config)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"embed_dim": 4, "n_class": 3}, "unknown parameter 'n_class': did you mean 'n_classes'?"),
        ({"embed_dim": 4, "zzz": 3}, "unknown parameter 'zzz'"),
        ({"n_classes": 3}, "parameter 'embed_dim' is missing"),
    ],
)
def test_wrong_parameters_are_named(params, said):
    with pytest.raises(ValueError) as error:
        instantiate_from_config({"target": EMBEDDER, "params": params})
    assert str(error.value) == f"{EMBEDDER}: {said}"


def test_misspelt_target_and_training_parameter_get_a_suggestion():
    with pytest.raises(ValueError, match=r"did you mean 'ldm\.modules\.encoders\.modules\.ClassEmbedder'"):
        instantiate_from_config({"target": "ldm.modules.encoders.modules.ClassEmbeder"})
    with pytest.raises(ValueError, match="did you mean 'use_checkpoint'"):
        unet = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
        instantiate_from_config({"target": unet, "params": {"use_checkpoints": True}})


UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
WIDTHS = {"in_channels": 3, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1, "attention_resolutions": []}
WIDTHS |= {"channel_mult": [1], "num_heads": 1}


def not_available(config: object) -> str:
    with pytest.raises(NotAvailable) as error:
        instantiate_from_config(OmegaConf.create(config))
    assert "did you mean" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_published_classes_that_are_not_here_are_named_wherever_they_stand(name):
    assert not any(target.endswith(f".{name}") for target in TARGETS)
    model = load_case("ldm_class_w4a8").settings.config.model
    section = {"target": f"some.module.{name}", "params": {"n_embed": 3}}
    said = f"{UNAVAILABLE[name]} ({name}) is not available"
    assert (
        not_available(section) == not_available({"target": UNET, "params": {"image_size": 2} | {"a": section}}) == said
    )
    model.params.cond_stage_config = section
    assert not_available(model) == said


@pytest.mark.parametrize(
    ("key", "same", "other"),
    [
        ("dims", 2, 3),
        ("disable_self_attentions", None, [True, False]),
        ("spatial_transformer_attn_type", "softmax-xformers", "linear"),
        ("use_linear_in_transformer", False, True),
        ("use_new_attention_order", False, True),
    ],
)
def test_published_parameters_are_taken_with_values_that_change_nothing(key, same, other):
    plain, found = (instantiate_from_config({"target": UNET, "params": p}) for p in (WIDTHS, WIDTHS | {key: same}))
    assert {k: x.shape for k, x in found.state_dict().items()} == {k: x.shape for k, x in plain.state_dict().items()}
    assert (
        not_available({"target": UNET, "params": WIDTHS | {key: other}})
        == f"{key}: {other} (UNetModel) is not available"
    )


def test_everything_that_is_not_available_is_named_at_once_classes_first():
    """A configuration of Stable Diffusion 2 with v-prediction, as far as it matters."""
    model = load_case("sd_w4a8_split_sm16").settings.config.model
    model.params.parameterization = "v"
    model.params.unet_config.params.update({"use_linear_in_transformer": True, "use_fp16": False, "use_bf16": True})
    model.params.cond_stage_config = {"target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder"}
    assert not_available(model) == (
        "Stable Diffusion 2 (FrozenOpenCLIPEmbedder) is not available, nor is v-prediction (parameterization: v), "
        "nor is use_linear_in_transformer: True (UNetModel)"
    )


def test_parameters_of_a_first_stage_and_of_its_training():
    section = load_case("ldm_kl_w8a8").settings.config.model.params.first_stage_config
    section.params.ddconfig.attn_type = "vanilla-xformers"
    section.params.lossconfig = {"target": "torch.nn.Identity"}
    instantiate_from_config(section)
    section.params.ddconfig.attn_type = "none"
    assert not_available(section) == "attn_type: none (ddconfig) is not available"


def test_types_of_parameters():
    types = parameter_types(EMBEDDER)
    assert types["n_classes"] is int and types["null_class"] == int | str | None
    assert parameter_types("os.system") == parameter_types(None) == parameter_types(["os.system"]) == {}


def test_training_parameters_build_nothing():
    section = load_case("ldm_kl_w8a8").settings.config.model.params.first_stage_config
    assert section.params.lossconfig.target == "torch.nn.Identity"
    section.params.ckpt_path = "nowhere.ckpt"
    model = instantiate_from_config(section)
    assert type(model) is AutoencoderKL
    assert not hasattr(model, "loss")


def test_construct_passes_the_parameters_on():
    assert construct(lambda a, b=2: (a, b), {"a": 1}, name="pair") == (1, 2)
