"""Calibration with activations, to its end, of networks as published for LSUN, ImageNet and text, but narrow."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from qdiff.adapters import adapter_of
from qdiff.block_recon import Schedule
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.settings import CalibrationSettings
from qdiff.checkpoints.load import load_quantized, save_quantized
from qdiff.files.journal import Journal
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.golden_networks import golden_state_dict

CONFIGS = Path(__file__).parents[3] / "configs"
SETTINGS = CalibrationSettings(batch_size=2, rounding=Schedule(1, 1e-3), steps=Schedule(1, 4e-4), range_samples=2)
RUNNING = replace(SETTINGS, running_stat=True)
POLICY = QuantPolicy(QuantSpec(4, per_channel=True, range_search="minmax"), QuantSpec(8, range_search="minmax"))
FOR_TEXT = replace(POLICY, softmax_bits=16, split=True)


def narrow(name: str) -> tuple[DictConfig, CalibrationSet]:
    """All levels, blocks and attentions of the network, with 32 channels where it has 192 or 224."""
    config = OmegaConf.load(next(CONFIGS.rglob(f"{name}.yaml")))
    unet = config.model.params.unet_config.params
    unet.model_channels, side = 32, 2 ** (len(unet.channel_mult) - 1)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, unet.in_channels, side, side, generator=draw)
    inputs = (x, torch.tensor([100, 900]))
    if "context_dim" in unet:
        unet.context_dim = 16
        inputs += (torch.randn(2, 1, 16, generator=draw),)
    return config, CalibrationSet(inputs)


@pytest.mark.parametrize(
    ("name", "products", "policy", "settings"),
    [
        ("lsun_bedrooms-ldm-vq-4", 2 * 16, POLICY, SETTINGS),
        ("lsun_churches-ldm-kl-8", 2 * 21, POLICY, SETTINGS),
        ("cin256-v2", 2 * 2 * 16, POLICY, SETTINGS),
        ("v1-inference", 2 * 2 * 16, FOR_TEXT, RUNNING),
    ],
)
def test_calibration_runs_to_its_end(name, products, policy, settings, tmp_path):
    config, data = narrow(name)
    adapter = adapter_of("ldm")

    def network():
        model = adapter.build(config).eval()
        model.load_state_dict(golden_state_dict({key: x.shape for key, x in model.state_dict().items()}))
        return model

    model = QuantModel(network(), policy, adapter)
    calibrate(model, data, settings, Journal(tmp_path / "journal", {}), memory=2**30)
    sites = [site for site in model.sites() if site.name != "act_quantizer"]
    assert len(sites) == 2 * products, "two operands of every product"
    units = {path.stem for path in (tmp_path / "journal").glob("*.safetensors")}
    blocks = model.blocks()
    assert {f"weights-{i:03d}" for i in range(len(blocks))} < units and "ranges" in units
    attending = {i for i, block in enumerate(blocks) if any(site in sites for site in block.sites)}
    assert attending and {f"steps-{i:03d}" for i in attending} < units
    save_quantized(tmp_path / "q", model, config={}, provenance={})
    with torch.no_grad():
        flags = {"act_bit": 8, "sm_abit": policy.softmax_bits, "split": policy.split}
        again, found = load_quantized(network(), tmp_path / "q", **flags)(*data.inputs), model(*data.inputs)
        wanted = network()(*data.inputs)
    assert torch.equal(again, found)
    error = (found - wanted).norm() / wanted.norm()
    assert 1e-3 < error < 0.5 and math.isfinite(error)
