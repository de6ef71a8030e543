#!/usr/bin/env python
"""Compare calibrations of the bundled models: methods, iterations and bits, over several seeds.

    python benchmarks/calibration.py --models pixel latent text --methods linear "qdiff 60" gptq

A seed draws the calibration data; the images and trajectories that are measured have seeds of their own. Columns, mean
and spread (largest less smallest) over the seeds:

    dB        PSNR of images to those in full precision from the same noise
    eps       |eps_q - eps|^2 / |eps|^2 on full-precision trajectories, averaged over their steps
    weighted  the same, where errors count by what they do to the image (see qdiff/spectrum.py)
    s, MiB    wall-clock time of calibration, data included, and the memory that it adds to the process at the peak
"""

import argparse
import multiprocessing
import re
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import qdiff
from qdiff.evaluation.metrics import psnr
from qdiff.files.grid import grid_of
from qdiff.files.images import write_image
from qdiff.files.prompts import read_prompts
from qdiff.functional import relative_squared_error
from qdiff.pipelines.methods import uniform_policy
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.spectrum import spectrum_of
from qdiff.spectrum import Spectrum, squares

TEXT = Path("models/ldm/emoji64-txt2img")
GUIDED: dict[str, Any] = {"steps": 30, "eta": 1.0, "scale": 3.0}
MODELS: dict[str, tuple[str | Path, dict[str, Any]]] = {
    "pixel": ("configs/emoji32.yml", {"steps": 30, "skip_type": "quad", "eta": 0.5}),
    "pixel-eta0": ("configs/emoji32.yml", {"steps": 25, "skip_type": "quad", "eta": 0.0}),
    "latent": ("models/ldm/emoji64", {**GUIDED, "classes": tuple(range(9))}),
    "text": (TEXT, GUIDED),
}
HELD_OUT = 77  # seed of the images
SHOWN = 12  # images of a row of --pictures
COLUMNS = ("dB", "eps", "weighted", "s", "MiB")


def bits_of(name: str) -> tuple[int, int]:
    """Return the bits of weights and activations, such as (4, 8) for "W4A8"."""
    width, act = map(int, re.fullmatch(r"W(\d)A(\d+)", name).groups())
    return width, act


