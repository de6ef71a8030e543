"""The calibration of a pipeline's network, with the learning itself left out."""

import hashlib
import json
import shlex
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, NoReturn
from unittest import mock

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.plan import Plan
from qdiff.calls import Call
from qdiff.checkpoints.quantized_file import read_quantized
from qdiff.cli.ddim_flags import ddim_parser
from qdiff.cli.parser import parse
from qdiff.cli.sample import learning_of, quantization_of
from qdiff.errors import UserError
from qdiff.files.digest import tensors_digest
from qdiff.files.journal import Journal
from qdiff.pipelines import calibrate, calibration_set
from qdiff.quant_model import QuantModel
from qdiff.spectrum import Spectrum
from tests.tiny import tiny_network


def flags(line: str) -> Namespace:
    return parse(ddim_parser(), ["--config", "c.yml", "--ptq", *shlex.split(line)])


ONES = CalibrationSet((torch.ones(6, 3, 8, 8), torch.tensor([1, 1, 1, 0, 0, 0])))
SMALL = "--weight_bit 4 --cali_st 2 --cali_n 3 --cali_batch_size 4 --cali_memory 1 --seed 3 "


class Collector:
    """Collects calibration data, and counts how often."""

    def __init__(self, data: CalibrationSet = ONES):
        self.data, self.calls = data, 0

    def __call__(self, *args: object, journal: Journal, **options: object) -> CalibrationSet:
        assert journal.folder.is_dir()
        self.calls += 1
        return self.data


class Model:
    """Stands in for a pipeline."""

    nfe, cfg_copies, batch_size = 2, 1, 2
    device = torch.device("cpu")
    config_dict: ClassVar[dict] = {"name": "tiny"}

    def __init__(self, network: nn.Module):
        self.network = network

    def example(self, batch_size: int) -> Call:
        return Call((torch.zeros(batch_size, 3, 8, 8), torch.zeros(batch_size, dtype=torch.long)))

    def calibration_steps(self, indices: Sequence[int]) -> NoReturn:
        raise AssertionError("a collector takes its place")


class Job:
    """A quantization by flags of a model, in a folder."""

    def __init__(self, folder: Path, line: str, collect: Collector, network: nn.Module):
        self.folder, self.file, self.collect = folder, folder / "quantized.safetensors", collect
        self.quantization = quantization_of(flags(SMALL + line))
        self.model = Model(network)

    def plan(self) -> Plan | None:
        return self.quantization.plan(self.model, 2)

    def run(self) -> QuantModel:
        self.folder.mkdir(exist_ok=True)
        with mock.patch.object(calibration_set, "collect", self.collect):
            return self.quantization.run(self.model, self.folder)


def job(folder: Path, line: str = "", *, collect: Collector | None = None, model: nn.Module | None = None) -> Job:
    return Job(folder, line, collect or Collector(), model or tiny_network())


@pytest.fixture
def idle(monkeypatch):
    """Calibration that learns nothing: weights stay rounded to nearest."""
    calls = []
    monkeypatch.setattr(calibrate, "calibrate", lambda *args, **options: calls.append((args, options)))
    return calls


def refusal(job: Job) -> str:
    with pytest.raises(UserError) as caught:
        job.run()
    assert "\n" not in str(caught.value)
    assert not job.file.exists()
    return str(caught.value)


def test_files_of_a_job(idle, tmp_path):
    collect = Collector()
    made = job(tmp_path, collect=collect)
    weights = tensors_digest(tiny_network().state_dict())
    model = made.run()
    assert all(layer.weight is None for layer in model.layers().values()), "sampling does without them"
    file = read_quantized(made.file)
    assert file.config == {"name": "tiny"}
    provenance = file.provenance
    assert (provenance["weights"], provenance["data"]) == (weights, ONES.digest())
    assert provenance["settings"]["rounding"] == {"iterations": 20000, "lr": 1e-3}
    assert json.loads((tmp_path / "journal" / "job.json").read_text()) == provenance
    stored = load_file(tmp_path / "calibration_data.safetensors")
    assert torch.equal(stored["input_0"], ONES.inputs[0]) and torch.equal(stored["input_1"], ONES.inputs[1])
    ((_, data, settings, journal), options) = idle[0]
    assert data.digest() == ONES.digest() and settings == made.quantization.learning
    assert journal.folder == tmp_path / "journal" and options["memory"] == 2**30
    again = job(tmp_path, collect=collect).run()
    assert (collect.calls, len(idle)) == (1, 1), "what is finished is loaded"
    with torch.no_grad():
        assert torch.equal(made.model.example(2)(again), made.model.example(2)(model))
    assert not again.training


