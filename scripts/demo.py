#!/usr/bin/env python
"""Quantize the bundled model in a minute: full precision, nearest rounding and Q-Diffusion from the same seeds."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this repository before PYTHONPATH

from qdiff.cli.parser import Parser, number, parse, run

ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[1]))
TITLE = "A diffusion model with 4-bit weights and 8-bit activations"
FP = "full precision"
BITS = {"weight_bits": 4, "act_bits": 8}
# Few iterations need a higher learning rate for roundings than the paper's 20,000 at 1e-3
LEARNED = {"split": True, "iterations": 40, "act_iterations": 8, "lr": 4e-3}
METHODS: dict[str, dict[str, Any]] = {"linear W4A8": {"method": "linear"}, "Q-Diffusion W4A8": LEARNED}


def demo_parser() -> Parser:
    """Return the flags."""
    parser = Parser(prog="demo.py", usage="python scripts/%(prog)s [flags]", description=__doc__)
    add = parser.group("demo")
    add("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder of the results")
    add("--config", type=Path, default=ROOT / "configs/emoji32.yml", metavar="FILE", help="YAML of the model")
    add("--images", default=16, help="images per method", **number(int, 2))
    add("--steps", default=20, help="sampling steps", **number(int, 1))
    add("--timesteps", default=10, help="sampling steps that give calibration data", **number(int, 1))
    add("--samples", default=4, help="calibration samples at each of them", **number(int, 1))
    return parser


def compare(args: argparse.Namespace) -> None:
    """Sample in full precision and with each method, then write the report."""
    import qdiff
    from qdiff.evaluation.registry import MAE, PSNR, Samples, evaluate
    from qdiff.evaluation.report import write_report
    from qdiff.evaluation.results import Result, Section, text_table
    from qdiff.files.grid import grid_of
    from qdiff.files.images import write_image

    start, out = time.perf_counter(), args.out
    out.mkdir(parents=True, exist_ok=True)
    pipe = qdiff.load_pipeline(args.config, steps=args.steps)
    data = {"timesteps": args.timesteps, "samples": args.samples, "batch_size": 8}
    pipelines, calls, files = {FP: pipe}, {FP: f"qdiff.load_pipeline({str(args.config)!r}, steps={args.steps})"}, {}
    for name, settings in METHODS.items():
        settings = {**BITS, **settings, **data}
        print(f"{name}: quantize(pipe, {words(settings)})", flush=True)
        folder = out / name.lower().replace(" ", "_")
        pipelines[name] = qdiff.quantize(pipe, **settings, folder=folder, progress=True)
        calls[name], files[name] = f"qdiff.quantize(pipe, {words(settings)})", folder / "quantized.safetensors"
        data["data"] = out / "linear_w4a8" / "calibration_data.safetensors"
    fp32_bytes = sum(4 * x.numel() for x in pipe.network.parameters())
    metrics, results, grids, reference = [PSNR, MAE], [], {}, None
    for name, pipeline in pipelines.items():
        images = pipeline.sample(args.images, seed=0, progress=True).tensor
        reference = images if reference is None else reference
        grids[name] = out / f"{name.lower().replace(' ', '_')}.png"
        write_image(grids[name], grid_of(images))
        file_bytes = files[name].stat().st_size if name in files else fp32_bytes
        values = evaluate(metrics, Samples(images, reference))
        results.append(Result(name, calls[name], values, file_bytes, fp32_bytes))
    section = Section("pixel", f"{args.images} images per method, same seeds", metrics, results, grids)
    written = write_report(out, TITLE, [section], {})
    print(f"\n{text_table(section)}\n\nwritten in {time.perf_counter() - start:.0f} s: {', '.join(map(str, written))}")


def words(settings: dict[str, Any]) -> str:
    """Write keyword arguments as in Python."""
    return ", ".join(f"{name}={str(value) if isinstance(value, Path) else value!r}" for name, value in settings.items())


def main() -> None:
<<<<<<< HEAD
    """Run the comparison."""
    compare(parse(demo_parser()))
=======
    """Run the commands, then write the report."""
    args = parse(demo_parser())
    experiments = [pixel_space(args), latent(args), text_to_image(args)]
    for experiment in experiments:
        for method in experiment.runs:
            method.carry_out()

    from qdiff.evaluation.report import write_report
    from qdiff.evaluation.results import text_table

    sections = [experiment.section(FEATURES / "classifier.safetensors") for experiment in experiments]
    files = write_report(args.out, TITLE, sections, settings(args))
    for section in sections:
        print(f"\n{section.title}\n{text_table(section)}")
    print(f"\nwritten: {', '.join(map(str, files))}")
>>>>>>> bd149da2857eb97f171a2cbd317e0e95fa142a7b


if __name__ == "__main__":
    run(main)
