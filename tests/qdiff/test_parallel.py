import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from qdiff.block_recon import Outcome, Schedule, block_loss, block_reconstruction
from qdiff.errors import UserError
from qdiff.files.journal import Journal
from qdiff.objectives import LearnedRounding, LearnedSteps
from qdiff.parallel import ALONE, Parallel, Shared
from tests.qdiff.ranks import in_ranks
from tests.qdiff.test_block_recon import with_steps

CPU = torch.device("cpu")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_process_leaves_all_as_it_is(tmp_path):
    rows, batches, gradients = torch.arange(5), [slice(0, 2), slice(2, 3)], [draw(0, 2, 3), draw(1, 4)]
    before = copy.deepcopy(gradients)
    assert ALONE.share(rows) is rows and ALONE.share(batches) is batches and ALONE.total(0.1) == 0.1
    ALONE.average(gradients)
    ALONE.agree(gradients)
    assert all(torch.equal(x, y) for x, y in zip(gradients, before, strict=True))
    journal = Journal(tmp_path, {})
    assert ALONE.journal(journal) is journal


@pytest.mark.parametrize("size", [2, 3])
def test_every_item_is_in_one_part(size, monkeypatch):
    rows, batches = torch.arange(6), list(range(7))
    found = in_ranks(size, lambda rank: (Shared(CPU).share(rows), Shared(CPU).share(batches)), monkeypatch)
    assert sorted(torch.cat([part for part, _ in found]).tolist()) == rows.tolist()
    assert {len(part) for part, _ in found} == {6 // size}, "a batch is divided evenly"
    assert sorted(i for _, part in found for i in part) == batches


def test_sums_means_and_the_first(monkeypatch):
    """In tensors of any layout, the same in all ranks."""
    given = [[draw(rank, 2, 3).T, draw(9 + rank, 4)] for rank in range(3)]
    means = [torch.stack(xs).mean(0) for xs in zip(*given)]

    def exchange(rank: int) -> tuple[float, list[Tensor], list[Tensor]]:
        shared, averaged = Shared(CPU), copy.deepcopy(given[rank])
        agreed = [nn.Parameter(x.clone()) for x in given[rank]]
        shared.average(averaged)
        shared.agree(agreed)
        return shared.total(0.1 * rank), averaged, agreed

    for total, averaged, agreed in in_ranks(3, exchange, monkeypatch):
        assert total == pytest.approx(0.3)
        for x, y, mean, first in zip(averaged, agreed, means, given[0], strict=True):
            torch.testing.assert_close(x, mean)
            assert torch.equal(y, first) and y.requires_grad and y.is_leaf


def test_the_first_process_alone_reads_and_writes_the_journal(tmp_path, monkeypatch):
    folders = [tmp_path / "first", tmp_path / "second"]
    Journal(folders[0], {}).write("known", {"x": torch.tensor(1.0)}, {"after": 2})
    Journal(folders[1], {}).write("stale", {"x": torch.tensor(3.0)})

    def use(rank: int) -> list:
        journal = Shared(CPU).journal(Journal(folders[rank], {}))
        journal.write("new", {"x": torch.tensor(float(rank))})
        assert journal.folder == folders[rank]
        return [journal.read(unit) for unit in ("known", "stale", "new")]

    for found in in_ranks(2, use, monkeypatch):
        assert found == [({"x": torch.tensor(1.0)}, {"after": 2}), None, ({"x": torch.tensor(0.0)}, {})]
    assert not (folders[1] / "new.safetensors").exists()


# Learning of a block


class Learned(NamedTuple):
    outcome: Outcome
    batches: list[int]  # sizes, of the iterations
    state: dict[str, Tensor]


def learn(kind: type, parallel: Parallel = ALONE, spoilt: int | None = None, iterations: int = 40) -> Learned:
    """Learn the block of 24 samples in batches of 12; a spoilt sample has a target that is not a number."""
    block, captured = with_steps(3.0)
    if spoilt is not None:
        captured.target.tensors[0][spoilt] = torch.nan
    batches, objective = [], kind(block)

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            batches.append(len(args[0]))

    block.module.register_forward_pre_hook(note)
    generator, schedule = torch.Generator().manual_seed(3), Schedule(iterations, 2e-2)
    outcome = block_reconstruction(block, captured, objective, schedule, 12, generator, parallel=parallel)
    return Learned(outcome, batches, objective.state())


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", [LearnedRounding, LearnedSteps])
def test_processes_learn_what_one_learns_and_all_the_same(kind, size, monkeypatch):
    alone = learn(kind)
    first, *others = in_ranks(size, lambda rank: learn(kind, Shared(CPU)), monkeypatch)
    assert alone.outcome.improved and alone.batches == [12] * 40
    assert first.batches == [12 // size] * 40
    assert first.outcome.before == pytest.approx(alone.outcome.before, rel=1e-5)
    assert first.outcome.after == pytest.approx(alone.outcome.after, rel=1e-4)
    for key, x in alone.state.items():
        torch.testing.assert_close(first.state[key], x, rtol=1e-4, atol=0)
        assert all(torch.equal(other.state[key], first.state[key]) for other in others)
    assert all(other.outcome == first.outcome for other in others)


def test_processes_that_start_apart_end_together(monkeypatch):
    """GPUs of two kinds may find ranges that differ in the last bit."""

    def learned(rank: int) -> list[Tensor]:
        block, captured = with_steps(3.0 + rank / 1000)
        objective, generator = LearnedSteps(block), torch.Generator().manual_seed(3)
        block_reconstruction(block, captured, objective, Schedule(5, 2e-2), 12, generator, parallel=Shared(CPU))
        return list(objective.state().values())

    first, second = in_ranks(2, learned, monkeypatch)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("size", [24, 7])
def test_a_loss_is_that_of_all_samples(size, monkeypatch):
    """Whether or not there is a batch for every process."""
    block, captured = with_steps(3.0)
    expected = block_loss(block.module, captured, 2.4, size)
    found = in_ranks(2, lambda rank: block_loss(block.module, captured, 2.4, size, Shared(CPU)), monkeypatch)
    assert found[0] == found[1] == pytest.approx(expected, rel=1e-6)


def test_all_processes_stop_where_one_has_a_loss_that_is_not_finite(monkeypatch):
    messages = []

    def refused(rank: int) -> None:
        with pytest.raises(UserError) as caught:
            learn(LearnedSteps, Shared(CPU), spoilt=23)
        messages.append(str(caught.value))

    in_ranks(2, refused, monkeypatch)
    assert messages[0] == messages[1] and "the loss is nan before learning" in messages[0]
