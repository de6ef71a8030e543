#!/usr/bin/env python
"""Quantize the bundled model in two minutes: nearest rounding, Q-Diffusion and weights in closed form, same seeds."""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this repository before PYTHONPATH

from qdiff.cli.parser import Parser, number, parse, run
from qdiff.errors import UserError
from qdiff.files.version import environment
from qdiff.sampling.run_folder import CALIBRATION_DATA

if TYPE_CHECKING:
    from qdiff.evaluation.results import Section
    from qdiff.pipelines.images import Images
    from qdiff.pipelines.pipeline import Pipeline

ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[1]))
TITLE = "A diffusion model with 4-bit weights and 8-bit activations"
FP = "full precision"
SHOWN = 8  # images of each method beside their differences to full precision
BITS = {"weight_bits": 4, "act_bits": 8}
LEARNED = {"split": True, "iterations": 40, "act_iterations": 8, "batch_size": 8}
METHODS: dict[str, dict[str, Any]] = {
    "linear W4A8": {"method": "linear"},
    "SQuant W4A8 + biases": {"method": "squant", "split": True, "correct_bias": True},
    "Q-Diffusion W4A8": LEARNED,
    "Q-Diffusion W4A8 + biases": LEARNED | {"correct_bias": True},
    "closed form W4A8": {"method": "gptq", "split": True},
}
CORRECTED = "linear W4A8"  # also with its predictions corrected
CORRECTION = {"fit": "trajectory", "images": 16}
EXECUTED = "closed form W4A8"  # also computed with integers, as each method could be


def demo_parser() -> Parser:
    """Return the flags."""
    parser = Parser(prog="demo.py", usage="python scripts/%(prog)s [flags]", description=__doc__)
    add = parser.group("demo")
    add("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder of the results")
    add("--config", type=Path, default=ROOT / "configs/emoji32.yml", metavar="FILE", help="YAML of the model")
    add("--images", default=16, help="images per method", **number(int, 2))
    add("--steps", default=20, help="sampling steps", **number(int, 1))
    add("--timesteps", default=10, help="sampling steps at which calibration data are collected", **number(int, 1))
    add("--samples", default=4, help="calibration samples at each of these steps", **number(int, 1))
    return parser


def methods(pipe: "Pipeline", args: argparse.Namespace) -> Iterator[tuple[str, str, "Pipeline", list[Path]]]:
    """Yield the name, the call, the pipeline and the files of each method."""
    import qdiff

    yield FP, f"load_pipeline('{args.config}', steps={args.steps})", pipe, []
    data: dict[str, Any] = {"timesteps": args.timesteps, "samples": args.samples}
    for name, method in METHODS.items():
        settings = BITS | method | data
        call = f"quantize(pipe, {', '.join(f'{key}={value!r}' for key, value in settings.items())})"
        print(f"{name}: {call}", flush=True)
        quantized = qdiff.quantize(pipe, **settings, folder=folder(args, name), progress=True)
        yield name, call, quantized, [folder(args, name) / "quantized.safetensors"]
        if name == CORRECTED:
            yield from corrected(quantized, pipe, args, name, call)
        data["data"] = str(folder(args, "linear W4A8") / CALIBRATION_DATA)  # collected once


def corrected(
    quantized: "Pipeline", pipe: "Pipeline", args: argparse.Namespace, name: str, call: str
) -> Iterator[tuple[str, str, "Pipeline", list[Path]]]:
    """Yield a method with its predictions corrected, if the sampler allows it."""
    import qdiff

    place = folder(args, f"{name}, corrected")
    try:
        found = qdiff.correct(quantized, pipe, **CORRECTION, folder=place, progress=True)
    except UserError as cause:
        print(f"not corrected: {cause}", flush=True)
        return
    how = ", ".join(f"{key}={value!r}" for key, value in CORRECTION.items())
    files = [folder(args, name) / "quantized.safetensors", place / "correction.safetensors"]
    yield f"{name}, corrected", f"correct({call}, pipe, {how})", found, files


