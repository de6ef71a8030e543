"""The spectrum of a pipeline: measured on its calibration images, once for a folder."""

import pytest
import torch

import qdiff
from qdiff.calibration.sensitivity import measured_calls, perturbed_calls
from qdiff.errors import UserError
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.spectrum import spectrum_of
from tests.ldm.tiny import CLASSES, write_latent
from tests.tiny import write_tiny

SAMPLERS = {
    "ddim": ("pixel", {"steps": 4}),
    "noisy ddim": ("pixel", {"steps": 4, "eta": 1.0}),
    "ddpm": ("pixel", {"sampler": "ddpm", "steps": 4}),
    "dpm": ("pixel", {"sampler": "dpm", "steps": 5}),
    "latent": ("latent", {"steps": 4, "classes": [2, 5], "scale": 3.0}),
    "plms": ("latent", {"sampler": "plms", "steps": 4, "classes": [2, 5]}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Pipeline]:
    folder = tmp_path_factory.mktemp("latent")
    write_latent(CLASSES, folder)
    pixel = write_tiny(tmp_path_factory.mktemp("pixel"))
    return {"pixel": qdiff.load_pipeline(pixel, device="cpu"), "latent": qdiff.load_pipeline(folder, device="cpu")}


def pipeline(models: dict[str, Pipeline], name: str) -> Pipeline:
    model, changes = SAMPLERS[name]
    return models[model].with_sampling(**changes)


class Counted:
    """Counts the samples of a network's calls, those that guidance adds left out."""

    def __init__(self, pipe: Pipeline):
        self.samples, copies = 0.0, pipe.cfg_copies
        self.handle = pipe.network.register_forward_pre_hook(lambda module, args: self.add(len(args[0]) / copies))

    def add(self, samples: float) -> None:
        self.samples += samples

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *exc) -> None:
        self.handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("name", SAMPLERS)
def test_known_predictions_give_the_same_images_without_the_network(name, models):
    pipe = pipeline(models, name)
    steps = list(pipe.calibration_steps([0, 1]))
    assert len(steps) == pipe.nfe == len(pipe.timesteps) and [step.t for step in steps] == pipe.timesteps
    for count in (pipe.nfe, pipe.nfe - 1):
        with Counted(pipe) as counted:
            again = list(pipe.calibration_steps([0, 1], known=[step.eps for step in steps[:count]]))
        assert counted.samples == 2 * (pipe.nfe - count)
        torch.testing.assert_close(again[-1].x_prev, steps[-1].x_prev)


@torch.no_grad()
@pytest.mark.parametrize("name", ["noisy ddim", "dpm", "latent"])
def test_equal_indices_give_equal_images(name, models):
    pipe = pipeline(models, name)
    *_, last = pipe.calibration_steps([1, 0, 1])
    torch.testing.assert_close(last.x_prev[0], last.x_prev[2])
    assert not torch.allclose(last.x_prev[0], last.x_prev[1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["noisy ddim", "latent"])
def test_a_spectrum_is_measured_once(name, models, tmp_path):
    pipe = pipeline(models, name)
    with Counted(pipe) as counted:
        found = spectrum_of(pipe, 2, tmp_path, "digest", progress=False)
    assert counted.samples == 2 * perturbed_calls(pipe.nfe)
    assert set(found.timesteps) == {pipe.timesteps[i] for i in measured_calls(pipe.nfe)}
    assert all(s > 0 for s in (*found.pixel, *found.grid, *found.whole))
    with Counted(pipe) as counted:
        assert spectrum_of(pipe, 2, tmp_path, "digest", progress=False) == found
    assert counted.samples == 0
    again = spectrum_of(pipe, 2, tmp_path / "other", "digest", progress=False)
    assert again == found, "the errors are drawn by the seed"


@torch.no_grad()
def test_the_folder_of_another_spectrum_is_refused(models, tmp_path):
    pipe = pipeline(models, "ddim").with_sampling(steps=2)
    spectrum_of(pipe, 1, tmp_path, "digest", progress=False)
    others = {
        "images": (pipe, 2, "digest"),
        "weights": (pipe, 1, "other"),
        "sampler": (pipe.with_sampling(steps=3), 1, "digest"),
    }
    for what, (other, images, weights) in others.items():
        with pytest.raises(UserError, match=f"holds results for other {what} "):
            spectrum_of(other, images, tmp_path, weights, progress=False)
