#!/usr/bin/env python
"""Sample a latent diffusion model, in full precision or, with --ptq, quantized; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this repository before PYTHONPATH

from qdiff.cli.ldm_flags import ldm_parser
from qdiff.cli.parser import parse, run


def main() -> None:
    """Parse the flags, then import what is slow to load, and run."""
    args = parse(ldm_parser())
    from qdiff.cli.sample_ldm import sample

    sample(args)


if __name__ == "__main__":
    run(main)
