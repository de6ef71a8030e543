#!/usr/bin/env python
"""Compare corrections of the predicted noise (PTQD) on the bundled models, over several seeds.

    python benchmarks/correction.py --models pixel latent --bits W4A8 W4A6 W4A4 W8A8 --methods linear gptq --eta 0 1

A seed draws the calibration data and the images that a correction is fitted on; the images that are measured have a
seed of their own. Rows:

    none             without a correction
    ptqd             the paper's fit, with the parts that help; "on" says in how many seeds each is on
    ptqd slope ...   the same fit with these parts alone, whether they help or not
    trajectory       the fit on the quantized network's own trajectory, with the parts that help
    trajectory bias  the same, bias alone

Columns, mean and spread (largest less smallest) over the seeds: "dB", PSNR of images to those in full precision from
the same noise; "FD", Frechet distance of the images to those that the model was trained on, on the features of the
bundled classifier (not FID); "s", seconds of the fit. "FP" has the FD of full precision.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

from calibration import HELD_OUT, bits_of, cells, load, settings_of
from frechet import REFERENCES, frechet

import qdiff
from qdiff.correction.parts import PARTS, Part
from qdiff.correction.table import CorrectionTable
from qdiff.evaluation.metrics import psnr
from qdiff.pipelines.pipeline import Pipeline

COLUMNS = ("dB", "FD", "s")
ALONE = (("slope",), ("bias",), ("variance",), PARTS)


def forced(table: CorrectionTable, parts: tuple[str, ...]) -> CorrectionTable:
    """Return a correction with these parts on, whether they help or not."""
    return replace(table, parts={name: Part(name in parts) for name in PARTS})


def variants(quantized: Pipeline, pipe: Pipeline, images: int) -> Iterator[tuple[str, Pipeline, float]]:
    """Yield name, pipeline and seconds of the fit."""
    yield "none", quantized, 0.0
    for fit, parts in (("ptqd", PARTS), ("trajectory", PARTS), ("trajectory", ("bias",))):
        start = time.perf_counter()
        corrected = qdiff.correct(quantized, pipe, fit=fit, images=images, parts=parts)
        seconds = time.perf_counter() - start
        yield " ".join([fit, *([] if parts == PARTS else parts)]), corrected, seconds
        for alone in ALONE if fit == "ptqd" else ():
            if pipe.sampling.sampler.eta > 0 or "variance" not in alone:
                yield f"ptqd {'+'.join(alone)}", quantized.with_correction(forced(corrected.correction, alone)), seconds


def block(model: str, bits: str, method: str, eta: float, args: argparse.Namespace) -> None:
    """Print the rows of one quantization."""
    pipe = load(model).with_sampling(eta=eta, **({"steps": args.steps} if args.steps else {}))
    width, act = bits_of(bits)
    settings = {"weight_bits": width, "act_bits": act, **settings_of(method)}
    settings |= {"timesteps": args.timesteps, "samples": max(1, args.calibration // pipe.cfg_copies)}
    wanted = pipe.with_sampling(seed=HELD_OUT).sample(args.images).tensor
    head = f"{model:7} {bits:5} {method:12} {eta:3g}"
    print(f"{head} {'FP':24} {'':19} {frechet(wanted, model):9.4g}", flush=True)
    found: dict[str, list[tuple[list[float], tuple[str, ...]]]] = {}
    for seed in args.seeds:
        drawn = pipe.with_sampling(seed=seed)
        for name, corrected, seconds in variants(qdiff.quantize(drawn, **settings), drawn, args.fitted):
            images = corrected.with_sampling(seed=HELD_OUT).sample(args.images).tensor
            values = [psnr(images, wanted).mean().item(), frechet(images, model), seconds]
            table = corrected.correction
            found.setdefault(name, []).append((values, table.used if table else ()))
    for name, each in found.items():
        used = [part for _, parts in each for part in parts]
        on = " ".join(f"{part} {used.count(part)}" for part in PARTS if part in used)
        print(f"{head} {name:24} {cells([values for values, _ in each])} {on}", flush=True)


def main() -> None:
    """Print a block of rows for each quantization as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["pixel", "latent"], choices=list(REFERENCES))
    parser.add_argument("--bits", nargs="+", default=["W4A8", "W4A6", "W4A4", "W8A8"])
    parser.add_argument("--methods", nargs="+", default=["linear", "gptq"], help="as of benchmarks/calibration.py")
    parser.add_argument("--eta", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of the sampler, instead of the model's 30")
    parser.add_argument("--fitted", type=int, default=64, help="images of a fit")
    parser.add_argument("--timesteps", type=int, default=10, help="at which calibration data are taken")
    parser.add_argument("--calibration", type=int, default=6, help="samples at each, both rows of guidance counted")
    parser.add_argument("--images", type=int, default=64, help="images that are measured")
    args = parser.parse_args()
    titles = " ".join(f"{name:>19}" for name in COLUMNS)
    print(f"{'model':7} {'bits':5} {'method':12} eta {'correction':24} {titles} on")
    for model in args.models:
        for bits in args.bits:
            for method in args.methods:
                for eta in args.eta:
                    block(model, bits, method, eta, args)


if __name__ == "__main__":
    main()
