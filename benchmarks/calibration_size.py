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

from ddim.samplers import Step
from qdiff.adapters.ddim_sampling import PixelSampler
from qdiff.checkpoint import load_quantized, load_weights
from qdiff.cli.config import build_network, load_config
from qdiff.sampling import batch_noise

CONFIG = Path("configs/emoji32.yml")
SAMPLE = f"--config {CONFIG} --skip_type quad --timesteps 30 --eta 0.5 --max_images 1"
CALIBRATE = "--ptq --weight_bit 4 --quant_act --split --cali_st 10 --cali_batch_size 8 --cali_lr_w 4e-3"


def trajectory(images: int) -> list[Step]:
    """Steps of the network in full precision."""
    config = load_config(CONFIG)
    network = build_network(config, CONFIG).eval()
    load_weights(network, CONFIG.parent / config.model.weights)
    shape = (config.data.channels, config.data.image_size, config.data.image_size)
    x_T, noise = batch_noise(0, range(images), shape)
    return list(
        PixelSampler(config.diffusion, "generalized", 30, "quad", 0.5, 3, "singlestep").steps(network, x_T, noise)
    )


@torch.no_grad()
def error(file: Path, steps: Iterable[Step]) -> float:
    """Of the quantized network of a file."""
    network = load_quantized(build_network(load_config(CONFIG), CONFIG).eval(), file, act_bit=8, split=True)
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

    steps = trajectory(args.images)
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