def folder(args: argparse.Namespace, name: str) -> Path:
    """Return the folder of a method."""
    return args.out / re.sub(r"[^a-z0-9-]+", "_", name.lower())


def compare(args: argparse.Namespace) -> "Section":
    """Sample in full precision and with each method, from the same seeds."""
    import qdiff
    from qdiff.analysis.images import ComparedImages
    from qdiff.evaluation.results import Result, Section
    from qdiff.files.grid import grid_of
    from qdiff.files.images import write_image
    from qdiff.plots.report import write_plots

    pipe = qdiff.load_pipeline(args.config, steps=args.steps)
    fp32_bytes = sum(4 * x.numel() for x in pipe.network.parameters())
    pipe.with_sampling(steps=2).sample(args.images)  # first calls take longer
    reference, fp_seconds = timed(pipe, args.images)
    results, pipelines, shown = [], {}, {}
    for name, call, pipeline, files in methods(pipe, args):
        images, seconds = reference, {"float32": fp_seconds}
        if pipeline.is_quantized:
            images, simulated = timed(pipeline, args.images)
            seconds = {"simulated": simulated} | (executed(pipeline, args.images) if name == EXECUTED else {})
        place = folder(args, name)
        place.mkdir(parents=True, exist_ok=True)
        write_image(place / "grid.png", grid_of(images.tensor))
        size = sum(file.stat().st_size for file in files) or fp32_bytes
        found = qdiff.evaluate(images, full_precision=reference, metrics=["psnr", "mae"])
        row = Result(place.name, name, call, found, size, fp32_bytes, place / "grid.png", seconds=seconds)
        results.append(row)
        if pipeline.is_quantized:
            shown[name] = images.tensor[:SHOWN]
        if pipeline.is_quantized and not pipeline.correction:
            pipelines[name] = pipeline
    section = Section("pixel", f"{args.images} images per method, same seeds", results)
    plots = write_plots(args.out, section, ComparedImages(reference.tensor[:SHOWN], shown))
    return replace(section, plots=plots | trajectory(args, pipe, pipelines))


def timed(pipeline: "Pipeline", images: int) -> tuple["Images", float]:
    """Sample, and return the images and the seconds that each took."""
    start = time.perf_counter()
    found = pipeline.sample(images, seed=0, progress=True)
    return found, (time.perf_counter() - start) / images


def executed(pipeline: "Pipeline", images: int) -> dict[str, float]:
    """Return the seconds that each image takes where a backend computes with integers; empty if there is none here."""
    try:
        other = pipeline.with_backend("auto")
    except UserError as missing:
        print(f"not executed with integers: {missing}", flush=True)
        return {}
    assert other.execution
    print(f"{other.execution.backend}: {'; '.join(other.execution.report)}", flush=True)
    other.with_sampling(steps=2).sample(images)  # engines compile for a batch when it first comes
    return {other.execution.backend: timed(other, images)[1]}


def trajectory(args: argparse.Namespace, pipe: "Pipeline", quantized: dict[str, "Pipeline"]) -> dict[str, Path]:
    """Write the plot of errors along the trajectory; return its caption and file."""
    from qdiff.analysis.trajectory import trajectory_errors
    from qdiff.plots.output import write_figure
    from qdiff.plots.trajectory import draw_trajectory

    path = args.out / "trajectory_pixel.svg"
    write_figure(path, draw_trajectory(trajectory_errors(pipe, quantized)))
    return {"Errors along the trajectory": path}


def main() -> None:
    """Compare the methods, then write the report."""
    start, args = time.perf_counter(), parse(demo_parser())
    section = compare(args)

    from qdiff.evaluation.report import text, write_comparison, write_report

    files = [write_comparison(args.out, section), *write_report(args.out, TITLE, [section], environment())]
    print(f"\n{text(section)}\nin {time.perf_counter() - start:.0f} s: {', '.join(map(str, files))}")


if __name__ == "__main__":
    run(main)
