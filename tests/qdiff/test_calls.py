import pytest
import torch
from torch import Tensor

from qdiff.calls import BatchMismatch, Call, Samples


def call(n: int = 3, **changed) -> Call:
    """Samples among the positional arguments, in a list and in a dict; constants of every kind."""
    x = torch.arange(2.0 * n).view(n, 2)
    kwargs = {
        "context": {"text": x + 100, "ids": torch.arange(n)},
        "residuals": [x + 10, x + 20],
        "mask": None,
        "scale": 0.5,
        "causal": True,
        "kind": "joint",
        "table": torch.ones(4, 5),
        "shift": torch.tensor(7.0),
    }
    return Call((x, [None, x + 1]), kwargs | changed, n)


def test_tensors_with_the_batch_first_are_samples_and_all_others_constants():
    found = call()
    assert len(found) == 3
    assert [tuple(x.shape) for x in found.tensors] == [(3, 2), (3, 2), (3, 2), (3,), (3, 2), (3, 2)]
    rest = [x for x in found.constants if not isinstance(x, Tensor)]
    assert rest == [None, None, 0.5, True, "joint"]
    assert [tuple(x.shape) for x in found.constants if isinstance(x, Tensor)] == [(4, 5), ()]
    assert found.sample_bytes == 5 * 2 * 4 + 8


def test_a_call_gives_a_module_what_it_was_made_of():
    found = call()
    args, kwargs = found(lambda *args, **kwargs: (args, kwargs))
    assert args[0] is found.tensors[0] and args[1][0] is None and args[1][1] is found.tensors[1]
    assert [*kwargs] == ["context", "residuals", "mask", "scale", "causal", "kind", "table", "shift"]
    assert kwargs["context"].keys() == {"text", "ids"} and isinstance(kwargs["residuals"], list)
    assert found.args[0] is args[0] and found.kwargs["kind"] == "joint"
    assert Call((1, torch.zeros(2)))(lambda a, b: a + b).tolist() == [1.0, 1.0]


def test_some_samples():
    found = call(5)
    for index in (slice(1, 3), torch.tensor([4, 0, 0])):
        some = found[index]
        assert isinstance(some, Call)
        assert all(torch.equal(a, b[index]) for a, b in zip(some.tensors, found.tensors))
        assert all(a is b for a, b in zip(some.constants, found.constants))
    batches = list(found.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.args[0] for batch in batches]), found.args[0])


def test_shapes_without_values():
    shapes = call().to("meta")
    assert all(x.is_meta for x in (*shapes.tensors, shapes.kwargs["table"]))
    empty = shapes.empty(7)
    assert [(x.shape, x.dtype) for x in empty.tensors] == [((7, *x.shape[1:]), x.dtype) for x in call().tensors]
    assert len(shapes.empty(0)) == 0 and shapes.empty(0).sample_bytes == call().sample_bytes
    assert call().to("cpu").args[0] is not call().to("cpu", copy=True).args[0]


def test_a_copy_shares_no_memory():
    found = call()
    copied = found.to(found.args[0].device, copy=True)
    for x in (*copied.tensors, copied.kwargs["table"]):
        x.zero_()
    assert found.args[0].any() and found.kwargs["table"].all()


def test_an_output_is_a_tree_of_its_own():
    x = torch.zeros(2, 3)
    output = Samples({"sample": x, "pair": (x + 1, None)}, 2)
    assert [*output.tree] == ["sample", "pair"] and output.tree["pair"][1] is None
    assert [x.sum().item() for x in output.select({"sample": x + 2, "pair": (x + 3, None)})] == [12.0, 18.0]
    assert Samples(x).tree is x


@pytest.mark.parametrize("tree", [None, (1, "a"), torch.tensor(3.0), (torch.zeros(3), None)])
def test_without_samples(tree):
    with pytest.raises(ValueError, match=r"no tensor has the batch \(2\)"):
        Samples(tree, 2)


def test_the_last_batch_may_be_smaller():
    first, last = call(3), call(2)
    assert [len(x) for x in last.like(first).tensors] == [2] * 6
    one = call(1, table=torch.ones(1, 5))  # looks like a sample by chance
    assert len(one.tensors) == 7 and len(one.like(call(3, table=torch.ones(1, 5))).tensors) == 6


def test_a_constant_of_the_size_of_the_batch_is_found_by_a_batch_of_another_size():
    found = call(3, table=torch.ones(3, 5)).with_constants_of(call(1, table=torch.ones(3, 5)).empty(0))
    assert len(found.tensors) == 6 and found[:2].kwargs["table"].shape == (3, 5)
    assert len(call(1, table=torch.ones(1, 5)).with_constants_of(call(3, table=torch.ones(1, 5))).tensors) == 6
    with pytest.raises(BatchMismatch, match="more than their size"):
        call(3).with_constants_of(call(1, mask=[None, None]))


@pytest.mark.parametrize(
    "changed",
    [
        {"scale": 0.25},
        {"scale": None},
        {"causal": 1},
        {"kind": "cross"},
        {"shift": torch.tensor(8.0)},
        {"table": torch.ones(4, 5).double()},
        {"table": torch.ones(5, 5)},
        {"table": None},
    ],
    ids=str,
)
def test_constants_must_agree(changed):
    with pytest.raises(BatchMismatch, match="differ in a constant"):
        call(**changed).like(call())


@pytest.mark.parametrize(
    "changed",
    [
        {"mask": [None, None]},
        {"residuals": [torch.zeros(3, 2)]},
        {"residuals": [torch.zeros(3, 2), None]},
        {"residuals": [torch.zeros(3, 2), torch.zeros(3, 9)]},
        {"residuals": [torch.zeros(3, 2), torch.zeros(3, 2).double()]},
    ],
    ids=str,
)
def test_structure_shape_and_dtype_must_agree(changed):
    with pytest.raises(BatchMismatch, match="structure, shape or dtype"):
        call(**changed).like(call())


def test_tensors_of_a_batch_have_the_same_number_of_samples():
    with pytest.raises(BatchMismatch, match="different numbers of samples"):
        call(residuals=[torch.zeros(3, 2), torch.zeros(4, 2)]).like(call())
