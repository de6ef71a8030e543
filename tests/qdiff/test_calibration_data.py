import os
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qdiff.calibration_data import CalibrationSet, collect, kept_steps, read_calibration_data
from qdiff.errors import UserError
from qdiff.journal import Journal

SHAPE = (2, 3, 3)


class ToyStep(NamedTuple):
    index: int


def value(image: int, step: int) -> Tensor:
    return torch.full(SHAPE, 100.0 * step + image)


def refusal(path, cali_st=1, cali_n=1) -> str:
    with pytest.raises(UserError) as caught:
        read_calibration_data(path, cali_st, cali_n)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


# Which steps


@pytest.mark.parametrize(
    ("steps", "cali_st", "expected"),
    [
        (1, 1, [0]),
        (10, 1, [0]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (6, 3, [0, 2, 4]),
        (100, 20, [*range(0, 100, 5)]),  # CIFAR-10
        (200, 20, [*range(0, 200, 10)]),  # LSUN-Bedroom
        (50, 25, [*range(0, 50, 2)]),  # Stable Diffusion
        (51, 25, [*range(0, 50, 2)]),
        (10, 4, [0, 2, 5, 7]),
    ],
)
def test_kept_steps(steps, cali_st, expected):
    assert kept_steps(steps, cali_st) == expected


@given(st.integers(1, 300), st.data())
def test_kept_steps_are_uniform_over_the_whole_trajectory(steps, data):
    cali_st = data.draw(st.integers(1, steps))
    kept = kept_steps(steps, cali_st)
    assert len(kept) == cali_st and kept[0] == 0
    gaps = {b - a for a, b in zip(kept, [*kept[1:], steps])}
    assert max(gaps) - min(gaps) <= 1
    if steps % cali_st == 0:
        assert gaps == {steps // cali_st}


def test_more_timesteps_than_steps():
    with pytest.raises(UserError, match=r"--cali_st 11 .* 10 steps: lower it"):
        kept_steps(10, 11)


# Collecting


class Network(nn.Module):
    """Takes what it is given; a sampler's step is here a call of it."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0]


NETWORK = Network()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_collect_keeps_what_the_network_was_given(batch_size, tmp_path):
    asked, went, progress = [], [], []

    def trajectory(images):
        asked.append(list(images))
        for step in range(7):
            went.append(step)
            x = torch.stack([value(i, step) for i in images])
            NETWORK(x.double(), torch.full((len(images),), 10 * (6 - step)))
            yield ToyStep(step)

    data = collect(NETWORK, trajectory, 7, 3, 5, batch_size, Journal(tmp_path, {}), progress.append)
    xs, ts = data.inputs
    expected = [(image, step) for step in (0, 2, 4) for image in range(5)]
    assert torch.equal(xs, torch.stack([value(*e) for e in expected]))
    assert ts.tolist() == [10 * (6 - step) for _, step in expected]
    assert (xs.dtype, ts.dtype) == (torch.float32, torch.int64)
    assert [i for batch in asked for i in batch] == list(range(5))
    assert {len(batch) for batch in asked[:-1]} <= {batch_size}
    assert max(went) == 4, "nothing is sampled behind the last step that is kept"
    assert sum(progress) == 5 * 5
    assert not NETWORK._forward_pre_hooks


def test_collecting_goes_on_where_it_was_stopped(tmp_path):
    """Stopped within the second batch, only that one and those after it are sampled again; the data are the same."""
    asked, progress = [], []

    def trajectory(images, stop=False):
        asked.append(list(images))
        for step in range(4):
            if stop and step == 3 and 2 in images:
                raise KeyboardInterrupt
            NETWORK(torch.stack([value(i, step) for i in images]))
            yield ToyStep(step)

    undisturbed = collect(NETWORK, trajectory, 4, 4, 5, 2, Journal(tmp_path / "a", {}))
    with pytest.raises(KeyboardInterrupt):
        collect(NETWORK, lambda images: trajectory(images, True), 4, 4, 5, 2, Journal(tmp_path / "b", {}))
    asked.clear()
    resumed = collect(NETWORK, trajectory, 4, 4, 5, 2, Journal(tmp_path / "b", {}), progress.append)
    assert asked == [[2, 3], [4]]
    assert resumed.digest() == undisturbed.digest() and sum(progress) == 5 * 4
    asked.clear()
    assert collect(NETWORK, trajectory, 4, 4, 5, 3, Journal(tmp_path / "b", {})).digest() == undisturbed.digest()
    assert asked == [[0, 1, 2], [3, 4]], "other batches are other units"


def calling(*calls: tuple[Tensor, ...]):
    """A trajectory of these calls."""

    def trajectory(images):
        for step, inputs in enumerate(calls):
            NETWORK(*inputs)
            yield ToyStep(step)

    return trajectory


def test_timesteps_between_the_whole_ones_stay(tmp_path):
    """DPM-Solver's; the network was given exactly these."""
    x = torch.zeros(2, *SHAPE)
    calls = calling((x, torch.full((2,), 999.0)), (x, torch.full((2,), 123.625)))
    _, ts = collect(NETWORK, calls, 2, 2, 2, 2, Journal(tmp_path, {})).inputs
    assert ts.tolist() == [999.0, 999.0, 123.625, 123.625]


def test_with_guidance_every_call_gives_two_samples_an_image(tmp_path):
    """And a condition each: the network's third input."""
    calls = (
        [(torch.full((4, *SHAPE), step), torch.full((4,), 9), torch.arange(8.0).view(4, 2)) for step in range(2.0)]
        if False
        else [
            (torch.full((4, *SHAPE), float(step)), torch.full((4,), 9), torch.arange(8.0).view(4, 2))
            for step in range(2)
        ]
    )
    xs, ts, contexts = collect(NETWORK, calling(*calls), 2, 2, 2, 2, Journal(tmp_path, {})).inputs
    assert xs[:, 0, 0, 0].tolist() == [0] * 4 + [1] * 4 and len(ts) == 8
    assert torch.equal(contexts, torch.cat([calls[0][2]] * 2))


def test_collected_tensors_are_copies_without_gradient(tmp_path):
    x = torch.zeros(1, *SHAPE, requires_grad=True)
    (xs,) = collect(NETWORK, calling((x,)), 1, 1, 1, 1, Journal(tmp_path, {})).inputs
    assert not xs.requires_grad
    with torch.no_grad():
        x += 1
    assert not xs.any()


# The set


def some(n=5) -> CalibrationSet:
    generator = torch.Generator().manual_seed(0)
    return CalibrationSet((torch.randn(n, *SHAPE, generator=generator), torch.arange(n)))


def test_batches_hold_all_samples_in_order():
    data = some(5)
    batches = list(data.batches(2))
    assert [len(x) for x, _ in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([x for x, _ in batches]), data.inputs[0])
    assert torch.cat([t for _, t in batches]).tolist() == [0, 1, 2, 3, 4]


def test_drawn_samples_are_different_ones_that_stay_together():
    data = some(40)
    x, t = data.draw(15, torch.Generator().manual_seed(3)).inputs
    assert len(set(t.tolist())) == 15 and t.tolist() != sorted(t.tolist())
    assert torch.equal(x, data.inputs[0][t])
    assert torch.equal(t, data.draw(15, torch.Generator().manual_seed(3)).inputs[1])
    everything = data.draw(1000, torch.Generator().manual_seed(3)).inputs[1]
    assert sorted(everything.tolist()) == list(range(40))


@pytest.mark.parametrize(
    "inputs", [(), (torch.zeros(0, 2),), (torch.zeros(2), torch.zeros(3))], ids=["nothing", "empty", "lengths"]
)
def test_impossible_sets(inputs):
    with pytest.raises(ValueError, match="at least one sample"):
        CalibrationSet(inputs)


def test_digest_is_that_of_the_values():
    data = some()
    x, t = data.inputs
    assert data.digest() == CalibrationSet((x.clone(), t.clone())).digest()
    strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert CalibrationSet((strided, t)).digest() == data.digest()


@given(st.integers(0, 5 * 18 - 1), st.integers(0, 4))
def test_digest_changes_with_any_value(i, j):
    x, t = some().inputs
    touched, later = x.clone(), t.clone()
    touched.view(-1)[i] = torch.nextafter(x.reshape(-1)[i], torch.tensor(torch.inf))
    later[j] += 1
    assert len({CalibrationSet(inputs).digest() for inputs in [(x, t), (touched, t), (x, later)]}) == 3


def test_digest_knows_shapes_types_and_order():
    x, t = some().inputs
    others = [(x.flatten(1), t), (x.transpose(2, 3), t), (x, t.int()), (x, t.double()), (t, x), (x,), (x, t, t)]
    assert len({CalibrationSet(inputs).digest() for inputs in [(x, t), *others]}) == len(others) + 1


# Files


def test_saved_and_read_back(tmp_path):
    data = some(6)
    path = tmp_path / "new" / "data.safetensors"
    data.save(path)
    again = read_calibration_data(path, 2, 3)
    assert again.digest() == data.digest()
    assert os.listdir(path.parent) == ["data.safetensors"]
    assert load_file(path).keys() == {"input_0", "input_1"}


def test_ours_with_another_number_of_samples(tmp_path):
    some(6).save(tmp_path / "d")
    for cali_st, cali_n in ((2, 4), (1, 3), (7, 1)):
        line = refusal(tmp_path / "d", cali_st, cali_n)
        assert f"holds 6 samples, --cali_st {cali_st} and --cali_n {cali_n} ask for {cali_st * cali_n}" in line


@pytest.mark.parametrize("keep", [0.2, 0.9, -1])
def test_ours_cut_short(keep, tmp_path):
    some().save(tmp_path / "d")
    content = (tmp_path / "d").read_bytes()
    (tmp_path / "d").write_bytes(content[: keep if keep < 0 else int(keep * len(content))])
    assert "is damaged or holds no calibration data" in refusal(tmp_path / "d")


@pytest.mark.parametrize(
    "content",
    [
        {"weight": torch.zeros(3)},
        {"input_0": torch.zeros(3), "input_2": torch.zeros(3)},
        {"input_0": torch.zeros(3), "input_1": torch.zeros(2)},
        {"input_0": torch.zeros(0)},
    ],
)
def test_another_safetensors_file(content, tmp_path):
    save_file(content, tmp_path / "d")
    assert "holds no calibration data" in refusal(tmp_path / "d")


def original(steps: int, samples: int) -> dict[str, list[Tensor]]:
    """As the paper's code saves it: float, and the timesteps as whole or floating-point numbers."""
    xs = [torch.stack([value(i, step) for i in range(samples)]) for step in range(steps)]
    return {"xs": xs, "ts": [torch.full((samples,), 10.5 * (steps - step)) for step in range(steps)]}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize(("cali_st", "cali_n"), [(3, 2), (6, 4), (1, 1)])
def test_files_of_the_original(cali_st, cali_n, dtype, stacked, tmp_path):
    content = original(6, 4)
    content["xs"] = [x.double() for x in content["xs"]]
    content["ts"] = [t.to(dtype) for t in content["ts"]]
    if stacked:
        content = {key: torch.stack(steps) for key, steps in content.items()}
    torch.save(content, tmp_path / "data.pt")
    xs, ts = read_calibration_data(tmp_path / "data.pt", cali_st, cali_n).inputs
    expected = [(image, step) for step in range(0, 6, 6 // cali_st) for image in range(cali_n)]
    assert torch.equal(xs, torch.stack([value(*e) for e in expected]))
    assert ts.tolist() == torch.tensor([10.5 * (6 - step) for _, step in expected]).to(dtype).tolist()
    assert (xs.dtype, ts.dtype) == (torch.float32, dtype)


def test_files_of_the_original_with_too_little(tmp_path):
    torch.save(original(6, 4), tmp_path / "d")
    assert "has 6 timesteps, --cali_st asks for 7: lower it" in refusal(tmp_path / "d", 7, 1)
    assert "has 4 samples per timestep, --cali_n asks for 5: lower it" in refusal(tmp_path / "d", 6, 5)
    short = original(6, 4)
    short["ts"][5] = short["ts"][5][:3]
    torch.save(short, tmp_path / "d")
    assert "has 3 samples per timestep" in refusal(tmp_path / "d", 1, 4)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.zeros(3),
        "xs and ts",
        None,
        {},
        {"xs": [torch.zeros(2, 3)]},
        {"xs": [], "ts": []},
        {"xs": [torch.zeros(2, 3)] * 2, "ts": [torch.zeros(2)]},
        {"xs": 3, "ts": 4},
        {"xs": torch.tensor(3.0), "ts": torch.tensor(4.0)},
        {"xs": [torch.zeros(2, 3)], "ts": [torch.tensor(999)]},
        {"xs": [[1.0, 2.0]], "ts": [[1, 2]]},
        {"xs": ["ab"], "ts": ["ab"]},
        {"xs": [torch.zeros(2, 3), torch.zeros(2, 4)], "ts": [torch.zeros(2)] * 2},
    ],
    ids=repr,
)
def test_other_pickles(content, tmp_path):
    torch.save(content, tmp_path / "d")
    line = refusal(tmp_path / "d")
    assert "no lists 'xs' and 'ts'" in line and "leave out --cali_data_path" in line


def test_files_that_are_no_data(tmp_path):
    assert "cannot read" in refusal(tmp_path / "missing")
    assert "cannot read" in refusal(tmp_path)
    (tmp_path / "empty").touch()
    assert "is empty" in refusal(tmp_path / "empty")
    torch.save(original(2, 2), tmp_path / "whole")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:700])
    assert "not a whole" in refusal(tmp_path / "half")


class Loud:
    def __reduce__(self):
        return open, ("boom", "w")


def test_a_pickle_that_names_code_is_refused_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"xs": Loud(), "ts": []}, tmp_path / "d")
    before = sorted(os.listdir(tmp_path))
    assert "is refused" in refusal(tmp_path / "d")
    assert sorted(os.listdir(tmp_path)) == before == ["d"]
