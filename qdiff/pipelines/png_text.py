"""Text chunks of a PNG: how the image was sampled; how the network was quantized is in the network's file."""

from collections.abc import Mapping, Sequence

from qdiff.files.version import own_version
from qdiff.pipelines.base import BasePipeline
from qdiff.pipelines.bits import bits_of


def png_text(pipeline: BasePipeline, indices: Sequence[int]) -> Mapping[str, str]:
    """Return the text chunks of a PNG of these images, by key."""
    streams = pipeline.noise_streams(indices)
    return {
        **pipeline.image_text(indices),
        "seed": f"{pipeline.sampling.seed}, image {', '.join(map(str, streams))}",
        "sampler": str(pipeline),
        "bits": bits_of(pipeline.network),
        "precision": pipeline.precision,
        **_correction(pipeline),
        "Software": " ".join(filter(None, ["qdiff", own_version()])),
    }


def _correction(pipeline: BasePipeline) -> Mapping[str, str]:
    c = pipeline.correction
    return {"correction": f"{c.fit}: {', '.join(c.used) or 'all parts off'}"} if c else {}
