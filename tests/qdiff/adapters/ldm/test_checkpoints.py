"""Checkpoints of latent models as they are published, pruned and passed on: what differs, and what must not."""

import logging

import pytest
import torch

from ldm.util import instantiate_from_config
from qdiff.adapters.ldm.checkpoints import PublishedKeys, schedule
from qdiff.checkpoints.weights import load_weights
from qdiff.errors import UserError
from tests.ldm.golden import golden_model
from tests.ldm.tiny import AVERAGED, CLASSES

COUNTERS = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(470000, dtype=torch.int32)}
RAW = "model.diffusion_model.time_embed.0.weight"
SAMPLER = ("ddim_sigmas", "ddim_alphas", "ddim_alphas_prev", "ddim_sqrt_one_minus_alphas")


class Published:
    """A golden model, its state dict, and how a file with other tensors is read."""

    def __init__(self, name):
        model, case = golden_model(name)
        self.config, self.state = case.settings.config, model.state_dict()

    def load(self, folder, state, **beside):
        path = folder / f"{len(list(folder.iterdir()))}.ckpt"  # what was loaded before is still mapped
        torch.save({"state_dict": state, "global_step": 1} | beside, path)
        with torch.device("meta"):
            latent = instantiate_from_config(self.config.model)
        layout, averages = PublishedKeys(latent, self.config, "config.yaml"), latent.model_ema is not None
        load_weights(latent, path, layout=layout, averages=averages)
        return latent.state_dict()


@pytest.fixture(scope="module")
def plain() -> Published:
    """Its configuration has no averages."""
    return Published(CLASSES)


@pytest.fixture(scope="module")
def averaged() -> Published:
    """Its configuration has averages, and a scale factor in the checkpoint."""
    return Published(AVERAGED)


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], x) for key, x in expected.items())


def cast(state, dtype):
    return {key: x.to(dtype) for key, x in state.items()}


def test_the_schedule_is_that_of_the_model(plain, averaged):
    for model in (plain, averaged):
        assert same(schedule(model.config), {key: model.state[key] for key in schedule(model.config)})


