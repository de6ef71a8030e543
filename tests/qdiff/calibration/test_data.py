import os
from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save_file
from torch import Tensor

from qdiff.calibration.data import CalibrationSet, read_calibration_data
from qdiff.calibration.kept_steps import kept_steps
from qdiff.errors import UserError

SHAPE = (2, 3, 3)


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


@given(st.integers(1, 100), st.data())
def test_the_images_together_are_at_all_steps_equally_often(steps, data):
    cali_st, rounds = data.draw(st.integers(1, steps)), data.draw(st.integers(1, 3))
    images = rounds * steps
    kept = [kept_steps(steps, cali_st, image, images) for image in range(images)]
    assert kept[0] == kept_steps(steps, cali_st)
    assert all(len({*of_image}) == cali_st and max(of_image) < steps for of_image in kept)
    assert Counter(chain(*kept)) == dict.fromkeys(range(steps), rounds * cali_st)


def test_a_few_images_are_at_all_steps():
    kept = [kept_steps(200, 20, image, 10) for image in range(10)]
    assert sorted(chain(*kept)) == [*range(200)]


def test_more_timesteps_than_steps():
    with pytest.raises(UserError, match=r"--cali_st 11 .* 10 steps: lower it"):
        kept_steps(10, 11)


# The set


def some(n=5) -> CalibrationSet:
    generator = torch.Generator().manual_seed(0)
    return CalibrationSet((torch.randn(n, *SHAPE, generator=generator), torch.arange(n)))


def test_batches_hold_all_samples_in_order():
    data = some(5)
    batches = [batch.args for batch in data.batches(2)]
    assert [len(x) for x, _ in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([x for x, _ in batches]), data.inputs[0])
    assert torch.cat([t for _, t in batches]).tolist() == [0, 1, 2, 3, 4]


def test_drawn_samples_are_different_ones_that_stay_together():
    data = some(40)

    def drawn(n: int, size: int) -> list[torch.Tensor]:
        batches = [batch.args for batch in data.drawn(n, torch.Generator().manual_seed(3), size)]
        assert [len(t) for _, t in batches[:-1]] == [size] * (len(batches) - 1)
        return [torch.cat(xs) for xs in zip(*batches)]

    x, t = drawn(15, 4)
    assert len(set(t.tolist())) == 15 and t.tolist() != sorted(t.tolist())
    assert torch.equal(x, data.inputs[0][t])
    assert torch.equal(t, drawn(15, 7)[1]), "whatever the size of a batch"
    assert sorted(drawn(1000, 7)[1].tolist()) == list(range(40))


@pytest.mark.parametrize(
    "inputs", [(), (torch.zeros(0, 2),), (torch.zeros(2), torch.zeros(3))], ids=["nothing", "empty", "lengths"]
)
def test_impossible_sets(inputs):
    with pytest.raises(ValueError, match="at least one sample"):
        CalibrationSet(inputs)


def test_golden_digest():
    """Recorded in journals and quantized files of earlier versions."""
    data = CalibrationSet((torch.arange(12.0).reshape(2, 3, 2).transpose(1, 2), torch.tensor([3, 1])))
    assert data.digest() == "62c30b60301bc8f29f92c17d2b7105ab1b75b1a0de6b962d69c62e82ea2c5cd5"


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


def keywords(n=5) -> CalibrationSet:
    """Classes by keyword, tensors within dicts and lists, and arguments that are no tensors."""
    x, t = some(n).inputs
    residuals = [x + 1, x + 2]
    added = {"text": x[:, 0], "ids": t + 3}
    return CalibrationSet((x, t, None), {"y": t + 7, "residuals": residuals, "added": added, "return_dict": False})


