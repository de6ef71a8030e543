#!/usr/bin/env python
"""Train the classifier of `models/features` and fit its reference statistics; the same command resumes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this repository before PYTHONPATH

from qdiff.cli.parser import number, parse, run
from qdiff.training.flags import bare_parser


def main() -> None:
    """Parse the flags, then import what is slow to load; print the accuracy on held-out images."""
    parser = bare_parser("train_classifier.py", __doc__, "folder for the weights and statistics")
    add = parser.group("classifier")
    add("--category", default="Smileys & Emotion", metavar="NAME", help="of the images of the reference statistics")
    add("--steps", default=500, help="of the optimiser", **number(int, 1))
    add("--lr", default=4e-3, help="highest learning rate", **number(float, 1e-8, 1))
    args = parse(parser)

    from qdiff.training.classifier import train

    share = train(args.data, args.run, args.out, category=args.category, steps=args.steps, lr=args.lr, seed=args.seed)
    print(f"accuracy on held-out images: {share:.3f}; written to {args.out}")


if __name__ == "__main__":
    run(main)
