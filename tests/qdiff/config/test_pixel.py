"""Model configurations: the published ones load, and every mistake is named."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ddim.models.diffusion import Model
from qdiff.config.pixel import build_network, load_config
from qdiff.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"
DELETED = object()


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        build_network(load_config(path), path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["cifar10", "bedroom", "church", "emoji32"])
def test_our_configurations(name):
    path = CONFIGS / f"{name}.yml"
    assert load_config(path) == OmegaConf.load(path)


@pytest.mark.parametrize("convolved", [True, False])
def test_grey_images_and_resolutions_that_change_without_convolution(convolved, tmp_path):
    config = OmegaConf.load(CONFIGS / "emoji32.yml")
    config.data.channels = config.model.in_channels = config.model.out_ch = 1
    config.model.resamp_with_conv = convolved
    OmegaConf.save(config, tmp_path / "c.yml")
    model = build_network(load_config(tmp_path / "c.yml"), tmp_path / "c.yml")
    assert {p.device.type for p in model.parameters()} == {"cpu"}, "not that of the probe"
    assert model(torch.zeros(2, 1, 32, 32), torch.zeros(2)).shape == (2, 1, 32, 32)


def test_a_network_that_takes_no_image_of_the_configuration_is_refused(monkeypatch):
    def forward(model: Model, x: torch.Tensor, t: torch.Tensor):
        assert x.is_meta and x.shape == (1, 3, 32, 32) and t.shape == (1,)
        raise RuntimeError("sizes of tensors must match")

    monkeypatch.setattr(Model, "forward", forward)
    assert "describes no network (sizes of tensors must match)" in refusal(CONFIGS / "emoji32.yml")


def test_keys_that_are_left_out_have_their_defaults(tmp_path):
    config = OmegaConf.load(CONFIGS / "emoji32.yml")
    wanted = OmegaConf.to_container(config.data)
    del config.data.logit_transform, config.data.uniform_dequantization, config.data.gaussian_dequantization
    OmegaConf.save(config, tmp_path / "c.yml")
    assert load_config(tmp_path / "c.yml").data == wanted


def test_a_network_is_built():
    config = load_config(CONFIGS / "emoji32.yml")
    model = build_network(config, "emoji32.yml")
    assert (model.ch, model.resolution) == (config.model.ch, config.data.image_size)


@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [
        ("model", DELETED, "no section 'model'"),
        ("model", 3, "no section 'model'"),
        ("diffusion", DELETED, "no section 'diffusion'"),
        ("data", None, "no section 'data'"),
        ("model.ch_mult", DELETED, "lacks model.ch_mult: add it"),
        ("sampling.batch_size", DELETED, "lacks sampling.batch_size"),
        ("model.ch", "many", "model.ch is wrong"),
        ("model.ch", 1.5, "model.ch is wrong"),
        ("model.ch", None, "model.ch is wrong"),
        ("model.ch", 0, "at least 1"),
        ("model.ch", 33, "multiple of 32"),
        ("model.ch_mult", 2, "model.ch_mult is wrong"),
        ("model.ch_mult", [1, "x"], "model.ch_mult is wrong"),
        ("model.ch_mult", [], "model.ch_mult is empty"),
        ("model.dropout", 7, "describes no network"),
        ("model.type", "bayesian", "'bayesian' is not supported"),
        ("model.resamp_with_conv", "perhaps", "model.resamp_with_conv is wrong"),
        ("diffusion.beta_start", "small", "diffusion.beta_start is wrong"),
        ("data.image_size", "${nothing}", "data.image_size is wrong"),
        ("data.channels", 1, "model.in_channels is 3, data.channels 1"),
        ("data.channels", 4, "data.channels is 4: images have 1 (grey) or 3 (RGB)"),
        ("model.in_channels", 6, "model.in_channels is 6, data.channels 3"),
        ("model.out_ch", 6, "learned variances (learn_sigma) are not available"),
        ("model.out_ch", 4, "model.out_ch is 4, data.channels 3"),
        ("data.image_size", 30, "multiple of 32, data.image_size=30 of 2^2"),
        ("data.rescaled", "perhaps", "data.rescaled is wrong"),
        ("data.logit_transform", "perhaps", "data.logit_transform is wrong"),
        ("data.uniform_dequantization", [], "data.uniform_dequantization is wrong"),
        ("data.gaussian_dequantization", None, "data.gaussian_dequantization is wrong"),
        ("data.logit_transform", True, "data.rescaled and data.logit_transform contradict each other"),
        ("image_mean", [0.5], "image_mean"),
        ("data.image_mean", [0.5], "image_mean"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, key, value, cause):
    config = OmegaConf.load(CONFIGS / "emoji32.yml")
    section, _, name = key.rpartition(".")
    if value is DELETED:
        del (config[section] if section else config)[name]
    else:
        OmegaConf.update(config, key, value, merge=False)
    OmegaConf.save(config, tmp_path / "model.yml")
    assert cause in refusal(tmp_path / "model.yml")


@pytest.mark.parametrize(
    "text", ["a: [1", "a: *b", "a: ${b", "a: !!python/object/apply:os.mkdir [executed]", "a: 1\na: 2", "\0"]
)
def test_no_yaml(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path("model.yml").write_text(text)
    assert "not valid YAML" in refusal("model.yml")
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [b"- 1\n", b"", b"word", b"5", b"\xff\xfe\x80"])
def test_no_configuration(tmp_path, content):
    (tmp_path / "model.yml").write_bytes(content)
    refusal(tmp_path / "model.yml")


def test_no_file(tmp_path):
    assert "--config" in refusal(tmp_path / "missing.yml")
    assert "--config" in refusal(tmp_path)
