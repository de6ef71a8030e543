#!/usr/bin/env python
"""Measure speed and memory on this machine: prints a table, writes JSON.

python benchmarks/run.py                     everything, on the CIFAR-10 network with random weights
python benchmarks/run.py --only forward      see --help
python benchmarks/run.py --config configs/latent-diffusion/cin256-v2.yaml --batch 1
                                             the UNet of a latent model
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import torch
from measures import MEASURES
from row import Row

from qdiff.cli.parser import run
from qdiff.files.tables import aligned


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text, one per line."""
    return aligned([("measure", "value", "unit", "note"), *((r.name, f"{r.value:.4g}", r.unit, r.note) for r in rows)])


def main() -> None:
    """Run the selected measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MEASURES, action="append", help="may be given several times")
    parser.add_argument("--config", type=Path, default=Path("configs/cifar10.yml"))
    parser.add_argument("--batch", type=int, default=8, help="images per forward")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.only or MEASURES:
        for row in MEASURES[name](args.config, args.batch):
            print(f"{row.name}: {row.value:.4g} {row.unit}", file=sys.stderr, flush=True)
            rows.append(row)
    machine = {"torch": torch.__version__, "threads": args.threads, "machine": platform.platform()}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"machine": machine, "rows": [vars(row) for row in rows]}, indent=1))
    print(f"torch {torch.__version__}, {args.threads} threads\n{table(rows)}\nwritten to {args.json}")


if __name__ == "__main__":
    run(main)