class Killed(Exception):
    pass


def killed(*args, **options):
    raise Killed


@pytest.fixture(scope="module")
def left_over(tmp_path_factory) -> Path:
    """The folder of a job that was killed while it learned."""
    folder = tmp_path_factory.mktemp("left_over")
    with mock.patch.object(calibrate, "calibrate", killed), pytest.raises(Killed):
        job(folder).run()
    return folder


@pytest.fixture
def interrupted(left_over, tmp_path) -> Path:
    return shutil.copytree(left_over, tmp_path / "interrupted")


def test_an_interrupted_job_goes_on_with_its_data(interrupted, idle):
    collect = Collector()
    assert sorted(path.name for path in interrupted.iterdir()) == ["calibration_data.safetensors", "journal"]
    job(interrupted, "--cali_memory 2 --verbose --device cpu --max_images 3", collect=collect).run()
    assert (collect.calls, len(idle)) == (0, 1)


@pytest.fixture
def shared(monkeypatch):
    """Calibration in several processes, which also learns nothing."""
    calls = []
    monkeypatch.setattr(calibrate, "calibrate_shared", lambda *args, **options: calls.append((args, options)))
    return calls


def test_a_job_goes_on_with_more_devices(interrupted, idle, shared):
    """Its record is the same; this process takes the results from their journal, and reports none a second time."""
    record = (interrupted / "journal" / "job.json").read_bytes()
    made = job(interrupted, "--cali_devices 2")
    made.run()
    (((devices, model, data, settings, journal), options),) = shared
    ((given, given_options),) = idle
    assert devices == 2 and given == (model, data, settings, journal)
    assert (journal.folder / "job.json").read_bytes() == record
    assert options["memory"] == given_options["memory"] == 2**29, "each process has its part of --cali_memory"
    assert options["reporter"] is not None and given_options["reporter"] is None
    alone = job(interrupted)
    assert alone.run() is not None and len(shared) == 1, "the file is that of one device"


def test_one_device_needs_no_other_process(idle, shared, tmp_path):
    job(tmp_path, "--cali_devices 1").run()
    assert (len(idle), shared) == (1, []) and idle[0][1]["reporter"] is not None


@pytest.mark.parametrize("mode", ["gptq", "squant", "linear"])
def test_what_does_not_learn_has_nothing_to_share(mode):
    quantization = quantization_of(flags(SMALL + f"--quant_mode {mode} --cali_devices 2"))
    with pytest.raises(UserError, match="--cali_devices 2: only --quant_mode qdiff learns"):
        quantization.check(Model(tiny_network()))


def other_weights() -> nn.Module:
    model = tiny_network()
    model.conv_in.bias.data[3] += 1e-6
    return model


@pytest.mark.parametrize(
    ("what", "line", "options"),
    [
        ("weights", "", {"model": other_weights()}),
        ("settings", "--cali_iters 7", {}),
        ("settings", "--cali_batch_size 3", {}),
        ("settings", "--seed 4", {}),
        ("policy, settings", "--quant_act", {}),
        ("policy", "--weight_bit 5", {}),
        ("policy", "--split", {}),
    ],
)
def test_an_interrupted_job_is_not_continued_with_other(what, line, options, interrupted, idle):
    line = refusal(job(interrupted, line, **options))
    assert f"holds results for other {what} (" in line and "give another folder" in line
    assert idle == []


def test_an_interrupted_job_is_not_continued_with_other_data(interrupted, idle):
    (interrupted / "calibration_data.safetensors").unlink()
    touched = ONES.inputs[0].clone()
    touched[5, 2, 7, 7] += 1e-6
    collect = Collector(CalibrationSet((touched, ONES.inputs[1])))
    assert "holds results for other data (" in refusal(job(interrupted, collect=collect))


def test_the_weights_of_another_checkpoint_are_another_job(tmp_path):
    for name, model in (("a", tiny_network()), ("b", other_weights())):
        job(tmp_path / name, "--quant_mode linear", model=model).run()
    line = "--quant_act --resume_w --cali_ckpt {}/quantized.safetensors"
    with mock.patch.object(calibrate, "calibrate", killed), pytest.raises(Killed):
        job(tmp_path / "c", line.format(tmp_path / "a")).run()
    record = json.loads((tmp_path / "c" / "journal" / "job.json").read_text())
    content = (tmp_path / "a" / "quantized.safetensors").read_bytes()
    assert record["cali_ckpt"] == hashlib.sha256(content).hexdigest()
    assert "holds results for other cali_ckpt (" in refusal(job(tmp_path / "c", line.format(tmp_path / "b")))


