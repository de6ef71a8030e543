"""The reference of distributions: images, whose statistics are cached, or statistics that others computed."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from zipfile import is_zipfile

import torch
from torch import Tensor

from qdiff.errors import UserError
from qdiff.evaluation.feature_network import FeatureNetwork, Features, Identity
from qdiff.evaluation.image_sets import Array, Folder, ImageSet, open_images
from qdiff.evaluation.measures import Batch
from qdiff.evaluation.metrics import Moments
from qdiff.evaluation.record import ImagesRecord
from qdiff.evaluation.recorder import Recorder
from qdiff.evaluation.statistics_file import SetStatistics, checked, read_statistics, write_statistics
from qdiff.files.arrays import MEMBER
from qdiff.files.digest import digest, file_digest
from qdiff.files.download import cache_folder
from qdiff.files.npz import array_names, read_small

VECTORS, SPATIAL = ("mu", "sigma"), ("mu_s", "sigma_s")  # names in the .npz of TTUR, pytorch-fid and ADM
CACHE = "qdiff/statistics"

log = logging.getLogger(__name__)


def offers(path: Path, who: Identity) -> set[str]:
    """Return what a reference has besides statistics of feature vectors: "vectors", "spatial"; reads only headers.

    Raises:
        UserError: the reference cannot be read.
    """
    of_images = {"vectors", "spatial"} if who.spatial else {"vectors"}
    if path.is_dir():
        return of_images
    if not path.exists():
        raise UserError(f"'{path}' does not exist: give --reference a folder of images, an .npz or statistics")
    if not is_zipfile(path):
        found = read_statistics(path, who)
        return {name for name, part in (("vectors", found.features), ("spatial", found.spatial)) if part is not None}
    names = {*array_names(path)}
    images = MEMBER.removesuffix(".npy") in names
    if images and not (who.standard and {*VECTORS} <= names):
        return of_images
    return {name for name, held in (("vectors", images), ("spatial", {*SPATIAL} <= names)) if held}


def load_reference(path: Path, network: FeatureNetwork, *, features: bool, size: int) -> SetStatistics:
    """Return what metrics need of a reference.

    Args:
        path: a folder of images, a run's folder, an `.npz` of images, of statistics or, as ADM's reference batches, of
            both, or our own statistics.
        network: of the features.
        features: whether the feature vectors are needed, and not only their statistics.
        size: images per batch.

    Raises:
        UserError: the reference cannot be read, has too few images, lacks images where `features` need them, or is of
            another network.
    """
    found = _load(path, network, features, size)
    if features and found.features is None:
        raise UserError(
            f"KID, precision and recall need the reference's images, '{path}' holds statistics only: give images, or "
            "leave kid and prc out of --metrics"
        )
    return found


def _load(path: Path, network: FeatureNetwork, features: bool, size: int) -> SetStatistics:
    if path.is_dir():
        return _of_images(open_images(path), network, features, size)
    if not is_zipfile(path):
        return read_statistics(path, network.identity)
    names = array_names(path)
    precomputed, images = {*VECTORS} <= {*names}, MEMBER.removesuffix(".npy") in names
    if not precomputed or (images and not network.identity.standard):
        return _of_images(open_images(path), network, features, size)
    found = _of_archive(path, names, network.identity)
    if not images:
        return found
    stored = open_images(path)
    kept = _of_images(stored, network, features, size).features if features else None
    return replace(found, images=replace(found.images, shape=stored.shape), features=kept)


def _of_archive(path: Path, names: Iterable[str], who: Identity) -> SetStatistics:
    """Read precomputed statistics, which say nothing about their network: by convention it is FID's Inception."""
    if not who.standard:
        raise UserError(
            f"'{path}' does not say of which feature network its statistics are; such files are of FID's Inception, "
            f"not of {who.name}: give the reference's images, or leave --features and --inception out"
        )
    has_spatial = {*SPATIAL} <= {*names}
    arrays = read_small(path, (*VECTORS, *SPATIAL) if has_spatial else VECTORS)
    vectors = checked(path, arrays["mu"], arrays["sigma"], who.dimension, None)
    spatial = checked(path, arrays["mu_s"], arrays["sigma_s"], who.spatial or 0, None) if has_spatial else None
    record = ImagesRecord(str(path), "statistics", None, None, file_digest(path), None)
    return SetStatistics(who.name, who.sha256, record, vectors, spatial)


def _of_images(images: Folder | Array, network: FeatureNetwork, features: bool, size: int) -> SetStatistics:
    """Return the statistics of images, from the cache if they were computed before."""
    who = network.identity
    parts = (images.files_digest(), who.sha256, str(features))
    cached = cache_folder() / CACHE / f"{digest(part.encode() for part in parts)}.safetensors"
    if cached.is_file():
        try:
            found = read_statistics(cached, who)
            return replace(found, images=replace(found.images, source=images.source, kind="images"))
        except UserError as e:
            log.warning("%s: it is computed again", e)
    found = gathered(images, network, features=features, size=size)
    try:
        write_statistics(cached, found)
    except OSError as e:  # the cache is a convenience
        log.warning("statistics are not cached: %s", e)
    return found


def gathered(images: ImageSet, network: FeatureNetwork, *, features: bool, size: int) -> SetStatistics:
    """Compute the statistics of a set of images.

    Args:
        images: the set, of at least 2 images.
        network: of the features.
        features: whether to keep the feature vectors.
        size: images per batch.

    Raises:
        UserError: an image cannot be read, there are too few, or a feature is not finite.
    """
    who, recorder, vectors, spatial = network.identity, Recorder(images), Moments(), Moments()
    kept: list[Tensor] = []
    for pixels in recorder.batches(size):
        found = Batch(pixels).features(network)
        check_features(found, who, images.source)
        vectors.update(found.vectors)
        if found.spatial is not None:
            spatial.update(found.spatial)
        if features:
            kept.append(found.vectors)
    if vectors.n < 2:
        raise UserError(f"'{images.source}' has one image, statistics need at least 2: give more")
    return SetStatistics(
        who.name,
        who.sha256,
        recorder.record,
        vectors.statistics(),
        spatial.statistics() if spatial.n else None,
        torch.cat(kept) if kept else None,
    )


def check_features(found: Features, who: Identity, source: str) -> None:
    """Check the features of images from `source`. Raises UserError if one is not finite."""
    if not all(values.isfinite().all() for values in found if values is not None):
        raise UserError(f"{who.name} gives features that are not finite for '{source}': check its weights")
