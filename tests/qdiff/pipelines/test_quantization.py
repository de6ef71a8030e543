import hashlib
import io
import json
import shlex
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from qdiff.block_recon import Outcome, Schedule
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import CalibrationSettings
from qdiff.calibration.plan import BlockPlan, Plan
from qdiff.checkpoints.quantized_file import read_quantized
from qdiff.cli.ddim_flags import ddim_parser
from qdiff.cli.parser import parse
from qdiff.errors import UserError
from qdiff.files.digest import tensors_digest
from qdiff.files.journal import Journal
from qdiff.pipelines import quantization
from qdiff.pipelines.device import find_device
from qdiff.pipelines.progress import CalibrationBar
from qdiff.pipelines.quantization import (
    Quantization,
    memory_budget,
    policy_of,
    settings_of,
)
from qdiff.policy import QuantPolicy, QuantSpec
from tests.tiny import tiny_network


def flags(line: str) -> Namespace:
    return parse(ddim_parser(), ["--config", "c.yml", "--ptq", *shlex.split(line)])


# What the flags mean


@pytest.mark.parametrize(
    ("line", "bits", "act", "softmax", "split"),
    [
        ("", 8, None, 8, False),
        ("--weight_bit 4 --split", 4, None, 8, True),
        ("--quant_act", 8, QuantSpec(8, range_search="mse"), 8, False),
        ("--quant_act --act_bit 6 --a_sym --sm_abit 16", 8, QuantSpec(6, True, range_search="mse"), 16, False),
        ("--quant_act --quant_mode linear --split", 8, QuantSpec(8, range_search="minmax"), 8, True),
    ],
)
def test_policy(line, bits, act, softmax, split):
    weight = QuantSpec(bits, symmetric=False, per_channel=True, range_search="minmax")
    assert policy_of(flags(line)) == QuantPolicy(weight, act, softmax, split)


W, A = Schedule(20000, 1e-3), Schedule(5000, 4e-4)


@pytest.mark.parametrize(
    ("line", "rounding", "steps"),
    [
        ("", W, None),
        ("--quant_act", W, A),
        (
            "--quant_act --cali_iters 7 --cali_lr_w 0.5 --cali_iters_a 9 --cali_lr 0.25",
            Schedule(7, 0.5),
            Schedule(9, 0.25),
        ),
        ("--quant_act --resume_w --cali_ckpt f", None, A),
        ("--quant_mode linear", None, None),
        ("--quant_act --quant_mode linear", None, None),
    ],
)
def test_what_is_learned(line, rounding, steps):
    found = settings_of(flags(line))
    assert (found.rounding, found.steps) == (rounding, steps)
    assert (found.batch_size, found.p, found.running_stat, found.seed) == (32, 2.4, False, 1234)


def test_other_settings():
    line = "--quant_act --cali_batch_size 5 --cali_p 2 --cali_range_n 7 --running_stat --seed 3"
    expected = CalibrationSettings(5, W, A, p=2.0, range_samples=7, running_stat=True, seed=3)
    assert settings_of(flags(line)) == expected


def test_memory_budget():
    assert memory_budget(flags("--cali_memory 0.5")) == 2**29
    assert memory_budget(flags("")) is None


# The job, with the learning itself left out


ONES = CalibrationSet((torch.ones(6, 3, 8, 8), torch.tensor([1, 1, 1, 0, 0, 0])))
SMALL = "--weight_bit 4 --cali_st 2 --cali_n 3 --cali_batch_size 4 --cali_memory 1 --seed 3 "


class Collector:
    """Collects calibration data, and counts how often."""

    def __init__(self, data: CalibrationSet = ONES):
        self.data, self.calls = data, 0

    def __call__(self, journal: Journal) -> CalibrationSet:
        assert journal.folder.is_dir()
        self.calls += 1
        return self.data


def job(
    folder: Path, line: str = "", *, collect: Collector | None = None, model: nn.Module | None = None
) -> Quantization:
    example = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    return Quantization(
        flags(SMALL + line), model or tiny_network(), {"name": "tiny"}, folder, collect or Collector(), example
    )


@pytest.fixture
def idle(monkeypatch):
    """Calibration that learns nothing: weights stay rounded to nearest."""
    calls = []
    monkeypatch.setattr(quantization, "calibrate", lambda *args, **options: calls.append((args, options)))
    return calls


def refusal(quantization: Quantization) -> str:
    with pytest.raises(UserError) as caught:
        quantization.run()
    assert "\n" not in str(caught.value)
    assert not quantization.file.exists()
    return str(caught.value)


def test_files_of_a_job(idle, tmp_path):
    collect = Collector()
    quantization = job(tmp_path, collect=collect)
    weights = tensors_digest(tiny_network().state_dict())
    model = quantization.run()
    assert all(layer.weight is None for layer in model.layers().values()), "sampling does without them"
    file = read_quantized(quantization.file)
    assert file.config == {"name": "tiny"}
    provenance = file.provenance
    assert (provenance["weights"], provenance["data"]) == (weights, ONES.digest())
    assert provenance["settings"]["rounding"] == {"iterations": 20000, "lr": 1e-3}
    assert json.loads((tmp_path / "journal" / "job.json").read_text()) == provenance
    stored = load_file(tmp_path / "calibration_data.safetensors")
    assert torch.equal(stored["input_0"], ONES.inputs[0]) and torch.equal(stored["input_1"], ONES.inputs[1])
    ((_, data, settings, journal), options) = idle[0]
    assert data.digest() == ONES.digest() and settings == settings_of(quantization.args)
    assert journal.folder == tmp_path / "journal" and options["memory"] == 2**30
    again = job(tmp_path, collect=collect).run()
    assert (collect.calls, len(idle)) == (1, 1), "what is finished is loaded"
    with torch.no_grad():
        assert torch.equal(again(*quantization.example), model(*quantization.example))
    assert not again.training


