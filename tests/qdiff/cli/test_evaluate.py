"""`python -m qdiff evaluate`: tables, results files, and bad input, which is one line and loses nothing."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qdiff.evaluation.record_file import read_evaluation
from qdiff.files.images import image_path, write_image
from tests.command_line import qdiff, refusal
from tests.qdiff.evaluation.networks import drawn_images
from tests.qdiff.evaluation.test_clip import write_clip

FEATURES = Path(__file__).parents[3] / "models" / "features" / "emoji32"
CLASSIFIER = ("--features", FEATURES / "classifier.safetensors")
REFERENCE = ("--reference", FEATURES / "reference.safetensors")
COUNT = 40
TEXT = {"seed": "1, image 0", "sampler": "DDIM(steps=4, eta=0.0), 4 network calls", "precision": "full"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("COLUMNS", "100")


def write(folder: Path, seed: int, bits: str, count: int = COUNT, size: int = 32) -> Path:
    """Write the folder of a run."""
    for i, pixels in enumerate(drawn_images(count, seed, size)):
        write_image(image_path(folder / "img", i), pixels, {**TEXT, "bits": bits, "prompt": "red apple"})
    (folder / "config.yaml").write_text("flags: {}\n")
    return folder


@pytest.fixture
def runs(tmp_path) -> Path:
    write(tmp_path / "fp", 0, "not quantized")
    write(tmp_path / "w4", 1, "W4A8, split")
    return tmp_path


def evaluated(*words) -> list[str]:
    ended = qdiff("evaluate", *words, "--device", "cpu")
    assert ended.status == 0, ended.err
    return ended.out.splitlines()


def test_a_table_and_a_results_file(runs):
    out = runs / "w4.json"
    lines = evaluated(runs / "w4", *CLASSIFIER, *REFERENCE, "--fp", runs / "fp", "-o", out)
    found = read_evaluation(out)
    titles = ["FD on emoji-classifier features (not FID), 40 images", "PSNR to FP [dB]", "distance to FP", "SSIM to FP"]
    values = [f"{found.values[key]:#.4g}" for key in ("frechet", "psnr", "mae", "ssim")]
    rows = {"": runs / "w4", "images": "40", "bits": "W4A8, split"} | dict(zip(titles, values))
    width = max(map(len, rows)) + 2
    assert lines[:7] == [f"{title:{width}}{cell}" for title, cell in rows.items()]
    assert [line.split(":")[0] for line in lines[7:]] == ["note", "note"] + ["left out"] * 5
    assert "w4/config.yaml' does not have the flags of a sampling script" in lines[8] and found.model is None
    assert found.sampling.bits == "W4A8, split" and found.reference.number == 338
    assert [n.role for n in found.networks] == ["features"] and "torch" in found.settings["versions"]


def test_what_full_precision_misses_stands_first(runs):
    evaluated(runs / "fp", *CLASSIFIER, *REFERENCE, "--published", "frechet=2.5", "-o", runs / "fp.json")
    lines = evaluated(runs / "w4", *CLASSIFIER, *REFERENCE, "--compare", runs / "fp.json")
    value = read_evaluation(runs / "fp.json").values["frechet"]
    assert lines[0].startswith(f"note: full precision misses its own published value by {value - 2.5:+.2f}: FD on")
    assert lines[1].split() == [str(runs / "fp"), str(runs / "w4")]
    assert lines[2].split() == ["images", "40", "40"] and lines[4].count("(published 2.5)") == 1


def test_clip_score_with_the_prompts_of_the_run(runs):
    folder = write_clip(runs / "clip")
    lines = evaluated(runs / "w4", "--clip", folder, "-o", runs / "own.json")
    assert lines[3].startswith("CLIP score  ")
    (runs / "prompts.txt").write_text("red apple\n")
    evaluated(runs / "w4" / "img", "--clip", folder, "--prompts", runs / "prompts.txt", "-o", runs / "given.json")
    own, given = (read_evaluation(runs / f"{name}.json") for name in ("own", "given"))
    assert own.values == given.values and own.networks[0].role == "clip"
    (runs / "prompts.txt").write_text("ap\nred\n")
    evaluated(runs / "w4", "--clip", folder, "--prompts", runs / "prompts.txt", "-o", runs / "other.json")
    assert read_evaluation(runs / "other.json").values != own.values


# Bad input


def emptied(images: Path) -> None:
    for path in images.iterdir():
        path.unlink()


def halved(images: Path) -> None:
    for path in sorted(images.iterdir())[20:]:
        path.unlink()


def mixed(images: Path) -> None:
    write_image(image_path(images, 5), drawn_images(1, 0, 16)[0])


def corrupted(images: Path) -> None:
    content = (images / "000000.png").read_bytes()
    middle = len(content) // 2
    (images / "000000.png").write_bytes(content[:middle] + bytes(9) + content[middle + 9 :])


def cut(images: Path) -> None:
    (images / "000000.png").write_bytes((images / "000000.png").read_bytes()[:-30])


def not_a_number(images: Path) -> Path:
    np.savez(images / "x.npz", arr_0=np.full((40, 32, 32, 3), np.nan))
    return images / "x.npz"


def text(images: Path) -> Path:
    (images / "x.npz").write_text("images")
    return images / "x.npz"


BAD_IMAGES = {
    emptied: "w4/img' has no PNG, JPEG or WebP images: give a folder of them, a run's folder or an .npz",
    halved: "it needs at least 33 images, '",
    mixed: "img' has images of 32 x 32 ('000000.png') and 16 x 16 ('000005.png') pixels: crop and resize them",
    corrupted: "000000.png' is damaged",
    cut: "000000.png' is incomplete",
    not_a_number: "'arr_0' is float64 of shape (40, 32, 32, 3): give images as uint8",
    text: "x.npz' is not an intact .npz archive",
    lambda images: images / "none": "none' does not exist",
}


@pytest.mark.parametrize("spoil", BAD_IMAGES)
def test_bad_images_are_one_line_and_lose_nothing(spoil, runs):
    out = runs / "results.json"
    out.write_text("earlier")
    images = spoil(runs / "w4" / "img") or runs / "w4"
    before = sorted(path for path in runs.rglob("*") if "cache" not in path.parts)
    words = (images, *CLASSIFIER, *REFERENCE, "--metrics", "fid", "-o", out, "--force", "--device", "cpu")
    assert BAD_IMAGES[spoil] in refusal("evaluate", *words)
    assert out.read_text() == "earlier"
    assert sorted(path for path in runs.rglob("*") if "cache" not in path.parts) == before


def bad_reference(runs: Path, kind: str) -> Path:
    path = runs / "r.npz"
    match kind:
        case "another resolution":
            return write(runs / "r", 2, "not quantized", size=16)
        case "another network":
            np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
        case "version 1":
            from safetensors.torch import save_file

            save_file({"mu": torch.zeros(32), "sigma": torch.eye(32), "n": torch.tensor(9)}, path)
        case "missing":
            return runs / "none"
        case "a PNG":
            return runs / "fp" / "img" / "000000.png"
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("another resolution", "has images of 32 x 32, '"),
        ("another network", "r.npz' does not say of which feature network its statistics are"),
        ("version 1", "r.npz' has version 1 of feature statistics, not 2: compute it again"),
        ("missing", "none' does not exist: give --reference"),
        ("a PNG", "000000.png' cannot be read as safetensors"),
    ],
)
def test_bad_references_are_one_line(kind, said, runs):
    words = ("--reference", bad_reference(runs, kind), "--metrics", "fid", "--device", "cpu")
    assert said in refusal("evaluate", runs / "w4", *CLASSIFIER, *words)


def test_results_of_another_version_or_protocol_are_one_line(runs):
    out, other = runs / "fp.json", runs / "w4.json"
    evaluated(runs / "fp", *CLASSIFIER, *REFERENCE, "-o", out)
    content = json.loads(out.read_text())
    fewer = write(runs / "few", 3, "W4", 36)
    words = ("evaluate", fewer, *CLASSIFIER, *REFERENCE, "--compare", out, "--device", "cpu")
    assert "was evaluated with another number of images (40, now 36)" in refusal(*words, "-o", other)
    assert read_evaluation(other).images.number == 36, "what was computed is kept"
    content["reference"]["sha256"] = "f" * 64
    out.write_text(json.dumps(content))
    words = ("evaluate", runs / "w4", *CLASSIFIER, *REFERENCE, "--compare", out, "--device", "cpu")
    assert "was evaluated with another reference (ffffffff, now" in refusal(*words)
    content["version"] = 7
    out.write_text(json.dumps(content))
    assert "fp.json' has version 7, this program reads 1 and 2" in refusal(*words)


def test_flags_that_are_refused(runs):
    (runs / "there.json").touch()
    os.mkfifo(runs / "pipe.json")
    for words, said in {
        ("-o", runs / "pipe.json", "--force"): "pipe.json' is not a file: choose another --out",
        ("-o", runs / ("x" * 300)): "(File name too long): give another folder with --out",
        ("--metrics", ""): "--metrics: '' names no metric",
        ("-o", runs / "there.json"): "there.json' exists: choose another --out, or add --force",
        ("--force",): "--force needs --out",
        ("--inception", "a", "--features", "b"): "--inception exclude each other",
        ("--prompts", "a"): "--prompts needs --clip",
        ("--metrics", "fdi"): "'fdi' is unknown: did you mean fid?",
        ("--published", "fid"): "'fid' is not NAME=VALUE",
        ("--published", "fid=nan"): "'fid=nan' is not NAME=VALUE",
        ("--batch_size", "0"): "'0' is not a whole number in 1..",
        ("--device", "gpu"): "'gpu' is not a device",
        ("--features", runs / "none"): "cannot read",
        (): "nothing to compare the images with",
    }.items():
        both = ("--reference", runs / "fp", "--metrics", "fid") if "none" in str(words) else ()
        assert said in refusal("evaluate", runs / "w4", *words, *both), words


def test_a_name_that_is_too_long_is_one_line(runs):
    assert "(File name too long)" in refusal("evaluate", "x" * 300, "--fp", runs / "fp", "--device", "cpu")


def test_jpegs_are_read_and_the_results_say_so(runs):
    for path in (runs / "fp" / "img").iterdir():
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    out = runs / "r.json"
    lines = evaluated(
        runs / "w4", *CLASSIFIER, "--reference", runs / "fp" / "img", "--fp", runs / "fp" / "img", "-o", out
    )
    found = read_evaluation(out)
    assert (found.images.files, found.reference.files, found.full_precision.files) == ("PNG", "JPEG", "JPEG")
    said = [line for line in lines if "was read from JPEG, which may lose detail" in line]
    assert len(said) == 1 and str(runs / "fp" / "img") in said[0]
    again = evaluated(runs / "w4", *CLASSIFIER, "--reference", runs / "fp" / "img", "--metrics", "fid")
    assert sum("was read from JPEG" in line for line in again) == 1, "cached statistics know it too"


def test_an_out_that_is_a_folder_is_one_line(runs):
    words = ("evaluate", runs / "w4", "--fp", runs / "fp", "-o", runs / "fp", "--force", "--device", "cpu")
    assert "fp' is a folder: give --out the name of a file" in refusal(*words)


def test_values_that_cannot_be_written_are_shown(runs):
    words = ("--fp", runs / "fp", "-o", runs / "fp" / "config.yaml" / "r.json", "--device", "cpu")
    ended = qdiff("evaluate", runs / "w4", *words)
    assert ended.status == 2 and ended.err.startswith("error: cannot use '") and ended.err.count("\n") == 1
    assert "PSNR to FP" in ended.out
