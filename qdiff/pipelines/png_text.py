"""What a PNG says of itself: what was done, not how the network came about."""

from argparse import Namespace
from collections.abc import Mapping, Sequence

from qdiff.files.version import own_version


def bits_of(args: Namespace) -> str:
    """How the flags say that the network is quantized."""
    if not args.ptq:
        return "not quantized"
    parts = {
        f"W{args.weight_bit}{f'A{args.act_bit}' if args.quant_act else ''}": True,
        f"A{args.sm_abit} after softmax": args.quant_act and args.sm_abit != args.act_bit,
        "split": args.split,
    }
    return ", ".join(part for part, holds in parts.items() if holds)


def png_text(args: Namespace, streams: Sequence[int], sampling: str) -> Mapping[str, str]:
    """The text chunks of the pictures of every script.

    Args:
        args: the flags.
        streams: numbers of the streams of noise that the pictures were made from.
        sampling: the sampler with its settings.
    """
    return {
        "seed": f"{args.seed}, picture {', '.join(map(str, streams))}",
        "sampler": sampling,
        "bits": bits_of(args),
        "precision": vars(args).get("precision", "full"),  # a flag of txt2img.py alone
        "Software": " ".join(filter(None, ["qdiff", own_version()])),
    }
