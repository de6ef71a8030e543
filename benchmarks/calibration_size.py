#!/usr/bin/env python
"""Measure the error of the bundled model in W4A8 against the number of calibration samples per timestep.

    python benchmarks/calibration_size.py

Every calibration has the same iterations and timesteps. The error is |eps_q - eps|^2 / |eps|^2 on the full-precision
trajectory of images that calibration has not seen, averaged over its steps. Unlike the PSNR of images, it does not
depend on how sampling amplifies small errors.
"""

import argparse
from statistics import fmean

import qdiff
from qdiff.pipelines.eps_error import eps_error

TIMESTEPS = 10


def main() -> None:
    """Calibrate once per number of samples and seed, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 2, 6, 24], help="at each of 10 timesteps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234], help="each calibrates anew")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--images", type=int, default=32)
    args = parser.parse_args()

    pipe = qdiff.load_pipeline("configs/emoji32.yml", skip_type="quad", steps=30, eta=0.5, seed=0)
    steps = list(pipe.steps(range(args.images)))
    print("samples per timestep  samples  relative squared error of eps, one value per seed")
    for n in args.samples:
        found = []
        for seed in args.seeds:
            quantized = qdiff.quantize(
                pipe.with_sampling(seed=seed),
                weight_bits=4,
                act_bits=8,
                split=True,
                timesteps=TIMESTEPS,
                samples=n,
                batch_size=8,
                iterations=args.iterations,
                act_iterations=args.iterations // 6,
                lr=4e-3,
            )
            found.append(fmean(eps_error(quantized.network, step) for step in steps))
        print(f"{n:20d}  {TIMESTEPS * n:7d}  {' '.join(f'{value:.4f}' for value in found)}", flush=True)


if __name__ == "__main__":
    main()
