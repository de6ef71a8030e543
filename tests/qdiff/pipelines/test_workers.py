import copy
import os
import sys

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from qdiff.adapters import adapter_for
from qdiff.block_recon import Outcome, Schedule
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.settings import CalibrationSettings, ClosedForm
from qdiff.errors import UserError
from qdiff.files.journal import Journal
from qdiff.pipelines.workers import _Listener, _Sender, calibrate_shared, check_devices
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.qdiff.calibration.test_job import Told
from tests.tiny import tiny_network

W4 = QuantSpec(4, per_channel=True, range_search="minmax")
POLICY = QuantPolicy(W4, QuantSpec(8, range_search="minmax"), split=True)
SETTINGS = CalibrationSettings(4, Schedule(6, 3e-2), Schedule(2, 1e-3), seed=7)
CPU = torch.device("cpu")


def tiny() -> tuple[QuantModel, CalibrationSet]:
    network, generator = tiny_network(), torch.Generator().manual_seed(0)
    x, t = torch.randn(6, 3, 8, 8, generator=generator), torch.tensor([900, 900, 500, 500, 3, 3])
    return QuantModel(network, POLICY, adapter_for(network)).eval(), CalibrationSet((x, t))


@pytest.mark.usefixtures("one_thread")
def test_two_processes_do_what_one_does(tmp_path, monkeypatch):
    """They go on with the first block of a run with one process, which then takes all their results."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes
    torchrun = {"MASTER_ADDR": "nowhere", "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"} | torchrun).items():
        monkeypatch.setenv(name, value)  # as where torchrun started this process
    fresh, data = tiny()
    models, told = [copy.deepcopy(fresh) for _ in range(2)], [Told() for _ in range(3)]
    alone, shared = (Journal(tmp_path / name, {"job": 1}) for name in ("alone", "shared"))
    calibrate(models[0], data, SETTINGS, alone, memory=10**9, reporter=told[0])
    unit = "weights-000"
    shared.write(unit, *alone.read(unit))
    calibrate_shared(2, models[1], data, SETTINGS, shared, memory=10**9, reporter=told[1])
    calibrate(models[1], data, SETTINGS, shared, memory=0, reporter=told[2])
    assert told[1].started == told[0].started and told[1].iterations == [0, *told[0].iterations[1:]]
    assert told[1].resumed == [True] + [False] * 35 and told[2].resumed == [True] * 36
    assert told[1].outcomes == told[2].outcomes
    for outcome, expected in zip(told[1].outcomes, told[0].outcomes, strict=True):
        assert outcome.before == pytest.approx(expected.before, rel=1e-4)
        assert outcome.after == pytest.approx(expected.after, rel=1e-4)
    pairs = zip(models[0].layers().values(), models[1].layers().values(), strict=True)
    assert torch.cat([(x.codes == y.codes).flatten() for x, y in pairs]).float().mean() > 0.99
    names = [sorted(path.name for path in journal.folder.iterdir()) for journal in (alone, shared)]
    assert names[0] == names[1], "what the processes were given is gone"
    assert os.environ.items() >= torchrun.items()


def test_errors_of_processes_are_those_of_one(tmp_path):
    model, data = tiny()
    data.inputs[0][5] = torch.nan
    journal = Journal(tmp_path, {})
    with pytest.raises(UserError, match=r"model\.conv_in: the loss is nan before learning"):
        calibrate_shared(2, model, data, SETTINGS, journal, memory=10**9, reporter=Told())
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []


@pytest.mark.parametrize(
    ("devices", "settings", "message"),
    [
        (3, SETTINGS, "--cali_devices 3 does not divide --cali_batch_size 4: change one of them"),
        (8, SETTINGS, "--cali_devices 8 does not divide --cali_batch_size 4: change one of them"),
        (2, CalibrationSettings(4, None, None), "only --quant_mode qdiff learns"),
        (2, CalibrationSettings(4, None, None, closed_form=ClosedForm()), "only --quant_mode qdiff learns"),
    ],
)
def test_what_cannot_be_shared(devices, settings, message):
    check_devices(1, settings, CPU)
    with pytest.raises(UserError) as caught:
        check_devices(devices, settings, CPU)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_more_devices_than_gpus(monkeypatch):
    """They are counted from the network's on; of processes on the CPU there may be any number."""
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    for name, most in (("cuda", 4), ("cuda:2", 2)):
        check_devices(most, SETTINGS, torch.device(name))
        with pytest.raises(UserError, match=rf"from --device {name} on, {most}: lower it"):
            check_devices(2 * most, CalibrationSettings(2 * most, Schedule(1, 1), None), torch.device(name))
    check_devices(4, SETTINGS, CPU)


def test_a_prompt_cannot_start_processes(monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    check_devices(1, SETTINGS, CPU)
    with pytest.raises(UserError, match="--cali_devices 2 starts processes"):
        check_devices(2, SETTINGS, CPU)


def test_without_lightning(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    check_devices(1, SETTINGS, CPU)
    with pytest.raises(UserError, match=r"--cali_devices 2 needs a package .*: pip install 'qdiff\[train\]'"):
        check_devices(2, SETTINGS, CPU)


def test_progress_is_sent():
    told, outcome = Told(), Outcome(2.0, 1.0)
    with _Listener(told) as listener:
        sender = _Sender(listener.events)
        sender.start("a", "weights")
        sender.advance(5)
        sender.advance(2)
        sender.finish("a", "weights", outcome, resumed=False)
    assert (told.started, told.iterations, told.outcomes, told.resumed) == ([("weights", "a")], [7], [outcome], [False])


def test_the_first_error_is_raised_unless_the_user_or_the_system_ended_a_process():
    for end, expected in ((ProcessRaisedException("", 0, 0), UserError), (KeyboardInterrupt(), KeyboardInterrupt)):
        with pytest.raises(expected), _Listener(Told()) as listener:
            listener.events.put(UserError("the cause"))
            listener.events.put(OSError("its consequence"))
            raise end


class FullDisk(Told):
    def start(self, block: str, stage: str) -> None:
        raise OSError("the log is full")


def test_an_error_of_the_reporter_does_not_block_the_processes():
    """Which send more than a pipe holds."""
    with pytest.raises(OSError, match="the log is full"), _Listener(FullDisk()) as listener:
        for _ in range(2000):
            _Sender(listener.events).start("a" * 100, "weights")
