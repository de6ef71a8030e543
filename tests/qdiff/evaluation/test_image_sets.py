"""Folders, arrays and streams give the same images, and say what they know."""

from pathlib import Path

import pytest
import torch

from qdiff.errors import UserError
from qdiff.evaluation.image_sets import Stream, WithPrompts, open_images
from qdiff.evaluation.record import SamplingRecord
from qdiff.evaluation.recorder import Recorder
from qdiff.evaluation.run_protocol import sampling_record
from qdiff.files.arrays import write_array
from qdiff.files.images import image_path, to_pillow, write_image
from tests.qdiff.evaluation.networks import drawn_images

IMAGES = drawn_images(7, 0)
TEXT = {
    "seed": "41, image 5",
    "sampler": "DDIM(steps=20, skip_type=quad, eta=0.5), 20 network calls, scale 7.5",
    "bits": "W4A8, split",
    "precision": "full",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    for i, pixels in enumerate(IMAGES):
        write_image(image_path(tmp_path / "img", i), pixels, TEXT | {"prompt": f"image {i}"})
    return tmp_path / "img"


def refusal(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_array_and_stream_are_one_set(folder, tmp_path):
    array = write_array(sorted(folder.iterdir()), tmp_path)
    sets = [open_images(folder), open_images(array), Stream([IMAGES]), Stream(iter(IMAGES.split([1, 3, 3])))]
    for size in (1, 3, 7, 64):
        records = []
        for images in sets[:3]:
            recorder = Recorder(images)
            batches = list(recorder.batches(size))
            assert torch.equal(torch.cat(batches), IMAGES)
            assert all(len(batch) == size for batch in batches[:-1]) and 0 < len(batches[-1]) <= size
            records.append(recorder.record)
        assert len({record.sha256 for record in records}) == 1
        assert {(record.number, record.shape) for record in records} == {(7, (3, 8, 8))}
    assert [len(batch) for batch in sets[3].batches(3)] == [3, 3, 1]
    assert [images.count for images in sets] == [7, 7, None, None]


def test_the_digest_is_of_the_pixels_in_order_and_of_their_shape():
    def digest(images: torch.Tensor) -> str:
        recorder = Recorder(Stream([images]))
        list(recorder.batches(2))
        return recorder.record.sha256

    assert len({digest(x) for x in (IMAGES, IMAGES.flip(0), IMAGES[:6], IMAGES.view(7, 3, 4, 16))}) == 4


def test_a_folder_of_pngs_does_not_know_its_protocol(folder):
    images = open_images(folder)
    assert (images.rounding, images.sampling) == (None, None)
    assert images.prompts == [f"image {i}" for i in range(7)]


@pytest.mark.parametrize(("uniform", "rounding"), [("false", "nearest"), ("true", "down")])
def test_a_run_knows_its_protocol(uniform, rounding, folder, tmp_path):
    config = f"config: {{data: {{uniform_dequantization: {uniform}}}}}\nsha256: {{weights: abc}}\n"
    (tmp_path / "config.yaml").write_text(config)
    images = open_images(tmp_path)
    assert images.source == str(tmp_path) and images.count == 7 and images.rounding == rounding
    sampler = "DDIM(steps=20, skip_type=quad, eta=0.5)"
    assert images.sampling == SamplingRecord(sampler, 20, 20, 0.5, 7.5, 41, "W4A8, split", "full", "abc")


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        ("[cat, dog, eel]", ["cat", "dog"] * 3 + ["cat"]),
        ("[cat, dog]", ["cat", "dog"] * 3 + ["cat"]),
        ("[cat]", None),
        ("[]", None),
        ("3", None),
        ("{0: cat, 1: dog}", None),
        ("null", None),
    ],
)
def test_a_run_names_the_classes_of_its_images(classes, labels, tmp_path):
    for i, pixels in enumerate(IMAGES):
        write_image(image_path(tmp_path / "img", i), pixels, TEXT | {"class": str(i % 2)})
    assert open_images(tmp_path / "img").labels is None, "a folder of PNGs alone does not name them"
    (tmp_path / "config.yaml").write_text(f"config: {{classes: {classes}}}\n")
    images = open_images(tmp_path)
    assert images.labels == labels == WithPrompts(images, ["red"]).labels


