"""Random weights in a file, with which a model runs at full size without a download."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from qdiff.files.atomic import replacing
from qdiff.files.vocabulary import write_bytewise
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.text import TextPipeline

SEED = 0


def write_random_weights(pipeline: Pipeline, path: Path) -> None:
    """Draw all weights of a model, in half precision, and write them; the same model gets the same weights.

    A text encoder gets a tokenizer of bytes beside them, unless the pipeline names one.

    Args:
        pipeline: not loaded; it has these weights, in float32, afterwards.
        path: safetensors file, which appears whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    pipeline.init_random()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, x in pipeline.module.named_parameters():
            x.copy_(_drawn(name, x.shape, generator))
    drawn = {name for name, _ in pipeline.module.named_parameters()}
    state = pipeline.module.state_dict()
    tensors = {key: (x.half() if key in drawn else x).contiguous() for key, x in state.items()}
    if isinstance(pipeline, TextPipeline) and pipeline.model.tokenizer is None:
        write_bytewise(path.parent, pipeline.conditions.encoder.vocab_size)
    with replacing(path) as partial:
        save_file(tensors, partial)


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return values that keep the size of activations: scales 1, offsets 0, all others normal, variance 1 / fan-in."""
    if len(shape) < 2:
        return torch.full(shape, float(name.endswith("weight")))
    return torch.randn(shape, generator=generator) / shape[1:].numel() ** 0.5
