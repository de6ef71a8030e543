"""`python -m qdiff evaluate`: metrics of images, with the protocol that they depend on."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qdiff.cli.flags import check_new, device
from qdiff.cli.parser import Parser, number, parse
from qdiff.cli.recorded import load_run
from qdiff.errors import UserError
from qdiff.evaluation.run_protocol import CONFIG
from qdiff.files.prompts import read_prompts

if TYPE_CHECKING:
    from qdiff.pipelines.finished import FinishedRun

EXAMPLES = """examples:
  FID, sFID, IS, KID, precision and recall of a run
    python -m qdiff evaluate runs/w4a8 --reference VIRTUAL_imagenet256_labeled.npz -o w4a8.json
  how far a quantized model's images are from those in full precision, same seeds
    python -m qdiff evaluate runs/w4a8 --fp runs/fp
  the same without the sampler's amplification: errors of eps, for which both runs are loaded
    python -m qdiff evaluate runs/w4a8 --fp runs/fp --metrics psnr,eps
  small sets, on the features of the bundled classifier, beside an earlier result
    python -m qdiff evaluate runs/w4a8 --features models/features/emoji32/classifier.safetensors \\
      --reference models/features/emoji32/reference.safetensors --compare fp.json
"""


def _parser() -> Parser:
    parser = Parser(
        prog="python -m qdiff evaluate",
        usage="%(prog)s IMAGES [--reference REF] [--fp IMAGES] [-o FILE] [flags]",
        description="Compute metrics of images: the folder of a run, a folder of PNG, JPEG or WebP images, or an\n"
        ".npz with arr_0.",
        epilog=EXAMPLES,
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="images to evaluate")
    add = parser.group("what to compare with")
    add(
        "--reference",
        type=Path,
        metavar="REF",
        help="images as above, or statistics: .npz of mu and sigma, ADM's reference batches, or our .safetensors",
    )
    add("--fp", type=Path, metavar="IMAGES", help="images of the same seeds in full precision")
    add("--prompts", type=Path, metavar="FILE", needs=("--clip",), help="prompts, one per line (default: the PNGs')")
    add = parser.group("metrics")
    add(
        "--metrics",
        type=_words,
        metavar="NAME,NAME,...",
        help="of fid, sfid, is, kid, prc (precision and recall), psnr, mae, ssim, lpips, clip, recognised and, of two "
        "runs, eps (default: all whose inputs are given, but eps)",
    )
    add("--few", action="store_true", help="compute also what needs more images, under a name that says so")
    add(
        "--published",
        type=_values,
        default={},
        metavar="NAME=VALUE,...",
        help="values that a paper gives for these images, such as fid=4.22; how far they are missed is said first",
    )
    add("--compare", type=Path, nargs="+", default=(), metavar="FILE", help="earlier results, shown in columns before")
    add = parser.group("networks")
    add(
        "--inception",
        type=Path,
        metavar="FILE",
        help="weights of FID's Inception network (default: downloaded when needed, and verified)",
    )
    add(
        "--features",
        type=Path,
        metavar="FILE",
        excludes=("--inception",),
        help="weights of a small classifier, such as models/features/emoji32/classifier.safetensors, whose features "
        "stand in for Inception's; nothing is called FID then",
    )
    add("--clip", metavar="DIR", help="CLIP model of transformers: folder, or name on the Hugging Face hub")
    add(
        "--lpips",
        type=Path,
        metavar="FILE",
        help="torchvision's alexnet-owt-7be5be79.pth (default: in torch's cache, if it is there)",
    )
    add = parser.group("run")
    add("-o", "--out", type=Path, metavar="FILE", help="results file to write, .json")
    add("--force", action="store_true", needs=("--out",), help="replace --out if it exists")
    add("--batch_size", default=64, help="images per batch", **number(int, 1))
    add("--device", default="auto", help="where to compute; auto takes cuda, else mps, else cpu", **device())
    return parser


def main(argv: Sequence[str]) -> None:
    """Evaluate the images of the command line, print a table, and write the results.

    Raises:
        UserError: `--out` exists; as `qdiff.evaluate`; or an earlier result is of another kind or protocol.
    """
    args = parse(_parser(), argv)
    if args.out:
        check_new(args.out, args.force)

    from qdiff.evaluation.record_file import read_evaluation, write_evaluation
    from qdiff.evaluation.record_table import check_comparable, text
    from qdiff.files.refusals import explaining
    from qdiff.pipelines.evaluate import evaluate

    earlier = [read_evaluation(path) for path in args.compare]
    with explaining(args.images, "IMAGES"):
        found = evaluate(
            _source(args.images, args.device),
            reference=args.reference,
            full_precision=args.fp and _source(args.fp, args.device),
            metrics=args.metrics,
            inception=args.inception,
            features=args.features,
            clip=args.clip,
            prompts=read_prompts(args.prompts, "--prompts") if args.prompts else None,
            lpips=args.lpips,
            few=args.few,
            published=args.published,
            batch_size=args.batch_size,
            device=args.device,
            progress=None,
        )
    if args.out:  # before the comparison, which may be refused
        try:
            with explaining(args.out, "--out"):
                write_evaluation(args.out, found)
        except UserError:
            print(text([found]))
            raise
    check_comparable([*earlier, found])
    print(text([*earlier, found]))


def _source(path: Path, device: str) -> "Path | FinishedRun":
    """Return the run of a folder, and other paths as they are."""
    return load_run(path, device=device) if (path / CONFIG).is_file() else path


def _words(text: str) -> list[str]:
    words = [word for word in text.split(",") if word]
    if not words:
        raise argparse.ArgumentTypeError(f"{text!r} names no metric, such as fid,is")
    return words


def _values(text: str) -> dict[str, float]:
    values = {}
    for word in text.split(","):
        name, _, number_ = word.partition("=")
        try:
            values[name] = float(number_)
        except ValueError:
            values[name] = math.nan
        if not name or not math.isfinite(values[name]):
            raise argparse.ArgumentTypeError(f"{word!r} is not NAME=VALUE, such as fid=4.22")
    return values
