#!/usr/bin/env python
"""Compare what executes a network, in one run: time, and predictions or images against full precision.

    python benchmarks/backends.py cifar10 --batch 8
    python benchmarks/backends.py pixel latent text --images 16
    python benchmarks/backends.py res transformer --batch 2
    python benchmarks/backends.py cifar10 --engines "FP32 eager" "ours, openvino" "OpenVINO INT8 (NNCF)" --rounds 30

"cifar10" is the published architecture with random weights; "res" and "transformer" are a residual block and a
transformer block of 4,096 tokens of Stable Diffusion v1, with random weights: these are rounded to nearest. "pixel",
"latent" and "text" are the bundled models, solved in closed form. Every engine is called once a round, in turn, so that
a drift of the machine's speed affects all alike. Columns:

    ms      median time of a call
    x       median over the rounds of the time of the first engine in relation to that of this one
    error   |y - y_FP|^2 / |y_FP|^2 of the prediction
    dB      with --images, PSNR of sampled images to those of full precision from the same noise

An engine whose package is not installed is named and left out.
"""

import argparse
import time
from statistics import median

import torch
from calibration import bits_of
from engines import ENGINES, Engine
from subjects import SUBJECTS, Subject
from torch import Tensor, nn

from qdiff.errors import UserError
from qdiff.evaluation.metrics import psnr
from qdiff.functional import relative_squared_error


class Called(nn.Module):
    """An engine as a network, for pipelines."""

    def __init__(self, engine: Engine):
        super().__init__()
        self.engine = engine

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the prediction."""
        return self.engine(*inputs)


def made(subject: Subject, names: list[str]) -> dict[str, Engine]:
    """Make the engines, and call each once."""
    found: dict[str, Engine] = {}
    for name in names:
        try:
            found[name] = ENGINES[name](subject)
            found[name](*subject.samples(subject.batch))
        except (ImportError, UserError) as e:
            print(f"left out: {name}: {e}", flush=True)
            found.pop(name, None)
    return found


def timed(engines: dict[str, Engine], subject: Subject, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each engine in each round."""
    given, seconds = subject.samples(subject.batch), {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(*given)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def rows(subject: Subject, names: list[str], rounds: int, images: int) -> None:
    """Print a row for each engine."""
    engines, given = made(subject, names), subject.samples(subject.batch)
    seconds, wanted = timed(engines, subject, rounds), subject.network(*given)
    first = next(iter(seconds.values()))
    pipe = subject.pipeline if images else None
    drawn = pipe.sample(images).tensor if pipe else None
    for name, engine in engines.items():
        ratio = median(a / b for a, b in zip(first, seconds[name]))
        error = relative_squared_error(engine(*given), wanted)
        db = f"{psnr(pipe.with_network(Called(engine)).sample(images).tensor, drawn).mean():8.2f}" if pipe else ""
        print(f"{name:22} {1e3 * median(seconds[name]):8.1f} {ratio:6.2f} {error:10.3g} {db}", flush=True)


@torch.no_grad()
def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="+", choices=list(SUBJECTS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--bits", nargs="+", default=["W4A8"], help="such as W4A8 W8A8")
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="samples of a call")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=0, help="sampled with each engine, of bundled models")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.subjects:
        for bits in args.bits:
            for batch in args.batch:
                print(f"{name}, {bits}, batch {batch}, {args.threads} threads", flush=True)
                print(f"{'':22} {'ms':>8} {'x':>6} {'error':>10} {'dB':>8}", flush=True)
                rows(SUBJECTS[name](batch, bits_of(bits)), args.engines, args.rounds, args.images)


if __name__ == "__main__":
    main()
