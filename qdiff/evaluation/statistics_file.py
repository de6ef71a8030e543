"""Statistics of a reference set on a feature network, and their files."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qdiff.errors import UserError
from qdiff.evaluation.feature_network import Identity
from qdiff.evaluation.metrics import Statistics
from qdiff.evaluation.record import ImagesRecord
from qdiff.evaluation.record_file import parsed
from qdiff.files.atomic import replacing
from qdiff.files.dtypes import dtype_name
from qdiff.files.names import utf8_name

VERSION = 2  # version 1 did not say of which network it is
REMEDY = "give a file of feature statistics"


@dataclass(frozen=True)
class SetStatistics:
    """What metrics need of a reference set.

    Attributes:
        network: name of the feature network.
        sha256: digest of its weights.
        images: the set.
        vectors: Gaussian of the feature vectors.
        spatial: Gaussian of the spatial features; None if the network has none.
        features: the vectors themselves, (N, D); None if they were not kept.
    """

    network: str
    sha256: str
    images: ImagesRecord
    vectors: Statistics
    spatial: Statistics | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class _About:
    """The text in a file's header."""

    version: int
    network: str
    sha256: str
    images: ImagesRecord


def write_statistics(path: Path, statistics: SetStatistics) -> None:
    """Write statistics as safetensors, whole or not at all. Raises OSError if the file cannot be written."""
    s = statistics
    tensors = {"mu": s.vectors.mu, "sigma": s.vectors.sigma}
    if s.spatial:
        tensors |= {"mu_s": s.spatial.mu, "sigma_s": s.spatial.sigma}
    if s.features is not None:
        tensors["features"] = s.features
    about = asdict(_About(VERSION, s.network, s.sha256, s.images))
    with replacing(path) as partial:
        save_file({k: x.contiguous() for k, x in tensors.items()}, partial, {"statistics": json.dumps(about)})


def read_statistics(path: Path, network: Identity) -> SetStatistics:
    """Read what `write_statistics` wrote.

    Raises:
        UserError: the file is missing, damaged, of another kind or version, or of another network.
    """
    try:
        with utf8_name(path) as name, safe_open(name, "pt") as file:
            about = json.loads((file.metadata() or {}).get("statistics", "{}")) or {}
            names = list(file.keys())
            tensors = {key: file.get_tensor(key) for key in names}
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror or e}): {REMEDY}") from e
    except (SafetensorError, ValueError) as e:
        raise UserError(f"'{path}' cannot be read as safetensors ({e}): {REMEDY}") from e
    if "mu" not in tensors or "sigma" not in tensors:
        raise UserError(f"'{path}' does not hold feature statistics: {REMEDY}")
    stated = _stated(path, about)
    if stated.sha256 != network.sha256:
        raise UserError(
            f"'{path}' holds statistics of another feature network ({stated.network}, sha256 {stated.sha256[:8]}) than "
            f"the one in use ({network.name}, sha256 {network.sha256[:8]}): give the reference's images, or statistics "
            "of this network"
        )
    images = replace(stated.images, source=str(path), kind="statistics")
    vectors = checked(path, tensors["mu"], tensors["sigma"], network.dimension, images.number)
    spatial = None
    if {"mu_s", "sigma_s"} & tensors.keys():
        mu, sigma = (tensors.get(name, torch.empty(0)) for name in ("mu_s", "sigma_s"))
        spatial = checked(path, mu, sigma, network.spatial or 0, images.number)
    features = tensors.get("features")
    if features is not None:
        _check_vectors(path, features, network.dimension, images.number)
    return SetStatistics(network.name, network.sha256, images, vectors, spatial, features)


def _stated(path: Path, about: object) -> _About:
    """Return what a file says about its statistics. Raises UserError if that is of another version, or damaged."""
    found = about.get("version", 1) if isinstance(about, dict) else None
    if found != VERSION:
        raise UserError(f"'{path}' has version {found} of feature statistics, not {VERSION}: compute it again")
    try:
        return parsed(_About, about)
    except ValueError as e:
        raise UserError(f"'{path}' is damaged ({e}): compute it again") from e


def _check_vectors(path: Path, features: Tensor, dimension: int, number: int | None) -> None:
    """Check the feature vectors of N images. Raises UserError if they are others, or not finite."""
    n = "N" if number is None else number
    if features.shape[1:] != (dimension,) or number not in (None, len(features)) or not features.is_floating_point():
        raise UserError(
            f"'{path}' holds features of shape {tuple(features.shape)} in {dtype_name(features.dtype)}, not ({n}, "
            f"{dimension}) in floating point: compute it again"
        )
    if not torch.isfinite(features).all():
        raise UserError(f"'{path}' holds NaN or infinity: compute it again")


def checked(path: Path, mu: Tensor, sigma: Tensor, dimension: int, number: int | None) -> Statistics:
    """Return statistics in float64. Raises UserError for another dimension, NaN, or what is no covariance."""
    if mu.shape != (dimension,) or sigma.shape != (dimension, dimension):
        raise UserError(
            f"'{path}' holds a mean of shape {tuple(mu.shape)} and a covariance of {tuple(sigma.shape)}, the network "
            f"has {dimension} features: give statistics of this network"
        )
    if not torch.isfinite(mu).all() or not torch.isfinite(sigma).all():
        raise UserError(f"'{path}' holds NaN or infinity: compute it again")
    if (sigma.diagonal() < 0).any() or not torch.allclose(
        sigma, sigma.T, rtol=1e-4, atol=1e-6 * sigma.abs().max().item()
    ):
        raise UserError(f"'{path}' holds a matrix that is no covariance: compute it again")
    return Statistics(mu.double(), sigma.double(), number)