class Killed(Exception):
    pass


def killed(*args, **options):
    raise Killed


@pytest.fixture(scope="module")
def left_over(tmp_path_factory) -> Path:
    """The folder of a job that was killed while it learned."""
    folder = tmp_path_factory.mktemp("left_over")
    with mock.patch.object(quantization, "calibrate", killed), pytest.raises(Killed):
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
    assert f"holds results for other {what} (" in line and "use another -l" in line
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
    with mock.patch.object(quantization, "calibrate", killed), pytest.raises(Killed):
        job(tmp_path / "c", line.format(tmp_path / "a")).run()
    record = json.loads((tmp_path / "c" / "journal" / "job.json").read_text())
    content = (tmp_path / "a" / "quantized.safetensors").read_bytes()
    assert record["cali_ckpt"] == hashlib.sha256(content).hexdigest()
    assert "holds results for other cali_ckpt (" in refusal(job(tmp_path / "c", line.format(tmp_path / "b")))


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
    assert plan.settings == settings_of(flags(SMALL))
    assert job(tmp_path, "--quant_mode linear").plan() is None
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
    [("", 6), ("--quant_mode linear", 0), ("--quant_mode linear --quant_act", 6)],
)
def test_samples_that_are_needed(line, samples, tmp_path):
    assert job(tmp_path, line).samples == samples


def test_linear_weights_need_no_data(tmp_path):
    collect = Collector()
    quantization = job(tmp_path, "--quant_mode linear", collect=collect)
    quantization.run()
    assert collect.calls == 0
    assert [path.name for path in tmp_path.iterdir()] == ["quantized.safetensors"]
    assert "data" not in read_quantized(quantization.file).provenance


# Progress and device


def outcome(before: float, after: float) -> Outcome:
    return Outcome(before, after)


@pytest.fixture
def bar(monkeypatch):
    """The bar of a plan with two blocks, the second one three times the first, shown although nobody sees it."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("qdiff.pipelines.progress.tqdm", _visible(clock))
    blocks = [BlockPlan("a", 1, 1, 1, 1, 1.0, 1.0, 1.0), BlockPlan("b", 1, 1, 1, 1, 3.0, 4.0, 4.0)]
    settings = CalibrationSettings(1, Schedule(100, 1), None)
    with CalibrationBar(Plan(blocks, 0, settings, 1)) as shown:
        shown.clock = clock
        yield shown


def _visible(clock):
    class Visible(tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": False, "file": io.StringIO()})
            self._time = lambda: clock.now
            self.start_t = self.last_print_t = 0.0

    return Visible


def shown(bar: CalibrationBar) -> str:
    return str(bar.bar)


def test_bar_names_block_losses_and_time_left_of_the_job(bar):
    """300 of 1200 estimated seconds took 60: the rest takes three times as long."""
    bar.start("a", "weights")
    assert "weights a" in shown(bar)
    bar.clock.now = 30.0
    bar.advance(50)
    assert "13%" in shown(bar) or "12%" in shown(bar)
    bar.clock.now = 60.0
    bar.advance(50)
    bar.finish("a", "weights", outcome(0.5, 0.25), resumed=False)
    bar.start("b", "weights")
    text = shown(bar)
    assert "weights b" in text and "25%" in text and "03:00 left" in text and "a loss 0.5 -> 0.25" in text
    bar.clock.now = 150.0
    bar.advance(50)
    bar.finish("b", "weights", outcome(0.5, 0.75), resumed=False)
    assert "100%" in shown(bar) and "b loss 0.5 -> 0.75, kept as it was" in shown(bar)


def test_time_left_does_not_count_what_an_earlier_run_did(bar):
    bar.start("a", "weights")
    bar.clock.now = 0.001
    bar.finish("a", "weights", outcome(2, 1), resumed=True)
    bar.start("b", "weights")
    assert "25%" in shown(bar)
    bar.clock.now = 30.0
    bar.advance(50)
    assert "00:30 left" in shown(bar)


def test_a_bar_that_is_not_shown():
    """Where the output goes to a file."""
    blocks = [BlockPlan("a", 1, 1, 1, 1, 1.0, 1.0, 1.0)]
    with CalibrationBar(Plan(blocks, 0, CalibrationSettings(1, Schedule(100, 1), None), 1)) as bar:
        bar.bar.close()
        bar.bar = tqdm(total=1, disable=True)
        for resumed in (True, False):
            bar.start("a", "weights")
            bar.advance(50)
            bar.finish("a", "weights", outcome(2, 1), resumed=resumed)


def test_devices(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(UserError, match=f"--device {name} is not available .*--device auto"):
            find_device(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto") == find_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="cuda:2 is not available"):
        find_device("cuda:2")
