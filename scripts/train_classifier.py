#!/usr/bin/env python
"""Train the classifier of `models/features` and fit its reference statistics; the same command goes on."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this repository before PYTHONPATH

from qdiff.cli.parser import run


def main() -> None:
    """Train, write both files, print the accuracy on images that were held out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="images: an .npz with images, names, category")
    parser.add_argument("--category", default="Smileys & Emotion", help="of the images of the reference statistics")
    parser.add_argument("--run", type=Path, default=Path("runs/train_classifier"), help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from qdiff.training.classifier import train

    share = train(args.data, args.run, args.out, category=args.category, steps=args.steps, lr=args.lr, seed=args.seed)
    print(f"accuracy on held-out images: {share:.3f}; wrote {args.out}")


if __name__ == "__main__":
    run(main)
