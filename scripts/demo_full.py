#!/usr/bin/env python
"""Sample the bundled models in full precision and quantized in several ways, and compare; the same command resumes."""

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this repository before PYTHONPATH

from qdiff.cli.parser import Parser, number, parse, run
from qdiff.evaluation.experiments import FP, Experiment
from qdiff.files.prompts import read_prompts
from qdiff.files.version import environment

if TYPE_CHECKING:
    from qdiff.evaluation.results import Section

ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[1]))
FEATURES = ROOT / "models/features/emoji32"
TITLE = "Diffusion models in 4 and 8 bits"
SQUANT = "SQuant W4A8 + biases"
ETA = 0.5  # noise between steps corrects errors of a briefly trained network
SCALE = 3
CATEGORIES = 9
TURNS = 2  # images per prompt
SHOWN = 8  # images of each method beside their differences to full precision


def demo_parser() -> Parser:
    """Return the flags; those of the sampling scripts have the same meaning here."""
    parser = Parser(prog="demo_full.py", usage="python scripts/%(prog)s [flags]", description=__doc__)
    add = parser.group("demo")
    add("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder of the results")
    add("--config", type=Path, default=ROOT / "configs/emoji32.yml", metavar="FILE", help="the pixel-space model")
    add("--latent", type=Path, default=ROOT / "models/ldm/emoji64", metavar="DIR", help="the latent model")
    add("--text", type=Path, default=ROOT / "models/ldm/emoji64-txt2img", metavar="DIR", help="the text-to-image model")
    add(
        "--max_images",
        default=36,
        help="images per method; of the text-to-image model two per prompt",
        **number(int, 2),
    )
    add("--timesteps", default=30, help="sampling steps", **number(int, 1))
    add(
        "--cali_st",
        default=10,
        help="number of sampling steps at which calibration data are collected",
        **number(int, 1),
    )
    add("--cali_n", default=4, help="samples collected at each of these steps", **number(int, 1))
    add("--cali_iters", default=60, help="iterations per block, rounding of weights", **number(int, 1))
    add("--cali_iters_a", default=10, help="iterations per block, activation step sizes", **number(int, 1))
    return parser


def quantization(args: argparse.Namespace, weight_bit: int, *words, cali_n: int | None = None) -> list:
    """Return the arguments of a quantized run."""
    data = ["--cali_st", args.cali_st, "--cali_n", cali_n or args.cali_n]
    return ["--ptq", "--weight_bit", weight_bit, "--quant_act", "--act_bit", 8, *data, *words]


def collected(run: Path) -> list:
    """Return the arguments of a run that takes the data that another one collected."""
    return ["--cali_data_path", run / "calibration_data.safetensors"]


def learning(args: argparse.Namespace, data: Path) -> list:
    """Return the arguments of a run that learns from data that another one collected."""
    schedule = ["--cali_iters", args.cali_iters, "--cali_iters_a", args.cali_iters_a, "--cali_batch_size", 8]
    return [*collected(data), *schedule]


def solving(data: Path) -> list:
    """Return the arguments of a run with weights in closed form, from data that another one collected."""
    return ["--quant_mode", "gptq", "--split", *collected(data)]


def correcting(data: Path) -> list:
    """Return the arguments of a run with SQuant's rounding and corrected biases, likewise."""
    return ["--quant_mode", "squant", "--split", "--correct_bias", *collected(data)]


def pixel_space(args: argparse.Namespace) -> Experiment:
    """Return the comparison on the pixel-space model."""
    out = args.out / "pixel"
    learned, solved = learning(args, out / "linear"), solving(out / "linear")
    sampling = ["--config", args.config, "--skip_type", "quad", "--timesteps", args.timesteps, "--eta", ETA]
    return Experiment(
        "pixel",
        "A pixel-space model, 32 x 32",
        ROOT / "scripts/sample_diffusion_ddim.py",
        [*sampling, "--max_images", args.max_images],
        {
            FP: (out / "fp", []),
            "linear W4A8": (out / "linear", quantization(args, 4, "--quant_mode", "linear")),
            SQUANT: (out / "squant", quantization(args, 4, *correcting(out / "linear"))),
            "Q-Diffusion W4A8": (out / "qdiff", quantization(args, 4, "--split", *learned)),
            "closed form W4A8": (out / "gptq", quantization(args, 4, *solved)),
        },
        args.max_images,
        FEATURES / "reference.safetensors",
    )


