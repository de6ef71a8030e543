import copy
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn

from qdiff.adapters import adapter_for
from qdiff.block_recon import Outcome, Schedule
from qdiff.calibration import job as calibration_job
from qdiff.calibration import stages
from qdiff.calibration.capture import capture
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.measure import make_plan
from qdiff.calibration.reporter import Reporter
from qdiff.calibration.settings import CalibrationSettings
from qdiff.checkpoints.load import save_quantized
from qdiff.errors import UserError
from qdiff.files.journal import Journal
from qdiff.parallel import Shared
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from qdiff.squant import squant
from tests.qdiff.calibration.networks import linear_toy, toy_adapter
from tests.qdiff.ranks import in_ranks
from tests.tiny import tiny_network

W4 = QuantSpec(4, per_channel=True, range_search="minmax")
POLICY = QuantPolicy(W4, QuantSpec(8, range_search="minmax"), split=True)
SETTINGS = CalibrationSettings(4, Schedule(6, 3e-2), Schedule(2, 1e-3), seed=7)
BLOCKS = [
    *("temb.dense.0", "temb.dense.1", "conv_in"),
    *("down.0.block.0", "down.0.downsample.conv", "down.1.block.0", "down.1.attn.0"),
    *("mid.block_1", "mid.attn_1", "mid.block_2"),
    *("up.0.block.0", "up.0.block.1"),
    *("up.1.block.0", "up.1.block.1", "up.1.attn.0", "up.1.attn.1", "up.1.upsample.conv"),
    "conv_out",
]
UNITS = [*(f"weights-{i:03d}" for i in range(18)), "ranges", *(f"steps-{i:03d}" for i in range(18))]


class Told(Reporter):
    """Remembers what it was told."""

    def __init__(self):
        self.started, self.iterations, self.outcomes, self.resumed = [], [], [], []

    def start(self, block: str, stage: str) -> None:
        self.started.append((stage, block))
        self.iterations.append(0)

    def advance(self, iterations: int) -> None:
        self.iterations[-1] += iterations

    def finish(self, block: str, stage: str, outcome: Outcome, resumed: bool) -> None:
        assert self.started[-1] == (stage, block)
        self.outcomes.append(outcome)
        self.resumed.append(resumed)


class Job(NamedTuple):
    fresh: QuantModel
    data: CalibrationSet
    folder: Path
    told: Told
    model: QuantModel
    file: bytes

    def records(self) -> dict[str, bytes]:
        return {unit: (self.folder / f"{unit}.safetensors").read_bytes() for unit in UNITS}


def saved(model: QuantModel, folder: Path) -> bytes:
    save_quantized(folder / "file", model, config={}, provenance={})
    return (folder / "file").read_bytes()


@pytest.fixture(scope="module", autouse=True)
def _alone(one_thread) -> None:
    """Sums are in one order, whatever the machine."""


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """The whole job on the tiny network, undisturbed."""
    fresh = QuantModel(network := tiny_network(), POLICY, adapter_for(network))
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(6, 3, 8, 8, generator=generator), torch.tensor([900, 900, 500, 500, 3, 3])
    data, folder, told = CalibrationSet((x, t)), tmp_path_factory.mktemp("undisturbed"), Told()
    model = copy.deepcopy(fresh)
    calibrate(model, data, SETTINGS, Journal(folder, {}), memory=10**9, reporter=told)
    return Job(fresh, data, folder, told, model, saved(model, tmp_path_factory.mktemp("file")))


class Killed(Exception):
    pass


class LastJournal(Journal):
    """The process ends once it has recorded some units."""

    def __init__(self, folder: Path, units: int):
        super().__init__(folder, {})
        self.units = units

    def write(self, unit, *content) -> None:
        super().write(unit, *content)
        self.units -= 1
        if not self.units:
            raise Killed


