#!/usr/bin/env python
"""Compare ways to give activations 4 or 8 bits by sampling step, at W4, on the bundled models, over several seeds.

    python benchmarks/mixed_precision.py --models pixel latent --methods linear gptq --etas 0 1
    python benchmarks/mixed_precision.py --choices

Rows "A, share of B" have as many bit operations as B, or a little less. "quarter first" has 8 bits in the first,
noisiest quarter of the steps, "own" is the criterion for a budget, "snr norm" and "snr power" are PTQD's in its two
readings, and "snr order" gives 8 bits to the steps that lack most by PTQD's. A seed draws the calibration data; the
images have a seed of their own. Columns, mean and spread (largest less smallest) over the seeds:

    dB      PSNR of images to those in full precision from the same noise
    FD      Frechet distance to the training images on the bundled features (not FID); the row FP is full precision
    BOPs    bit operations in relation to 8 bits at all steps

and at the end of a row the bits of the first seed, as runs of steps from the noisiest on. With --choices, only what is
chosen, by the weights that errors are measured with: to nearest, by SQuant, or solved (gptq, 8-bit activations).
"""

import argparse
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from ablations import calibrated
from calibration import HELD_OUT, cells, load
from frechet import REFERENCES, frechet
from torch import Tensor

from qdiff.adapters import adapter_for
from qdiff.evaluation.metrics import psnr
from qdiff.mixed_precision.criteria import BopsBudget, MixedPrecision, SignalToNoise
from qdiff.mixed_precision.measurement import Measurement
from qdiff.pipelines.calibration_set import DataSettings, calibration_set
from qdiff.pipelines.methods import learning, uniform_policy
from qdiff.pipelines.mixed_precision import Chooser
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.sharing import share_parameters
from qdiff.pipelines.spectrum import spectrum_of
from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel
from qdiff.spectrum import Spectrum

COLUMNS = ("dB", "FD", "BOPs")
FEW, MANY = 4, 8

Bits = tuple[int, ...]  # of each step of a measurement, whose timesteps ascend


def share(measured: Measurement, bits: Bits) -> float:
    """Return the bit operations in relation to the most bits at all steps."""
    return measured.trajectory_bops(bits) / measured.trajectory_bops((MANY,) * len(bits))


