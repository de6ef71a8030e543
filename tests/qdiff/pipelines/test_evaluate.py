"""`qdiff.evaluate`: files, memory and pipelines give the same values; what cannot be computed is said."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import qdiff
from qdiff.errors import UserError
from qdiff.evaluation.metrics import frechet_distance, mean_absolute_error, psnr, statistics
from qdiff.files.images import image_path, write_image
from qdiff.pipelines.eps_error import with_eps
from qdiff.pipelines.pipeline import Pipeline
from tests.qdiff.evaluation.networks import MeanColours, drawn_images
from tests.tiny import sample_script, write_tiny

IMAGES, OTHERS = drawn_images(12, 0, size=12), drawn_images(12, 1, size=12)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def written(folder: Path, images: torch.Tensor) -> Path:
    for i, pixels in enumerate(images):
        write_image(image_path(folder, i), pixels)
    return folder


def archive(path: Path, images: torch.Tensor) -> Path:
    np.savez(path, arr_0=images.permute(0, 2, 3, 1).numpy())
    return path


def refusal(kind: type[Exception], images, **arguments) -> str:
    with pytest.raises(kind) as caught:
        qdiff.evaluate(images, device="cpu", **arguments)
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


def test_values_of_images(tmp_path):
    reference = written(tmp_path / "b", OTHERS)
    found = qdiff.evaluate(IMAGES, reference=reference, full_precision=OTHERS, network=MeanColours(), few=True)
    x, y = (images.double().mean((2, 3)) for images in (IMAGES, OTHERS))
    values = found.values
    assert values["frechet"] == pytest.approx(frechet_distance(statistics(x), statistics(y)))
    assert values["psnr"] == pytest.approx(psnr(IMAGES, OTHERS).mean().item())
    assert values["mae"] == pytest.approx(mean_absolute_error(IMAGES, OTHERS).mean().item())
    assert set(values) == {
        *("frechet", "frechet_spatial", "class_score", "class_score_std", "kernel_distance", "kernel_distance_std"),
        *("plain_precision", "plain_recall", "psnr", "mae", "ssim"),
    }
    assert list(found.left_out) == ["lpips"] and "--lpips" in found.left_out["lpips"]
    assert found.reference.number == found.images.number == 12 and found.full_precision.sha256 == found.reference.sha256


def test_files_memory_and_streams_give_the_same(tmp_path):
    same = {"reference": archive(tmp_path / "r.npz", OTHERS), "few": True}
    values, digests = [], set()
    for images, fp in (
        (IMAGES, OTHERS),
        (written(tmp_path / "a", IMAGES), written(tmp_path / "b", OTHERS)),
        (archive(tmp_path / "a.npz", IMAGES), OTHERS),
        (iter(IMAGES.split(5)), iter(OTHERS.split([1, 11]))),
    ):
        found = qdiff.evaluate(images, full_precision=fp, network=MeanColours(), batch_size=5, **same)
        values.append(found.values)
        digests.add(found.images.sha256)
    assert values[1:] == values[:1] * 3, "in equal batches, to the last bit"
    assert len(digests) == 1


def test_a_set_with_itself(tmp_path):
    reference = archive(tmp_path / "r.npz", IMAGES)
    found = qdiff.evaluate(IMAGES, reference=reference, full_precision=IMAGES, network=MeanColours(), few=True)
    assert found.values["frechet"] == pytest.approx(0, abs=1e-6)
    assert found.values["psnr"] == math.inf and found.values["mae"] == 0 and found.values["ssim"] == pytest.approx(1)
    assert found.values["plain_precision"] == found.values["plain_recall"] == 1


# Names


def test_too_few_images_are_not_called_fid(tmp_path):
    reference = archive(tmp_path / "r.npz", OTHERS)
    network = MeanColours(standard=True)
    few = qdiff.evaluate(IMAGES[:3], reference=reference, metrics=["fid"], network=network, few=True).rows[0]
    assert (few.metric, few.name) == ("frechet", "FD on mean-colours features (not FID), 3 images")
    enough = qdiff.evaluate(IMAGES, reference=reference, metrics=["fid"], network=network).rows[0]
    assert (enough.metric, enough.name) == ("fid", "FID, 12 images")
    other = qdiff.evaluate(IMAGES, reference=reference, metrics=["fid"], network=MeanColours())
    assert other.rows[0].metric == "frechet" and "not of FID's Inception" in " ".join(other.notes)


def test_a_reference_of_few_images_is_not_called_fid_either(tmp_path):
    network, reference = MeanColours(standard=True), archive(tmp_path / "r.npz", OTHERS[:3])
    found = qdiff.evaluate(IMAGES, reference=reference, metrics=["fid"], network=network, few=True)
    assert found.rows[0].name == "FD on mean-colours features (not FID), 3 images"
    said = refusal(UserError, IMAGES, reference=reference, metrics=["fid"], network=network)
    assert "it needs at least 4 images" in said and "r.npz' has 3" in said and "--few" in said


def test_published_values_come_first(tmp_path):
    found = qdiff.evaluate(IMAGES, full_precision=OTHERS, published={"psnr": 50.0, "fid": 4.2})
    value = found.values["psnr"]
    assert found.notes[0] == (
        f"'images' misses its own published value by {value - 50:+.2f}: PSNR to FP {value:.2f} for a published 50.00"
    )
    assert found.notes[1] == "there is a published value for fid, but none here"
    met = qdiff.evaluate(IMAGES, full_precision=OTHERS, published={"psnr": value})
    assert "meets its published value" in met.notes[0]


# What cannot be computed


def test_what_is_not_asked_for_is_left_out_with_a_reason(tmp_path):
    reference = archive(tmp_path / "r.npz", OTHERS)
    found = qdiff.evaluate(IMAGES, reference=reference, network=MeanColours())
    assert list(found.values) == ["frechet", "frechet_spatial"]
    assert found.left_out["is"] == "it needs at least 20 images, 'images' has 12"
    assert set(found.left_out) == {"is", "kid", "prc"}
    small = qdiff.evaluate(IMAGES[..., :8], full_precision=OTHERS[..., :8])
    assert list(small.values) == ["psnr", "mae"] and "at least 11 x 11 pixels" in small.left_out["ssim"]


def test_a_stream_that_turns_out_too_short_keeps_what_can_be_computed(tmp_path):
    reference = archive(tmp_path / "r.npz", OTHERS)
    asked = {"metrics": ["fid", "is"], "network": MeanColours()}
    found = qdiff.evaluate(iter(IMAGES.split(4)), reference=reference, **asked)
    assert list(found.values) == ["frechet"] and found.left_out["is"].endswith("there were 12")
    assert "--metrics is: it needs at least 20 images" in refusal(UserError, IMAGES, reference=reference, **asked)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "nothing to compare the images with: give --reference, --fp"),
        ({"metrics": ["fid"]}, "--metrics fid cannot be computed: give the reference's images"),
        ({"metrics": ["psrn"]}, "--metrics: 'psrn' is unknown: did you mean psnr?"),
        ({"metrics": ["psnr"]}, "--metrics psnr cannot be computed: give the full-precision images"),
        ({"metrics": ["eps"]}, "--metrics eps needs the folders of two runs, or from Python two pipelines"),
        ({"metrics": ["clip"]}, "--metrics clip cannot be computed: give a CLIP model"),
        ({"metrics": ["recognised"]}, "--metrics recognised cannot be computed: it needs images of a run with classes"),
        ({"clip": "x"}, "the images do not say their prompts: give them with --prompts FILE"),
        ({"full_precision": OTHERS, "metrics": ["lpips"]}, "get torchvision's https://"),
        ({"full_precision": OTHERS[:3]}, "'images' and 'full_precision' have 12 and 3 images"),
        ({"full_precision": iter([OTHERS[:3]])}, "more or fewer images in full precision"),
        ({"full_precision": iter([OTHERS, OTHERS])}, "more or fewer images in full precision"),
        ({"full_precision": OTHERS[..., :8]}, "'images' has images of 12 x 12, 'full_precision' of 8 x 12 pixels"),
    ],
)
def test_requests_that_are_refused(arguments, said):
    assert said in refusal(UserError, IMAGES, network=MeanColours(), **arguments)


@pytest.mark.parametrize(
    ("kind", "images", "arguments", "said"),
    [
        (TypeError, 3, {}, "images must be a path, a pipeline, a tensor or batches of images, not int"),
        (ValueError, IMAGES, {"inception": "a", "features": "b"}, "exclude each other"),
        (ValueError, IMAGES, {"metrics": [], "full_precision": OTHERS}, "metrics is empty: name some"),
        (ValueError, IMAGES, {"batch_size": 0}, "batch_size must be at least 1"),
        (UserError, IMAGES / 255, {"full_precision": OTHERS}, "batches must be uint8"),
    ],
)
def test_arguments_that_are_refused(kind, images, arguments, said):
    assert said in refusal(kind, images, **arguments)


@pytest.mark.parametrize("package", ["torch_fidelity", "torchmetrics"])
def test_a_missing_package_is_one_line(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"needs {package}: pip install" in refusal(UserError, IMAGES, full_precision=OTHERS)


def test_another_resolution_is_refused(tmp_path):
    reference = archive(tmp_path / "r.npz", OTHERS[..., :8])
    said = refusal(UserError, IMAGES, reference=reference, network=MeanColours())
    assert "'images' has images of 12 x 12" in said and "r.npz' of 8 x 12 pixels: compare images of one size" in said


def test_of_statistics_the_resolution_is_told(tmp_path):
    np.savez(tmp_path / "r.npz", mu=np.zeros(3), sigma=np.eye(3))
    arguments = {"metrics": ["fid"], "network": MeanColours(standard=True)}
    found = qdiff.evaluate(IMAGES, reference=tmp_path / "r.npz", **arguments)
    assert any("does not state number, resolution and rounding" in note for note in found.notes)
    np.savez(tmp_path / "r.npz", mu=np.zeros(3), sigma=np.eye(3), arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    found = qdiff.evaluate(IMAGES, reference=tmp_path / "r.npz", **arguments)
    assert any("summarises images of 8 x 8 pixels, these have 12 x 12" in note for note in found.notes)


def test_folders_with_other_names_are_no_pair(tmp_path):
    a, b = written(tmp_path / "a", IMAGES[:2]), written(tmp_path / "b", OTHERS[:2])
    (b / "000001.png").rename(b / "000002.png")
    assert "a/000001.png' has no counterpart in" in refusal(UserError, a, full_precision=b)


# Pipelines and their runs


@pytest.fixture(scope="module")
def pixel(tmp_path_factory) -> Pipeline:
    return qdiff.load_pipeline(write_tiny(tmp_path_factory.mktemp("pixel")), steps=4, device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def quantized(pixel) -> Pipeline:
    settings = {"iterations": 2, "timesteps": 2, "samples": 2, "batch_size": 4, "memory_bytes": 2**28}
    return qdiff.quantize(pixel, weight_bits=4, method="linear", **settings)


def test_batches_of_a_pipeline_are_its_images(pixel):
    batches = list(pixel.batches(5))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), pixel.sample(5).tensor)
    with pytest.raises(ValueError, match="count must be at least 1"):
        pixel.batches(0)


def test_pipelines_are_compared_while_they_sample(pixel, quantized):
    found = qdiff.evaluate(quantized, full_precision=pixel, count=5)
    images, fp = quantized.sample(5).tensor, pixel.sample(5).tensor
    assert found.values["psnr"] == pytest.approx(psnr(images, fp).mean().item())
    assert 0 < found.values["eps"] < 1 and found.rows[-1].name == "relative squared error of eps, 5 images"
    sampling = found.sampling
    assert (sampling.sampler, sampling.steps, sampling.nfe) == ("DDIM(steps=4, skip_type=uniform, eta=0.0)", 4, 4)
    assert (sampling.eta, sampling.scale, sampling.seed, sampling.bits) == (0.0, None, 0, "W4")
    assert found.images.rounding == "nearest"
    assert found.model.bops == quantized.bops().bops == 4 * found.model.step_bops and found.model.file_bytes is None
    assert found.model.parameters == sum(x.numel() for x in pixel.network.parameters())
    of_fp = qdiff.evaluate(pixel, full_precision=pixel, count=2, metrics=["mae"]).model
    assert (of_fp.bops, of_fp.file_bytes) == (pixel.bops().bops, 4 * of_fp.parameters)
    only = qdiff.evaluate(quantized, full_precision=pixel, count=2, metrics=["eps"])
    assert list(only.values) == ["eps"]
    with pytest.raises(ValueError, match="images is a pipeline: give count"):
        qdiff.evaluate(pixel, full_precision=pixel)


@pytest.mark.parametrize("names", [("dark", "bright"), ("dark", "light"), ()])
def test_classes_are_recognised_where_the_network_knows_them(names, tmp_path):
    """Image 0 is bright, the others are dark; that is what their classes say of all but the second."""
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[0] = 255
    for i, label in enumerate([1, 1, 0, 0]):
        write_image(image_path(tmp_path / "img", i), images[i], {"class": str(label)})
    (tmp_path / "config.yaml").write_text("config: {classes: [dark, bright]}\n")
    network, reference = MeanColours(categories=names), archive(tmp_path / "r.npz", OTHERS[..., :8, :8])
    found = qdiff.evaluate(tmp_path, reference=reference, network=network, batch_size=2)
    assert found.values.get("recognised") == (0.75 if "bright" in names else None)
    assert "recognised" not in found.left_out, "most images have no class"
    if "bright" in names:
        only = qdiff.evaluate(tmp_path, network=network, metrics=["recognised"])
        assert only.values == {"recognised": 0.75} and only.networks[0].name == "mean-colours"
    else:
        assert "a feature network with categories" in refusal(
            UserError, tmp_path, network=network, metrics=["recognised"]
        )


def test_sampled_images_carry_how_they_were_sampled(pixel, quantized):
    found = qdiff.evaluate(quantized.sample(3), full_precision=pixel.sample(3))
    assert found.notes == () and (found.sampling.bits, found.sampling.seed, found.sampling.nfe) == ("W4", 0, 4)
    assert "seeds 0 and 1" in refusal(UserError, quantized.sample(3), full_precision=pixel.sample(3, seed=1))


def test_an_error_of_eps_that_is_no_number_is_left_out(pixel):
    class Undefined(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x * torch.nan

    found = qdiff.evaluate(pixel, full_precision=pixel, count=2, metrics=["mae"])
    assert with_eps(found, pixel, pixel).values["eps"] == 0
    undefined = with_eps(found, pixel.with_network(Undefined()), pixel)
    assert "eps" not in undefined.values and undefined.left_out["eps"] == "its value is not a number"


def test_eps_of_models_of_other_shapes_is_refused(pixel):
    found = qdiff.evaluate(pixel, full_precision=pixel, count=2, metrics=["mae"])
    other = SimpleNamespace(latent_shape=(3, 16, 16))
    with pytest.raises(
        UserError, match=r"x_t has the shapes \(3, 16, 16\) and \(3, 8, 8\): compare a model with itself"
    ):
        with_eps(found, other, pixel)


def test_the_folder_of_a_run_is_its_pipeline(pixel, tmp_path):
    words = f"--config {pixel.source} --timesteps 4 --max_images 4 --batch_size 2 --seed 7 -l {tmp_path / 'run'}"
    assert sample_script(*words.split()).status == 0
    fp = pixel.with_sampling(seed=7)
    of_files = qdiff.evaluate(tmp_path / "run", full_precision=fp, count=4, device="cpu")
    assert of_files.values["psnr"] == math.inf
    streamed = qdiff.evaluate(fp, full_precision=fp, count=4, metrics=["psnr"])
    assert streamed.images.sha256 == of_files.images.sha256
    own, other = of_files.sampling, streamed.sampling
    assert (own.sampler, own.seed, own.bits) == (other.sampler, other.seed, other.bits)
    assert of_files.is_full_precision and len(own.weights) == 64
    said = refusal(UserError, tmp_path / "run", full_precision=pixel, count=4)
    assert "were sampled from the seeds 7 and 0" in said
    steps = qdiff.evaluate(tmp_path / "run", full_precision=fp.with_sampling(steps=5), count=4, device="cpu")
    assert "the full-precision images were sampled with DDIM(steps=5" in steps.notes[-1]