def settings_of(method: str) -> dict[str, Any]:
    """Return arguments of `quantize` for a method in words: its name, iterations, and options such as `ends`.

    `early8` stands for `early_8_bits`.
    """
    name, *words = method.split()
    found: dict[str, Any] = {"method": name, "split": name != "linear"}
    for word in words:
        if word.isdecimal():
            found |= {"iterations": int(word), "act_iterations": max(1, int(word) // 6), "batch_size": 8}
        elif match := re.fullmatch(r"(groups|spectrum)=(\d+)", word):
            found["act_groups" if match[1] == "groups" else "spectrum_images"] = int(match[2])
        elif match := re.fullmatch(r"lr=([\d.e-]+)", word):
            found["lr"] = float(match[1])
        elif word == "bias":
            found["correct_bias"] = True
        elif word == "early8":
            found["early8"] = True
        elif set(word.split(",")) <= {"ends", "time"}:
            found["keep8"] = word.split(",")
        else:
            raise SystemExit(f"'{word}' in method '{method}' is unknown")
    return found


def early_8_bits(pipe: Pipeline, settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings that give activations 8 bits in the first, noisiest quarter of the steps."""
    names = ("weight_bits", "act_bits", "split", "act_groups")
    weight_bits, act_bits, split, groups = (settings.pop(name, 1) for name in names)
    policy = uniform_policy(settings["method"], weight_bits, act_bits, split=split).grouped(pipe.timesteps, groups)
    visited = sorted(set(pipe.timesteps))
    early = int(visited[-(len(visited) // 4)])
    later = tuple(phase for phase in policy.act_phases if phase[0] < early)
    return settings | {"policy": replace(policy, act_phases=(*later, (early, 8)))}


def load(model: str) -> Pipeline:
    """Load a bundled model."""
    path, settings = MODELS[model]
    if model == "text":
        lists = {"prompts": "prompts.txt", "calibration_prompts": "cali_prompts.txt"}
        settings = settings | {key: tuple(read_prompts(TEXT / file, file)) for key, file in lists.items()}
    return qdiff.load_pipeline(path, **settings)


@torch.no_grad()
def errors(pipe: Pipeline, quantized: Pipeline, images: int, spectrum: Spectrum) -> tuple[float, float]:
    """Return the relative squared error of eps, plain and weighted, on full-precision trajectories."""
    plain, lost, whole = [], 0.0, 0.0
    predict = quantized.model_for(range(images))
    for step in pipe.steps(range(images)):
        found = step.predicted_by(predict)
        plain.append(relative_squared_error(found, step.eps))
        bands = spectrum.bands(torch.tensor([step.t]))[:, 0].tolist()
        lost, whole = lost + weighted(found - step.eps, bands), whole + weighted(step.eps, bands)
    return mean(plain), lost / whole


def weighted(x: Tensor, bands: list[float]) -> float:
    """Return the squares of x, (B, C, H, W), in the parts of a spectrum, weighted and added up."""
    return sum(band * part for band, part in zip(bands, squares(x)))


def cells(found: Sequence[Sequence[float]]) -> str:
    """Return mean and spread of each column over the rows of several seeds."""
    return " ".join(f"{mean(column):9.4g} +- {max(column) - min(column):6.2g}" for column in zip(*found))


def measure(
    model: str, method: str, bits: tuple[int, int], seed: int, args: argparse.Namespace
) -> tuple[list[float], Tensor]:
    """Return the columns of one calibration, and its first images under those in full precision."""
    torch.set_num_threads(args.threads)
    pipe = load(model)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    data = {"timesteps": args.timesteps, "samples": max(1, args.samples // pipe.cfg_copies)}
    settings = {"weight_bits": bits[0], "act_bits": bits[1], **settings_of(method), **data}
    if settings.pop("early8", False):
        settings = early_8_bits(pipe, settings)
    quantized = qdiff.quantize(pipe.with_sampling(seed=seed), **settings)
    seconds = time.perf_counter() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    pipe, quantized = pipe.with_sampling(seed=HELD_OUT), quantized.with_sampling(seed=HELD_OUT)
    images, wanted = quantized.sample(args.images).tensor, pipe.sample(args.images).tensor
    spectrum = Spectrum.from_dict(args.spectra[model])
    values = [
        psnr(images, wanted).mean().item(),
        *errors(pipe, quantized, min(8, args.images), spectrum),
        seconds,
        memory,
    ]
    return values, torch.stack([wanted[:SHOWN], images[:SHOWN]])


def reference_spectrum(model: str) -> Mapping[str, Any]:
    """Measure the spectrum that weighs the errors of a table, on images that no calibration sees."""
    with TemporaryDirectory() as folder:
        return spectrum_of(load(model).with_sampling(seed=HELD_OUT), 4, Path(folder), "", False).to_dict()


def main() -> None:
    """Measure every method on every model and print a row of each, each calibration in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["pixel", "latent", "text"], choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=["linear", "qdiff 60", "qdiff 60 bias", "gptq"])
    parser.add_argument("--bits", nargs="+", default=["W4A8"], help="such as W4A8 W8A8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--timesteps", type=int, default=10, help="at which calibration data are taken")
    parser.add_argument("--samples", type=int, default=6, help="at each of them, both rows of guidance counted")
    parser.add_argument("--images", type=int, default=36)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pictures", type=Path, help="PNG: images in full precision, then a row for each in the table")
    args = parser.parse_args()
    if args.pictures and len(args.models) > 1:
        parser.error("--pictures shows one model: give --models one name")
    context = multiprocessing.get_context("spawn")
    print(f"{'model':11} {'bits':5} {'method':18} " + " ".join(f"{name:>18}" for name in COLUMNS))
    args.spectra, shown = {}, []
    for model in args.models:
        args.spectra[model] = reference_spectrum(model)
        for bits in args.bits:
            for method in args.methods:
                found = []
                for seed in args.seeds:
                    with context.Pool(1) as pool:
                        found.append(pool.apply(measure, (model, method, bits_of(bits), seed, args)))
                shown.append(found[0][1])
                row = cells([values for values, _ in found])
                print(f"{model:11} {bits:5} {method:18} {row}", flush=True)
    if args.pictures:
        rows = [shown[0][0], *(images for _, images in shown)]
        write_image(args.pictures, grid_of(torch.cat(rows), len(rows[0])))


if __name__ == "__main__":
    main()
