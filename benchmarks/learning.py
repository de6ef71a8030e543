#!/usr/bin/env python
"""Measure what learned rounding gains at a number of iterations and a learning rate, on the bundled model in W4A8.

    python benchmarks/learning.py --iterations 60 200 --lr 4e-3 6e-2

One row per calibration, then the mean and the sample standard deviation over seeds, which change the calibration data
and the draws. "loss" is a block's loss over the calibration set after learning, divided by the one before, averaged
over blocks; "turned" the share of weights that are not rounded to nearest; "eps" the relative squared error of eps on
the full-precision trajectories of images that calibration has not seen; PSNR compares these images. Activations keep
the ranges of the search, so that only roundings are learned. `block_learning.py` is faster.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

import qdiff
from diffusion.steps import Step
from qdiff.adapters import adapter_for
from qdiff.block_recon import Outcome
from qdiff.calibration.kept_steps import kept_steps
from qdiff.calibration.reporter import Reporter
from qdiff.evaluation.metrics import psnr
from qdiff.pipelines.eps_error import eps_error
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.quantize import share_parameters

POLICY = qdiff.QuantPolicy(qdiff.QuantSpec(4, per_channel=True, range_search="minmax"), qdiff.QuantSpec(8), split=True)
SAMPLES = 4  # images, each at every second sampling step
NAMES = ("loss", "turned", "eps", "PSNR", "s")


class Losses(Reporter):
    """Collects each block's loss after learning, divided by the one before."""

    def __init__(self) -> None:
        self.ratios: list[float] = []

    def finish(self, block: str, stage: str, outcome: Outcome, resumed: bool) -> None:
        """Note the outcome; a block keeps the better state."""
        self.ratios.append(min(1.0, outcome.after / outcome.before))


def calibration_data(pipe: Pipeline, seed: int) -> qdiff.CalibrationSet:
    """Return the inputs of every second step of `SAMPLES` images that belong to a seed, from the first or second."""
    steps = list(pipe.calibration_steps(range(SAMPLES * seed, SAMPLES * (seed + 1))))
    kept = [(i, k) for i in range(SAMPLES) for k in kept_steps(len(steps), len(steps) // 2, i, SAMPLES)]
    t = torch.tensor([steps[k].t for _, k in kept])
    return qdiff.CalibrationSet((torch.stack([steps[k].x_t[i] for i, k in kept]), t))


def measure(pipe: Pipeline, steps: Sequence[Step], schedule: qdiff.Schedule | None, seed: int) -> tuple[float, ...]:
    """Calibrate and return the values of a row; `steps` are the full-precision trajectory of the images."""
    network = share_parameters(pipe.network)
    model = qdiff.QuantModel(network, POLICY, adapter_for(network)).eval()
    nearest = [layer.codes for layer in model.layers().values()]
    losses, start = Losses(), time.perf_counter()
    settings = qdiff.CalibrationSettings(batch_size=8, rounding=schedule, steps=None, seed=seed)
    qdiff.calibrate(model, calibration_data(pipe, seed), settings, memory=2**33, reporter=losses)
    seconds = time.perf_counter() - start
    turned = [(layer.codes != codes).flatten() for layer, codes in zip(model.layers().values(), nearest)]
    loss = statistics.mean(losses.ratios) if losses.ratios else 1.0
    images = pipe.with_network(model).sample(len(steps[0].x_t), seed=0).tensor
    close = psnr(images, pipe.sample(len(images), seed=0).tensor).mean().item()
    eps = statistics.fmean(eps_error(model, step) for step in steps)
    return loss, torch.cat(turned).float().mean().item(), eps, close, seconds


def row(title: str, values: Sequence[float]) -> str:
    """Return a line of the table."""
    return f"{title:24s}" + "".join(f"{value:10.4g}" for value in values)


def main() -> None:
    """Measure nearest rounding, then every pair of iterations and rate, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, nargs="+", default=[60])
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=16)
    args = parser.parse_args()
    pipe = qdiff.load_pipeline("configs/emoji32.yml", steps=20, skip_type="quad", seed=0)
    steps = list(pipe.steps(range(args.images)))
    schedules = {"nearest": None} | {f"{n} x {lr:g}": qdiff.Schedule(n, lr) for n in args.iterations for lr in args.lr}
    print(row("iterations x rate, seed", ()) + "".join(f"{name:>10s}" for name in NAMES))
    for title, schedule in schedules.items():
        found = []
        for seed in args.seeds:
            found.append(measure(pipe, steps, schedule, seed))
            print(row(f"{title}, {seed}", found[-1]), flush=True)
        for name, summary in (("mean", statistics.mean), ("spread", statistics.stdev)) if len(found) > 1 else ():
            print(row(f"{title}, {name}", [summary(values) for values in zip(*found)]), flush=True)


if __name__ == "__main__":
    main()
