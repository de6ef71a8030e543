"""`python -m qdiff convert`: a calibrated checkpoint of the original becomes one of ours."""
# ruff: noqa: PLC0415 - torch loads once the flags are read

import hashlib
from collections.abc import Sequence
from pathlib import Path

from qdiff.cli.parser import Parser, number, parse
from qdiff.errors import UserError

ACTIVATIONS = ("--quant_act",)


def main(argv: Sequence[str]) -> None:
    """Convert the file of the command line.

    Raises:
        UserError: `--out` exists, or the file is damaged, of another network, or contradicts the flags.
    """
    args = parse(_parser(), argv)
    if args.out.exists() and not args.force:
        raise UserError(f"'{args.out}' exists: choose another --out, or add --force to replace it")
    if args.out.is_dir() or (args.out.exists() and args.out.samefile(args.file)):
        raise UserError(f"'{args.out}' would be overwritten by its own conversion: choose another --out")

    from omegaconf import OmegaConf

    from qdiff.checkpoint import load_quantized, save_quantized
    from qdiff.cli.config import build_network, load_config

    config = load_config(args.config)
    model = load_quantized(
        build_network(config),
        args.file,
        weight_bit=args.weight_bit,
        act_bit=args.act_bit if args.quant_act else None,
        a_sym=args.a_sym,
        split=args.split,
        sm_abit=args.sm_abit,
    )
    with args.file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