def go_on(job: Job, done: int, folder: Path, *, more: int, memory: int = 10**9, **changed) -> list[str]:
    """From a journal with the first `done` records of the undisturbed job, the next `more`; what the folder has now."""
    folder.mkdir()
    for unit in UNITS[:done]:
        shutil.copy(job.folder / f"{unit}.safetensors", folder)
    model = changed.pop("model", None) or copy.deepcopy(job.fresh)
    settings = CalibrationSettings(**(vars(SETTINGS) | changed))
    with pytest.raises(Killed):
        calibrate(model, job.data, settings, LastJournal(folder, more), memory=memory)
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def test_order_of_the_job(job):
    paths = [f"model.{block}" for block in BLOCKS]
    assert job.told.started == [*(("weights", p) for p in paths), *(("steps", p) for p in paths)]
    assert job.told.iterations == [6] * 18 + [2] * 18
    assert job.told.resumed == [False] * 36
    assert sorted(path.name for path in job.folder.iterdir()) == sorted(
        ["job.json", *(f"{unit}.safetensors" for unit in UNITS)]
    )


def test_a_block_keeps_the_better_of_before_and_after(job):
    journal = Journal(job.folder, {})
    nearest = job.fresh.layers()
    steps = {f"{s.path}.{s.name}.{i}": q for s in job.model.sites() for i, q in enumerate(s.quantizer.quantizers())}
    ranges, _ = journal.read("ranges")
    stayed = 0
    for unit, outcome in zip([unit for unit in UNITS if unit != "ranges"], job.told.outcomes):
        tensors, info = journal.read(unit)
        assert info == {"before": outcome.before, "after": outcome.after}
        assert outcome.improved == (outcome.after < outcome.before)
        if unit.startswith("steps"):
            start = {key: ranges[_range_key(key, ranges)] for key in tensors}
            assert all(torch.equal(steps[key].delta, x) for key, x in tensors.items())
        else:
            start = {key: nearest[key.removesuffix(".codes")].codes for key in tensors}
        changed = not all(torch.equal(x, start[key]) for key, x in tensors.items())
        assert changed == outcome.improved, unit
        stayed += not changed
    assert sum(o.improved for o in job.told.outcomes) > 20 and stayed > 0, "both should be seen here"


def _range_key(key: str, ranges: dict[str, Tensor]) -> str:
    name, _, part = key.rpartition(".")
    return f"{name}.parts.{part}.delta" if f"{name}.parts.0.delta" in ranges else f"{name}.delta"


def output_error(model: nn.Module, data: CalibrationSet) -> float:
    with torch.no_grad():
        return (model(*data.inputs) - tiny_network()(*data.inputs)).square().mean().item()


def test_learned_rounding_is_better_than_nearest_also_on_other_data(job, tmp_path):
    model = copy.deepcopy(job.fresh)
    settings = CalibrationSettings(4, SETTINGS.rounding, None)
    weights_alone = QuantPolicy(W4, split=True)
    model.policy = weights_alone
    folder = tmp_path / "journal"
    folder.mkdir()
    for unit in UNITS[:18]:
        shutil.copy(job.folder / f"{unit}.safetensors", folder)
    calibrate(model, job.data, settings, Journal(folder, {}), memory=0)
    generator = torch.Generator().manual_seed(1)
    other = CalibrationSet((torch.randn(6, 3, 8, 8, generator=generator), job.data.inputs[1]))
    for data in (job.data, other):
        assert output_error(model, data) < 0.9 * output_error(job.fresh, data)


def test_every_prefix_of_the_journal_leads_to_the_same_next_record(job, tmp_path):
    """So, by induction, to the same end. Most of the rounding units are left to the next test."""
    records = job.records()
    for done in (0, 1, 9, 17, 18, 19, 28, 36):
        present = go_on(job, done, tmp_path / str(done), more=1)
        assert present == sorted(UNITS[: done + 1])
        assert (tmp_path / str(done) / f"{UNITS[done]}.safetensors").read_bytes() == records[UNITS[done]], UNITS[done]


def test_missing_and_damaged_records_are_made_again_and_no_others(job, tmp_path):
    folder = tmp_path / "journal"
    shutil.copytree(job.folder, folder)
    redone = ["weights-004", "weights-013", "ranges", "steps-006", "steps-017"]
    (folder / "weights-013.safetensors").unlink()
    for unit in set(redone) - {"weights-013"}:
        path = folder / f"{unit}.safetensors"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    old = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    model, told = copy.deepcopy(job.fresh), Told()
    calibrate(model, job.data, SETTINGS, Journal(folder, {}), memory=10**9, reporter=told)
    assert saved(model, tmp_path) == job.file
    written = {p.stem for p in folder.iterdir() if old.get(p.name) != p.stat().st_mtime_ns}
    assert written == set(redone)
    assert [u for u, again in zip([u for u in UNITS if u != "ranges"], told.resumed) if not again] == [
        u for u in redone if u != "ranges"
    ]
    assert told.outcomes == job.told.outcomes
    with torch.no_grad():
        assert torch.equal(model(*job.data.inputs), job.model(*job.data.inputs))


