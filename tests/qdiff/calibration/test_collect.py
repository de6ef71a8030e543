from itertools import chain
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from qdiff.adapters import adapter_for
from qdiff.block_recon import Schedule
from qdiff.calibration.collect import collect, collecting_calls
from qdiff.calibration.data import read_calibration_data
from qdiff.calibration.job import calibrate
from qdiff.calibration.memory import peak_bytes
from qdiff.calibration.settings import CalibrationSettings
from qdiff.files.journal import Journal
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel

SHAPE = (2, 3, 3)


class ToyStep(NamedTuple):
    index: int


def value(image: int, step: int) -> Tensor:
    return torch.full(SHAPE, 100.0 * step + image)


class Network(nn.Module):
    """Takes what it is given; a sampler's step is here a call of it."""

    def forward(self, *inputs: Tensor, **keywords: object) -> Tensor:
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
    kept = [(0, 2, 4), (0, 2, 5), (0, 3, 5), (1, 3, 6), (1, 4, 6)]  # 0, 7/3 and 14/3, and 7/15 later for each image
    expected = [(image, steps[i]) for i in range(3) for image, steps in enumerate(kept)]
    assert torch.equal(xs, torch.stack([value(*e) for e in expected]))
    assert ts.tolist() == [10 * (6 - step) for _, step in expected]
    assert (xs.dtype, ts.dtype) == (torch.float32, torch.int64)
    assert [i for batch in asked for i in batch] == list(range(5))
    assert {len(batch) for batch in asked[:-1]} <= {batch_size}
    last = [max(steps[-1] for steps in kept[start : start + batch_size]) for start in range(0, 5, batch_size)]
    assert went == [*chain(*(range(step + 1) for step in last))], "nothing is sampled behind the last kept step"
    assert sum(progress) == collecting_calls(7, 3, 5, batch_size)
    assert sum(progress) == sum(len(batch) * (step + 1) for batch, step in zip(asked, last))
    assert not NETWORK._forward_pre_hooks


def test_data_are_in_memory_once(tmp_path):
    """Beside them a batch of images, which is small, and what a sampler has made of it."""

    def trajectory(images):
        for step in range(4):
            NETWORK(torch.zeros(len(images), 64, 8, 8), torch.zeros(len(images)))
            yield ToyStep(step)

    found = []
    peak = peak_bytes(lambda: found.append(collect(NETWORK, trajectory, 4, 4, 64, 2, Journal(tmp_path, {}))))
    assert peak < 1.2 * sum(x.nbytes for x in found[0].inputs)


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
    calls = [
        (torch.full((4, *SHAPE), float(step)), torch.full((4,), 9), torch.arange(8.0).view(4, 2)) for step in range(2)
    ]
    xs, ts, contexts = collect(NETWORK, calling(*calls), 2, 2, 2, 2, Journal(tmp_path, {}), rows=2).inputs
    assert xs[:, 0, 0, 0].tolist() == [0] * 4 + [1] * 4 and len(ts) == 8
    assert torch.equal(contexts, torch.cat([calls[0][2]] * 2))


def test_guided_samples_have_the_same_order_whatever_the_batch_size(tmp_path):
    def trajectory(images):
        x = torch.tensor([float(i) for i in images] * 2).view(-1, 1, 1, 1)
        row = torch.tensor([0] * len(images) + [1] * len(images))
        return calling((x, row), (x + 10, row))(images)

    for size in (1, 2, 3):
        xs, rows = collect(NETWORK, trajectory, 2, 2, 3, size, Journal(tmp_path / str(size), {}), rows=2).inputs
        assert xs.flatten().tolist() == [0, 1, 2] * 2 + [10, 11, 12] * 2
        assert rows.tolist() == [0, 0, 0, 1, 1, 1] * 2


def test_collected_tensors_are_copies_without_gradient(tmp_path):
    x = torch.zeros(1, *SHAPE, requires_grad=True)
    (xs,) = collect(NETWORK, calling((x,)), 1, 1, 1, 1, Journal(tmp_path, {})).inputs
    assert not xs.requires_grad
    with torch.no_grad():
        x += 1
    assert not xs.any()


