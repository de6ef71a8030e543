#!/usr/bin/env python
"""Sample a text-to-image model, in full precision or, with --ptq, quantized; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this repository before PYTHONPATH

from qdiff.cli.parser import parse, run
from qdiff.cli.txt2img_flags import txt2img_parser


def main() -> None:
    """Parse the flags, then import what is slow to load, and run."""
    args = parse(txt2img_parser())
    from qdiff.cli.sample_txt2img import sample

    sample(args)


if __name__ == "__main__":
    run(main)
