#!/usr/bin/env python
"""Ablations of the calibration: change one thing at a time on the bundled models, over several seeds.

    python benchmarks/ablations.py timesteps --methods qdiff gptq
    python benchmarks/ablations.py split bits --models latent text --methods gptq

By default W4A8 with split, 10 timesteps spread uniformly, 6 images (with guidance 3, of two samples each), and 60
iterations per block for qdiff, whose biases are corrected. A seed draws the calibration data; images and trajectories
that are measured have seeds of their own.
Columns as in `calibration.py`: mean, and largest less smallest.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from calibration import HELD_OUT, MODELS, cells, errors, load, reference_spectrum

import qdiff
from qdiff.adapters import adapter_for
from qdiff.calibration.kept_steps import kept_steps
from qdiff.evaluation.metrics import psnr
from qdiff.pipelines.calibration_set import DataSettings, calibration_set
from qdiff.pipelines.methods import learning, rounding_schedule, uniform_policy
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.sharing import share_parameters
from qdiff.spectrum import Spectrum

COLUMNS = ("dB", "eps", "weighted")
# Which of n steps an image keeps, of so many: (n, kept, image, images) -> their numbers, the first is the noisiest
KEPT: dict[str, Callable[[int, int, int, int], list[int]]] = {
    "uniform": kept_steps,
    "first": lambda n, kept, image, images: list(range(kept)),
    "middle": lambda n, kept, image, images: list(range((n - kept) // 2, (n + kept) // 2)),
    "last": lambda n, kept, image, images: list(range(n - kept, n)),
}


@dataclass(frozen=True)
class Variant:
    """A way to calibrate.

    Attributes:
        bits: of weights and activations.
        split: quantize the two halves of shortcut layers separately.
        kept: name in `KEPT`.
        timesteps, samples: calibration data are taken at so many steps of each of so many samples, two of which are
            one image where the model is guided.
        layers: reconstruct each layer by itself instead of blocks.
    """

    bits: tuple[int, int] = (4, 8)
    split: bool = True
    kept: str = "uniform"
    timesteps: int = 10
    samples: int = 6
    layers: bool = False


STUDIES = {
    "split": {"with": Variant(), "without": Variant(split=False)},
    "timesteps": {kept: Variant(kept=kept) for kept in KEPT},
    "number": {f"{n} timesteps": Variant(timesteps=n) for n in (1, 2, 5, 10, 30)},
    "images": {f"{n} images": Variant(samples=n) for n in (1, 2, 6, 16)},
    "units": {"blocks": Variant(), "layers": Variant(layers=True)},
    "bits": {f"W{n}A8": Variant(bits=(n, 8)) for n in (8, 6, 4, 3)},
}


def data_of(pipe: Pipeline, variant: Variant) -> qdiff.CalibrationSet:
    """Return the inputs of the network at the steps that a variant keeps."""
    rows, images = pipe.cfg_copies, max(1, variant.samples // pipe.cfg_copies)
    with TemporaryDirectory() as folder:
        everything = calibration_set(pipe, DataSettings(pipe.nfe, images), Path(folder), "", False)
    kept = [
        (step * rows + row) * images + image
        for image in range(images)
        for step in KEPT[variant.kept](pipe.nfe, variant.timesteps, image, images)
        for row in range(rows)
    ]
    return everything.at(torch.tensor(kept))


def quantized(pipe: Pipeline, method: str, variant: Variant, spectrum: Spectrum, iterations: int) -> Pipeline:
    """Return the pipeline with a network calibrated on its own trajectories."""
    adapter = adapter_for(pipe.network)
    policy = uniform_policy(method, *variant.bits, split=variant.split)
    adapter = replace(adapter, blocks=()) if variant.layers else adapter
    return calibrated(pipe, method, policy, data_of(pipe, variant), spectrum, adapter, iterations)


def calibrated(
    pipe: Pipeline,
    method: str,
    policy: qdiff.QuantPolicy,
    data: qdiff.CalibrationSet,
    spectrum: Spectrum,
    adapter: qdiff.Adapter,
    iterations: int = 60,
) -> Pipeline:
    """Return the pipeline with a network calibrated on some data; biases are corrected where roundings are learned."""
    schedules = rounding_schedule(iterations, None), qdiff.Schedule(max(1, iterations // 6), 4e-4)
    learns = method == "qdiff"
    settings = learning(method, 8 if learns else 32, *schedules, seed=pipe.sampling.seed, correct_bias=learns)
    model = qdiff.QuantModel(share_parameters(pipe.network), policy, adapter).eval()
    weighs = spectrum if settings.weighs_errors else None
    qdiff.calibrate(model, data, settings, spectrum=weighs, memory=2**33)
    return pipe.with_network(model)


def main() -> None:
    """Print a row of each variant and method of a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=list(STUDIES))
    parser.add_argument("--models", nargs="+", default=["pixel"], choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=["qdiff", "gptq"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--images", type=int, default=36)
    args = parser.parse_args()
    print(f"{'model':10} {'study':10} {'variant':14} {'method':7} " + " ".join(f"{name:>18}" for name in COLUMNS))
    for model in args.models:
        measured = measurement(model, args)
        for study in args.studies:
            for name, variant in STUDIES[study].items():
                for method in args.methods:
                    print(f"{model:10} {study:10} {name:14} {method:7} {measured(variant, method)}", flush=True)


def measurement(model: str, args: argparse.Namespace) -> Callable[[Variant, str], str]:
    """Return what measures a variant by a method on a model, and gives the columns of its row."""
    pipe, spectrum = load(model), Spectrum.from_dict(reference_spectrum(model))
    held_out = pipe.with_sampling(seed=HELD_OUT)
    wanted = held_out.sample(args.images).tensor

    @cache  # studies have a variant in common
    def measured(variant: Variant, method: str) -> str:
        found = []
        for seed in args.seeds:
            one = quantized(pipe.with_sampling(seed=seed), method, variant, spectrum, args.iterations)
            one = one.with_sampling(seed=HELD_OUT)
            distance = psnr(one.sample(args.images).tensor, wanted).mean().item()
            found.append((distance, *errors(held_out, one, min(8, args.images), spectrum)))
        return cells(found)

    return measured


if __name__ == "__main__":
    main()
