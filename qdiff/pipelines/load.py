"""`load_pipeline`: from a path to a pipeline with its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qdiff.adapters.ddim import samplers as pixel_samplers
from qdiff.adapters.ldm import samplers as latent_samplers
from qdiff.config.latent import find_checkpoint, find_config, load_latent_config
from qdiff.config.networks import RECOMMENDED, is_latent
from qdiff.pipelines.class_conditional import ClassPipeline
from qdiff.pipelines.latent import LatentPipeline
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.pixel import PixelPipeline
from qdiff.pipelines.quantization import LoadAsWritten
from qdiff.pipelines.settings import ClassSampling, LatentModel, PixelModel, Sampling, TextSampling
from qdiff.pipelines.text import TextPipeline

STEPS = 50
TEXT_ENCODER = "ldm.modules.encoders.modules.FrozenCLIPEmbedder"


def load_pipeline(
    path: str | Path,
    *,
    weights: str | Path | None = None,
    config: str | Path | None = None,
    quantized: str | Path | None = None,
    device: str = "auto",
    precision: str = "full",
    **sampling: Any,
) -> Pipeline:
    """Load a model, ready to sample.

    Args:
        path: YAML file of a model, or a latent model's checkpoint or folder (`config.yaml` with `model.ckpt` or
            `model.safetensors`).
        weights: full-precision weights; None takes those that the YAML names or that lie beside it.
        config: YAML file of a checkpoint; None takes `config.yaml` beside it.
        quantized: quantized file, ours, of the model's network, whose full-precision weights are not needed then.
        device: "auto" (cuda, else mps, else cpu), "cpu", "cuda", "cuda:N" or "mps".
        precision: of a latent model: "full" (float32), "bf16", "fp16" or "autocast".
        sampling: settings as in `Pipeline.with_sampling`; those of the configuration's section `sampling`, else 50
            steps of deterministic DDIM, are the defaults.

    Raises:
        UserError: a file is missing or damaged, or does not fit.
        TypeError, ValueError: a setting of sampling that the model does not have, or an impossible value.
    """
    base, yaml = Path(path), None if config is None else Path(config)
    if base.suffix in (".yml", ".yaml"):
        base, yaml = base.parent, base
    given = None if weights is None else Path(weights)
    pipeline: Pipeline
    if yaml and not is_latent(yaml):
        pipeline = _pixel(PixelModel(yaml, given, device=device))
    else:
        source, checkpoint = find_config(base, yaml), find_checkpoint(given or base, "weights")
        pipeline = _latent(LatentModel(source, checkpoint, device=device, precision=precision))
    pipeline = pipeline.with_sampling(**{**_defaults(pipeline.config), **sampling})
    pipeline.load(network=quantized is None)
    if quantized is None:
        return pipeline
    return pipeline.with_network(LoadAsWritten(Path(quantized)).run(pipeline, Path()))


def _pixel(model: PixelModel) -> PixelPipeline:
    return PixelPipeline(model, Sampling(pixel_samplers.DDIM(STEPS)))


def _latent(model: LatentModel) -> LatentPipeline:
    sampler = latent_samplers.DDIM(STEPS)
    conditioner = OmegaConf.select(load_latent_config(model.config), "model.params.cond_stage_config.target")
    if conditioner == TEXT_ENCODER:
        return TextPipeline(model, TextSampling(sampler))
    return ClassPipeline(model, ClassSampling(sampler))


def _defaults(config: DictConfig) -> Mapping[str, Any]:
    """Return the settings of sampling that a configuration recommends."""
    section = config.get("sampling") or {}
    return {key: section[key] for key in RECOMMENDED if key in section}
