"""Calibration in closed form on a small network with attention and a split layer, from start to file."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from qdiff.block_recon import Outcome
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.settings import CalibrationSettings, ClosedForm
from qdiff.calibration.solve import SolvedBlock, aims_at_outputs
from qdiff.checkpoints.load import load_quantized, load_rounding
from qdiff.files.journal import Journal
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from qdiff.spectrum import Spectrum
from tests.qdiff.adapters.test_third_party import ADAPTER, network
from tests.qdiff.calibration.test_job import Killed, LastJournal, Told, saved
from tests.qdiff.loops import gaussian
from tests.qdiff.test_phases import PHASED

W4 = QuantSpec(4, per_channel=True, range_search="minmax")
POLICY = QuantPolicy(W4, QuantSpec(8, range_search="minmax"), split=True, act_rules=(("model.middle", None),))
EVERYTHING = ClosedForm(columns=10**6)
SETTINGS = CalibrationSettings(4, None, None, seed=7, closed_form=ClosedForm(columns=100))
SPECTRUM = Spectrum((0.0, 700.0), (0.1, 0.5), (0.2, 2.0), (0.2, 6.0))
ORDER = ["ranges", "solve-000", "solve-001", "solve-003", "solve-002"]  # attention is defined after what it feeds
PATHS = ["model.down", "model.middle", "model.attention", "model.up"]
PLENTY = 10**9
OF_8_BITS = replace(PHASED, act_rules=(), softmax_bits=8, act_phases=((10, 8), (600, 8)))


def data(samples: int = 16, seed: int = 0) -> CalibrationSet:
    times = torch.tensor([700, 650, 999, 600, 601, 599, 30, 10, 12, 9, 3, 5, 5, 0, 0, 1]).repeat(-(-samples // 16))
    return CalibrationSet((gaussian(samples, 2, 4, 4, seed=seed), times[:samples]))


def fresh(policy: QuantPolicy = POLICY) -> QuantModel:
    return QuantModel(network(0), policy, ADAPTER).eval()


def solved(model: QuantModel, folder: Path, samples: CalibrationSet | None = None, **changes) -> Told:
    """Calibrate the model in a new folder, with other settings or other arguments of `calibrate`."""
    told = Told()
    options = {name: changes.pop(name, default) for name, default in (("memory", PLENTY), ("spectrum", SPECTRUM))}
    settings = replace(SETTINGS, **changes)
    calibrate(model, samples or data(), settings, Journal(folder, {}), reporter=told, **options)
    return told


class Job(NamedTuple):
    model: QuantModel
    folder: Path
    told: Told
    file: bytes

    def record(self, unit: str) -> bytes:
        return (self.folder / f"{unit}.safetensors").read_bytes()


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """The whole job, undisturbed."""
    model, folder = fresh(), tmp_path_factory.mktemp("journal")
    told = solved(model, folder)
    return Job(model, folder, told, saved(model, tmp_path_factory.mktemp("file")))


@pytest.mark.parametrize(
    ("weight", "act", "aims"),
    [(4, 8, True), (4, None, True), (7, 16, True), (8, 8, False), (4, 6, False), (8, None, False)],
)
def test_weights_make_up_only_for_what_coarse_weights_do(weight, act, aims):
    policy = QuantPolicy(replace(W4, bits=weight), act and QuantSpec(act))
    assert aims_at_outputs(fresh(policy)) is aims


@torch.no_grad()
def output_error(model: nn.Module, samples: CalibrationSet) -> float:
    return (model(*samples.inputs) - network(0)(*samples.inputs)).square().mean().item()


def test_blocks_are_solved_in_the_order_in_which_they_are_called(job):
    assert job.told.started == [("solve", path) for path in PATHS]
    assert all(outcome.improved for outcome in job.told.outcomes)
    assert {path.stem for path in job.folder.iterdir()} == {"job", *ORDER}


def test_the_network_errs_less_than_to_nearest_also_on_other_inputs(tmp_path):
    """Of weights alone, and of weights whose activations are quantized too."""
    other = data(64, seed=5)
    for name, policy in (("weights", QuantPolicy(W4, split=True)), ("both", POLICY)):
        nearest, model = fresh(policy), fresh(policy)
        solved(model, tmp_path / name, data(64), closed_form=EVERYTHING, spectrum=None)
        assert output_error(model, other) < 0.5 * output_error(nearest, other)


@torch.no_grad()
def test_the_losses_are_the_relative_errors_of_the_outputs(tmp_path):
    """Of a block that is one layer: its input is that of the quantized network, its bias makes up for the mean."""
    model, samples, inputs = fresh(), data(), {}
    told = solved(model, tmp_path, closed_form=EVERYTHING, spectrum=None)
    for name, net in (("quantized", model), ("original", network(0))):
        layer = net.get_submodule("model.middle" if name == "quantized" else "middle")
        handle = layer.register_forward_hook(lambda m, args, y, name=name: inputs.update({name: (args[0], y)}))
        net(*samples.inputs)
        handle.remove()
    x, y = inputs["quantized"][0], inputs["original"][1]
    power = (y - y.mean((0, 2, 3), keepdim=True)).square().sum()
    nearest = fresh().get_submodule("model.middle")
    off = [layer(x) - y for layer in (nearest, model.get_submodule("model.middle"))]
    off[0] -= off[0].mean((0, 2, 3), keepdim=True)  # rounded to nearest, but with the best bias
    errors = [e.square().sum() / power for e in off]
    assert told.outcomes[1] == Outcome(*(pytest.approx(e.item(), rel=1e-3) for e in errors))


@pytest.mark.parametrize("policy", [POLICY, OF_8_BITS], ids=["one range", "phases"])
def test_errors_are_small_where_the_spectrum_says_that_they_count(policy, tmp_path):
    """Weights have no phases: what they are worth to one timestep costs the others."""
    times = torch.tensor([700, 4, 20]).repeat(32)
    x = gaussian(96, 2, 4, 4)
    x[times == 4] = x[times == 4].flip(1) * 3  # so that the timesteps want other weights
    samples = CalibrationSet((x, times))
    errors = {}
    for name, pixel in (("early", (1e-3, 1.0)), ("late", (1.0, 1e-3))):
        spectrum, model = Spectrum((20.0, 700.0), pixel, pixel, pixel), fresh(policy)
        solved(model, tmp_path / name, samples, closed_form=EVERYTHING, spectrum=spectrum, batch_size=7)
        with torch.no_grad():
            found = [model(x[rows], times[rows]) for rows in (times == 700, times == 4)]
            wanted = [network(0)(x[rows], times[rows]) for rows in (times == 700, times == 4)]
        errors[name] = [(a - b).square().mean().item() for a, b in zip(found, wanted)]
    assert errors["early"][0] < 0.8 * errors["late"][0] and errors["late"][1] < 0.8 * errors["early"][1]


# Resumption


def test_every_prefix_of_the_journal_leads_to_the_same_next_record(job, tmp_path):
    for done in range(len(ORDER)):
        folder = tmp_path / str(done)
        folder.mkdir()
        for unit in ORDER[:done]:
            shutil.copy(job.folder / f"{unit}.safetensors", folder)
        with pytest.raises(Killed):
            calibrate(fresh(), data(), SETTINGS, LastJournal(folder, 1), spectrum=SPECTRUM, memory=PLENTY)
        assert {path.stem for path in folder.glob("*.safetensors")} == {*ORDER[: done + 1]}
        assert (folder / f"{ORDER[done]}.safetensors").read_bytes() == job.record(ORDER[done])


def test_a_finished_job_needs_no_spectrum_and_gives_the_same_network(job, tmp_path):
    model, told = fresh(), Told()
    calibrate(model, data(), SETTINGS, Journal(job.folder, {}), memory=0, reporter=told)
    assert told.resumed == [True] * 4 and told.outcomes == job.told.outcomes
    assert saved(model, tmp_path) == job.file
    with torch.no_grad():
        assert torch.equal(model(*data().inputs), job.model(*data().inputs))
        with model.full_precision():
            assert torch.equal(model(*data().inputs), network(0)(*data().inputs))


def test_memory_changes_no_number(job, tmp_path):
    for memory in (0, 3000):
        solved(fresh(), tmp_path / str(memory), memory=memory)
        assert all((tmp_path / str(memory) / f"{u}.safetensors").read_bytes() == job.record(u) for u in ORDER)


def test_the_seed_draws_the_columns(job, tmp_path):
    solved(fresh(), tmp_path, seed=8)
    assert (tmp_path / "ranges.safetensors").read_bytes() == job.record("ranges")
    assert (tmp_path / "solve-001.safetensors").read_bytes() != job.record("solve-001")


def test_the_batch_size_does_not_matter_where_all_columns_are_taken(tmp_path):
    """In double precision, so that no activation falls on the other side of a boundary of two codes."""
    x, t = data().inputs
    states = []
    for size in (3, 16):
        model = QuantModel(network(0).double(), POLICY, ADAPTER).eval()
        samples = CalibrationSet((x.double(), t))
        solved(model, tmp_path / str(size), samples, closed_form=EVERYTHING, batch_size=size)
        states.append(model.quantized_state())
    for name, one in states[0].items():
        torch.testing.assert_close(one, states[1][name], rtol=1e-5, atol=1e-6)


# Phases


def test_samples_of_a_phase_need_not_stand_together(tmp_path):
    """In the same order within each phase, they give the same numbers."""
    shuffled = [9, 0, 5, 1, 10, 11, 2, 6, 3, 12, 7, 13, 4, 8, 14, 15]
    files = []
    for name, rows in (("sorted", range(16)), ("shuffled", shuffled)):
        model = fresh(PHASED)
        samples = data().at(torch.tensor([*rows]))
        solved(model, tmp_path / name, samples)
        files.append([(tmp_path / name / f"{unit}.safetensors").read_bytes() for unit in ORDER[1:]])
    assert files[0] == files[1]


def test_with_phases_a_killed_job_ends_in_the_same_file(tmp_path):
    expected = fresh(PHASED)
    solved(expected, tmp_path / "undisturbed")
    for done in (1, 3):
        with pytest.raises(Killed):
            folder = tmp_path / str(done)
            calibrate(fresh(PHASED), data(), SETTINGS, LastJournal(folder, done), spectrum=SPECTRUM, memory=0)
        model = fresh(PHASED)
        solved(model, folder)
        assert saved(model, tmp_path) == saved(expected, tmp_path)


# What is kept


def test_the_state_of_a_block_is_all_that_was_chosen(job):
    for path in PATHS:
        block, other = (next(b for b in m.blocks() if b.path == path) for m in (job.model, fresh()))
        state = SolvedBlock(block).state()
        before = SolvedBlock(other).state()
        assert before.keys() == state.keys() and any(not torch.equal(before[key], x) for key, x in state.items())
        names = {key.rpartition(".")[2] for key in state}
        assert names == {"codes", "bias", "delta", "zero_point"}
        SolvedBlock(other).load(state)
        assert all(torch.equal(x, state[key]) for key, x in SolvedBlock(other).state().items())
        for name, layer in block.layers.items():
            assert torch.equal(other.layers[name].quantized_weight(), layer.quantized_weight())
            assert torch.equal(other.layers[name].fp_bias, layer.fp_bias)


@torch.no_grad()
def test_files_keep_the_corrected_biases(job, tmp_path):
    (tmp_path / "file").write_bytes(job.file)
    samples = data()
    expected, original = job.model(*samples.inputs), network(0)(*samples.inputs)
    for low_memory in (False, True):
        loaded = load_quantized(
            network(3), tmp_path / "file", act_bit=8, split=True, adapter=ADAPTER, low_memory=low_memory
        )
        torch.testing.assert_close(loaded(*samples.inputs), expected)
    rounded = load_rounding(network(0), tmp_path / "file", POLICY, adapter=ADAPTER)
    for path, layer in rounded.layers().items():
        assert torch.equal(layer.bias, job.model.layers()[path].bias)
        assert torch.equal(layer.codes, job.model.layers()[path].codes)
    with rounded.full_precision():
        assert torch.equal(rounded(*samples.inputs), original)
    calibrate(rounded, samples, replace(SETTINGS, closed_form=None), memory=0)
    again = saved(rounded, tmp_path)
    assert again != job.file, "the ranges are those of rounded weights now"
    for path, layer in rounded.layers().items():
        assert torch.equal(layer.bias, job.model.layers()[path].bias)


def test_a_job_without_activations_searches_no_ranges(tmp_path):
    solved(fresh(QuantPolicy(W4, split=True)), tmp_path)
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {*ORDER[1:]}
