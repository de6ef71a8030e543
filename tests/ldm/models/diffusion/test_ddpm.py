"""Latent diffusion models against outputs and key lists of the published implementation."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.util import instantiate_from_config
from tests.golden_networks import GOLDEN, GoldenCase
from tests.ldm.golden import golden_model

ROOT = Path(__file__).parents[4]


def assert_close(output: Tensor, expected: Tensor):
    assert torch.dist(output, expected) <= 1e-5 * expected.norm()


@pytest.fixture(scope="module", params=["ldm_vq_w4a8_sym", "ldm_kl_w8a8", "ldm_class_w4a8", "sd_w4a8_split_sm16"])
def golden(request) -> tuple[LatentDiffusion, GoldenCase]:
    return golden_model(request.param)


def tiny(**params) -> LatentDiffusion:
    """A model with one level, averages and images as latents."""
    unet = {"in_channels": 3, "out_channels": 3, "model_channels": 32, "num_res_blocks": 1, "num_heads": 2}
    stage = "ldm.models.autoencoder.IdentityFirstStage"
    config = {
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": unet | {"channel_mult": [1], "attention_resolutions": []},
        },
        "first_stage_config": {"target": stage},
        "cond_stage_config": "__is_unconditional__",
    }
    return LatentDiffusion(**config | params)


# ---- the golden networks


def test_predicted_noise_is_the_golden_one(golden):
    model, (_, tensors) = golden
    with torch.no_grad(), model.ema_scope():
        assert_close(model.apply_model(tensors["x"], tensors["t"], tensors.get("context")), tensors["fp_output"])


def test_decoded_image_is_the_golden_one(golden):
    model, (_, tensors) = golden
    assert_close(model.decode_first_stage(tensors["z"]), tensors["decoded"])


def test_encoded_image_is_the_golden_one(golden):
    model, (_, tensors) = golden
    encoded = model.encode_first_stage(tensors["image"])
    mean = encoded.mode() if isinstance(encoded, DiagonalGaussianDistribution) else encoded
    assert_close(mean, tensors["encoded_mean_or_z"])


def test_class_condition_is_the_golden_one(golden):
    model, (_, tensors) = golden
    if "class_label" in tensors:
        condition = model.get_learned_conditioning({model.cond_stage_key: tensors["class_label"]})
        assert torch.equal(condition, tensors["context"])


def test_averages_are_other_weights_in_the_golden_cases_that_have_them(golden):
    model, (_, tensors) = golden
    if model.model_ema is not None:
        with torch.no_grad():
            output = model.apply_model(tensors["x"], tensors["t"])
        assert torch.dist(output, tensors["fp_output"]) > 0.1 * tensors["fp_output"].norm()


# ---- the published checkpoints


@pytest.mark.parametrize(
    ("config", "manifest"),
    [
        ("latent-diffusion/lsun_bedrooms-ldm-vq-4", "lsun_beds256_fp"),
        ("latent-diffusion/lsun_churches-ldm-kl-8", "lsun_churches256_fp"),
        ("latent-diffusion/cin256-v2", "cin256_fp"),
        ("stable-diffusion/v1-inference", "sd_v1_fp"),
    ],
)
def test_published_configuration_has_the_published_keys_in_the_published_order(config, manifest):
    published = json.loads((GOLDEN / f"{manifest}.json").read_text())
    section = OmegaConf.load(ROOT / "configs" / f"{config}.yaml").model
    if manifest == "sd_v1_fp":  # the text encoder, the last part of the file, is a network of its own
        section.params.cond_stage_config = "__is_unconditional__"
        published = {key: shape for key, shape in published.items() if not key.startswith("cond_stage_model.")}
    with torch.device("meta"):
        model = instantiate_from_config(section)
    assert [(key, list(x.shape)) for key, x in model.state_dict().items()] == list(published.items())


# ---- averaged weights


def averaged(model: LatentDiffusion) -> LatentDiffusion:
    """Averages that differ from the parameters."""
    for name, average in model.model_ema.named_buffers():
        if name not in {"decay", "num_updates"}:
            average.add_(1)
    return model


def weights(model: LatentDiffusion) -> list[Tensor]:
    return [p.detach().clone() for p in model.model.parameters()]


def test_ema_scope_gives_the_averages_and_restores():
    model = averaged(tiny())
    before = weights(model)
    state = {key: x.clone() for key, x in model.state_dict().items()}
    with model.ema_scope():
        assert all(torch.equal(x, y + 1) for x, y in zip(weights(model), before))
    assert all(torch.equal(x, state[key]) for key, x in model.state_dict().items())


def test_ema_scope_restores_after_an_exception():
    model = averaged(tiny())
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), model.ema_scope():
        raise KeyboardInterrupt
    assert all(torch.equal(x, y) for x, y in zip(weights(model), before))


def test_ema_scope_of_a_model_without_averages_changes_nothing():
    model = tiny(use_ema=False)
    before = weights(model)
    with model.ema_scope():
        assert all(torch.equal(x, y) for x, y in zip(weights(model), before))


def test_adopted_averages_stay_and_take_no_memory_twice():
    model = averaged(tiny())
    expected = [p.detach() + 1 for p in model.model.parameters()]
    places = {average.data_ptr() for average in model.model_ema.buffers()}
    model.adopt_ema()
    assert {p.data_ptr() for p in model.model.parameters()} <= places
    with model.ema_scope():
        assert all(torch.equal(x, y) for x, y in zip(weights(model), expected))
    assert not [key for key in model.state_dict() if key.startswith("model_ema")]


def test_averages_of_a_changed_model_are_refused():
    model = tiny()
    before = weights(model)
    model.model.diffusion_model.time_embed[0] = nn.Sequential(model.model.diffusion_model.time_embed[0])
    with pytest.raises(ValueError, match="other parameters"), model.ema_scope():
        pass
    assert all(torch.equal(x, y) for x, y in zip(weights(model), before))


def test_averages_are_copies():
    layer = nn.Linear(2, 2)
    ema = LitEma(layer)
    with torch.no_grad():
        layer.weight.fill_(7)
    assert not (ema.weight == 7).any()


# ---- conditions


class Spy(nn.Module):
    """A UNet that remembers what it was called with."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        self.args, self.kwargs = args, kwargs
        return args[0]