def test_a_finished_job_needs_no_data(job, tmp_path):
    model = copy.deepcopy(job.fresh)
    nothing = CalibrationSet((torch.full((1, 1), torch.nan),))
    calibrate(model, nothing, SETTINGS, Journal(job.folder, {}), memory=0)
    assert saved(model, tmp_path) == job.file


def test_memory_changes_no_number(job, tmp_path):
    """Beside the budget of nothing, one that the larger tensors exceed."""
    for memory, done in ((0, 0), (0, 35), (20_000, 10)):
        folder = tmp_path / str(done)
        present = go_on(job, done, folder, more=2, memory=memory)
        assert len(present) == done + 2
        assert all((folder / f"{u}.safetensors").read_bytes() == job.records()[u] for u in present)


@pytest.mark.parametrize("done", [16, 30])
def test_processes_go_on_where_one_stopped(job, done, tmp_path, monkeypatch):
    """Only the first one sees the records and writes more; they learn what one process learns."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    for unit in UNITS[:done]:
        shutil.copy(job.folder / f"{unit}.safetensors", folders[0])

    def learn(rank: int) -> tuple[QuantModel, Told]:
        model, told, device = copy.deepcopy(job.fresh), Told(), torch.device("cpu")
        journal = Journal(folders[rank], {})
        calibrate(model, job.data, SETTINGS, journal, memory=10**9, reporter=told, parallel=Shared(device))
        return model, told

    (first, told), (second, other) = in_ranks(2, learn, monkeypatch)
    assert told.resumed == other.resumed == [unit in UNITS[:done] for unit in UNITS if unit != "ranges"]
    assert told.outcomes == other.outcomes
    assert saved(first, folders[0]) == saved(second, folders[1])
    assert [path.name for path in folders[1].iterdir() if path.suffix == ".safetensors"] == []
    for outcome, expected in zip(told.outcomes, job.told.outcomes, strict=True):
        assert outcome.before == pytest.approx(expected.before, rel=1e-4)
        assert outcome.after == pytest.approx(expected.after, rel=1e-4)
    pairs = zip(first.layers().values(), job.model.layers().values(), strict=True)
    same = torch.cat([(x.codes == y.codes).flatten() for x, y in pairs])
    assert same.float().mean() > 0.99


def test_dropout_is_off_although_the_network_was_training(job, tmp_path):
    present = go_on(job, 3, tmp_path / "journal", more=2, model=copy.deepcopy(job.fresh).train())
    assert (tmp_path / "journal" / "weights-003.safetensors").read_bytes() == job.records()["weights-003"]
    assert "weights-003" in present


def test_the_seed_counts_and_the_global_one_does_not(job, tmp_path):
    for name, changed in (("same", {}), ("other", {"seed": 8})):
        torch.manual_seed(len(name))
        go_on(job, 5, tmp_path / name, more=1, **changed)
    same, other = ((tmp_path / name / "weights-005.safetensors").read_bytes() for name in ("same", "other"))
    assert same == job.records()["weights-005"] != other


def test_running_averages_of_the_softmax_alone(job, tmp_path):
    """All other ranges are those of the search."""
    deltas = []
    for name, flags in (("search", {}), ("softmax", {"running_stat": True, "rs_sm_only": True})):
        model = copy.deepcopy(job.fresh)
        calibrate(model, job.data, CalibrationSettings(4, None, None, **flags), Journal(tmp_path / name, {}), memory=0)
        deltas.append({site: [q.delta for q in site.quantizer.quantizers()] for site in model.sites()})
    searched, averaged = deltas
    sites = [(site, a != b) for (site, a), b in zip(searched.items(), averaged.values(), strict=True)]
    assert all(changed == site.is_softmax for site, changed in sites) and any(changed for _, changed in sites)


# On a toy


def test_without_rounding_the_weights_stay(tmp_path):
    model = linear_toy(POLICY)
    codes = [layer.codes.clone() for layer in model.layers().values()]
    data = CalibrationSet((torch.randn(20, 4),))
    calibrate(model, data, CalibrationSettings(4, None, Schedule(3, 1e-3)), Journal(tmp_path, {}), memory=0)
    assert all(torch.equal(layer.codes, before) for layer, before in zip(model.layers().values(), codes))
    names = ["job.json", "ranges.safetensors", "steps-000.safetensors", "steps-001.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_without_activations_only_rounding_is_learned(tmp_path):
    model = linear_toy(QuantPolicy(W4))
    data = CalibrationSet((torch.randn(20, 4),))
    settings = CalibrationSettings(4, Schedule(3, 1e-2), Schedule(3, 1e-2))
    calibrate(model, data, settings, Journal(tmp_path, {}), memory=0)
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["weights-000", "weights-001"]


def test_blocks_whose_steps_are_not_learned_are_left_out(tmp_path):
    model = linear_toy(QuantPolicy(W4, QuantSpec(16, range_search="minmax")))
    data = CalibrationSet((torch.randn(20, 4),))
    calibrate(model, data, CalibrationSettings(4, None, Schedule(3, 1e-2)), Journal(tmp_path, {}), memory=0)
    assert [path.stem for path in tmp_path.glob("*.safetensors")] == ["ranges"]


@pytest.mark.parametrize("p", [2.0, 3.0])
def test_the_exponent_of_the_steps_is_that_of_the_settings(p, tmp_path):
    model, told = linear_toy(POLICY), Told()
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    settings = CalibrationSettings(4, None, Schedule(1, 1e-9), p=p)
    calibrate(model, CalibrationSet((x,)), settings, Journal(tmp_path, {}), memory=0, reporter=told)
    layer = model.layers()["model.0"]
    with torch.no_grad():
        error = (layer(x) - nn.functional.linear(x, layer.weight, layer.bias)).abs()
    assert told.outcomes[0].before == pytest.approx((error**p).sum(1).mean().item(), rel=1e-4)


def chain() -> QuantModel:
    """Five layers, one behind the other, of the same width."""
    layers = [nn.Linear(4, 4) for _ in range(5)]
    return QuantModel(nn.Sequential(*layers), QuantPolicy(W4), toy_adapter())


CHAIN_DATA = CalibrationSet((torch.randn(6, 4, generator=torch.Generator().manual_seed(0)),))
WEIGHTS_ONLY = CalibrationSettings(2, Schedule(1, 1e-3), None)


@pytest.mark.parametrize(("memory", "calls"), [(0, 2 * 3), (10**6, 0)])
def test_with_memory_the_last_block_is_reached_without_the_first(memory, calls, tmp_path):
    """Without, the first one computes every batch, in both networks."""
    model = chain()
    first = model.layers()["model.0"]
    computed, operation = Counter(), first.operation
    reporter = Told()
    first.operation = lambda *args: computed.update([reporter.started[-1][1]]) or operation(*args)
    calibrate(model, CHAIN_DATA, WEIGHTS_ONLY, Journal(tmp_path, {}), memory=memory, reporter=reporter)
    assert computed["model.4"] == calls


def test_the_outputs_that_are_kept_and_what_is_captured_share_the_memory(tmp_path, monkeypatch):
    row = 4 * 4  # bytes of a sample at any place; a block has two, its input and output
    memory = 6 * 2 * row + 4 * 4 * row + 1  # room to keep of four samples two outputs from two networks
    shares = []

    def capture_and_note(cache, block, store):
        shares.append((cache.max_bytes, store.left))
        captured = capture(cache, block, store)
        kept = [x for way in (cache.quantized, cache.original) for xs in way.values() for y in xs for x in y.tensors]
        assert sum(x.nbytes for x in kept) <= cache.max_bytes
        return captured

    monkeypatch.setattr(stages, "capture", capture_and_note)
    calibrate(chain(), CHAIN_DATA, WEIGHTS_ONLY, Journal(tmp_path, {}), memory=memory)
    assert shares == [(4 * 4 * row, 6 * 2 * row + 1)] * 5


def test_a_loss_that_is_not_finite_names_the_block_and_leaves_no_record(tmp_path):
    model = linear_toy(POLICY, scale=1e30)
    data = CalibrationSet((torch.full((8, 4), 1e30),))
    with pytest.raises(UserError, match=r"model\.0: the loss is (inf|nan)"):
        calibrate(model, data, SETTINGS, Journal(tmp_path, {}), memory=0)
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


def test_two_jobs_of_the_same_numbers(tmp_path):
    """A job is a function of its arguments and of nothing else."""
    files = []
    for name in ("a", "b"):
        np.random.seed(len(files))
        model = linear_toy(POLICY)
        data = CalibrationSet((torch.randn(20, 4, generator=torch.Generator().manual_seed(0)),))
        calibrate(model, data, SETTINGS, Journal(tmp_path / name, {}), memory=0)
        files.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert files[0] == files[1]


def test_a_notebook_needs_neither_journal_nor_memory(tmp_path, monkeypatch):
    """The folder that takes their place is removed at the end, also after an error; the numbers are the same."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    data = CalibrationSet((torch.randn(20, 4, generator=torch.Generator().manual_seed(0)),))
    plain, journaled = linear_toy(POLICY), linear_toy(POLICY)
    calibrate(plain, data, SETTINGS)
    calibrate(journaled, data, SETTINGS, Journal(tmp_path / "journal", {}), memory=0)
    assert saved(plain, tmp_path) == saved(journaled, tmp_path)
    with pytest.raises(UserError, match="the loss is"):
        calibrate(linear_toy(POLICY, scale=1e30), CalibrationSet((torch.full((8, 4), 1e30),)), SETTINGS)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_default_memory_is_that_of_a_plan(tmp_path, monkeypatch):
    """Half of what is free beside computing; nothing is measured where nothing is captured."""
    budgets = []

    def capture_and_note(cache, block, store):
        budgets.append(cache.memory)
        return capture(cache, block, store)

    monkeypatch.setattr(stages, "capture", capture_and_note)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    model = chain()
    plan = make_plan(model, next(CHAIN_DATA.batches(2)), len(CHAIN_DATA), WEIGHTS_ONLY, None)
    calibrate(model, CHAIN_DATA, WEIGHTS_ONLY)
    assert set(budgets) == {plan.budget} and 0 < plan.budget < 10**6 / 2
    monkeypatch.setattr(calibration_job, "make_plan", None)
    calibrate(linear_toy(POLICY), CalibrationSet((torch.randn(8, 4),)), CalibrationSettings(4, None, None))


