"""`python -m qdiff convert`: convert a calibrated checkpoint of the original to our format."""

from collections.abc import Sequence
from pathlib import Path

from qdiff.cli.flags import check_new
from qdiff.cli.parser import Parser, number, parse
from qdiff.errors import UserError

EXAMPLE = """example:
  python -m qdiff convert cifar_w4a8_ckpt.pth --config configs/cifar10.yml --weight_bit 4 \\
    --quant_act --act_bit 8 --a_sym --split -o cifar_w4a8.safetensors
"""


def _parser() -> Parser:
    parser = Parser(
        prog="python -m qdiff convert",
        usage="%(prog)s FILE --config FILE -o FILE [flags]",
        description="Convert a calibrated checkpoint of the original to our format: the same codes, packed.",
        epilog=EXAMPLE,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="calibrated checkpoint of the original (.pth)")
    add = parser.group("files")
    add("--config", required=True, type=Path, metavar="FILE", help="YAML of its network (required)")
    add("-o", "--out", required=True, type=Path, metavar="FILE", help="file to write, .safetensors (required)")
    add("--force", action="store_true", help="replace --out if it exists")
    add = parser.group("how it was calibrated")
    add("--weight_bit", help="bits per weight (default: inferred from the step sizes)", **number(int, 2, 8))
    add("--split", action="store_true", help="shortcut layers were quantized in two slices")
    add("--quant_act", action="store_true", help="convert the activation step sizes too")
    acts = ("--quant_act",)
    add("--act_bit", default=8, needs=acts, help="bits per activation", **number(int, 2, 8))
    add("--a_sym", action="store_true", needs=acts, help="activation ranges were symmetric around zero")
    add("--sm_abit", default=8, needs=acts, help="bits per attention weight, after the softmax", **number(int, 2, 16))
    return parser


def main(argv: Sequence[str]) -> None:
    """Convert the file of the command line.

    Raises:
        UserError: `--out` exists; or the file is damaged, of another network, already ours, or contradicts the flags.
    """
    args = parse(_parser(), argv)
    check_new(args.out, args.force)

    from qdiff.checkpoints.load import load_quantized, save_quantized
    from qdiff.checkpoints.quantized_file import is_quantized
    from qdiff.checkpoints.read import read_checkpoint
    from qdiff.cli.inspect import describe
    from qdiff.config.networks import load_network, plain
    from qdiff.files.digest import file_digest
    from qdiff.files.formats import format_of

    config, network = load_network(args.config)
    if format_of(args.file) == "safetensors" and is_quantized(args.file):
        raise UserError(f"'{args.file}' is one of our files already: use it as it is")
    model = load_quantized(
        network,
        args.file,
        weight_bit=args.weight_bit,
        act_bit=args.act_bit if args.quant_act else None,
        a_sym=args.a_sym,
        split=args.split,
        sm_abit=args.sm_abit,
    )
    provenance = {"converted from": args.file.name, "its sha256": file_digest(args.file)}
    save_quantized(args.out, model, config=plain(config), provenance=provenance)
    print(describe(args.out, read_checkpoint(args.out)))
    if not args.quant_act:
        print("\nweights only: add --quant_act to keep the activation step sizes that the file may have")
