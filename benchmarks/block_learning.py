#!/usr/bin/env python
"""Measure learned rounding of single blocks at many iterations and rates: seconds each, where a network takes minutes.

    python benchmarks/block_learning.py --iterations 60 200 --lr 1e-3 4e-3 2e-2 6e-2

The bundled pixel-space model with 4-bit weights. Every block gets its inputs from the network rounded to nearest: 40
samples to learn from and 40 of other images, at the same timesteps. Losses are of hard roundings, relative to nearest;
"turned" is the share of weights not rounded to nearest, "decided" that of roundings with h < 0.05 or > 0.95 at the end.
With several seeds, each draws data and batches: mean, and largest less smallest.
"""

import argparse
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

import qdiff
from qdiff.adapters import adapter_for
from qdiff.adaptive_rounding import rectified_sigmoid
from qdiff.block_recon import Captured, block_loss, block_reconstruction
from qdiff.calibration.capture import Store, capture
from qdiff.calibration.prefix_cache import PrefixCache
from qdiff.objectives import LearnedRounding
from qdiff.quant_block import QuantBlock

BLOCKS = ("down.2.block.0", "mid.attn_1", "up.2.block.1", "conv_out")
IMAGES, BATCH = 4, 8
COLUMNS = "loss", "unseen", "turned", "decided"


class Watched(LearnedRounding):
    """Notes the share of decided roundings, and keeps even a worse result."""

    def harden(self) -> None:
        """Replace soft roundings by hard ones."""
        h = torch.cat([rectified_sigmoid(alpha).flatten() for alpha in self.parameters()])
        self.decided = ((h < 0.05) | (h > 0.95)).float().mean().item()
        super().harden()
        self.keep()


def captured(names: Sequence[str], seed: int) -> list[tuple[QuantBlock, tuple[Captured, Captured]]]:
    """Return each block with what it learns from and what it has not seen."""
    pipe = qdiff.load_pipeline("configs/emoji32.yml", steps=20, skip_type="quad", seed=seed)
    steps = list(pipe.calibration_steps(range(2 * IMAGES)))[::2]
    x_t = torch.cat([step.x_t[:IMAGES] for step in steps] + [step.x_t[IMAGES:] for step in steps])
    data = qdiff.CalibrationSet((x_t, torch.tensor([step.t for step in steps]).repeat_interleave(IMAGES).repeat(2)))
    policy = qdiff.QuantPolicy(qdiff.QuantSpec(4, per_channel=True, range_search="minmax"), split=True)
    model = qdiff.QuantModel(pipe.network, policy, adapter_for(pipe.network)).eval()
    blocks = {block.path.removeprefix("model."): block for block in model.blocks()}
    cache = PrefixCache(model, [block.module for block in blocks.values()], data, BATCH, memory=0)
    found, half = [], IMAGES * len(steps)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            c = capture(cache, blocks[name].module, Store(2**34, Path(folder)))
            seen, unseen = slice(0, half), slice(half, None)
            parts = Captured(c.inputs[seen], c.target[seen]), Captured(c.inputs[unseen], c.target[unseen])
            found.append((blocks[name], parts))
    return found


def learn(block: QuantBlock, parts: tuple[Captured, Captured], schedule: qdiff.Schedule, seed: int) -> list[float]:
    """Return the four values of a row; afterwards the block is rounded to nearest again."""
    nearest = {path: layer.codes for path, layer in block.layers.items()}
    before = [block_loss(block.module, part, 2.0, BATCH) for part in parts]
    objective = Watched(block)
    block_reconstruction(block, parts[0], objective, schedule, BATCH, torch.Generator().manual_seed(seed))
    losses = [block_loss(block.module, part, 2.0, BATCH) / start for part, start in zip(parts, before)]
    turned = [(layer.codes != nearest[path]).flatten() for path, layer in block.layers.items()]
    for path, layer in block.layers.items():
        layer.set_codes(nearest[path])
    return [*losses, torch.cat(turned).float().mean().item(), objective.decided]


def main() -> None:
    """Learn every block with every pair of iterations and rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", nargs="+", default=BLOCKS)
    parser.add_argument("--iterations", type=int, nargs="+", default=[60])
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    blocks = {seed: captured(args.blocks, seed) for seed in args.seeds}
    print(f"{'iterations x rate':18s} {'block':16s}" + "".join(f"{name:>17s}" for name in COLUMNS))
    for n, lr in product(args.iterations, args.lr):
        schedule = qdiff.Schedule(n, lr)
        rows = torch.tensor([[learn(*one, schedule, seed) for one in found] for seed, found in blocks.items()])
        rows = torch.cat([rows, rows.mean(1, keepdim=True)], 1)
        for name, mean, spread in zip([*args.blocks, "mean"], rows.mean(0), rows.amax(0) - rows.amin(0)):
            cells = [f"{m:8.3f} +- {s:5.3f}" for m, s in zip(mean.tolist(), spread.tolist())]
            print(f"{f'{n} x {lr:g}':18s} {name:16s} " + " ".join(cells), flush=True)


if __name__ == "__main__":
    main()
