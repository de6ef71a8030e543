"""Bits by step through `quantize`: chosen before the calibration, recorded, resumed, and in the policy of the file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import qdiff
from qdiff.checkpoints.quantized_file import read_quantized
from qdiff.errors import UserError
from qdiff.files.journal import Journal
from qdiff.mixed_precision.choice import KEY, Choice, choice_of
from qdiff.mixed_precision.criteria import BopsBudget, MixedPrecision, SignalToNoise
from qdiff.pipelines import mixed_precision
from qdiff.pipelines.mixed_precision import call_bops, mixed_precision_of
from qdiff.pipelines.pipeline import Pipeline
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.spectrum import Spectrum
from tests.ldm.tiny import CLASSES, write_latent
from tests.tiny import sample_script, write_tiny

MIXED = {"weight_bits": 4, "act_bits": 8, "split": True, "timesteps": 4, "samples": 3, "batch_size": 8}
BUDGET = {"method": "linear", "mixed_precision": (4,), "bops_budget": 0.7}


@pytest.fixture(scope="module")
def pixel(tmp_path_factory) -> Pipeline:
    return qdiff.load_pipeline(write_tiny(tmp_path_factory.mktemp("pixel")), steps=8, device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def budget(pixel, one_thread, tmp_path_factory) -> tuple[Path, Pipeline]:
    """A folder, and what was calibrated there within a budget."""
    folder = tmp_path_factory.mktemp("budget")
    return folder, qdiff.quantize(pixel, folder=folder, **BUDGET, **MIXED)


def recorded(pipe: Pipeline) -> Choice:
    return choice_of(json.loads(json.dumps(pipe.network.provenance)), Path("f"))


def test_the_policy_has_the_chosen_bits_and_the_cost_is_within_the_budget(pixel, budget):
    _, pipe = budget
    choice, policy = recorded(pipe), pipe.network.policy
    assert choice.measured.timesteps == tuple(sorted(pixel.timesteps)) and choice.measured.calls == (1,) * 8
    assert [policy.act_for("any", phase=policy.phase_of(t)).bits for t in sorted(pixel.timesteps)] == [*choice.bits]
    assert {*choice.bits} == {4, 8} and choice.share <= 0.7
    assert pipe.bops().bops == choice.bops, "as a pipeline counts them"
    most = choice.measured.trajectory_bops([8] * 8)
    assert choice.share == choice.bops / most
    spectrum = Spectrum.from_dict(json.loads(json.dumps(pipe.network.provenance))["spectrum"])
    assert BopsBudget(0.7).choose(choice.measured, spectrum) == choice.bits


def test_early_steps_count_most_by_their_effect_on_the_image_and_last_by_the_papers_criterion(pixel, budget):
    own = recorded(budget[1])
    assert own.bits[-1] == 8, "the noisiest step"
    paper = SignalToNoise().choose(own.measured)
    assert paper[0] == 8 and list(paper) == sorted(paper, reverse=True), "8 bits where there is little noise left"


def test_the_forward_process_is_that_of_the_schedule(pixel, budget):
    abar = pixel.abar.double()[torch.tensor(sorted(pixel.timesteps)).long()]
    assert recorded(budget[1]).measured.forward == pytest.approx((abar / (1 - abar)).tolist(), rel=1e-5)


def test_errors_are_those_of_the_network_with_each_width(pixel, budget, one_thread):
    """Those of the weights that the calibration keeps; the file of a uniform one errs as much."""
    measured, images = recorded(budget[1]).measured, range(3)
    assert measured.images == 3
    for bits in (4, 8):
        data = budget[0] / "calibration_data.safetensors"
        alone = qdiff.quantize(pixel, data=data, method="linear", **{**MIXED, "act_bits": bits})
        errors, signal = [0.0] * 8, [0.0] * 8
        for batch in (images[:2], images[2:]):  # as the pipeline's batches are
            model = alone.calibration_model_for(batch)
            for step in pixel.calibration_steps(batch):
                with torch.no_grad():
                    error = model(step.x_t, torch.full((len(batch),), step.t)) - step.eps
                errors[step.index] += error.square().sum().item()
                signal[step.index] += step.eps.square().sum().item()
        assert [x[0] for x in measured.errors[bits]] == pytest.approx(errors[::-1], rel=1e-4)
        assert measured.signal == pytest.approx(signal[::-1], rel=1e-4)


def test_a_budget_of_all_bit_operations_is_the_uniform_network(pixel, budget, one_thread):
    folder, _ = budget
    settings = {**MIXED, "method": "linear", "data": folder / "calibration_data.safetensors"}
    whole = qdiff.quantize(pixel, mixed_precision=4, bops_budget=1.0, **settings)
    uniform = qdiff.quantize(pixel, **settings)
    assert recorded(whole).bits == (8,) * 8 and whole.network.policy == uniform.network.policy
    for key, x in uniform.network.quantized_state().items():
        assert torch.equal(x, whole.network.quantized_state()[key]), key


@pytest.mark.parametrize("method", ["squant", "gptq"])
def test_every_method_can_choose(method, pixel, budget, tmp_path):
    settings = {**MIXED, "method": method, "iterations": 2, "data": budget[0] / "calibration_data.safetensors"}
    pipe = qdiff.quantize(pixel, mixed_precision=(6, 4), snr_ratio="power", act_groups=2, **settings)
    choice = recorded(pipe)
    assert choice.measured.widths == [4, 6, 8] and choice.criterion == SignalToNoise("power")
    assert ("spectrum" in pipe.network.provenance) == (method == "gptq") and choice.spectrum is None
    pipe.save(tmp_path / "q")
    again = qdiff.load_pipeline(pixel.source, quantized=tmp_path / "q", steps=8, device="cpu", batch_size=2)
    assert torch.equal(again.sample(2).tensor, pipe.sample(2).tensor)
    assert len(pipe.network.policy.phases) >= 2, "of the groups at least"


def test_a_guided_latent_model_is_measured_after_guidance(tmp_path):
    write_latent(CLASSES, tmp_path / "model")
    pipe = qdiff.load_pipeline(tmp_path / "model", steps=2, scale=2.0, device="cpu")
    settings = {"weight_bits": 4, "act_bits": 8, "timesteps": 2, "samples": 1, "method": "linear"}
    mixed = qdiff.quantize(pipe, mixed_precision=(4,), **settings)
    choice = recorded(mixed)
    assert mixed.bops().rows == 2 and mixed.bops().bops == choice.bops
    signal = [step.eps.square().sum().item() for step in pipe.calibration_steps([0])]
    assert choice.measured.signal == pytest.approx(signal[::-1], rel=1e-5)


# Resumption


class Killed(Exception):
    pass


def killed_after(monkeypatch, units: int) -> None:
    """The process ends once the measurements have recorded so many units."""
    left, write = [units], Journal.write

    def dying(self, unit, *content):
        write(self, unit, *content)
        if "mixed_precision" in str(self.folder):
            left[0] -= 1
            if not left[0]:
                raise Killed

    monkeypatch.setattr(Journal, "write", dying)


@pytest.mark.parametrize("units", [1, 2, 3, 4])
def test_killed_while_measuring_the_same_call_ends_in_the_same_file(units, pixel, budget, monkeypatch, tmp_path):
    """After the ranges of either width, and either batch of images."""
    folder, _ = budget
    for name in ("calibration_data.safetensors", "sensitivity"):
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
        copy(folder / name, tmp_path / name)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, units)
        qdiff.quantize(pixel, folder=tmp_path, **BUDGET, **MIXED)
    assert not (tmp_path / "quantized.safetensors").exists()
    assert len(list((tmp_path / "mixed_precision").rglob("*.safetensors"))) == units
    qdiff.quantize(pixel, folder=tmp_path, **BUDGET, **MIXED)
    assert (tmp_path / "quantized.safetensors").read_bytes() == (folder / "quantized.safetensors").read_bytes()


def test_what_is_measured_is_not_measured_again(pixel, budget, monkeypatch, tmp_path):
    folder, pipe = budget
    kept = shutil.copytree(folder, tmp_path / "kept")
    again = qdiff.quantize(pixel, folder=kept, **BUDGET, **MIXED)
    assert torch.equal(again.sample(2).tensor, pipe.sample(2).tensor), "the file is loaded"
    (kept / "quantized.safetensors").unlink()
    monkeypatch.setattr(mixed_precision.Widths, "errors", None)
    monkeypatch.setattr(mixed_precision.Widths, "find", None)
    qdiff.quantize(pixel, folder=kept, **BUDGET, **MIXED)
    assert (kept / "quantized.safetensors").read_bytes() == (folder / "quantized.safetensors").read_bytes()


@pytest.mark.parametrize(
    "changes", [{"bops_budget": 0.8}, {"bops_budget": None}, {"mixed_precision": (4, 6)}, {"mixed_precision": ()}]
)
def test_a_folder_of_another_choice(changes, pixel, budget):
    settings = BUDGET | changes
    if not settings["mixed_precision"]:
        settings["bops_budget"] = None
    with pytest.raises(UserError, match=r"calibrated with other policy: give another folder|has activations of"):
        qdiff.quantize(pixel, folder=budget[0], **settings, **MIXED)


# The script


SCRIPT = "--timesteps 4 --max_images 1 --device cpu --ptq --quant_mode linear --weight_bit 4 --quant_act --split"
CHOOSE = "--cali_st 4 --cali_n 2 --mixed_precision 4,6 --bops_budget 0.75"


def test_the_script_plans_chooses_resumes_and_loads(tmp_path):
    config, run = write_tiny(tmp_path), tmp_path / "run"
    words = ["--config", config, *SCRIPT.split(), *CHOOSE.split(), "-l", run]
    planned = sample_script(*words, "--dry-run")
    assert "activations: 4 or 6 bits at the steps that are chosen after measuring, by least error" in planned.out
    assert planned.status == 0 and not run.exists()
    assert sample_script(*words).status == 0
    file, log = (run / "quantized.safetensors").read_bytes(), (run / "log.txt").read_text()
    assert "INFO activations: 8 bits at 750.." in log
    (run / "quantized.safetensors").unlink()
    images = {path.name: path.read_bytes() for path in (run / "img").iterdir()}
    shutil.rmtree(run / "img")
    assert sample_script(*words).status == 0
    assert (run / "quantized.safetensors").read_bytes() == file
    load = ["--config", config, *SCRIPT.split(), "--resume", "--cali_ckpt", run / "quantized.safetensors"]
    assert sample_script(*load, "-l", tmp_path / "again").status == 0
    for folder in (run, tmp_path / "again"):
        assert {path.name: path.read_bytes() for path in (folder / "img").iterdir()} == images


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--bops_budget 0.3", "--bops_budget 0.3 is less than 4 bits at all steps take, 0.4"),
        ("--bops_budget 0.8 --cali_spectrum_n 0", "--bops_budget weighs errors by what they do to the image"),
        ("--cali_n 1 --cali_st 2", "--mixed_precision needs samples of all 4 steps, --cali_st 2 and --cali_n 1 take 2"),
        ("--act_bit 4", "--mixed_precision 4 is not less than --act_bit 4"),
    ],
)
def test_the_script_refuses_in_one_line(words, message, tmp_path):
    given = ["--config", write_tiny(tmp_path), *SCRIPT.split(), "--cali_st", 4, "--cali_n", 2, "--mixed_precision", 4]
    ended = sample_script(*given, *words.split(), "-l", tmp_path / "run")
    assert ended.status == 2 and ended.err.startswith(f"error: {message}") and ended.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


# Bad input


def test_data_that_lack_steps(pixel):
    with pytest.raises(UserError, match=r"needs samples of all 8 steps, --cali_st 2 and --cali_n 3 take 6: raise one"):
        qdiff.quantize(pixel, mixed_precision=(4,), **{**MIXED, "timesteps": 2})


def test_a_budget_that_no_bits_meet(pixel, tmp_path):
    with pytest.raises(
        UserError, match=r"^--bops_budget 0.1 is less than 4 bits at all steps take, 0\.4\d+ of the bit"
    ):
        qdiff.quantize(pixel, folder=tmp_path, **{**BUDGET, "bops_budget": 0.1}, **MIXED)
    assert list(tmp_path.iterdir()) == [], "refused before anything is computed"


def test_a_budget_without_a_spectrum(pixel):
    with pytest.raises(UserError, match=r"^--bops_budget weighs errors .* give --cali_spectrum_n 1 or more$"):
        qdiff.quantize(pixel, spectrum_images=0, **BUDGET, **MIXED)


A8 = QuantPolicy(act=QuantSpec(8))


def test_arguments():
    assert mixed_precision_of(A8, (), None, "norm") is None
    assert mixed_precision_of(A8, 4, None, "power") == MixedPrecision((4,), SignalToNoise("power"))
    assert mixed_precision_of(A8, [6, 4, 6], 0.5, "norm") == MixedPrecision((4, 6), BopsBudget(0.5))


@pytest.mark.parametrize(
    ("policy", "arguments", "kind", "message"),
    [
        (A8, ((8,), None, "norm"), ValueError, r"mixed_precision must be .*2.*7.*not 8"),
        (A8, ((1,), None, "norm"), ValueError, r"mixed_precision must be .*2.*7.*not 1"),
        (A8, ((4.0,), None, "norm"), TypeError, "mixed_precision"),
        (A8, ((4,), 2, "norm"), ValueError, "bops_budget must be"),
        (A8, ((4,), 0, "norm"), ValueError, "bops_budget must be above 0"),
        (A8, ((4,), "half", "norm"), TypeError, "bops_budget must be"),
        (A8, ((4,), None, "nrm"), ValueError, "snr_ratio"),
        (A8, ((), 0.5, "norm"), ValueError, "need mixed_precision: give the bits"),
        (A8, ((), None, "power"), ValueError, "need mixed_precision: give the bits"),
        (A8, ((4,), 0.5, "power"), ValueError, "snr_ratio belongs to the criterion without bops_budget"),
        (QuantPolicy(), ((4,), None, "norm"), ValueError, "needs act_bits"),
        (QuantPolicy(act=QuantSpec(2)), ((2,), None, "norm"), ValueError, "2 are the fewest"),
        (replace(A8, act_phases=((5, 4),)), ((4,), None, "norm"), ValueError, "leave out its act_phases"),
    ],
)
def test_arguments_that_do_not_go_together(policy, arguments, kind, message):
    with pytest.raises(kind, match=message):
        mixed_precision_of(policy, *arguments)


def test_bit_operations_are_counted_by_width(pixel, budget):
    """As those of pipelines that have one width each, by their own count."""
    policy = QuantPolicy(QuantSpec(4, per_channel=True), QuantSpec(8), split=True)
    bops = call_bops(pixel, policy, [4, 6, 8])
    data = budget[0] / "calibration_data.safetensors"
    for bits in (4, 6):
        alone = qdiff.quantize(pixel, **{**MIXED, "act_bits": bits, "method": "linear", "data": data})
        assert alone.bops().steps == [bops[bits]] * 8
    assert not pixel.is_quantized


def test_the_record_is_in_the_file(budget):
    folder, pipe = budget
    provenance = read_quantized(folder / "quantized.safetensors").provenance
    assert choice_of(provenance, Path("f")) == recorded(pipe)
    assert provenance["policy"][KEY] == {"fewer": [4], "share": 0.7} and provenance["spectrum_images"] == 1


def test_weights_that_will_be_fitted_are_rounded_without_data(pixel, monkeypatch, tmp_path):
    """By SQuant; the codes of a kept file and of nearest rounding stay."""
    seen = []

    class Noticed(mixed_precision.Widths):
        def find(self, *given):
            seen.append({path: layer.codes.clone() for path, layer in self.model.layers().items()})
            raise Killed

    monkeypatch.setattr(mixed_precision, "Widths", Noticed)
    for method in ("linear", "squant", "gptq", "qdiff"):
        with pytest.raises(Killed):
            qdiff.quantize(pixel, mixed_precision=4, method=method, spectrum_images=0, **MIXED)
    nearest, *others = seen
    expected = qdiff.quantize(pixel, weight_bits=4, method="squant", split=True).network.layers()
    assert all(torch.equal(codes[path], layer.codes) for codes in others for path, layer in expected.items())
    assert any(not torch.equal(nearest[path], layer.codes) for path, layer in expected.items())
