#!/usr/bin/env python
"""Sample the bundled model in full precision and quantized in three ways, and compare; the same command goes on."""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from qdiff.cli.parser import Parser, number, parse, run
from qdiff.errors import UserError

if TYPE_CHECKING:
    from qdiff.report import Result

ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[1]))
FEATURES = ROOT / "models/features/emoji32"
TITLE = "A diffusion model with 4-bit weights and 8-bit activations"
FP = "FP"
LR_W = 4e-3  # four times the default, because the iterations are few; with more, roundings shift the colours
ETA = 0.5  # noise on the way mends what a network that was trained for a short time gets wrong


@dataclass(frozen=True)
class Method:
    """A row of the comparison: its name, the folder of its run, and the words of its command line."""

    name: str
    folder: Path
    words: list[str]

    @property
    def command(self) -> str:
        """As one would type it."""
        return shlex.join(["python", *self.words])

    @property
    def file(self) -> Path:
        """The quantized network."""
        return self.folder / "quantized.safetensors"


def demo_parser() -> Parser:
    """The flags; those that the sampling script has too mean the same."""
    parser = Parser(prog="demo.py", usage="python scripts/%(prog)s [flags]", description=__doc__)
    add = parser.group("demo")
    add("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder of the results")
    add("--config", type=Path, default=ROOT / "configs/emoji32.yml", metavar="FILE", help="YAML of the model")
    add("--max_images", default=36, help="images of each method", **number(int, 2))
    add("--timesteps", default=30, help="sampling steps", **number(int, 1))
    add("--cali_st", default=10, help="how many of the sampling steps give calibration data", **number(int, 1))
    add("--cali_n", default=6, help="samples taken at each of these steps", **number(int, 1))
    add("--cali_iters", default=60, help="iterations a block, rounding of the weights", **number(int, 1))
    add("--cali_iters_a", default=10, help="iterations a block, activation step sizes", **number(int, 1))
    return parser


def methods(args: argparse.Namespace) -> list[Method]:
    """Full precision first; the first method that needs calibration data collects them, the others take those."""
    out, script = args.out, ROOT / "scripts/sample_diffusion_ddim.py"
    sampling = ["--config", args.config, "--skip_type", "quad", "--timesteps", args.timesteps, "--eta", ETA]
    sampling += ["--max_images", args.max_images]
    w4a8 = ["--ptq", "--weight_bit", 4, "--quant_act", "--act_bit", 8]
    data = ["--cali_st", args.cali_st, "--cali_n", args.cali_n, "--cali_batch_size", 8]
    learned = [*data, "--cali_data_path", out / "linear" / "calibration_data.safetensors"]
    learned += ["--cali_iters", args.cali_iters, "--cali_lr_w", LR_W, "--cali_iters_a", args.cali_iters_a]
    quantized = {
        FP: [],
        "linear W4A8": [*w4a8, "--quant_mode", "linear", *data],
        "Q-Diffusion W4A8, no split": [*w4a8, *learned],
        "Q-Diffusion W4A8, split": [*w4a8, "--split", *learned],
    }
    found = []
    for name, folder in zip(quantized, ("fp", "linear", "qdiff", "qdiff_split")):
        words = [script, *sampling, *quantized[name], "-l", out / folder]
        found.append(Method(name, out / folder, [str(word) for word in words]))
    return found


def carry_out(method: Method) -> None:
    """Run the command of a method, showing it. Raises UserError if it fails."""
    print(f"\n{method.name}\n  {method.command}", flush=True)
    start = time.perf_counter()
    status = subprocess.run([sys.executable, *method.words], check=False).returncode
    if status:
        raise UserError(f"'{method.name}' ended with status {status}; to begin afresh, give another folder with --out")
    print(f"  {time.perf_counter() - start:.0f} s", flush=True)


def compare(runs: list[Method], max_images: int) -> list["Result"]:
    """The numbers of every run; its pictures are in place."""
    from qdiff.checkpoint import load_weights, read_checkpoint
    from qdiff.evaluate import frechet_distance, mean_absolute_error, psnr, statistics
    from qdiff.features import FeatureNet
    from qdiff.files.statistics import read_statistics
    from qdiff.report import Result, read_pictures
    from qdiff.sampling import image_path

    net, training = FeatureNet().eval(), read_statistics(FEATURES / "reference.safetensors")
    load_weights(net, FEATURES / "classifier.safetensors")
    fp32_size = read_checkpoint(runs[-1].file).facts.fp32_bytes
    results, fp = [], None
    for method in runs:
        pictures = read_pictures([image_path(method.folder / "img", i) for i in range(max_images)])
        fp = pictures if fp is None else fp
        results.append(
            Result(
                method.name,
                method.command,
                psnr=psnr(pictures, fp),
                mae=mean_absolute_error(pictures, fp),
                frechet=frechet_distance(statistics(net.features(pictures)), training),
                size=fp32_size if method.name == FP else method.file.stat().st_size,
                fp32_size=fp32_size,
            )
        )
    return results


def settings(args: argparse.Namespace) -> dict[str, str]:
    """What the numbers depend on beside the commands."""
    import torch

    packages = ("qdiff", "torch", "torchvision", "numpy")
    return {
        "pictures": f"{args.max_images} of each method, seeds alike",
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]),
        "machine": f"{platform.platform()}, {os.cpu_count()} processors, torch uses {torch.get_num_threads()} threads",
    }


def main() -> None:
    """Run the four commands, then write the report."""
    args = parse(demo_parser())
    runs = methods(args)
    for method in runs:
        carry_out(method)

    from qdiff.report import text_table, write_report

    results = compare(runs, args.max_images)
    grids = {method.name: method.folder / "grid.png" for method in runs}
    files = write_report(args.out, TITLE, results, grids, settings(args))
    print(f"\n{text_table(results)}\n\nwritten: {', '.join(map(str, files))}")


if __name__ == "__main__":
    run(main)
