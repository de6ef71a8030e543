#!/usr/bin/env python
"""Train a pixel-space model on named pictures, as the bundled one was; the same command goes on where it stopped."""

import argparse
from pathlib import Path

from qdiff.cli.parser import run


def main() -> None:
    """Train, then write the EMA weights as safetensors in half precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="model and training settings (YAML)")
    parser.add_argument("--data", type=Path, required=True, help="pictures: an .npz with images, names, category")
    parser.add_argument("--run", type=Path, default=Path("runs/train_ddim"), help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="the weights, .safetensors")
    parser.add_argument("--init", type=Path, help="weights to start from instead of random ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1, help="GPUs, or processes on the CPU, that share a batch")
    args = parser.parse_args()

    from qdiff.training.ddim import train

    train(args.config, args.data, args.run, args.out, init=args.init, seed=args.seed, devices=args.devices)


if __name__ == "__main__":
    run(main)