def test_images_without_classes_have_no_labels(folder, tmp_path):
    (tmp_path / "config.yaml").write_text("config: {classes: [cat, dog]}\n")
    assert open_images(tmp_path).labels is None
    assert Stream([IMAGES]).labels is None


@pytest.mark.parametrize("config", ["- 1", "{", "sha256: 3\nconfig: []"])
def test_a_strange_configuration_is_no_crash(config, folder, tmp_path):
    (tmp_path / "config.yaml").write_text(config)
    if config.startswith("sha256"):
        assert open_images(tmp_path).sampling.weights is None
    else:
        assert "config.yaml' is not the configuration of a run" in refusal(lambda: open_images(tmp_path))


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("PLMS(steps=50), 51 network calls, scale 7.5", ("PLMS(steps=50)", 50, 51, None, 7.5)),
        ("DDPM(), 1000 network calls", ("DDPM()", None, 1000, None, None)),
    ],
)
def test_other_samplers(sampler, expected):
    found = sampling_record(TEXT | {"sampler": sampler})
    assert (found.sampler, found.steps, found.nfe, found.eta, found.scale) == expected


def test_text_of_other_programs_says_nothing():
    assert sampling_record({}) is None
    assert sampling_record({"sampler": "Euler a", "seed": "1", "bits": "", "precision": ""}) is None


def test_prompts_that_are_given(folder):
    images = WithPrompts(open_images(folder), ["red", "blue"])
    assert images.prompts == ["red", "blue"] and images.count == 7
    assert torch.equal(next(images.batches(7)), IMAGES)


def test_bad_folders(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty' has no PNG, JPEG or WebP images" in refusal(lambda: open_images(tmp_path / "empty"))
    assert "none' does not exist" in refusal(lambda: open_images(tmp_path / "none"))
    write_image(folder / "000009.png", torch.zeros(3, 8, 9, dtype=torch.uint8))
    sizes = "img' has images of 8 x 8 ('000000.png') and 9 x 8 ('000009.png') pixels: crop and resize them"
    assert sizes in refusal(lambda: open_images(folder))
    (folder / "000009.png").write_bytes((folder / "000001.png").read_bytes()[:-20])
    assert "000009.png' is incomplete" in refusal(lambda: open_images(folder))
    (folder / "000009.png").write_bytes(b"GIF89a")
    assert "000009.png' is not a PNG" in refusal(lambda: open_images(folder))


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([IMAGES / 255], "batches must be uint8 of shape (B, 1 or 3, H, W), not torch.float32"),
        ([IMAGES[0]], "not torch.uint8 of (3, 8, 8)"),
        ([IMAGES.numpy()], "not ndarray"),
        ([IMAGES, IMAGES[..., :5]], "a batch has images of (3, 8, 5) after others of (3, 8, 8)"),
        ([], "has no images"),
        ([IMAGES[:0]], "has no images"),
    ],
)
def test_bad_streams(batches, said):
    assert said in refusal(lambda: list(Recorder(Stream(batches)).batches(64)))


def test_a_stream_is_read_as_it_is_used():
    read = []

    def lazily():
        for i in range(5):
            read.append(i)
            yield IMAGES[:2]

    next(Stream(lazily()).batches(4))
    assert read == [0, 1]


def test_folders_of_other_formats(tmp_path):
    for i, pixels in enumerate(IMAGES):
        image = to_pillow(pixels)
        image.save(tmp_path / (f"{i}.jpg" if i % 2 else f"{i}.png"))
    images = open_images(tmp_path)
    (read,) = images.batches(7)
    assert torch.equal(read[::2], IMAGES[::2]) and not torch.equal(read[1::2], IMAGES[1::2])
    recorder = Recorder(images)
    list(recorder.batches(7))
    assert (images.files, recorder.record.files, images.prompts) == ("JPEG, PNG", "JPEG, PNG", None)
