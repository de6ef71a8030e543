"""The evaluation of one set of images, in one pass over them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from math import isinf, isnan

from torch import Tensor
from tqdm import tqdm

from qdiff.errors import UserError
from qdiff.evaluation.clip import ClipScore
from qdiff.evaluation.image_sets import Folder, ImageSet
from qdiff.evaluation.kinds import KINDS, Inputs
from qdiff.evaluation.measures import Batch, Measure, Metric
from qdiff.evaluation.notes import notes_on
from qdiff.evaluation.plan import Plan, Request, check_shape
from qdiff.evaluation.record import Evaluation, NetworkRecord, Row
from qdiff.evaluation.recorder import Recorder
from qdiff.evaluation.reference import check_features
from qdiff.evaluation.statistics_file import SetStatistics
from qdiff.files.digest import file_digest
from qdiff.files.images import Shape
from qdiff.files.version import environment, own_version

UNEQUAL = "there are more or fewer images in full precision (--fp): give those of the same seeds"


def evaluate_images(images: ImageSet, full_precision: ImageSet | None, inputs: Inputs, request: Request) -> Evaluation:
    """Compute metrics of images.

    Args:
        images: what to evaluate.
        full_precision: images of the same seeds in full precision; None if there are none.
        inputs: feature network, reference, and other models.
        request: what to compute.

    Raises:
        UserError: images cannot be read, or differ in size from each other, from `full_precision` or from the
            reference; an asked metric cannot be computed or needs more images; nothing can be computed.
    """
    if full_precision:
        _check_pair(images, full_precision)
    recorder, fp_recorder = Recorder(images), Recorder(full_precision) if full_precision else None
    shape, batches = _peeked(recorder.batches(request.size))
    fp_batches = None
    if full_precision and fp_recorder:
        fp_shape, fp_batches = _peeked(fp_recorder.batches(request.size))
        check_shape(images.source, shape, full_precision.source, fp_shape)
    plan = Plan(images, shape, inputs, request)
    names = plan.names(paired=fp_batches is not None)
    reference = plan.reference(names)
    names = plan.with_enough(names, reference.images.number if reference else None)
    measures = {name: KINDS[name].build(inputs, reference) for name in names}
    with tqdm(total=images.count, unit="image", desc="evaluating", disable=request.hidden) as bar:
        known = images.prompts if "clip" in names else None, images.labels if "recognised" in names else None
        for batch in _paired(batches, fp_batches, *known):
            if any(KINDS[name].measure for name in names):
                check_features(batch.features(inputs.network), inputs.network.identity, images.source)
            for measure in measures.values():
                measure.update(batch)
            bar.update(len(batch.images))
    record = recorder.record
    rows = tuple(_rows(plan, measures, record.number or 0, reference))
    found = Evaluation(
        record,
        reference.images if reference else None,
        fp_recorder.record if fp_recorder else None,
        images.sampling,
        tuple(_networks(measures, inputs)),
        rows,
        plan.left_out,
        settings=environment(),
    )
    unused = request.published.keys() - {row.metric for row in rows}
    return replace(found, notes=notes_on(found, full_precision.sampling if full_precision else None, unused))


def _peeked(batches: Iterator[Tensor]) -> tuple[Shape, Iterator[Tensor]]:
    """Return the shape (C, H, W) of images, and all batches."""
    first = next(batches)
    _, channels, height, width = first.shape
    return (channels, height, width), chain([first], batches)


def _paired(
    batches: Iterator[Tensor],
    others: Iterator[Tensor] | None,
    prompts: Sequence[str] | None,
    labels: Sequence[str] | None,
) -> Iterator[Batch]:
    """Yield images with what is known about each. Raises UserError if there are more or fewer in full precision."""
    start = 0
    for x in batches:
        other = None if others is None else next(others, None)
        if others is not None and (other is None or len(other) != len(x)):
            raise UserError(UNEQUAL)
        texts = [prompts[i % len(prompts)] for i in range(start, start + len(x))] if prompts else None
        yield Batch(x, other, labels[start : start + len(x)] if labels else None, texts)
        start += len(x)
    if others is not None and next(others, None) is not None:
        raise UserError(UNEQUAL)


def _check_pair(images: ImageSet, full_precision: ImageSet) -> None:
    """Raise UserError if images are known not to be those of the same seeds."""
    here, there = images.source, full_precision.source
    if images.count and full_precision.count and images.count != full_precision.count:
        counts = f"{images.count:,} and {full_precision.count:,}"
        raise UserError(f"'{here}' and '{there}' have {counts} images: give --fp those of the same seeds")
    if isinstance(images, Folder) and isinstance(full_precision, Folder):
        for a, b in zip(images.paths, full_precision.paths):
            if a.stem != b.stem:
                raise UserError(f"'{a}' has no counterpart in '{there}': give --fp the images of the same seeds")
    if images.sampling and full_precision.sampling and images.sampling.seed != full_precision.sampling.seed:
        seeds = f"{images.sampling.seed} and {full_precision.sampling.seed}"
        raise UserError(f"'{here}' and '{there}' were sampled from the seeds {seeds}: give --fp those of the same seed")


def _rows(plan: Plan, measures: Mapping[str, Measure], count: int, reference: SetStatistics | None) -> Iterator[Row]:
    """Yield the values; of a stream, whose length shows only now, some may need more images."""
    for name, measure in measures.items():
        if count < (least := plan.least(name)):
            plan.left_out[name] = f"it needs at least {least:,} images, there were {count:,}"
            continue
        known = reference.images.number if reference and "reference" in KINDS[name].needs else None
        values = measure.compute()
        if any(map(isnan, values)):
            plan.left_out[name] = "its value is not a number"
            continue
        for metric, value in zip(measure.metrics, values):
            told = known if known is not None and known < metric.least else count
            yield _row(metric.of(told), value, plan.request)


def _row(metric: Metric, value: float, request: Request) -> Row:
    by = f"{metric.by} {version(metric.by)}" if metric.by else f"qdiff {own_version() or 'not installed'}"
    shown = None if isinf(value) else value
    published = request.published.get(metric.key)
    return Row(metric.key, metric.name, metric.unit, shown, by, published, metric.meaning, metric.spec)


def _networks(measures: Mapping[str, Measure], inputs: Inputs) -> Iterator[NetworkRecord]:
    """Yield the networks that the measures used."""
    if "recognised" in measures or any(KINDS[name].measure for name in measures):
        who = inputs.network.identity
        yield NetworkRecord("features", who.name, who.sha256, who.standard)
    if "lpips" in measures and inputs.alexnet:
        yield NetworkRecord("lpips", "AlexNet", file_digest(inputs.alexnet), True)
    for measure in measures.values():
        if isinstance(measure, ClipScore):
            yield NetworkRecord("clip", str(inputs.clip), measure.sha256, False)
