#!/usr/bin/env python
"""Train the first stage of a latent model on named images; the same command goes on where it stopped."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this repository before PYTHONPATH

from qdiff.cli.parser import run
from qdiff.training.flags import training_parser


def main() -> None:
    """Train, then write the EMA weights as safetensors in half precision."""
    parser = training_parser(__doc__, run=Path("runs/train_first_stage"), out="the weights, .safetensors")
    args = parser.parse_args()

    from qdiff.training.first_stage import train

    train(args.config, args.data, args.run, args.out, init=args.init, seed=args.seed, devices=args.devices)


if __name__ == "__main__":
    run(main)
