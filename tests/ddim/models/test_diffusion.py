"""The UNet against outputs and key lists of the published implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from ddim.models.blocks import timestep_embedding
from ddim.models.diffusion import Model
from diffusion.blocks import Downsample, ScoreProduct, Upsample, ValueProduct
from tests.golden_networks import GOLDEN, golden_state_dict, load_case

CONFIGS = Path(__file__).parents[3] / "configs"


def build(name: str) -> Model:
    with torch.device("meta"):
        return Model(OmegaConf.load(CONFIGS / f"{name}.yml"))


def shapes(model: Model) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ["ddim_w4a8_split", "ddim_w8a8_asym_sm16"])
def test_output_is_the_golden_one(name):
    settings, tensors = load_case(name)
    model = Model(settings.config).eval()
    model.load_state_dict(golden_state_dict(shapes(model)))
    with torch.no_grad():
        output = model(tensors["x"], tensors["t"])
    assert torch.dist(output, tensors["fp_output"]) <= 1e-5 * tensors["fp_output"].norm()


def test_cifar10_has_the_published_keys_in_the_published_order():
    published = json.loads((GOLDEN / "cifar10_ddim_fp.json").read_text())
    assert list(shapes(build("cifar10")).items()) == list(published.items())


def test_skip_channels_are_those_that_a_calibrated_checkpoint_splits_off():
    manifest = json.loads((GOLDEN / "cifar10_ddim_quantized_split_wa.json").read_text())
    suffix = ".nin_shortcut.weight_quantizer_0.alpha"
    split = {k.removeprefix("model.").removesuffix(suffix): v[1] for k, v in manifest.items() if k.endswith(suffix)}
    blocks = dict(build("cifar10").named_modules())
    assert len(split) == 12
    assert {name: blocks[name].skip_channels for name in split} == split


@pytest.mark.parametrize(("name", "millions"), [("cifar10", 35.7), ("bedroom", 113.7), ("church", 113.7)])
def test_size_is_the_published_one(name, millions):
    # Ho et al. 2020, appendix B: 35.7 million parameters for CIFAR-10 and 114 million for LSUN
    assert sum(p.numel() for p in build(name).parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("name", ["cifar10", "bedroom", "church"])
def test_attention_stands_at_resolution_16(name):
    model = build(name)
    size = model.resolution
    for i, level in enumerate(model.down):
        assert bool(len(level.attn)) == (size // 2**i == 16)


def test_output_of_a_sample_does_not_depend_on_its_neighbours():
    settings, tensors = load_case("ddim_w4a8_split")
    model = Model(settings.config).eval()
    x, t = tensors["x"], tensors["t"]
    with torch.no_grad():
        torch.testing.assert_close(model(x, t)[1:], model(x[1:], t[1:]))


@pytest.mark.parametrize("dim", [8, 9])
def test_timestep_embedding(dim):
    t = np.array([0, 1, 250, 999])
    half = dim // 2
    angle = t[:, None] * 10000.0 ** -(np.arange(half) / (half - 1))
    expected = np.concatenate([np.sin(angle), np.cos(angle), np.zeros((4, dim % 2))], axis=1)
    np.testing.assert_allclose(timestep_embedding(torch.tensor(t), dim), expected, atol=1e-4)


def test_attention_products_are_scaled_dot_product_attention():
    # the golden networks have as many channels as pixels, so they cannot tell the two apart
    q, k, v = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0))  # (B, C, N) each
    ours = ValueProduct()(v, ScoreProduct()(q, k).softmax(dim=-1))
    torch.testing.assert_close(ours.mT, F.scaled_dot_product_attention(q.mT, k.mT, v.mT))


def test_resampling_without_convolution_averages_and_repeats():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert Downsample(1, with_conv=False)(x).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert torch.equal(Upsample(1, with_conv=False)(x)[..., 1::2, ::2], x)


def test_refuses_what_it_cannot_be_built_for_or_given():
    config = load_case("ddim_w4a8_split").settings.config
    with pytest.raises(ValueError, match=r"model\.ch=48"):
        Model(OmegaConf.merge(config, {"model": {"ch": 48}}))
    with pytest.raises(ValueError, match="image_size=17"):
        Model(OmegaConf.merge(config, {"data": {"image_size": 17}}))
    with pytest.raises(ValueError, match="images are"):
        Model(config)(torch.zeros(1, 3, 8, 8), torch.zeros(1))
