#!/usr/bin/env python
"""Compare what executes a network: time, memory, and predictions or images against full precision.

    python benchmarks/backends.py cifar10 --batch 1 8
    python benchmarks/backends.py pixel latent text --images 16
    python benchmarks/backends.py res transformer --batch 2
    python benchmarks/backends.py cifar10 --engines "FP32 eager" "ours, openvino" "OpenVINO INT8 (NNCF)" --rounds 30

"cifar10" is the published architecture with random weights; "res" and "transformer" are a residual block and a
transformer block of 4,096 tokens of Stable Diffusion v1, with random weights: these are rounded to nearest. "pixel",
"latent" and "text" are the bundled models, solved in closed form. Each engine has a process of its own, because those
in one process disturb each other, and they take turns, so that a drift of the machine's speed affects all alike; a turn
is two calls, of which the second one is timed. Columns:

    ms      median time of a call
    x       median over the rounds of the time of the first engine in relation to that of this one
    MiB     memory that the process has gained since before the network was made
    error   |y - y_FP|^2 / |y_FP|^2 of the prediction
    dB      with --images, PSNR of sampled images to those of full precision from the same noise
    s       with --images, seconds that sampling them took

An engine that cannot be made here is named, with the reason, and left out.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
import torch
from calibration import bits_of
from engines import ENGINES, Engine, Given
from subjects import SUBJECTS, read_inputs
from torch import Tensor, nn

from qdiff.evaluation.metrics import psnr
from qdiff.functional import relative_squared_error

CALIBRATION = 50  # samples for engines that calibrate by themselves


class Called(nn.Module):
    """An engine as a network, for pipelines."""

    def __init__(self, engine: Engine):
        super().__init__()
        self.engine = engine

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the prediction."""
        return self.engine(*inputs)


@torch.no_grad()
def serve(subject_name: str, engine_name: str, folder: Path, threads: int, pipe: Connection) -> None:
    """Make an engine, tell its memory, or why there is none; then answer requests until there are no more."""
    torch.set_num_threads(threads)
    subject, (batch, samples) = SUBJECTS[subject_name](), read_inputs(folder)
    before = psutil.Process().memory_info().rss
    try:
        engine = ENGINES[engine_name](Given(subject.make, lambda: subject.load(folder), batch, samples))
        prediction = engine(*batch)
    except Exception as e:  # of an engine that is not ours
        pipe.send(str(e).splitlines()[0])
        return
    pipe.send((psutil.Process().memory_info().rss - before) / 2**20)

    def seconds() -> float:
        engine(*batch)
        start = time.perf_counter()
        engine(*batch)
        return time.perf_counter() - start

    def sampled(images: int, steps: dict[str, int]) -> tuple[Tensor, float]:
        pipeline = subject.pipeline().with_sampling(**steps).with_network(Called(engine))
        pipeline = pipeline.with_sampling(batch_size=max(1, len(batch[0]) // pipeline.cfg_copies))
        start = time.perf_counter()
        found = pipeline.sample(images).tensor
        return found, time.perf_counter() - start

    answers: dict[str, Callable] = {"seconds": seconds, "prediction": lambda: prediction, "sampled": sampled}
    while request := pipe.recv():
        name, *words = request
        pipe.send(answers[name](*words))


class Remote:
    """An engine in a process of its own."""

    def __init__(self, *args: object):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        context.Process(target=serve, args=(*args, other), daemon=True).start()
        self.memory = self.pipe.recv()  # or the reason why there is none

    def ask(self, *request: object):
        """Return the answer to a request."""
        self.pipe.send(request)
        return self.pipe.recv()


def rows(subject: str, folder: Path, args: argparse.Namespace) -> None:
    """Print a row for each engine."""
    engines = {name: Remote(subject, name, folder, args.threads) for name in args.engines}
    for name, engine in engines.items():
        if isinstance(engine.memory, str):
            print(f"    left out: {name}: {engine.memory}", flush=True)
    engines = {name: engine for name, engine in engines.items() if not isinstance(engine.memory, str)}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(args.rounds):
        for name, engine in engines.items():
            seconds[name].append(engine.ask("seconds"))
    first, *_ = engines.values()
    wanted, images = first.ask("prediction"), args.images if SUBJECTS[subject]().pipeline else 0
    steps = {"steps": args.steps} if args.steps else {}
    drawn = first.ask("sampled", images, steps)[0] if images else None
    for name, engine in engines.items():
        ratio = median(a / b for a, b in zip(next(iter(seconds.values())), seconds[name]))
        error = relative_squared_error(engine.ask("prediction"), wanted)
        cells = f"{1e3 * median(seconds[name]):8.1f} {ratio:6.2f} {engine.memory:8.0f} {error:10.3g}"
        if images:
            found, took = engine.ask("sampled", images, steps)
            cells += f" {psnr(found, drawn).mean():8.2f} {took:8.1f}"
        print(f"{name:22} {cells}", flush=True)
        engine.pipe.send(None)


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="+", choices=list(SUBJECTS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--bits", nargs="+", default=["W4A8"], help="such as W4A8 W8A8; W4A32: weights alone")
    parser.add_argument("--w_sym", action="store_true", help="weight ranges symmetric around zero")
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="samples of a call")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=0, help="sampled with each engine, in whole batches")
    parser.add_argument("--steps", type=int, help="of sampling, instead of the model's 30")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    for name in args.subjects:
        for bits in args.bits:
            for batch in args.batch:
                print(f"{name}, {bits}, batch {batch}, {args.threads} threads", flush=True)
                print(f"{'':22} {'ms':>8} {'x':>6} {'MiB':>8} {'error':>10} {'dB':>8} {'s':>8}", flush=True)
                with TemporaryDirectory() as folder:
                    SUBJECTS[name]().prepare(Path(folder), batch, CALIBRATION, bits_of(bits), args.w_sym)
                    rows(name, Path(folder), args)


if __name__ == "__main__":
    main()
