"""`python -m qdiff correct`: fit a correction for a finished run, or show one."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qdiff.cli.correction_flags import PARTS, fitting
from qdiff.cli.flags import check_file, device
from qdiff.cli.parser import Parser, parse

if TYPE_CHECKING:
    from qdiff.correction.table import CorrectionTable
    from qdiff.pipelines.correction import FitCorrection
    from qdiff.pipelines.pipeline import Pipeline

NORMAL = 1.96  # standard errors of a 95 % interval
EXAMPLES = """examples:
  fit for the quantized network and the sampling of a run, and sample with it
    python -m qdiff correct runs/w4a8
    python scripts/sample_diffusion_ddim.py ... --correct runs/w4a8/correction.safetensors -l runs/corrected
  show what a file holds
    python -m qdiff correct runs/w4a8/correction.safetensors
"""


def correct_parser() -> Parser:
    """Return the parser of the verb, for `qdiff.cli.parser.parse`."""
    parser = Parser(
        prog="python -m qdiff correct",
        usage="%(prog)s RUN [-o FILE] [flags], or %(prog)s FILE",
        description="Fit what quantization does to the predicted noise (PTQD), for the network and the sampling of a\n"
        "finished run; or show a file of such a correction.",
        epilog=EXAMPLES,
    )
    parser.add_argument("path", type=Path, metavar="RUN|FILE", help="folder of a run with --ptq, or a correction")
    fitting(parser.group("fit"), "")
    add = parser.group("run")
    add("-o", "--out", type=Path, metavar="FILE", help="file to write (default: correction.safetensors in RUN)")
    add("--device", default="auto", help="where to compute; auto takes cuda, else mps, else cpu", **device())
    add("--dry_run", "--dry-run", action="store_true", help="print how long it takes, and exit")
    return parser


def main(argv: Sequence[str]) -> None:
    """Fit or show the correction of the command line.

    Raises:
        UserError: a flag that does not go with a file, the folder is not of a quantized run, or as the fit.
    """
    args = parse(correct_parser(), argv)
    if args.path.is_dir():
        _fit(args)
        return

    from qdiff.correction.file import read_correction

    print(describe(args.path, read_correction(args.path)))


def _fit(args: argparse.Namespace) -> None:
    from qdiff.cli.recorded import load_run
    from qdiff.pipelines.correction import FILE, FitCorrection
    from qdiff.sampling.run_folder import RunFolder

    if args.out:
        check_file(args.out)
    out = args.out or args.path / FILE
    job = FitCorrection(args.correct_fit, args.correct_n, args.correct_parts or PARTS, out)
    run = load_run(args.path, device=args.device)
    full_precision = run.load_full_precision()
    job.check(full_precision)
    print(*_plan(job, full_precision), sep="\n", flush=True)
    if args.dry_run:
        return
    with RunFolder.open(args.path, flag="RUN") as folder:
        quantized = run.quantized(full_precision).with_correction(None)
        corrected = job.run(quantized, full_precision, folder.path)
    assert corrected.correction
    print(describe(out, corrected.correction))


def _plan(job: "FitCorrection", pipeline: "Pipeline") -> Sequence[str]:
    from qdiff.calibration.measure import forward_seconds

    return job.describe(pipeline, forward_seconds(pipeline.network, pipeline.example(1)) * pipeline.cfg_copies)


def describe(path: Path, table: "CorrectionTable") -> str:
    """Describe a correction as the verb prints it: what it belongs to, its parts, and its numbers by step."""
    made = table.made_for
    about = {
        "file": f"{path}: correction (PTQD), {table.fit} fit on {table.provenance.get('images')} images",
        "network": str(made.get("network")),
        "sampling": f"{made.get('sampler')}, {len(table.timesteps)} calls, scale {made.get('scale')}",
        **{name: str(table.parts[name]) for name in PARTS},
    }
    lines = [f"{name:12} {text}" for name, text in about.items()]
    head = ["t", "slope", "bias, largest", "residual"]
    rows = [
        [
            f"{t:g}",
            _interval(table.slope[i].mean(), table.slope_error[i].mean()),
            _interval(*_largest(table, i)),
            _interval(table.std[i], table.std_error[i]),
        ]
        for i, t in enumerate(table.timesteps)
    ]
    grid = [f"{row[0]:>8}" + "".join(f"{cell:>24}" for cell in row[1:]) for row in [head, *rows]]
    return "\n".join([*lines, "", *grid])


def _largest(table: "CorrectionTable", step: int) -> tuple[float, float]:
    channel = int(table.bias[step].abs().argmax())
    return table.bias[step, channel].item(), table.bias_error[step, channel].item()


def _interval(value: object, error: object) -> str:
    return f"{float(value):.4f} +- {NORMAL * float(error):.4f}"  # type: ignore[arg-type]