def test_keyword_arguments_stay_with_their_samples():
    data = keywords(5)
    for batch in (*data.batches(2), *data.drawn(3, torch.Generator().manual_seed(0), 2)):
        x, t, nothing = batch.args
        assert nothing is None and batch.kwargs["return_dict"] is False
        assert torch.equal(batch.kwargs["y"], t + 7) and torch.equal(batch.kwargs["residuals"][1], x + 2)
        assert torch.equal(batch.kwargs["added"]["text"], x[:, 0])


@pytest.mark.parametrize(
    "added", [{"y": torch.zeros(4)}, {"y": torch.tensor(3)}, {"added": [torch.zeros(6, 2)]}], ids=str
)
def test_a_keyword_with_another_number_of_samples(added):
    with pytest.raises(ValueError, match="as many of each argument"):
        CalibrationSet(some(5).inputs, added)


def test_digest_knows_keywords_and_constants():
    x, t = some().inputs
    sets = [
        CalibrationSet((x, t)),
        CalibrationSet((x, t, t)),
        CalibrationSet((x, t), {"y": t}),
        CalibrationSet((x, t), {"z": t}),
        CalibrationSet((x, t), {"y": t + 1}),
        CalibrationSet((x, t), {"y": t, "flag": True}),
        CalibrationSet((x, t), {"y": t, "flag": False}),
        CalibrationSet((x, t, None)),
    ]
    assert len({data.digest() for data in sets}) == len(sets)
    assert CalibrationSet((), {"a": x, "b": t}).digest() == CalibrationSet((), {"b": t, "a": x}).digest()


# Files


@pytest.mark.parametrize("folder", ["new", "bad\udcff"])
def test_saved_and_read_back(folder, tmp_path):
    data = some(6)
    path = tmp_path / folder / "data.safetensors"
    data.save(path)
    again = read_calibration_data(path, 2, 3)
    assert again.digest() == data.digest()
    assert os.listdir(path.parent) == ["data.safetensors"]
    assert load(path.read_bytes()).keys() == {"input_0", "input_1"}


def test_keyword_arguments_survive_a_file(tmp_path):
    data = keywords(6)
    data.save(tmp_path / "d")
    names = {"0", "1", "y", "residuals.0", "residuals.1", "added.text", "added.ids"}
    assert load((tmp_path / "d").read_bytes()).keys() == {f"input_{name}" for name in names}
    again = read_calibration_data(tmp_path / "d", 2, 3)
    assert again.digest() == data.digest()
    assert again.inputs[2] is None and again.keywords["return_dict"] is False
    assert torch.equal(again.keywords["added"]["ids"], data.keywords["added"]["ids"])


def test_a_file_of_positional_tensors_is_that_of_earlier_versions(tmp_path):
    data = some(6)
    data.save(tmp_path / "d")
    save_file({f"input_{i}": x for i, x in enumerate(data.inputs)}, tmp_path / "earlier")
    assert (tmp_path / "d").read_bytes() == (tmp_path / "earlier").read_bytes()


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
    assert "holds no calibration data" in refusal(tmp_path / "d")


@pytest.mark.parametrize(
    "content",
    [
        {"weight": torch.zeros(3)},
        {"input_0": torch.zeros(3), "input_2": torch.zeros(3)},
        {"input_0": torch.zeros(3), "input_1": torch.zeros(2)},
        {"input_0": torch.zeros(0)},
        {"input_0": torch.zeros(3), "y": torch.zeros(3)},
        {"input_0": torch.zeros(3), "input_y": torch.zeros(2)},
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
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "empty").touch()
    assert "is empty" in refusal(tmp_path / "empty")
    torch.save(original(2, 2), tmp_path / "whole")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:700])
    assert "its end is missing" in refusal(tmp_path / "half")


class Loud:
    def __reduce__(self):
        return open, ("boom", "w")


def test_a_pickle_that_names_code_is_refused_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"xs": Loud(), "ts": []}, tmp_path / "d")
    before = sorted(os.listdir(tmp_path))
    assert "is refused" in refusal(tmp_path / "d")
    assert sorted(os.listdir(tmp_path)) == before == ["d"]
