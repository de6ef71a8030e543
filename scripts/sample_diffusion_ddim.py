#!/usr/bin/env python
"""Sample a pixel-space diffusion model, in full precision or, with --ptq, quantized; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this repository before PYTHONPATH

from qdiff.cli.ddim_flags import ddim_parser
from qdiff.cli.parser import parse, run


def main() -> None:
    """Parse the flags, then import what is slow to load, and run."""
    args = parse(ddim_parser())
    from qdiff.cli.sample_ddim import sample

    sample(args)


if __name__ == "__main__":
    run(main)
