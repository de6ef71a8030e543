"""A network that the package has never seen: described in a few lines, quantized, calibrated, saved and loaded."""

import pytest
import torch
from torch import Tensor, nn

from qdiff.adapters import Adapter, ProductKind
from qdiff.block_recon import Schedule
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.settings import CalibrationSettings
from qdiff.checkpoints.load import load_quantized, load_rounding, save_quantized
from qdiff.checkpoints.quantized_file import read_quantized
from qdiff.files.journal import Journal
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_layer import UniformAffineQuantizer
from qdiff.quant_model import QuantModel
from tests.qdiff.loops import gaussian


class Similarity(nn.Module):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return query @ key.transpose(1, 2)


class Average(nn.Module):
    def forward(self, share: Tensor, value: Tensor) -> Tensor:
        return share @ value


class Attention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.project = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)
        self.similarity, self.average = Similarity(), Average()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        query, key, value = self.project(self.norm(rows)).chunk(3, dim=2)
        rows = rows + self.average(self.similarity(query, key).softmax(2), value)
        return rows.transpose(1, 2).reshape(x.shape)


class Residual(nn.Module):
    def __init__(self, channels: int, out: int):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv(self.norm(x).relu()) * t[:, None, None, None].cos()


class Network(nn.Module):
    """A UNet of one level: the last block sees the first one's output and the middle's, 6 and 4 channels."""

    def __init__(self):
        super().__init__()
        self.down, self.middle, self.up = Residual(2, 4), nn.Conv2d(4, 6, 1), Residual(10, 2)
        self.attention = Attention(6)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        skip = self.down(x, t)
        return self.up(torch.cat([self.attention(self.middle(skip)), skip], dim=1), t)


ADAPTER = Adapter(
    family="mine",
    blocks=(Residual, Attention),
    products={Similarity: ProductKind(("query", "key")), Average: ProductKind(("share", "value"), softmax="share")},
    plain=(nn.GroupNorm, nn.LayerNorm),
    splits=lambda model: {"up.shortcut": (6, 4)},
)
POLICY = QuantPolicy(
    QuantSpec(4, per_channel=True, range_search="minmax"),
    QuantSpec(6, range_search="minmax"),
    softmax_bits=5,
    split=True,
    weight_rules=(("model.down.*", 8),),
    act_rules=(("model.middle", None),),
)
INPUTS = gaussian(6, 2, 4, 4), torch.arange(6)
FLAGS = {"act_bit": 6, "sm_abit": 5, "split": True}


def network(seed: int) -> Network:
    model = Network().eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.data = gaussian(*parameter.shape, seed=seed + i) / 2
    return model


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    return model(*INPUTS)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    model, folder = QuantModel(network(0), POLICY, ADAPTER), tmp_path_factory.mktemp("job")
    nearest = {path: layer.codes.clone() for path, layer in model.layers().items()}
    settings = CalibrationSettings(3, Schedule(40, 1e-1), Schedule(5, 1e-3))
    calibrate(model, CalibrationSet(INPUTS), settings, Journal(folder / "journal", {}), memory=10**9)
    assert any(not torch.equal(layer.codes, nearest[path]) for path, layer in model.layers().items())
    save_quantized(folder / "file", model)
    return model, folder / "file"


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_loaded_network_is_the_saved_one(calibrated, low_memory):
    model, path = calibrated
    again = load_quantized(network(100), path, **FLAGS, adapter=ADAPTER, low_memory=low_memory)
    assert torch.equal(output(again), output(model))
    assert not torch.equal(output(again), output(network(0)))


def test_weights_and_activations_have_as_many_levels_as_bits_allow(calibrated):
    again = load_quantized(network(100), calibrated[1], **FLAGS, adapter=ADAPTER)
    for path, layer in again.layers().items():
        levels = 2 ** (8 if path.startswith("model.down.") else 4)
        assert int(layer.codes.max()) < levels
        for part in layer.quantized_weight().split(layer.split or (layer.codes.shape[1],), dim=1):
            assert all(len(row.unique()) <= levels for row in part.flatten(1))
    levels: dict[str, int] = {}
    for site in again.sites():
        for i, quantizer in enumerate(site.quantizer.quantizers()):
            assert isinstance(quantizer, UniformAffineQuantizer)
            name = f"{site.path}.{site.name}.{i}"
            quantizer.register_forward_hook(lambda m, args, y, name=name: levels.update({name: len(y.unique())}))
    output(again)
    softmax = "model.attention.average.act_quantizer_share.0"
    assert {name for name in levels if "middle" in name} == set()
    assert {name for name in levels if "up.shortcut" in name} == {
        f"model.up.shortcut.act_quantizer.{i}" for i in (0, 1)
    }
    assert 2**4 < levels[softmax] <= 2**5 < max(levels.values()) <= 2**6
    assert [f"{site.path}.{site.name}.0" for site in again.sites() if site.is_softmax] == [softmax]


def test_the_rounding_alone_can_be_loaded(calibrated):
    model, path = calibrated
    again = load_rounding(network(0), path, POLICY, adapter=ADAPTER)
    assert all(torch.equal(again.layers()[path].codes, layer.codes) for path, layer in model.layers().items())
    with again.full_precision():
        assert torch.equal(output(again), output(network(0)))


def test_the_file_names_the_family_and_holds_nothing_that_was_not_given(calibrated):
    file = read_quantized(calibrated[1])
    assert (file.family, file.config, file.provenance, file.policy) == ("mine", {}, {}, POLICY)


def test_without_its_adapter_the_error_says_what_to_do(calibrated):
    for load in (
        lambda: load_quantized(network(0), calibrated[1]),
        lambda: load_rounding(network(0), calibrated[1], POLICY),
    ):
        with pytest.raises(ValueError, match=r"Network is not a network of ddim, ldm: .* pass adapter=Adapter\("):
            load()


def test_a_few_words_describe_a_network_without_products_or_splits():
    adapter = Adapter(family="mine", plain=(nn.GroupNorm,))
    model = QuantModel(Residual(2, 4), QuantPolicy(act=QuantSpec(8), split=True), adapter)
    assert [block.path for block in model.blocks()] == ["model.conv", "model.shortcut"]
    assert [site.name for site in model.sites()] == ["act_quantizer"] * 2
    with pytest.raises(ValueError, match="cannot build networks"):
        adapter.build({})
