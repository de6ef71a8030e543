"""`load_pipeline`: from a path to a pipeline with its weights."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from diffusion.checks import check_choice
from qdiff.adapters.ddim import samplers as pixel_samplers
from qdiff.adapters.ldm import samplers as latent_samplers
from qdiff.backends import NAMES, SIMULATED
from qdiff.config.latent import find_checkpoint, find_config, load_latent_config
from qdiff.config.networks import RECOMMENDED, is_latent
from qdiff.errors import UserError
from qdiff.pipelines.backends import check_backend, executed
from qdiff.pipelines.class_conditional import ClassPipeline
from qdiff.pipelines.latent import LatentPipeline
from qdiff.pipelines.paths import as_path
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
    backend: str = SIMULATED,
    device: str | torch.device = "auto",
    precision: str = "full",
    **sampling: Any,
) -> Pipeline:
    """Load a model, ready to sample.

    Args:
        path: YAML file of a model, a checkpoint, or a latent model's folder (`config.yaml` with `model.ckpt` or
            `model.safetensors`).
        weights: full-precision weights; None takes `path` if it is a checkpoint, those that the YAML names, or those
            next to the YAML.
        config: YAML file of a checkpoint or folder; None takes its `config.yaml`.
        quantized: our quantized file of the model's network, whose full-precision weights are then not needed.
        backend: what computes the quantized network: "simulated" in floating point, or with integers "torch",
            "onnxruntime", "openvino", or "auto" for the fastest of these that this machine has; see docs/deploy.md.
        device: "auto" (cuda, else mps, else cpu), "cpu", "cuda", "cuda:N" or "mps".
        precision: of a latent model: "full" (float32), "bf16", "fp16" or "autocast".
        sampling: settings as in `Pipeline.with_sampling`. The defaults are those of the section `sampling` of the
            configuration, else 50 steps of deterministic DDIM.

    Raises:
        TypeError: an argument has another type, or this model's sampling has no such setting.
        ValueError: an argument is outside its range, or contradicts another one.
        UserError: a file is missing or damaged, or does not fit.
    """
    check_choice("backend", backend, (SIMULATED, *NAMES))
    base, yaml = as_path("path", path), None if config is None else as_path("config", config)
    if base.suffix in (".yml", ".yaml"):
        if yaml:
            raise ValueError(f"path is a YAML file, '{base}', and so is config, '{yaml}': give one of them")
        base, yaml = base.parent, base
    elif weights is None and yaml and not is_latent(yaml):
        weights = base
    given = None if weights is None else as_path("weights", weights)
    file = None if quantized is None else as_path("quantized", quantized)
    pipeline: Pipeline
    if yaml and not is_latent(yaml):
        if precision != "full":
            raise ValueError(f"precision {precision!r} needs a latent model, '{yaml}' describes another: leave it out")
        pipeline = _pixel(PixelModel(yaml, given, device=str(device)))
    else:
        source, checkpoint = find_config(base, yaml), find_checkpoint(given or base, "weights" if given else "path")
        pipeline = _latent(LatentModel(source, checkpoint, device=str(device), precision=precision))
    pipeline = _with_defaults(pipeline).with_sampling(**sampling)
    simulated = backend == SIMULATED
    if not simulated:
        if file is None:
            raise ValueError(f"backend={backend!r} needs a quantized file: give quantized=...")
        check_backend(pipeline)
    pipeline.load(network=file is None)
    if file is None:
        return pipeline
    loaded = pipeline.with_network(LoadAsWritten(file, low_memory=not simulated).run(pipeline, Path()))
    return loaded if simulated else executed(loaded, backend)


def _pixel(model: PixelModel) -> PixelPipeline:
    return PixelPipeline(model, Sampling(pixel_samplers.DDIM(STEPS)))


def _latent(model: LatentModel) -> LatentPipeline:
    sampler = latent_samplers.DDIM(STEPS)
    conditioner = OmegaConf.select(load_latent_config(model.config), "model.params.cond_stage_config.target")
    if conditioner == TEXT_ENCODER:
        return TextPipeline(model, TextSampling(sampler))
    return ClassPipeline(model, ClassSampling(sampler))


def _with_defaults(pipeline: Pipeline) -> Pipeline:
    """Return the pipeline with the settings of its configuration. Raises UserError if they are invalid."""
    section = pipeline.config.get("sampling") or {}
    try:
        return pipeline.with_sampling(**{key: section[key] for key in RECOMMENDED if key in section})
    except (TypeError, ValueError) as e:
        raise UserError(f"'{pipeline.source}', section 'sampling': {e}: correct it") from e
