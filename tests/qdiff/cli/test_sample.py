"""From the flags that the sampling scripts share to settings."""

import shlex
from argparse import Namespace
from pathlib import Path

import pytest

from qdiff.block_recon import Schedule
from qdiff.calibration.settings import CalibrationSettings, ClosedForm
from qdiff.cli import sample_ddim
from qdiff.cli.ddim_flags import ddim_parser
from qdiff.cli.parser import parse
from qdiff.cli.sample import ADDED, CORRECTION, correction_of, learning_of, policy_of, quantization_of, record_of
from qdiff.mixed_precision.criteria import BopsBudget, MixedPrecision, SignalToNoise
from qdiff.pipelines.calibrate import Calibrate
from qdiff.pipelines.calibration_set import DataSettings
from qdiff.pipelines.correction import FitCorrection, LoadCorrection
from qdiff.pipelines.quantization import LoadQuantized
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.sampling.rank import Rank


def flags(line: str) -> Namespace:
    return parse(ddim_parser(), ["--config", "c.yml", "--ptq", *shlex.split(line)])


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


@pytest.mark.parametrize("line", ["--a_sym --w_sym", "--preset tensorrt"])
def test_symmetric_ranges(line):
    policy = policy_of(flags(f"--quant_act {line}"))
    assert (policy.weight.symmetric, policy.act.symmetric) == (True, True)
    assert policy_of(flags("--w_sym")).weight == QuantSpec(8, True, per_channel=True, range_search="minmax")


@pytest.mark.parametrize(
    ("line", "mixed"),
    [
        ("", None),
        ("--mixed_precision 6,4,6", MixedPrecision((4, 6), SignalToNoise("norm"))),
        ("--mixed_precision 4 --snr_ratio power", MixedPrecision((4,), SignalToNoise("power"))),
        ("--mixed_precision 4 --bops_budget 0.7", MixedPrecision((4,), BopsBudget(0.7))),
    ],
)
def test_bits_by_step(line, mixed):
    assert quantization_of(flags(f"--quant_act {line}")).mixed == mixed


W, A = Schedule(20000, 1e-3), Schedule(5000, 4e-4)


