"""The flags that the training scripts share."""

import argparse
from pathlib import Path


def training_parser(description: str, *, run: Path, out: str) -> argparse.ArgumentParser:
    """A parser with the flags of every training.

    Args:
        description: what the script does.
        run: default of `--run`.
        out: what `--out` is.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, required=True, help="model and training settings (YAML)")
    parser.add_argument("--data", type=Path, required=True, help="images: an .npz with images, names, category")
    parser.add_argument("--run", type=Path, default=run, help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, required=True, help=out)
    parser.add_argument("--init", type=Path, help="weights to start from instead of random ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1, help="GPUs, or processes on the CPU, that share a batch")
    return parser
