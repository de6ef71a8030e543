#!/usr/bin/env python
"""Train a pixel-space model on named images, as the bundled one was; the same command resumes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this repository before PYTHONPATH

from qdiff.cli.parser import parse, run
from qdiff.training.flags import job_of, training_parser


def main() -> None:
    """Parse the flags, then import what is slow to load."""
    args = parse(training_parser("train_ddim.py", __doc__, "the weights, .safetensors"))

    from qdiff.training.ddim import train

    train(job_of(args))


if __name__ == "__main__":
    run(main)