def latent(args: argparse.Namespace) -> Experiment:
    """Return the comparison on the class-conditional model, with guidance; one column of images per category."""
    out = args.out / "latent"
    learned, solved = learning(args, out / "linear_w4a8"), solving(out / "linear_w4a8")
    sampling = ["-r", args.latent, "--seed", 41, "-c", args.timesteps, "-e", 1, "--batch_size", 9, "--scale", SCALE]
    quantized = partial(quantization, args, cali_n=max(1, args.cali_n // 2))  # an image gives two samples
    return Experiment(
        "latent",
        "A class-conditional latent model, 64 x 64",
        ROOT / "scripts/sample_diffusion_ldm.py",
        [*sampling, "--classes", ",".join(map(str, range(CATEGORIES))), "-n", args.max_images],
        {
            FP: (out / "fp", []),
            "linear W4A8": (out / "linear_w4a8", quantized(4, "--quant_mode", "linear")),
            SQUANT: (out / "squant_w4a8", quantized(4, *correcting(out / "linear_w4a8"))),
            "Q-Diffusion W4A8": (out / "qdiff_w4a8", quantized(4, "--split", *learned)),
            "closed form W4A8": (out / "gptq_w4a8", quantized(4, *solved)),
            "closed form W8A8": (out / "gptq_w8a8", quantized(8, *solved)),
        },
        args.max_images,
        FEATURES / "reference_all.safetensors",
        CATEGORIES,
    )


def text_to_image(args: argparse.Namespace) -> Experiment:
    """Return the comparison on the text-to-image model, with guidance; one column of images per prompt."""
    out, file = args.out / "text", args.text / "prompts.txt"
    prompts = read_prompts(file, "--text")
    learned, solved = learning(args, out / "linear_w4a8"), solving(out / "linear_w4a8")
    quantized = partial(quantization, args)  # twice the samples, because few prompts say little about others
    model = ["--config", args.text / "config.yaml", "--ckpt", args.text / "model.safetensors", "--from-file", file]
    model += ["--precision", "full"]  # on a GPU too, as in the other parts
    sampling = ["--n_samples", len(prompts), "--n_iter", TURNS, "--scale", SCALE, "--ddim_steps", args.timesteps]
    linear = ["--quant_mode", "linear", "--cali_prompts", args.text / "cali_prompts.txt"]
    return Experiment(
        "text",
        "A text-to-image model, 64 x 64",
        ROOT / "scripts/txt2img.py",
        [*model, *sampling, "--ddim_eta", 1, "--seed", 41],
        {
            FP: (out / "fp", []),
            "linear W4A8": (out / "linear_w4a8", quantized(4, *linear)),
            SQUANT: (out / "squant_w4a8", quantized(4, *correcting(out / "linear_w4a8"))),
            "Q-Diffusion W4A8": (out / "qdiff_w4a8", quantized(4, "--split", *learned)),
            "closed form W4A8": (out / "gptq_w4a8", quantized(4, *solved)),
            "closed form W8A8": (out / "gptq_w8a8", quantized(8, *solved)),
        },
        TURNS * len(prompts),
        FEATURES / "reference_all.safetensors",
        shown=prompts,
        folder_flag="--outdir",
    )


def with_plots(experiment: Experiment, section: "Section", folder: Path) -> "Section":
    """Write the plots of a section to a folder, and return the section with them."""
    from qdiff.analysis.images import ComparedImages
    from qdiff.files.images import image_path, read_images
    from qdiff.plots.report import write_plots

    indices = range(min(SHOWN, experiment.num_images))
    images = {run.name: read_images([image_path(run.folder / "img", i) for i in indices]) for run in experiment.runs}
    compared = ComparedImages(images.pop(FP), images)
    return replace(section, plots=write_plots(folder, section, compared))


def main() -> None:
    """Run the commands, then write the report."""
    args = parse(demo_parser())
    experiments = [pixel_space(args), latent(args), text_to_image(args)]
    for experiment in experiments:
        for method in experiment.runs:
            method.run()

    from qdiff.evaluation.report import write_report
    from qdiff.evaluation.results import text_table

    classifier = FEATURES / "classifier.safetensors"
    sections = [with_plots(experiment, experiment.section(classifier), args.out) for experiment in experiments]
    files = write_report(args.out, TITLE, sections, environment())
    for section in sections:
        print(f"\n{section.title}\n{text_table(section)}")
    print(f"\nwritten: {', '.join(map(str, files))}")


if __name__ == "__main__":
    run(main)
