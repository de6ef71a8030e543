"""`python -m qdiff plot`: plots of activations, errors and images, as SVG or PNG."""

import argparse
import fnmatch
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qdiff.cli.parser import Parser, choice, parse
from qdiff.cli.plot_flags import check_output, model, output, pipeline_of, pipelines_of, quantized_files
from qdiff.errors import UserError, suggestion

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_SITES = 24  # panels in a figure


class Kind(NamedTuple):
    """A kind of plot: what it shows, the words of its usage, its flags, and how it is drawn."""

    shows: str
    usage: str
    declare: Callable[[Parser], None]
    draw: Callable[[argparse.Namespace], "Figure"]


def main(argv: Sequence[str]) -> None:
    """Draw the plot of the command line.

    Raises:
        UserError: an unknown kind, `--out` exists or is no .svg or .png, matplotlib is missing, or a file does not fit.
    """
    lines = "\n".join(f"  {name:11} {kind.shows}" for name, kind in KINDS.items())
    overview = Parser(
        prog="python -m qdiff plot",
        usage="%(prog)s KIND -o FILE [flags]; each kind has its own --help",
        description=f"Draw a plot, .svg or .png.\n\nkinds:\n{lines}",
    )
    overview.add_argument("kind", metavar="KIND", help="one of the above", type=choice(*KINDS)["type"])
    name = overview.parse_args(argv[:1]).kind
    args = parse(kind_parser(name), argv[1:])

    from qdiff.plots.output import write_figure
    from qdiff.plots.style import check_installed

    check_output(args)  # this and the next before anything is computed
    check_installed()
    write_figure(args.out, KINDS[name].draw(args), "--out")
    print(f"written: {args.out}")


def kind_parser(name: str) -> Parser:
    """Return the parser of a kind of plot, for `qdiff.cli.parser.parse`."""
    kind = KINDS[name]
    parser = Parser(
        prog=f"python -m qdiff plot {name}",
        usage=f"%(prog)s {kind.usage} -o FILE [flags]",
        description=f"Draw {kind.shows}.",
    )
    kind.declare(parser)
    output(parser)
    return parser


def _ranges_flags(parser: Parser) -> None:
    model(parser)
    add = parser.group("plot")
    add(
        "--sites",
        metavar="PATTERN",
        help="whose inputs to show: paths of layers, or <path>.<operand> of attention products, with * for any "
        "characters; eps is the prediction (default: eps and the five that change most)",
    )


