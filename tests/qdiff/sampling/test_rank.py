import pytest

from qdiff.errors import UserError
from qdiff.sampling.rank import ALONE, LAUNCHERS, Rank

TORCHRUN, SRUN, JSRUN = LAUNCHERS


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for names in LAUNCHERS:
        for name in names:
            monkeypatch.delenv(name, raising=False)


def given(monkeypatch, **variables: object) -> Rank:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    return Rank.from_environment()


def test_without_a_launcher_there_is_one_process(monkeypatch):
    assert Rank.from_environment() == ALONE
    assert ALONE.first and ALONE.alone
    # of a batch script without srun, whatever the number of tasks it may start
    assert given(monkeypatch, SLURM_PROCID=0, SLURM_LOCALID=0, SLURM_NTASKS=4).alone


@pytest.mark.parametrize("names", LAUNCHERS, ids=lambda names: names[0])
def test_launchers(names, monkeypatch):
    found = given(monkeypatch, **dict(zip(names, (5, 8, 1))))
    assert found == Rank(5, 8, 1)
    assert not (found.first or found.alone)
    first = given(monkeypatch, **dict(zip(names, (0, 8, 0))))
    assert first.first and not first.alone
    assert given(monkeypatch, **dict(zip(names, (0, 1, 0)))) == ALONE


def test_variables_set_by_hand_may_leave_out_the_machine(monkeypatch):
    assert given(monkeypatch, RANK=3, WORLD_SIZE=4) == Rank(3, 4, 3)


def test_torchrun_in_a_job_of_a_cluster_comes_first(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert given(monkeypatch, RANK=5, WORLD_SIZE=8, LOCAL_RANK=1) == Rank(5, 8, 1)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"RANK": 3, "WORLD_SIZE": 2},
            "RANK in the environment is '3' and must be a whole number in 0..1: WORLD_SIZE is 2",
        ),
        ({"RANK": -1, "WORLD_SIZE": 2}, "RANK in the environment is '-1' and must be a whole number in 0..1: "),
        ({"RANK": "", "WORLD_SIZE": 2}, "RANK in the environment is '' and must be a whole number in 0..1: "),
        ({"WORLD_SIZE": 2}, "RANK in the environment is not set and must be a whole number in 0..1: "),
        (
            {"RANK": 0, "WORLD_SIZE": 0},
            "WORLD_SIZE in the environment is '0' and must be a whole number in 1..104857",
        ),
        ({"RANK": 0, "WORLD_SIZE": "two\nor three"}, r"WORLD_SIZE in the environment is 'two\nor three' and must be "),
        ({"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 2}, "LOCAL_RANK in the environment is '2' and must be "),
        ({"SLURM_PROCID": 1, "SLURM_STEP_NUM_TASKS": 1}, "SLURM_PROCID in the environment is '1' and must be "),
    ],
)
def test_nonsense_is_one_line(variables, said, monkeypatch):
    with pytest.raises(UserError) as caught:
        given(monkeypatch, **variables)
    line = str(caught.value)
    assert line.startswith(said) and "\n" not in line
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_PROCID" in variables else "WORLD_SIZE"
    assert line.endswith(f"start the processes with torchrun, or unset {count} for a single one")
