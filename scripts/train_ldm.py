#!/usr/bin/env python
"""Train a latent model on the categories or names of images; the same command goes on where it stopped."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this repository before PYTHONPATH

from qdiff.cli.parser import run
from qdiff.training.flags import training_parser


def main() -> None:
    """Train, then write a folder with the configuration and the EMA weights in half precision."""
    parser = training_parser(__doc__, run=Path("runs/train_ldm"), out="folder of config.yaml and model.safetensors")
    parser.add_argument("--first_stage", type=Path, required=True, help="weights that train_first_stage.py wrote")
    args = parser.parse_args()

    from qdiff.training.latent import train

    train(
        args.config,
        args.data,
        args.run,
        args.out,
        first_stage=args.first_stage,
        init=args.init,
        seed=args.seed,
        devices=args.devices,
    )


if __name__ == "__main__":
    run(main)