def _ranges(args: argparse.Namespace) -> "Figure":
    from qdiff.analysis.ranges import activation_ranges, site_names
    from qdiff.plots.ranges import draw_ranges

    pipeline = pipeline_of(args)
    sites = _matching(args.sites, site_names(pipeline)) if args.sites else []
    return draw_ranges(activation_ranges(pipeline, args.images), sites)


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the sites that `--sites` names. Raises UserError if there are none, or too many."""
    found = fnmatch.filter(names, pattern)
    if not found:
        raise UserError(f"--sites {pattern} matches none: {_hint(pattern, names)}")
    if len(found) > MOST_SITES:
        raise UserError(f"--sites {pattern} matches {len(found)}, more than {MOST_SITES}: narrow it down")
    return found


def _split_flags(parser: Parser) -> None:
    model(parser)
    add = parser.group("plot")
    add("--layer", metavar="PATH", help="of the shortcut (default: the one whose halves differ most in range)")


def _split(args: argparse.Namespace) -> "Figure":
    from qdiff.analysis.split import most_uneven, split_channels, split_shortcuts
    from qdiff.plots.split import draw_split

    pipeline = pipeline_of(args)
    known = split_channels(pipeline)
    if args.layer and args.layer not in known:
        raise UserError(f"--layer {args.layer} is no shortcut that can be split: {_hint(args.layer, known)}")
    shortcuts = split_shortcuts(pipeline, args.images)
    path = args.layer or most_uneven(shortcuts)
    return draw_split(path, shortcuts[path])


def _layers_flags(parser: Parser) -> None:
    model(parser)
    quantized_files(parser, several=False)


def _layers(args: argparse.Namespace) -> "Figure":
    from qdiff.analysis.layer_errors import layer_errors
    from qdiff.plots.layer_errors import draw_layer_errors

    pipeline, quantized = pipelines_of(args)
    ((name, other),) = quantized.items()
    return draw_layer_errors(layer_errors(pipeline, other, args.images), name)


def _several_flags(parser: Parser) -> None:
    model(parser, several=True)
    quantized_files(parser, several=True)


def _trajectory(args: argparse.Namespace) -> "Figure":
    from qdiff.analysis.trajectory import trajectory_errors
    from qdiff.plots.trajectory import draw_trajectory

    return draw_trajectory(trajectory_errors(*pipelines_of(args), args.images))


def _images(args: argparse.Namespace) -> "Figure":
    from qdiff.analysis.images import compared_images
    from qdiff.plots.images import draw_images

    return draw_images(compared_images(*pipelines_of(args), args.images))


def _tradeoff_flags(parser: Parser) -> None:
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="results of python -m qdiff evaluate, each a method, or results.json of a report",
    )
    add = parser.group("plot")
    add("--metric", default="psnr", metavar="KEY", help="number of the results to show, such as psnr, mae or frechet")
    add(
        "--cost",
        default="size",
        metavar="KEY",
        help="number to show it against: size of the file, bits per parameter; of evaluations also bops, bit "
        "operations per image, and step_bops, per step",
    )


def _tradeoff(args: argparse.Namespace) -> "Figure":
    from qdiff.analysis.tradeoff import check_keys, read_results
    from qdiff.plots.tradeoff import draw_tradeoff

    results = read_results(args.files)
    check_keys(args.metric, args.cost, results)
    for result in results:
        if args.metric not in result.numbers:
            print(f"left out: {result.method}, whose {args.metric} is infinite or not known")
    return draw_tradeoff(results, args.metric, args.cost)


def _bits_flags(parser: Parser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="quantized file, calibrated with --mixed_precision")


def _bits(args: argparse.Namespace) -> "Figure":
    from qdiff.checkpoints.quantized_file import read_quantized
    from qdiff.mixed_precision.choice import choice_of
    from qdiff.plots.bits import draw_bits

    choice = choice_of(read_quantized(args.file).provenance, args.file)
    if choice is None:
        raise UserError(f"'{args.file}' has the same bits at all steps: give a file calibrated with --mixed_precision")
    return draw_bits(choice)


def _correction_flags(parser: Parser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="correction that python -m qdiff correct wrote")


def _correction(args: argparse.Namespace) -> "Figure":
    from qdiff.correction.file import read_correction
    from qdiff.plots.correction import draw_correction

    return draw_correction(read_correction(args.file))


def _hint(word: str, known: Collection[str]) -> str:
    return suggestion(word, known) or f"they are {', '.join(list(known)[:3])}, ..."


MODEL, QUANTIZED = "(--run DIR | --config FILE)", "(--run DIR | --config FILE --quantized FILE)"
SEVERAL = "(--run DIR ... | --config FILE --quantized FILE ...)"
KINDS = {
    "ranges": Kind("activation ranges over the timesteps of sampling", MODEL, _ranges_flags, _ranges),
    "split": Kind("weights and inputs of a shortcut, each of its two halves", MODEL, _split_flags, _split),
    "layers": Kind(
        "the error of each layer at each step, within the whole quantized network",
        QUANTIZED,
        _layers_flags,
        _layers,
    ),
    "trajectory": Kind("errors along the trajectory of sampling", SEVERAL, _several_flags, _trajectory),
    "images": Kind("images and their differences to full precision", SEVERAL, _several_flags, _images),
    "bits": Kind("bits of activations by step, and what they were chosen by", "FILE", _bits_flags, _bits),
    "correction": Kind(
        "slope, bias and deviation of the error of eps at each step, with intervals",
        "FILE",
        _correction_flags,
        _correction,
    ),
    "tradeoff": Kind(
        "quality against size, bits or bit operations, from results files", "FILE ...", _tradeoff_flags, _tradeoff
    ),
}
