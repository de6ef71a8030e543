"""Text chunks of a PNG: how the image was made, not how the network came about."""

from collections.abc import Mapping, Sequence

from qdiff.files.version import own_version
from qdiff.pipelines.pipeline import Pipeline
from qdiff.policy import QuantPolicy
from qdiff.quant_model import QuantModel


def bits_of(policy: QuantPolicy) -> str:
    """Describe a policy in a few words, such as "W4A8, A16 after softmax, split"."""
    act = policy.act
    parts = {
        f"W{policy.weight.bits}{f'A{act.bits}' if act else ''}": True,
        f"A{policy.softmax_bits} after softmax": act is not None and act.bits != policy.softmax_bits,
        "split": policy.split,
    }
    return ", ".join(part for part, holds in parts.items() if holds)


def png_text(pipeline: Pipeline, indices: Sequence[int]) -> Mapping[str, str]:
    """Return the text chunks of a PNG of these images, by key."""
    network, streams = pipeline.network, pipeline.noise_streams(indices)
    return {
        **pipeline.image_text(indices),
        "seed": f"{pipeline.sampling.seed}, image {', '.join(map(str, streams))}",
        "sampler": str(pipeline),
        "bits": bits_of(network.policy) if isinstance(network, QuantModel) else "not quantized",
        "precision": pipeline.precision,
        "Software": " ".join(filter(None, ["qdiff", own_version()])),
    }
