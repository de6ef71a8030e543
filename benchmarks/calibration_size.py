#!/usr/bin/env python
"""How many calibration samples are enough: W4A8 of the bundled model against the number of samples per timestep.

    python benchmarks/calibration_size.py --out runs/calibration_size

Every run has the same iterations and timesteps. The error is |eps_q - eps|^2 / |eps|^2 on the full-precision trajectory
of pictures that calibration has not seen, the mean over its steps: PSNR of pictures would add the chaos of sampling.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from diffusion.steps import Step
from qdiff.checkpoints.load import load_quantized
from qdiff.cli.ddim_flags import ddim_parser
from qdiff.cli.parser import parse
from qdiff.pipelines.pixel import PixelPipeline

SAMPLE = "--config configs/emoji32.yml --skip_type quad --timesteps 30 --eta 0.5 --max_images 1 --seed 0"
CALIBRATE = "--ptq --weight_bit 4 --quant_act --split --cali_st 10 --cali_batch_size 8 --cali_lr_w 4e-3"


def pipeline() -> PixelPipeline:
    """The model and its sampling, in full precision."""
    found = PixelPipeline(parse(ddim_parser(), SAMPLE.split()))
    found.load()
    return found


@torch.no_grad()
def error(file: Path, steps: Iterable[Step]) -> float:
    """Of the quantized network of a file."""
    network = load_quantized(pipeline().network, file, act_bit=8, split=True)
    found = [
        (network(s.x_t, torch.full((len(s.x_t),), s.t)) - s.eps).square().sum() / s.eps.square().sum() for s in steps
    ]
    return torch.stack(found).mean().item()


def main() -> None:
    """Calibrate once per number of samples and seed, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration_size"))
    parser.add_argument("--cali_n", type=int, nargs="+", default=[1, 2, 6, 24])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234], help="each calibrates anew")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--images", type=int, default=32)
    args = parser.parse_args()

    steps = list(pipeline().steps(range(args.images)))
    print("samples per timestep  samples  relative squared error of eps, one value per seed")
    for n in args.cali_n:
        found = []
        for seed in args.seeds:
            folder = args.out / f"{n}-{seed}"
            learn = f"--cali_n {n} --cali_iters {args.iterations} --cali_iters_a {args.iterations // 6} --seed {seed}"
            command = f"scripts/sample_diffusion_ddim.py {SAMPLE} {CALIBRATE} {learn} -l {folder}"
            subprocess.run([sys.executable, *command.split()], check=True, stdout=subprocess.DEVNULL)
            found.append(error(folder / "quantized.safetensors", steps))
        print(f"{n:20d}  {10 * n:7d}  {' '.join(f'{value:.4f}' for value in found)}", flush=True)


if __name__ == "__main__":
    main()