def first_quarter(measured: Measurement, spectrum: Spectrum) -> Bits:
    """Return many bits in the noisiest quarter of the steps."""
    steps = len(measured.timesteps)
    return tuple(MANY if i >= steps - steps // 4 else FEW for i in range(steps))


def in_order(measured: Measurement, budget: float) -> Bits:
    """Return many bits at the steps whose SNR^Q falls short most of SNR^F, within a share of the bit operations."""
    lacking = [forward / snr for forward, snr in zip(measured.forward, measured.snr(FEW))]
    bits = [FEW] * len(lacking)
    for i in sorted(range(len(bits)), key=lambda i: -lacking[i]):
        more = [*bits[:i], MANY, *bits[i + 1 :]]
        if share(measured, tuple(more)) <= budget * (1 + 1e-9):
            bits = more
    return tuple(bits)


def snr(ratio: str) -> Callable[[Measurement, Spectrum], Bits]:
    """Return PTQD's criterion."""
    return lambda measured, spectrum: SignalToNoise(ratio).choose(measured)


def own_at(other: Callable[[Measurement, Spectrum], Bits]) -> Callable[[Measurement, Spectrum], Bits]:
    """Return the criterion for the budget that another one takes."""
    return lambda m, spectrum: BopsBudget(share(m, other(m, spectrum))).choose(m, spectrum)


ROWS: Mapping[str, Callable[[Measurement, Spectrum], Bits]] = {
    "all 4": lambda m, _: (FEW,) * len(m.timesteps),
    "quarter first": first_quarter,
    "own, share of quarter": own_at(first_quarter),
    "snr order, share of quarter": lambda m, s: in_order(m, share(m, first_quarter(m, s))),
    "snr norm": snr("norm"),
    "own, share of norm": own_at(snr("norm")),
    "snr power": snr("power"),
    "own, share of power": own_at(snr("power")),
    "all 8": lambda m, _: (MANY,) * len(m.timesteps),
}


def runs(bits: Bits) -> str:
    """Describe the bits of each step as runs, from the noisiest step on, such as 8x6 4x19."""
    return " ".join(f"{b}x{len(list(run))}" for b, run in groupby(reversed(bits)))


class Seed:
    """The calibration data of a seed, and what the widths do on its trajectories."""

    def __init__(self, pipe: Pipeline, method: str, seed: int, args: argparse.Namespace):
        self.pipe, self.method = pipe.with_sampling(seed=seed), method
        self.adapter = adapter_for(pipe.network)
        policy = uniform_policy(method, 4, MANY, split=method != "linear")
        self.policy = self.adapter.with_8_bits(policy, args.keep8)
        self.source = DataSettings(args.timesteps, max(1, args.samples // pipe.cfg_copies))
        with TemporaryDirectory() as name:
            self.data = calibration_set(self.pipe, self.source, Path(name), "", False)
            self.spectrum = spectrum_of(self.pipe, 1, Path(name), "", False)
        self.measured = self.measurement(method)

    def measurement(self, method: str, solved: QuantModel | None = None) -> Measurement:
        """Measure the errors of the widths with the weights that a method starts from, or with solved ones."""
        mixed = MixedPrecision((FEW,), SignalToNoise())
        chooser = Chooser(mixed, self.policy, learning(method, 32, None, None), self.source)
        chooser.check(self.pipe)
        standing_in = self.policy.without_activations()
        model = solved or QuantModel(share_parameters(self.pipe.network), standing_in, self.adapter).eval()
        model.policy = standing_in
        with TemporaryDirectory() as name:
            return chooser.choose(self.pipe, model, self.data, None, Path(name), {}, False).measured

    def solved(self, policy: QuantPolicy) -> Pipeline:
        """Calibrate by the method of the seed."""
        return calibrated(self.pipe, self.method, policy, self.data, self.spectrum, self.adapter)

    def images(self, bits: Bits, count: int) -> Tensor:
        """Calibrate with the bits of each step, and sample the images of the held-out seed, uint8."""
        policy = self.policy.by_step(dict(zip(self.measured.timesteps, bits)))
        return self.solved(policy).with_sampling(seed=HELD_OUT).sample(count).tensor


def rows_of(model: str, eta: float, method: str, args: argparse.Namespace, wanted: Tensor, pipe: Pipeline) -> None:
    """Print the rows of a model, eta and method."""
    seeds = [Seed(pipe, method, seed, args) for seed in args.seeds]
    for name in args.rows:
        found, chosen = [], []
        for seed in seeds:
            bits = ROWS[name](seed.measured, seed.spectrum)
            images = seed.images(bits, args.images)
            found.append((psnr(images, wanted).mean().item(), frechet(images, model), share(seed.measured, bits)))
            chosen.append(runs(bits))
        print(f"{model:7} {eta:3g} {method:7} {name:28} {cells(found)}  {chosen[0]}", flush=True)


def choices_of(model: str, eta: float, args: argparse.Namespace, pipe: Pipeline) -> None:
    """Print what is chosen with weights that are rounded or solved."""
    for number in args.seeds:
        seed = Seed(pipe, "gptq", number, args)
        network = seed.solved(seed.policy).network
        measured = {
            "nearest": seed.measurement("linear"),
            "SQuant": seed.measured,
            "solved": seed.measurement("linear", network),
        }
        for weights, found in measured.items():
            for name in ("snr norm", "snr power", "own, share of quarter"):
                chosen = runs(ROWS[name](found, seed.spectrum))
                print(f"{model:7} {eta:3g} seed {number}  {weights:7}  {name:22} {chosen}", flush=True)


def main() -> None:
    """Print a row of each model, eta, method and way to choose, as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["pixel", "latent"], choices=list(REFERENCES))
    parser.add_argument("--methods", nargs="+", default=["linear", "gptq"], choices=["linear", "squant", "gptq"])
    parser.add_argument("--etas", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--keep8", nargs="*", default=["ends"], help="ends, time: layers of 8 bits, as the paper's ends"
    )
    parser.add_argument("--timesteps", type=int, default=10, help="at which calibration data are taken")
    parser.add_argument("--samples", type=int, default=8, help="at each of them, both rows of guidance counted")
    parser.add_argument("--steps", type=int, help="of sampling (default: those of benchmarks/calibration.py)")
    parser.add_argument("--images", type=int, default=72)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--choices", action="store_true", help="print only what is chosen, by the weights")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.choices:
        print(f"{'model':7} {'eta':3} {'method':7} {'bits':28} " + " ".join(f"{name:>19}" for name in COLUMNS))
    for model in args.models:
        for eta in args.etas:
            pipe = load(model).with_sampling(eta=eta, **({"steps": args.steps} if args.steps else {}))
            if args.choices:
                choices_of(model, eta, args, pipe)
                continue
            wanted = pipe.with_sampling(seed=HELD_OUT).sample(args.images).tensor
            print(f"{model:7} {eta:3g} {'':7} {'FP':28} {'':19} {frechet(wanted, model):9.4g}", flush=True)
            for method in args.methods:
                rows_of(model, eta, method, args, wanted, pipe)


if __name__ == "__main__":
    main()