def test_weights_that_are_rounded_without_data(tmp_path):
    """They are those that are rounded with data, whose ranges come after; nothing else goes without."""
    settings = CalibrationSettings(4, None, None, squant=True)
    data = CalibrationSet((torch.randn(20, 4, generator=torch.Generator().manual_seed(0)),))
    nearest, alone, both = linear_toy(QuantPolicy(W4)), linear_toy(QuantPolicy(W4)), linear_toy(POLICY)
    calibrate(alone, None, settings)
    calibrate(both, data, settings)
    assert all(site.calibrated for site in both.sites()) and not alone.sites()
    for path, layer in alone.layers().items():
        assert torch.equal(layer.codes, squant(layer.fp_weight, layer.weight_quantizer).to(torch.uint8))
        assert torch.equal(layer.codes, both.layers()[path].codes)
    changed = [not torch.equal(layer.codes, nearest.layers()[path].codes) for path, layer in alone.layers().items()]
    assert any(changed)


@pytest.mark.parametrize("policy", [POLICY, QuantPolicy(W4)], ids=["activations", "biases"])
def test_without_data_nothing_happens_where_they_are_needed(policy):
    model = linear_toy(policy)
    before = model.quantized_state()
    with pytest.raises(ValueError, match="need calibration data: give `data`"):
        calibrate(model, None, CalibrationSettings(4, None, None, squant=True, correct_bias=policy.act is None))
    after = model.quantized_state()
    assert after.keys() == before.keys() and all(torch.equal(x, before[key]) for key, x in after.items())
