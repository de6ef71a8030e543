"""`evaluate`: metrics of images, from files, memory or a pipeline that samples them meanwhile."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from diffusion.checks import whole
from qdiff.errors import UserError
from qdiff.evaluation.evaluate import evaluate_images
from qdiff.evaluation.feature_network import FeatureNetwork
from qdiff.evaluation.features import load_feature_net
from qdiff.evaluation.image_sets import ImageSet, Stream, WithPrompts, open_images
from qdiff.evaluation.inception import load_inception
from qdiff.evaluation.kinds import Inputs
from qdiff.evaluation.plan import Request
from qdiff.evaluation.record import Evaluation
from qdiff.evaluation.run_protocol import labels_of, rounding_of, sampling_record
from qdiff.pipelines.device import find_device
from qdiff.pipelines.eps_error import EPS, with_eps
from qdiff.pipelines.finished import FinishedRun
from qdiff.pipelines.images import Images
from qdiff.pipelines.model_record import record_of
from qdiff.pipelines.paths import as_path
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.png_text import png_text
from qdiff.pipelines.settings import TextSampling

PACKAGES = ("torch_fidelity", "torchmetrics")

Source = str | Path | FinishedRun | Pipeline | Tensor | Images | Iterable[Tensor]


def evaluate(
    images: Source,
    *,
    reference: str | Path | None = None,
    full_precision: Source | None = None,
    metrics: Sequence[str] | None = None,
    count: int | None = None,
    network: FeatureNetwork | None = None,
    inception: str | Path | None = None,
    features: str | Path | None = None,
    clip: str | None = None,
    prompts: Sequence[str] | None = None,
    lpips: str | Path | None = None,
    few: bool = False,
    published: Mapping[str, float] | None = None,
    batch_size: int = 64,
    device: str | torch.device = "auto",
    progress: bool | None = False,
) -> Evaluation:
    """Compute metrics of images, with the protocol that they depend on.

    Args:
        images: folder of a run or of images, what `load_run` returns, an `.npz` with `arr_0`, a pipeline that samples
            `count` images, a tensor, what `Pipeline.sample` returns, or batches of any sizes, uint8 (B, 1 or 3, H, W),
            such as from `Pipeline.batches`: the latter are read once and never all in memory.
        reference: what distributions are compared with: a folder, an `.npz` of images or of statistics, or our
            statistics.
        full_precision: images of the same seeds in full precision; anything that `images` may be.
        metrics: of "fid", "sfid", "is", "kid", "prc", "psnr", "mae", "ssim", "lpips", "clip", "recognised" and, of two
            pipelines or runs from `load_run`, "eps"; None takes all whose inputs are given, but no "eps" of runs.
        count: number of images of a pipeline.
        network: a feature network of your own; instead of `inception` and `features`.
        inception: weights of FID's Inception network; None downloads the published ones when they are needed.
        features: weights of a `qdiff.evaluation.features.FeatureNet` instead of Inception.
        clip: folder or name of a CLIP model of transformers.
        prompts: of the images, starting over after the last; None takes what the images say.
        lpips: torchvision's AlexNet weights; None takes those that torchvision downloaded.
        few: compute also what needs more images than there are, under a name that says so.
        published: key of a metric, such as "fid" -> the value that a paper gives for these images.
        batch_size: images per batch, >= 1.
        device: where feature networks compute, see `load_pipeline`.
        progress: show a progress bar; None shows it in a terminal.

    Raises:
        TypeError, ValueError: an argument has another type, or contradicts another one.
        UserError: as `qdiff.evaluation.evaluate.evaluate_images`; a file cannot be read; or a package is missing.
    """
    check_installed()
    where, size = find_device(str(device)), whole("batch_size", batch_size, 1)
    inputs = Inputs(
        lambda: _network(network, inception, features, where),
        where,
        None if reference is None else as_path("reference", reference),
        clip,
        None if lpips is None else as_path("lpips", lpips),
    )
    if sum(x is not None for x in (network, inception, features)) > 1:
        raise ValueError("network, inception and features exclude each other: give one of them")
    if metrics is not None and not metrics:
        raise ValueError("metrics is empty: name some, or leave it out")
    source = image_set("images", images, count)
    if prompts:
        source = WithPrompts(source, prompts)
    other = None if full_precision is None else image_set("full_precision", full_precision, count)
    pair = _pair(images, full_precision, metrics)
    asked = None if metrics is None else [name for name in metrics if name != EPS]
    found = evaluate_images(source, other, inputs, Request(asked, few, dict(published or {}), size, progress))
    if pair:
        found = with_eps(found, *pair)
    return _with_model(found, images)


def check_installed() -> None:
    """Check that what evaluating needs is installed. Raises UserError otherwise."""
    for package in PACKAGES:
        if find_spec(package) is None:
            raise UserError(f"evaluating needs {package}: pip install 'qdiff[eval]'")


def image_set(name: str, given: Source, count: int | None = None) -> ImageSet:
    """Return the images that an argument stands for. Raises TypeError, ValueError and UserError as `evaluate`."""
    if isinstance(given, Pipeline):
        if count is None:
            raise ValueError(f"{name} is a pipeline: give count, the number of images")
        return _of_pipeline(given, whole("count", count, 1))
    if isinstance(given, str | Path | FinishedRun):
        return open_images(given.folder if isinstance(given, FinishedRun) else Path(given))
    if isinstance(given, Images):
        return Stream([given.tensor], name, len(given), "nearest", sampling_record(given.text))
    if isinstance(given, Tensor):
        return Stream([given], name, len(given))
    if isinstance(given, Iterable):
        return Stream(given, name)
    raise TypeError(f"{name} must be a path, a pipeline, a tensor or batches of images, not {type(given).__name__}")


def _pair(
    images: Source, full_precision: Source | None, metrics: Sequence[str] | None
) -> tuple[Pipeline, Pipeline] | None:
    """Return the pipelines whose eps is to be compared, loaded; None if it is not. Raises UserError as `load`."""
    both = images, full_precision
    if EPS not in metrics if metrics is not None else not all(isinstance(x, Pipeline) for x in both):
        return None
    first, second = (x.load() if isinstance(x, FinishedRun) else x for x in both)
    if not (isinstance(first, Pipeline) and isinstance(second, Pipeline)):
        raise UserError(
            f"--metrics {EPS} needs the folders of two runs, or from Python two pipelines: give them as images and as "
            "those in full precision (--fp)"
        )
    return first, second


def _with_model(found: Evaluation, images: Source) -> Evaluation:
    """Add the model that the images were sampled with, or a note why it is not known."""
    if isinstance(images, Pipeline):
        return replace(found, model=record_of(images))
    if not isinstance(images, FinishedRun):
        return found
    try:
        return replace(found, model=images.model())
    except UserError as e:
        return replace(found, notes=(*found.notes, f"bit operations and file size are not known: {e}"))


def _of_pipeline(pipeline: Pipeline, count: int) -> Stream:
    sampling, data = pipeline.sampling, pipeline.config.get("data") or {}
    prompts = sampling.prompts if isinstance(sampling, TextSampling) else ()
    return Stream(
        pipeline.batches(count),
        str(pipeline.source),
        count,
        rounding_of(data),
        sampling_record(png_text(pipeline, [0])),
        [prompts[i % len(prompts)] for i in range(count)] if prompts else None,
        labels_of((pipeline.image_text([i]) for i in range(count)), pipeline.config_dict.get("classes")),
    )


def _network(
    own: FeatureNetwork | None, inception: str | Path | None, features: str | Path | None, device: torch.device
) -> FeatureNetwork:
    if own is not None:
        return own
    if features is not None:
        return load_feature_net(as_path("features", features)).to(device)
    return load_inception(None if inception is None else as_path("inception", inception), device)