@pytest.mark.parametrize(
    ("line", "rounding", "steps"),
    [
        ("", W, None),
        ("--quant_act", W, A),
        ("--cali_iters 4000", Schedule(4000, 5e-3), None),
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
    found = learning_of(flags(line))
    assert (found.rounding, found.steps, found.closed_form) == (rounding, steps, None)
    assert (found.batch_size, found.p, found.running_stat, found.seed) == (32, 2.4, False, 1234)


@pytest.mark.parametrize(
    ("line", "closed_form"),
    [
        ("--quant_mode gptq", ClosedForm()),
        ("--quant_act --quant_mode gptq --cali_iters 7", ClosedForm()),
        ("--quant_act --quant_mode gptq --resume_w --cali_ckpt f", None),
    ],
)
def test_in_closed_form_nothing_is_learned(line, closed_form):
    """And with --resume_w no weight is chosen again."""
    found = learning_of(flags(line))
    assert (found.rounding, found.steps, found.closed_form) == (None, None, closed_form)


@pytest.mark.parametrize(
    ("line", "squant"),
    [
        ("", False),
        ("--quant_mode linear", False),
        ("--quant_mode squant", True),
        ("--quant_act --quant_mode squant", True),
        ("--quant_act --quant_mode squant --resume_w --cali_ckpt f", False),
    ],
)
def test_weights_without_data(line, squant):
    """And with --resume_w they stay those of the file."""
    found = learning_of(flags(line))
    assert found.squant == squant
    if "squant" in line:
        assert (found.rounding, found.steps, found.closed_form) == (None, None, None)
        act = policy_of(flags(line)).act
        assert act is None or act.range_search == "minmax"


def test_flags_of_the_closed_form_reach_the_calibration():
    words = "--quant_act --quant_mode gptq --cali_st 3 --act_groups 3 --keep8 time,ends --cali_spectrum_n 5"
    found = quantization_of(flags(words))
    assert (found.act_groups, found.keep8, found.spectrum_images) == (3, ("time", "ends"), 5)
    default = quantization_of(flags("--quant_mode gptq"))
    assert (default.act_groups, default.keep8, default.spectrum_images) == (1, (), 1)
    assert found.policy.act.range_search == "margin"


def test_other_settings():
    line = "--quant_act --cali_batch_size 5 --cali_p 2 --cali_range_n 7 --running_stat --seed 3"
    expected = CalibrationSettings(5, W, A, p=2.0, range_samples=7, running_stat=True, seed=3)
    assert learning_of(flags(line)) == expected


def test_how_the_flags_quantize():
    assert quantization_of(parse(ddim_parser(), ["--config", "c.yml"])) is None
    found = quantization_of(flags("--cali_memory 0.5 --cali_st 3 --cali_n 5 --cali_data_path d"))
    assert isinstance(found, Calibrate) and found.memory_bytes == 2**29 and found.weights_from is None
    assert found.data == DataSettings(3, 5, Path("d")) and not found.collects
    assert quantization_of(flags("")).memory_bytes is None and quantization_of(flags("")).collects
    assert quantization_of(flags("--quant_act --resume_w --cali_ckpt f")).weights_from == Path("f")


def test_devices_reach_the_calibration_and_no_record():
    assert (quantization_of(flags("")).devices, quantization_of(flags("--cali_devices 4")).devices) == (1, 4)
    assert quantization_of(flags("--cali_devices 4"), Rank(0, 2)).devices == 4
    assert quantization_of(flags("--cali_devices 4"), Rank(1, 2)).devices == 1, "it does not calibrate"
    record = record_of(flags("--cali_devices 4"), ())
    assert "cali_devices" not in record.flags and record.free["cali_devices"] == 4


def test_corrections():
    assert correction_of(flags("")) is None
    assert correction_of(flags("--correct auto")) == FitCorrection("ptqd", 64, ("slope", "bias", "variance"))
    auto = flags("--correct auto --correct_fit trajectory --correct_n 8 --correct_parts bias,slope")
    assert correction_of(auto) == FitCorrection("trajectory", 8, ("bias", "slope"))
    file = flags("--correct f --correct_interpolate")
    assert correction_of(file) == LoadCorrection(Path("f"), True)
    assert {name: record_of(auto, ()).flags[name] for name in CORRECTION}["correct_n"] == 8
    record = record_of(file, ())
    assert record.files == {"correct": Path("f")} and record.free["correct"] == Path("f")
    assert record.flags["correct_interpolate"] and "correct" not in record.flags


def test_a_file_that_is_taken_as_it_is():
    resume = "--resume --cali_ckpt f --weight_bit 4"
    assert quantization_of(flags(resume)) == LoadQuantized(Path("f"), 4)
    more = quantization_of(flags(f"{resume} --quant_act --act_bit 6 --a_sym --split --sm_abit 16 --low_memory"))
    assert more == LoadQuantized(Path("f"), 4, 6, True, True, 16, low_memory=True)
    assert not more.collects and not more.needs_weights


def test_the_record_of_flags():
    args = flags("--cali_ckpt f --resume -l folder --max_images 3 --seed 7")
    found = record_of(args, sample_ddim.FREE)
    assert found.flags.keys().isdisjoint(found.free)
    given = {name: value for name, value in vars(args).items() if name not in (*CORRECTION, *ADDED)}
    assert found.flags | found.free == given | {"cali_lr_w": 1e-3}, "the rate is resolved"
    assert found.flags["seed"] == 7 and found.free["max_images"] == 3 and found.free["cali_ckpt"] == Path("f")
    assert found.files == {"cali_ckpt": Path("f")}
