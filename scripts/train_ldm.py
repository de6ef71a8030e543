#!/usr/bin/env python
"""Train a latent model on the categories or names of images; the same command resumes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this repository before PYTHONPATH

from qdiff.cli.parser import parse, run
from qdiff.training.flags import job_of, training_parser


def main() -> None:
    """Parse the flags, then import what is slow to load."""
    parser = training_parser("train_ldm.py", __doc__, "folder for config.yaml and model.safetensors")
    add = parser.group("latent model")
    add("--first_stage", required=True, type=Path, metavar="FILE", help="weights that train_first_stage.py wrote")
    args = parse(parser)

    from qdiff.training.latent import train

    train(job_of(args), args.first_stage)


if __name__ == "__main__":
    run(main)