# Closed form

GPTQ = "--quant_mode gptq --cali_spectrum_n "


@pytest.fixture
def spectra(monkeypatch):
    """Spectra that are not measured: the numbers of images that were asked for."""
    asked = []

    def spectrum_of(pipeline, images, folder, weights, progress):
        asked.append(images)
        return Spectrum((0.0,), (1.0,), (2.0,), (3.0,))

    monkeypatch.setattr(calibrate, "spectrum_of", spectrum_of)
    return asked


def test_a_job_in_closed_form_is_measured_calibrated_and_loaded(idle, spectra, tmp_path):
    collect = Collector()
    made = job(tmp_path, GPTQ + "3", collect=collect)
    made.run()
    (_, options) = idle[0]
    assert spectra == [3] and options["spectrum"] == Spectrum((0.0,), (1.0,), (2.0,), (3.0,))
    provenance = read_quantized(made.file).provenance
    assert provenance["spectrum"] == options["spectrum"].to_dict() and provenance["spectrum_images"] == 3
    assert provenance["settings"]["closed_form"] == {"columns": 4000} and provenance["settings"]["rounding"] is None
    job(tmp_path, GPTQ + "3", collect=collect).run()
    assert (collect.calls, len(idle), spectra) == (1, 1, [3]), "what is finished is loaded"
    with pytest.raises(UserError, match=r"was calibrated with other spectrum_images: give another folder"):
        job(tmp_path, GPTQ + "2", collect=collect).run()


def test_without_images_all_errors_count_alike(idle, spectra, tmp_path):
    made = job(tmp_path, GPTQ + "0")
    made.run()
    assert spectra == [] and idle[0][1]["spectrum"] is None
    assert "spectrum" not in read_quantized(made.file).provenance


def test_an_interrupted_job_with_another_spectrum(spectra, tmp_path):
    with mock.patch.object(calibrate, "calibrate", killed), pytest.raises(Killed):
        job(tmp_path, GPTQ + "3").run()
    assert "holds results for other spectrum_images (" in refusal(job(tmp_path, GPTQ + "2"))


def test_what_is_learned_has_no_spectrum(idle, spectra, tmp_path):
    made = job(tmp_path, "--cali_spectrum_n 3")
    made.run()
    provenance = read_quantized(made.file).provenance
    assert spectra == [] and not {"spectrum", "spectrum_images"} & provenance.keys()
    assert "closed_form" not in provenance["settings"], "so that records from before it stay valid"


def test_weights_of_a_checkpoint_are_kept_in_closed_form_too(idle, spectra, tmp_path):
    job(tmp_path / "a", GPTQ + "3").run()
    file = tmp_path / "a" / "quantized.safetensors"
    made = job(tmp_path / "b", f"--quant_act --resume_w --cali_ckpt {file} {GPTQ} 3")
    with pytest.raises(ValueError, match="not calibrated"):  # nothing has searched the ranges
        made.run()
    assert spectra == [3] and idle[1][0][2].closed_form is None


def test_plan_of_the_closed_form(tmp_path):
    """Of two network calls, the first and the last are measured: 2 for the images, and 3 for errors in the first."""
    plan = job(tmp_path, GPTQ + "4").plan()
    assert plan.before == {"sensitivity spectrum": 4 * (2 + 3)}
    assert plan.units == [("solve", i) for i in range(18)] and plan.seconds > 0
    assert all(block.layers >= 1 and block.solve_seconds > 0 and block.solve_bytes > 0 for block in plan.blocks)
    assert job(tmp_path, GPTQ + "0").plan().before == job(tmp_path).plan().before == {}


def test_groups_of_steps_and_layers_of_8_bits_are_in_the_policy(idle, tmp_path):
    made = job(tmp_path, "--quant_mode gptq --quant_act --act_groups 2 --keep8 ends")
    made.model.timesteps = [600, 5]
    made.quantization.check(made.model)
    plan = made.quantization._policy(made.model)
    assert plan.act_phases == ((600, 8),) and plan.weight_for("model.conv_in").bits == 8
    assert plan.weight_for("model.mid.block_1.conv1").bits == 4