def with_keywords(image: int, step: int) -> dict[str, object]:
    """Keyword arguments of a sample, and some that all samples share."""
    label = torch.tensor([10 * image + step])
    return {"y": label, "added": {"text": value(image, step)[None], "ids": [label + 1]}, "mask": None, "scale": 0.5}


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_keyword_arguments_are_collected(batch_size, tmp_path):
    """And read again from the journal, where collecting goes on."""

    def trajectory(images):
        for step in range(4):
            found = [with_keywords(image, step) for image in images]
            y = torch.cat([f["y"] for f in found])
            text = torch.cat([f["added"]["text"] for f in found])
            keywords = {"y": y, "added": {"text": text.double(), "ids": (y + 1,)}, "mask": None, "scale": 0.5}
            NETWORK(torch.stack([value(i, step) for i in images]), **keywords)
            yield ToyStep(step)

    for _ in range(2):
        data = collect(NETWORK, trajectory, 4, 2, 3, batch_size, Journal(tmp_path, {}))
        assert data.keywords["y"].tolist() == [0, 10, 21, 2, 12, 23], "10 image + step"
        assert torch.equal(data.keywords["added"]["ids"][0], data.keywords["y"] + 1)
        assert torch.equal(data.keywords["added"]["text"], data.inputs[0])
        assert data.keywords["mask"] is None and data.keywords["scale"] == 0.5


X = torch.zeros(2, *SHAPE)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"scale": 1.0}, {"scale": 2.0}, r"called with .*2.0.* and with .*1.0"),
        ({"y": torch.zeros(2)}, {}, "must be the same in all calls"),
        ({}, {"y": torch.zeros(2)}, "must be the same in all calls"),
        ({"t": torch.tensor(3)}, {"t": torch.tensor(3)}, r"argument t has the shape \(\): expand it"),
        ({"ids": torch.zeros(3, 2)}, {"ids": torch.zeros(3, 2)}, r"argument ids has the shape \(3, 2\): expand it"),
        ({"dtype": torch.float32}, {"dtype": torch.float32}, "argument dtype is a dtype"),
    ],
)
def test_what_cannot_be_collected_is_named(first, second, message, tmp_path):
    def trajectory(images):
        for step, keywords in enumerate((first, second)):
            NETWORK(X, **keywords)
            yield ToyStep(step)

    with pytest.raises(ValueError, match=message):
        collect(NETWORK, trajectory, 2, 2, 2, 2, Journal(tmp_path, {}))
    assert not NETWORK._forward_pre_hooks


@pytest.mark.parametrize("keywords", [[{"scale": 1}, {"scale": 2}], [{"y": X[:1]}, {}], [{}, {"y": X[:1]}]])
def test_batches_of_images_with_other_arguments(keywords, tmp_path):
    def trajectory(images):
        NETWORK(X[:1], **keywords[images.start])
        yield ToyStep(0)

    with pytest.raises(ValueError, match="must be the same in all calls"):
        collect(NETWORK, trajectory, 1, 1, 2, 1, Journal(tmp_path, {}))


def test_the_class_of_an_adm_model_is_collected_saved_and_calibrated_with(tmp_path):
    """Its wrapper gives the UNet the class by keyword."""
    unet = UNetModel(4, 32, 4, 1, [1], channel_mult=[1], num_heads=1, num_classes=5).eval()
    wrapper = DiffusionWrapper(unet, "adm")
    labels = torch.tensor([4, 2, 0])

    def trajectory(images):
        for step in range(2):
            x = torch.randn(len(images), 4, 4, 4, generator=torch.Generator().manual_seed(10 * images.start + step))
            wrapper(x, torch.full((len(images),), 500 - step), c_crossattn=[labels[images.start : images.stop]])
            yield ToyStep(step)

    data = collect(unet, trajectory, 2, 2, 3, 2, Journal(tmp_path / "journal", {}))
    assert data.keywords["y"].tolist() == [4, 2, 0] * 2 and len(data.inputs) == 2
    data.save(tmp_path / "data")
    again = read_calibration_data(tmp_path / "data", 2, 3)
    assert again.digest() == data.digest()
    model = QuantModel(unet, QuantPolicy(QuantSpec(4, per_channel=True, range_search="minmax")), adapter_for(unet))
    settings = CalibrationSettings(2, Schedule(1, 1e-3), None)
    calibrate(model, again, settings, Journal(tmp_path / "job", {}), memory=10**9)
    assert len(list((tmp_path / "job").glob("weights-*"))) == len(model.blocks())
