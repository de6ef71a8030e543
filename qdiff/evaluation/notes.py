"""What a reader must know before comparing values, in sentences."""

from collections.abc import Collection, Iterator

from qdiff.evaluation.record import Evaluation, SamplingRecord
from qdiff.files.foreign_images import LOSSY

DIGITS = 2  # after the point, of published values


def notes_on(
    evaluation: Evaluation, full_precision: SamplingRecord | None, unmatched: Collection[str]
) -> tuple[str, ...]:
    """Return what to know about an evaluation, the most important first.

    Args:
        evaluation: without notes.
        full_precision: how the full-precision images were sampled; None if it is not known.
        unmatched: metrics with a published value, but none here.
    """
    return (
        *published_notes(evaluation),
        *(f"there is a published value for {key}, but none here" for key in sorted(unmatched)),
        *_network_notes(evaluation),
        *_set_notes(evaluation),
        *_sampling_notes(evaluation, full_precision),
    )


def published_notes(evaluation: Evaluation) -> Iterator[str]:
    """Yield how far values are from published ones."""
    who = "full precision" if evaluation.is_full_precision else f"'{evaluation.images.source}'"
    for row in evaluation.rows:
        if row.published is None or row.value is None:
            continue
        difference = row.value - row.published
        told = f"{row.name} {row.value:.{DIGITS}f} for a published {row.published:.{DIGITS}f}"
        if round(difference, DIGITS):
            yield f"{who} misses its own published value by {difference:+.{DIGITS}f}: {told}"
        else:
            yield f"{who} meets its published value: {told}"


def _network_notes(evaluation: Evaluation) -> Iterator[str]:
    for network in evaluation.networks:
        if network.role == "features" and not network.standard:
            yield (
                f"features are those of {network.name} (sha256 {network.sha256[:8]}), not of FID's Inception: values "
                "on them compare only with each other"
            )


def _set_notes(evaluation: Evaluation) -> Iterator[str]:
    images, reference, full_precision = evaluation.images, evaluation.reference, evaluation.full_precision
    if reference and reference.shape is None:
        yield f"'{reference.source}' does not state number, resolution and rounding of the images that it summarises"
    if reference and images.shape and reference.shape and images.shape[1:] != reference.shape[1:]:
        sizes = [f"{shape[2]} x {shape[1]}" for shape in (reference.shape, images.shape)]
        yield f"'{reference.source}' summarises images of {sizes[0]} pixels, these have {sizes[1]}"
    for source, files in {
        each.source: each.files or "" for each in (images, reference, full_precision) if each
    }.items():
        if lossy := [name for name in LOSSY if name in files]:
            yield (
                f"'{source}' was read from {' and '.join(lossy)}, which may lose detail: FID and the like react to it, "
                "so compare only with images that were stored alike"
            )
    for other in (reference, full_precision):
        if other and images.rounding and other.rounding and images.rounding != other.rounding:
            yield (
                f"'{images.source}' is rounded to 8 bits {images.rounding}, '{other.source}' {other.rounding}: "
                "distances contain the difference"
            )


def _sampling_notes(evaluation: Evaluation, full_precision: SamplingRecord | None) -> Iterator[str]:
    own = evaluation.sampling
    if own is None:
        yield f"how '{evaluation.images.source}' was sampled is not known"
    elif full_precision and (own.sampler, own.scale) != (full_precision.sampler, full_precision.scale):
        yield (
            f"the full-precision images were sampled with {full_precision.sampler}, scale {full_precision.scale}, "
            f"these with {own.sampler}, scale {own.scale}: distances contain the difference"
        )
