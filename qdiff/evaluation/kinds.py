"""The measures that an evaluation can ask for by name, and what each needs."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from qdiff.errors import UserError, suggestion
from qdiff.evaluation.clip import ClipScore
from qdiff.evaluation.distributions import (
    Frechet,
    InceptionScore,
    KernelDistance,
    OnFeatures,
    PrecisionRecall,
    SpatialFrechet,
)
from qdiff.evaluation.feature_network import FeatureNetwork, Identity
from qdiff.evaluation.lpips import ALEXNET_PIXELS, FILE, URL, cached_alexnet, lpips_to_fp
from qdiff.evaluation.measures import Measure
from qdiff.evaluation.metrics import SSIM_WINDOW
from qdiff.evaluation.paired import Recognised, distance_to_fp, psnr_to_fp, ssim_to_fp
from qdiff.evaluation.statistics_file import SetStatistics

Part = Literal["vectors", "spatial", "features"]


@dataclass(frozen=True)
class Inputs:
    """What measures are built from besides images; a network is loaded when a measure asks for it.

    Attributes:
        load_network: returns the feature network.
        device: where CLIP and LPIPS compute.
        reference: path of the reference; None if there is none.
        clip: folder or name of a CLIP model; None if there is none.
        lpips: AlexNet weights; None takes those that torchvision downloaded.
    """

    load_network: Callable[[], FeatureNetwork]
    device: torch.device
    reference: Path | None = None
    clip: str | None = None
    lpips: Path | None = None

    @cached_property
    def network(self) -> FeatureNetwork:
        """The feature network."""
        return self.load_network()

    @property
    def alexnet(self) -> Path | None:
        """File of the AlexNet weights; None if they are not there."""
        return self.lpips or cached_alexnet()


Build = Callable[[Inputs, SetStatistics | None], Measure]


@dataclass(frozen=True)
class Kind:
    """A measure that can be asked for.

    Attributes:
        needs: names of inputs, in `REMEDIES`.
        build: makes it from inputs and the statistics of the reference, which are there if it needs them.
        measure: type of a measure on the feature network; None for others.
        pixels: least height and width of images.
    """

    needs: tuple[str, ...]
    build: Build
    measure: type[OnFeatures] | None = None
    pixels: int = 1

    def least(self, who: Callable[[], Identity], few: bool) -> int:
        """Return the number of images that the measure needs.

        Args:
            who: returns which feature network there is.
            few: whether a value under another name will do.
        """
        if self.measure is None:
            return 1
        names = () if few else self.measure.columns(who())
        return max(self.measure.fewest, *(metric.least for metric in names), 1)


def _on_features(needs: tuple[str, ...], part: Part, measure: type[OnFeatures]) -> Kind:
    """Return the kind of a measure that compares features with a part of the reference's statistics."""
    make: Callable[[FeatureNetwork, Any], Measure] = measure
    return Kind(needs, lambda inputs, reference: make(inputs.network, getattr(reference, part)), measure)


def _lpips(inputs: Inputs, reference: SetStatistics | None) -> Measure:
    assert inputs.alexnet is not None
    return lpips_to_fp(inputs.alexnet, inputs.device)


def _clip(inputs: Inputs, reference: SetStatistics | None) -> Measure:
    assert inputs.clip is not None
    return ClipScore(inputs.clip, inputs.device)


KINDS = {
    "fid": _on_features(("reference",), "vectors", Frechet),
    "sfid": _on_features(("reference", "spatial"), "spatial", SpatialFrechet),
    "is": Kind((), lambda inputs, reference: InceptionScore(inputs.network), InceptionScore),
    "kid": _on_features(("reference", "vectors"), "features", KernelDistance),
    "prc": _on_features(("reference", "vectors"), "features", PrecisionRecall),
    "psnr": Kind(("fp",), lambda inputs, reference: psnr_to_fp()),
    "mae": Kind(("fp",), lambda inputs, reference: distance_to_fp()),
    "ssim": Kind(("fp",), lambda inputs, reference: ssim_to_fp(), pixels=SSIM_WINDOW),
    "lpips": Kind(("fp", "lpips"), _lpips, pixels=ALEXNET_PIXELS),
    "clip": Kind(("clip", "prompts"), _clip),
    "recognised": Kind(("labels",), lambda inputs, reference: Recognised(inputs.network)),
}
# Input -> what to do if it is missing
REMEDIES = {
    "reference": "give the reference's images or statistics with --reference",
    "spatial": "it needs spatial features, which this network or this reference does not have",
    "vectors": "it needs the reference's images, --reference holds statistics only",
    "fp": "give the full-precision images of the same seeds with --fp",
    "lpips": f"get torchvision's {URL}, and give it with --lpips {FILE}",
    "clip": "give a CLIP model with --clip",
    "prompts": "the images do not say their prompts: give them with --prompts FILE",
    "labels": "it needs images of a run with classes, and a feature network with categories of their names",
}


def check_names(where: str, names: Sequence[str]) -> None:
    """Check that measures are known. Raises UserError, which says where the names stand, otherwise."""
    for name in names:
        if name not in KINDS:
            hint = suggestion(name, KINDS) or f"use {', '.join(KINDS)}"
            raise UserError(f"{where}: '{name}' is unknown: {hint}")


def chosen(asked: Sequence[str] | None, given: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Return the measures to compute, and of those left out, why.

    Args:
        asked: names in `KINDS`; None takes all whose inputs are given, and IS if a reference is.
        given: names in `REMEDIES`.

    Raises:
        UserError: a name is unknown, an asked measure lacks an input, or nothing can be computed.
    """
    check_names("--metrics", asked or ())
    for name in asked or ():
        for need in KINDS[name].needs:
            if need not in given:
                raise UserError(f"--metrics {name} cannot be computed: {REMEDIES[need]}")
    if asked is not None:
        return list(dict.fromkeys(asked)), {}
    wanted = {name: kind.needs or ("reference",) for name, kind in KINDS.items()}
    missing = {name: [need for need in needs if need not in given] for name, needs in wanted.items()}
    left_out = {name: REMEDIES[lacks[0]] for name, lacks in missing.items() if lacks and lacks[0] != wanted[name][0]}
    names = [name for name, lacks in missing.items() if not lacks]
    if not names:
        remedies = [*left_out.values(), "give --reference, --fp, --clip or --metrics is"]
        raise UserError(f"nothing to compare the images with: {remedies[0]}")
    return names, left_out