def test_counters_and_averages_that_the_configuration_does_without(plain, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert same(plain.load(tmp_path, plain.state | COUNTERS), plain.state)
    assert "left out 'model_ema.decay' and 1 more" in caplog.text and "raw weights" in caplog.text
    averages = {f"model_ema.{k[6:].replace('.', '')}": x + 1 for k, x in plain.state.items() if k.startswith("model.")}
    assert same(plain.load(tmp_path, plain.state | averages | COUNTERS), plain.state)


def test_buffers_of_a_sampler(plain, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert same(plain.load(tmp_path, plain.state | {key: torch.zeros(50) for key in SAMPLER}), plain.state)
    assert "and 3 more (buffers of a sampler" in caplog.text


@pytest.mark.parametrize("missing", [None, "betas", "posterior_variance"])
def test_a_schedule_that_is_missing_is_computed(plain, tmp_path, caplog, missing):
    caplog.set_level(logging.INFO)
    gone = {missing} if missing else schedule(plain.config).keys()
    assert same(plain.load(tmp_path, {k: x for k, x in plain.state.items() if k not in gone}), plain.state)
    assert "computed" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_a_schedule_of_another_dtype_is_computed(averaged, tmp_path, dtype):
    found = averaged.load(tmp_path, cast(averaged.state, dtype))
    assert same({key: found[key] for key in schedule(averaged.config)}, schedule(averaged.config))
    key = "model_ema.diffusion_modeltime_embed0weight"
    assert torch.equal(found[key], averaged.state[key].to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("key", ["betas", "alphas_cumprod"])
def test_another_schedule_is_refused_as_precisely_as_the_dtype_allows(plain, tmp_path, dtype, key):
    wrong = plain.state[key] * (1 + max(4 * torch.finfo(dtype).eps, 1e-3))
    with pytest.raises(UserError, match=r"another noise schedule than 'config\.yaml'"):
        plain.load(tmp_path, plain.state | {key: wrong.to(dtype)})
    with pytest.raises(UserError, match="another noise schedule"):
        plain.load(tmp_path, plain.state | {key: plain.state[key][:500]})


def test_missing_averages_are_the_raw_weights_with_a_warning(averaged, tmp_path, caplog):
    raw = {key: x for key, x in averaged.state.items() if not key.startswith("model_ema.")}
    for state in (raw, raw | COUNTERS):
        caplog.clear()
        found = averaged.load(tmp_path, state)
        assert torch.equal(
            found["model_ema.diffusion_modeltime_embed0weight"], raw["model.diffusion_model.time_embed.0.weight"]
        )
        assert [r.levelname for r in caplog.records if "no averages" in r.getMessage()] == ["WARNING"]


def test_averages_under_a_key_of_their_own_are_no_raw_weights(averaged, tmp_path, caplog):
    raw = {key: x for key, x in averaged.state.items() if not key.startswith("model_ema.")}
    other = {key: x + 1 if key.startswith("model.") else x for key, x in raw.items()}
    found = averaged.load(tmp_path, other, state_dict_ema=raw)
    assert torch.equal(found["model_ema.diffusion_modeltime_embed0weight"], raw[RAW])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_averages_of_the_unet_alone_are_not_passed_over(averaged, tmp_path):
    raw = {key: x for key, x in averaged.state.items() if not key.startswith("model_ema.")}
    unet = {key: x for key, x in raw.items() if key.startswith("model.")}
    with pytest.raises(UserError, match="averages under 'ema'"):
        averaged.load(tmp_path, raw, ema=unet)


def test_averages_of_a_compiled_network(averaged, tmp_path):
    compiled = {
        key.replace("model_ema.diffusion_model", "model_ema.diffusion_model_orig_mod"): x
        for key, x in averaged.state.items()
    }
    assert same(averaged.load(tmp_path, compiled), averaged.load(tmp_path, averaged.state))


def test_averages_alone_where_the_configuration_has_none(plain, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rest = {key: x for key, x in plain.state.items() if not key.startswith("model.")}
    averages = {f"model_ema.{k[6:].replace('.', '')}": x for k, x in plain.state.items() if k.startswith("model.")}
    assert same(plain.load(tmp_path, rest | averages | COUNTERS), plain.state)
    assert "because there are no raw weights" in caplog.text


def test_raw_weights_and_buffers_that_decide_nothing_may_hold_anything(averaged, tmp_path):
    broken = averaged.state | {RAW: averaged.state[RAW] * torch.nan}
    broken["sqrt_recip_alphas_cumprod"] = averaged.state["sqrt_recip_alphas_cumprod"] * torch.nan
    assert same(averaged.load(tmp_path, broken), averaged.load(tmp_path, averaged.state))


def test_missing_raw_weights_are_the_averages(averaged, tmp_path):
    state = {key: x for key, x in averaged.state.items() if not key.startswith("model.")}
    found = averaged.load(tmp_path, state)
    assert torch.equal(
        found["model.diffusion_model.time_embed.0.weight"], state["model_ema.diffusion_modeltime_embed0weight"]
    )


def test_counters_that_became_infinite_decide_nothing(averaged, tmp_path):
    counters = cast(COUNTERS, torch.float16)
    assert counters["model_ema.num_updates"].isinf()
    found = averaged.load(tmp_path, averaged.state | counters)
    assert found["model_ema.num_updates"] == 0


@pytest.mark.parametrize(
    "lost", ["model.diffusion_model.out.2.bias", "model_ema.diffusion_modelout2bias", "scale_factor"]
)
def test_a_part_that_is_missing_is_an_error(averaged, tmp_path, lost):
    with pytest.raises(UserError, match=f"lacks '{lost}'"):
        averaged.load(tmp_path, {key: x for key, x in averaged.state.items() if key != lost})


@pytest.mark.parametrize("part", ["model.", "first_stage_model.", "cond_stage_model."])
def test_a_part_of_a_model_is_named_by_what_it_lacks(plain, tmp_path, part):
    others = sorted({"model.", "first_stage_model.", "cond_stage_model."} - {part})
    with pytest.raises(UserError, match=f"has nothing of '{others[0][:-1]}' and '{others[1][:-1]}'"):
        plain.load(tmp_path, {key: x for key, x in plain.state.items() if key.startswith(part)})


@pytest.mark.parametrize("key", ["ddim_beta", "model.diffusion_model.extra.weight", "first_stage_model.extra"])
def test_a_surplus_that_is_not_known_is_an_error(plain, tmp_path, key):
    with pytest.raises(UserError, match=f"surplus '{key}'"):
        plain.load(tmp_path, plain.state | {key: torch.ones(2)})


def test_a_scale_factor_that_the_configuration_gives_must_be_the_same(plain, tmp_path):
    factor = torch.tensor(float(plain.config.model.params.get("scale_factor", 1.0)))
    assert same(plain.load(tmp_path, plain.state | {"scale_factor": factor}), plain.state)
    with pytest.raises(UserError, match="scale_factor"):
        plain.load(tmp_path, plain.state | {"scale_factor": factor * 1.01})


def test_keys_that_are_left_out_have_a_reason(plain, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    extra = {
        "logvar": torch.zeros(1000),
        "first_stage_model.loss.discriminator.weight": torch.ones(2),
        "cond_stage_model.logit_scale": torch.ones(()),
        "embedding_manager.initial_embeddings.x": torch.ones(2),
    }
    assert same(plain.load(tmp_path, plain.state | extra), plain.state)
    assert all(f"left out '{key}' (" in caplog.text for key in extra)
