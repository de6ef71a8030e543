#!/usr/bin/env python
"""How many calibration samples are enough: W4A8 of the bundled model against the number of samples per timestep.

    python benchmarks/calibration_size.py --out runs/calibration_size

Every run has the same iterations and timesteps; PSNR is to the full-precision pictures of the same seeds.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qdiff.evaluate import psnr

SAMPLE = "--config configs/emoji32.yml --skip_type quad --timesteps 30 --eta 0.5"
CALIBRATE = "--ptq --weight_bit 4 --quant_act --split --cali_st 10 --cali_batch_size 8 --cali_lr_w 4e-3"


def pictures(folder: Path) -> Tensor:
    """uint8 (N, 3, H, W) of a run's folder."""
    files = sorted((folder / "img").glob("*.png"))
    return torch.from_numpy(np.stack([np.asarray(Image.open(f)) for f in files])).permute(0, 3, 1, 2)


def main() -> None:
    """Sample in full precision, then calibrate and sample once per number of samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration_size"))
    parser.add_argument("--cali_n", type=int, nargs="+", default=[1, 2, 6, 24])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234], help="each calibrates and samples anew")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--images", type=int, default=32)
    args = parser.parse_args()

    def run(folder: Path, flags: str) -> Tensor:
        command = f"scripts/sample_diffusion_ddim.py {SAMPLE} --max_images {args.images} {flags} -l {folder}"
        subprocess.run([sys.executable, *command.split()], check=True, stdout=subprocess.DEVNULL)
        return pictures(folder)

    print("samples per timestep  samples  PSNR (dB), one value per seed")
    reference = {seed: run(args.out / f"fp-{seed}", f"--seed {seed}") for seed in args.seeds}
    for n in args.cali_n:
        iterations = f"--cali_n {n} --cali_iters {args.iterations} --cali_iters_a {args.iterations // 6}"
        values = [
            psnr(run(args.out / f"{n}-{seed}", f"{CALIBRATE} {iterations} --seed {seed}"), reference[seed])
            for seed in args.seeds
        ]
        print(f"{n:20d}  {10 * n:7d}  {' '.join(f'{v:.2f}' for v in values)}", flush=True)


if __name__ == "__main__":
    main()
