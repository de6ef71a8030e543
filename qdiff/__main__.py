"""`python -m qdiff VERB`: checkpoint files, metrics of images, tables of papers, plots."""

import sys
from collections.abc import Callable, Sequence

from qdiff.cli.parser import Parser, choice, run


def inspect(argv: Sequence[str]) -> None:
    """show what a checkpoint holds, and whether it is intact"""
    from qdiff.cli.inspect import main

    main(argv)


def convert(argv: Sequence[str]) -> None:
    """convert a calibrated checkpoint of the original to our format"""
    from qdiff.cli.convert import main

    main(argv)


def export(argv: Sequence[str]) -> None:
    """write the network of a quantized file as an ONNX graph, for engines"""
    from qdiff.cli.export import main

    main(argv)


def evaluate(argv: Sequence[str]) -> None:
    """compute metrics of images: FID, IS, KID, distances to full precision"""
    from qdiff.cli.evaluate import main

    main(argv)


def correct(argv: Sequence[str]) -> None:
    """fit a correction of the predicted noise for a run (PTQD), or show one"""
    from qdiff.cli.correct import main

    main(argv)


def plot(argv: Sequence[str]) -> None:
    """draw activation ranges, errors by layer and step, quality against size, and images"""
    from qdiff.cli.plot import main

    main(argv)


def reproduce(argv: Sequence[str]) -> None:
    """make tables of published values again, beside the values obtained"""
    from qdiff.cli.reproduce import main

    main(argv)


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    verb.__name__: verb for verb in (inspect, convert, export, correct, evaluate, reproduce, plot)
}


def main() -> None:
    """Run the verb of the command line."""
    run(_dispatch)


def _dispatch() -> None:
    lines = "\n".join(f"  {name:10} {verb.__doc__}" for name, verb in VERBS.items())
    parser = Parser(
        prog="python -m qdiff",
        usage="%(prog)s VERB [flags]; each verb has its own --help",
        description=f"Files and images of quantized diffusion models.\n\nverbs:\n{lines}",
    )
    parser.add_argument("verb", help="one of the above", **choice(*VERBS))
    VERBS[parser.parse_args(sys.argv[1:2]).verb](sys.argv[2:])


if __name__ == "__main__":
    main()