@pytest.mark.parametrize(("steps", "timesteps"), [(2, [600, 5]), (3, [9, 5, 0]), (3, [9, 5, 5])])
def test_more_groups_than_there_are_steps(steps, timesteps, tmp_path):
    """Of the data, or of the sampler, which may visit a timestep twice."""
    made = job(tmp_path, f"--quant_act --act_groups 3 --cali_st {steps}")
    made.model.timesteps, made.model.nfe = timesteps, len(timesteps)
    if timesteps == [9, 5, 0]:
        made.quantization.check(made.model)
        return
    with pytest.raises(UserError, match=r"^--act_groups 3 exceeds the 2 steps of the data: raise --cali_st$"):
        made.quantization.check(made.model)


# Data that do not fit


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.ones(6, 3, 16, 16), torch.ones(6)),
        (torch.ones(6, 1, 8, 8), torch.ones(6)),
        (torch.ones(6, 3, 8, 8), torch.ones(6, 1)),
        (torch.ones(6, 3, 8, 8), torch.ones(6), torch.ones(6, 77, 768)),
        (torch.ones(6, 3, 8, 8),),
    ],
    ids=lambda inputs: str([tuple(x.shape) for x in inputs]),
)
def test_data_of_another_network(inputs, idle, tmp_path):
    CalibrationSet(inputs).save(tmp_path / "data")
    line = refusal(job(tmp_path / "run", f"--cali_data_path {tmp_path / 'data'}"))
    assert f"from '{tmp_path / 'data'}' have the shapes {[tuple(x.shape[1:]) for x in inputs]}" in line
    assert "[(3, 8, 8), ()]" in line
    assert idle == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_data_that_are_not_finite(value, idle, tmp_path):
    x = torch.ones(6, 3, 8, 8)
    x[5, 0, 7, 7] = value
    data = CalibrationSet((x, torch.ones(6)))
    data.save(tmp_path / "data")
    line = refusal(job(tmp_path / "a", f"--cali_data_path {tmp_path / 'data'}"))
    assert f"from '{tmp_path / 'data'}' are not finite" in line
    line = refusal(job(tmp_path / "b", collect=Collector(data)))
    assert "the network's own sampling are not finite: check the weights" in line
    assert not (tmp_path / "b" / "calibration_data.safetensors").exists(), "the next run would stumble over them"


def test_given_data_stay_where_they_are(idle, tmp_path):
    ONES.save(tmp_path / "data")
    collect = Collector()
    job(tmp_path / "run", f"--cali_data_path {tmp_path / 'data'}", collect=collect).run()
    assert collect.calls == 0
    assert not (tmp_path / "run" / "calibration_data.safetensors").exists()


# Room and plan


def test_no_room_is_refused_before_anything_is_learned(idle, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    assert "lower --cali_batch_size, or --cali_range_n" in refusal(job(tmp_path))
    assert idle == []


def test_plan(tmp_path):
    plan = job(tmp_path).plan()
    assert (plan.samples, len(plan.blocks)) == (6, 18)
    assert plan.settings == learning_of(flags(SMALL))
    assert job(tmp_path, "--quant_mode linear").plan() is job(tmp_path, "--quant_mode squant").plan() is None
    assert list(tmp_path.iterdir()) == []


def test_plan_of_a_file_reads_it(tmp_path):
    job(tmp_path, "--quant_mode linear").run()
    file = tmp_path / "quantized.safetensors"
    assert job(tmp_path, f"--resume --cali_ckpt {file}").plan() is None
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"quantized\.safetensors"):
        job(tmp_path, f"--resume --cali_ckpt {file}").plan()


@pytest.mark.parametrize(
    ("line", "samples"),
    [
        ("", 6),
        ("--quant_mode linear", 0),
        ("--quant_mode linear --quant_act", 6),
        ("--quant_mode squant", 0),
        ("--quant_mode squant --quant_act", 6),
        ("--quant_mode squant --correct_bias", 6),
    ],
)
def test_samples_that_are_needed(line, samples, tmp_path):
    made = job(tmp_path, line)
    assert made.quantization._samples(made.model) == samples


@pytest.mark.parametrize("mode", ["linear", "squant"])
def test_weights_that_are_only_rounded_need_no_data(mode, tmp_path):
    collect = Collector()
    made = job(tmp_path, f"--quant_mode {mode}", collect=collect)
    made.run()
    assert collect.calls == 0
    assert [path.name for path in tmp_path.iterdir()] == ["quantized.safetensors"]
    assert "data" not in read_quantized(made.file).provenance
