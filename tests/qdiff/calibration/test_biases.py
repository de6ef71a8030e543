"""Correction of biases on a small network with attention, a split layer and a layer without bias."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qdiff.calibration.biases import CorrectedBiases
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.phases import unmixed
from qdiff.files.journal import Journal
from qdiff.policy import QuantPolicy
from qdiff.quant_layer import QuantModule
from qdiff.quant_model import QuantModel
from qdiff.spectrum import Spectrum
from tests.qdiff.calibration.test_job import Killed, LastJournal, Told, saved
from tests.qdiff.calibration.test_solve import OF_8_BITS, POLICY, SETTINGS, SPECTRUM, W4, data, fresh
from tests.qdiff.calibration.test_solve_networks import Twice, adapter
from tests.qdiff.loops import gaussian

CORRECTED = replace(SETTINGS, closed_form=None, correct_bias=True)


def corrected(model: QuantModel, folder: Path, spectrum=SPECTRUM, **changes) -> Told:
    told = Told()
    settings = replace(CORRECTED, **changes)
    calibrate(model, data(), settings, Journal(folder, {}), spectrum=spectrum, memory=10**9, reporter=told)
    return told


@torch.no_grad()
def means(model: QuantModel, spectrum: Spectrum | None) -> dict[str, Tensor]:
    """The mean of each layer's output, (O,), of errors on the whole image, which weigh as the softened spectrum says.

    In the batches of the calibration: others would round here and there to another code.
    """
    parts = unmixed(model, data())
    t = torch.cat([part.inputs[1] for part in parts])
    weights = spectrum.softened().bands(t).sum(0) if spectrum else torch.ones(len(t))
    found: dict[str, list[Tensor]] = {path: [] for path in model.layers()}

    def hook(path: str):
        def note(layer: QuantModule, args: tuple, y: Tensor) -> None:
            for one in y:
                found[path].append(one.flatten(1).mean(1) if one.ndim == 3 else one.reshape(-1, y.shape[-1]).mean(0))

        return note

    hooks = [layer.register_forward_hook(hook(path)) for path, layer in model.layers().items()]
    for part in parts:
        for batch in part.batches(CORRECTED.batch_size):
            batch(model)
    for handle in hooks:
        handle.remove()
    return {path: weights / weights.sum() @ torch.stack(values) for path, values in found.items()}


@pytest.mark.parametrize("spectrum", [None, SPECTRUM])
@pytest.mark.parametrize("policy", [POLICY, replace(POLICY, act=None, act_rules=()), OF_8_BITS])
def test_every_layer_returns_its_mean_in_full_precision(policy, spectrum, tmp_path):
    model = fresh(policy)
    corrected(model, tmp_path, spectrum)
    found = means(model, spectrum)
    with model.full_precision():
        wanted = means(model, spectrum)
    for path, layer in model.layers().items():
        assert layer.bias is not None
        torch.testing.assert_close(found[path], wanted[path], atol=2e-5, rtol=1e-4)


def test_codes_and_ranges_stay(tmp_path):
    plain, model = fresh(), fresh()
    calibrate(plain, data(), replace(CORRECTED, correct_bias=False), memory=0)
    told = corrected(model, tmp_path)
    states = plain.state_dict(), model.state_dict()
    changed = {key for key in states[0] if not torch.equal(states[0][key], states[1][key])}
    assert changed == {f"{path}.bias" for path in model.layers()}
    assert all(o.after < 1e-6 < o.before for o in told.outcomes)


def test_a_killed_job_ends_in_the_same_file(tmp_path):
    whole = fresh()
    corrected(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        calibrate(fresh(), data(), CORRECTED, LastJournal(tmp_path / "killed", 3), spectrum=SPECTRUM, memory=10**9)
    again = fresh()
    told = corrected(again, tmp_path / "killed")
    assert told.resumed == [True, True, False, False], "after the ranges, two blocks"
    assert saved(again, tmp_path) == saved(whole, tmp_path)


def test_a_layer_without_bias_stays_without(tmp_path):
    model = fresh()
    block = model.blocks()[0]
    path, layer = next(iter(block.layers.items()))
    layer.bias = None
    assert CorrectedBiases(block).state().keys() == {f"{other}.bias" for other in block.layers if other != path}
    told = corrected(model, tmp_path)
    assert layer.bias is None
    assert any(o.after > 1e-6 for o in told.outcomes)


def test_the_batch_size_does_not_matter(tmp_path):
    models = [fresh(replace(POLICY, act=None, act_rules=())) for _ in range(2)]
    for model, size in zip(models, (4, 16)):
        corrected(model, tmp_path / str(size), batch_size=size)
    for one, other in zip(models[0].layers().values(), models[1].layers().values()):
        torch.testing.assert_close(one.bias, other.bias, atol=1e-5, rtol=1e-4)


def test_a_layer_that_is_called_twice_is_named(tmp_path):
    model = QuantModel(nn.Sequential(Twice()), QuantPolicy(W4), adapter(Twice))
    samples = CalibrationSet((gaussian(8, 2, 4, 4),))
    with pytest.raises(ValueError, match=r"^model\.0\.conv is called 2 times by its block: it must be called once$"):
        calibrate(model, samples, CORRECTED, Journal(tmp_path, {}), memory=10**9)