X, T = torch.zeros(2, 3, 4, 4), torch.tensor([3, 5])
CONTEXT, MASK, LABEL = torch.ones(2, 7, 5), torch.full((2, 1, 4, 4), 2.0), torch.tensor([1, 4])


def called(key: str | None, cond: object) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Arguments of the UNet when a model with this `conditioning_key` gets the condition `cond`."""
    model = tiny(use_ema=False)
    model.model = DiffusionWrapper(Spy(), key)
    model.apply_model(X, T, cond)
    return model.model.diffusion_model.args, model.model.diffusion_model.kwargs


@pytest.mark.parametrize(
    ("key", "cond", "args"),
    [
        (None, None, (X, T)),
        ("crossattn", CONTEXT, (X, T, CONTEXT)),
        ("crossattn", [CONTEXT, CONTEXT], (X, T, torch.ones(2, 14, 5))),
        ("crossattn", {"c_crossattn": [CONTEXT]}, (X, T, CONTEXT)),
        ("concat", MASK, (torch.cat([X, MASK], dim=1), T)),
        ("hybrid", {"c_concat": [MASK], "c_crossattn": [CONTEXT]}, (torch.cat([X, MASK], dim=1), T, CONTEXT)),
    ],
)
def test_condition_reaches_the_network_by_position(key, cond, args):
    got, kwargs = called(key, cond)
    assert not kwargs
    assert len(got) == len(args)
    assert all(torch.equal(a, b) for a, b in zip(got, args))


def test_class_reaches_the_network_as_y():
    args, kwargs = called("adm", LABEL)
    assert len(args) == 2
    assert kwargs.keys() == {"y"}
    assert torch.equal(kwargs["y"], LABEL)


@pytest.mark.parametrize(
    ("key", "cond"), [(None, CONTEXT), ("crossattn", None), ("hybrid", CONTEXT), ("concat", {"c_crossattn": [MASK]})]
)
def test_missing_and_superfluous_conditions_are_refused(key, cond):
    with pytest.raises(ValueError, match=f"conditioning_key '{key}' got"):
        called(key, cond)


@pytest.mark.parametrize(
    ("params", "key"),
    [
        ({}, None),
        ({"conditioning_key": "crossattn"}, None),
        ({"cond_stage_config": "__is_first_stage__"}, "concat"),
        ({"cond_stage_config": "__is_first_stage__", "concat_mode": False}, "crossattn"),
        ({"cond_stage_config": "__is_first_stage__", "conditioning_key": "hybrid"}, "hybrid"),
    ],
)
def test_default_of_the_conditioning_key(params, key):
    assert tiny(**params).model.conditioning_key == key


def test_condition_by_the_first_stage_is_its_encoding():
    model = tiny(cond_stage_config="__is_first_stage__")
    assert model.cond_stage_model is model.first_stage_model
    assert torch.equal(model.get_learned_conditioning(MASK), MASK)


# ---- scale and schedule


def test_latents_are_divided_by_the_scale_before_they_are_decoded_and_encodings_are_not_scaled():
    model = tiny(scale_factor=0.25)
    z = torch.ones(1, 3, 2, 2)
    assert torch.equal(model.decode_first_stage(z), 4 * z)
    assert torch.equal(model.encode_first_stage(z), z)


def test_scale_comes_with_the_checkpoint_where_it_is_measured():
    model = tiny(scale_by_std=True)
    model.load_state_dict(model.state_dict() | {"scale_factor": torch.tensor(0.5)})
    assert torch.equal(model.decode_first_stage(torch.ones(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 2.0))
    assert "scale_factor" not in tiny().state_dict()


def test_schedule_has_the_length_and_the_ends_of_the_configuration():
    model = tiny(timesteps=10, linear_start=0.0015, linear_end=0.0195)
    assert model.num_timesteps == len(model.betas) == 10
    torch.testing.assert_close(model.betas[[0, -1]], torch.tensor([0.0015, 0.0195]))


def test_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="parameterization 'x0'"):
        tiny(parameterization="x0")
    with pytest.raises(ValueError, match="conditioning_key 'cross'"):
        tiny(conditioning_key="cross", cond_stage_config="__is_first_stage__")
    with pytest.raises(ValueError, match="unconditional"):
        tiny().get_learned_conditioning({"class": LABEL})
