"""Measures of the distribution of images, mostly against that of a reference, on the features of a network.

The formulas are torch-fidelity's. Only with the published Inception weights are they called FID, sFID, IS and KID.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from qdiff.evaluation.feature_network import FeatureNetwork, Identity
from qdiff.evaluation.measures import Batch, Measure, Metric
from qdiff.evaluation.metrics import Moments, Statistics, frechet_distance

SPLITS = 10  # of the images, for IS
SUBSETS, SUBSET = 100, 1000  # number and size of the subsets, for KID
NEIGHBOURS = 3  # k of precision and recall
MANIFOLD = 1000  # least images for precision and recall: in fewer, balls around neighbours cover nearly everything
SEED = 2020  # of shuffling and of drawing subsets, torch-fidelity's default


def _metric(who: Identity, key: str, name: str, plain_key: str, plain_name: str, meaning: str, **rest: Any) -> Metric:
    """Return a column under its standard name; with another network, or too few images, under a plain name."""
    own = plain_name.format(f"{who.name} features")
    told = name in own or name.endswith(" std")  # precision has no other name, a deviation stands below its mean
    plain = (plain_key, own if told else f"{own} (not {name})")
    first = (key, name) if who.standard else plain
    return Metric(*first, "", meaning, by="torch-fidelity", plain=plain, **rest)


class OnFeatures(Measure):
    """A measure on the features of a network."""

    @staticmethod
    @abstractmethod
    def columns(who: Identity) -> tuple[Metric, ...]:
        """Return the columns for a network."""


class Frechet(OnFeatures):
    """Frechet distance between Gaussians of feature vectors (Heusel et al. 2017), FID.

    Args:
        network: of the features.
        reference: of the same features.
    """

    fewest: ClassVar = 2
    layer: ClassVar[Literal["vectors", "spatial"]] = "vectors"

    @staticmethod
    def columns(who: Identity) -> tuple[Metric, ...]:
        meaning = f"Fréchet distance to the reference on features of {who.name}; lower is closer"
        least = who.dimension + 1  # fewer images have a singular covariance
        return (_metric(who, "fid", "FID", "frechet", "FD on {}", meaning, least=least, counted=True),)

    def __init__(self, network: FeatureNetwork, reference: Statistics):
        self.metrics = self.columns(network.identity)
        self._network, self._reference, self._moments = network, reference, Moments()

    def update(self, batch: Batch) -> None:
        self._moments.update(getattr(batch.features(self._network), self.layer))

    def compute(self) -> tuple[float, ...]:
        return (frechet_distance(self._moments.statistics(), self._reference),)


class SpatialFrechet(Frechet):
    """The same on spatial features (Nash et al. 2021), sFID."""

    layer: ClassVar = "spatial"

    @staticmethod
    def columns(who: Identity) -> tuple[Metric, ...]:
        meaning = f"Fréchet distance to the reference on spatial features of {who.name}; lower is closer"
        words = "sfid", "sFID", "frechet_spatial", "FD on spatial {}"
        return (_metric(who, *words, meaning, least=(who.spatial or 0) + 1, counted=True),)


class _Kept(OnFeatures):
    """A measure that needs the features of all images at once; several share them.

    Args:
        network: of the features.
    """

    layer: ClassVar[Literal["vectors", "logits"]] = "vectors"

    def __init__(self, network: FeatureNetwork):
        self.metrics = self.columns(network.identity)
        self._network = network
        self._kept: list[Tensor] = []

    def update(self, batch: Batch) -> None:
        self._kept.append(getattr(batch.features(self._network), self.layer).float())


class InceptionScore(_Kept):
    """Inception Score (Salimans et al. 2016): exp of the mean divergence of p(class | image) from p(class).

    The mean over ten parts of the shuffled images, and its standard deviation.

    Args:
        network: its logits give the classes.
    """

    layer: ClassVar = "logits"
    fewest: ClassVar = SPLITS

    @staticmethod
    def columns(who: Identity) -> tuple[Metric, ...]:
        # With fewer images than classes in a part, their number bounds the score
        rest: Mapping[str, Any] = {"least": SPLITS * who.classes, "counted": True}
        meaning = f"how clearly {who.name} classifies single images, and how varied all are together; higher is better"
        spread = f"standard deviation over {SPLITS} parts of the images"
        return (
            _metric(who, "is", "IS", "class_score", "class score on {}", meaning, **rest),
            _metric(who, "is_std", "IS std", "class_score_std", "class score std on {}", spread, **rest),
        )

    def compute(self) -> tuple[float, ...]:
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        found = isc_features_to_metric(torch.cat(self._kept), SPLITS, shuffle=True, rng_seed=SEED)
        return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]


class _ToReference(_Kept):
    """A measure of all features at once against those of a reference.

    Args:
        network: of the features.
        reference: feature vectors of the reference images, (M, D); M >= `fewest`.
    """

    def __init__(self, network: FeatureNetwork, reference: Tensor):
        super().__init__(network)
        self._reference = reference.float()


class KernelDistance(_ToReference):
    """KID (Binkowski et al. 2018): the squared MMD with the kernel (x y / D + 1)^3, unbiased, over 100 subsets.

    Subsets have 1,000 images, or all if there are fewer.
    """

    fewest: ClassVar = 2

    @staticmethod
    def columns(who: Identity) -> tuple[Metric, ...]:
        rest: Mapping[str, Any] = {"least": SUBSET, "spec": ".5f"}
        meaning = f"squared kernel distance to the reference on features of {who.name}; lower is closer"
        spread = f"standard deviation over {SUBSETS} subsets"
        return (
            _metric(who, "kid", "KID", "kernel_distance", "kernel distance on {}", meaning, **rest),
            _metric(who, "kid_std", "KID std", "kernel_distance_std", "kernel distance std on {}", spread, **rest),
        )

    def compute(self) -> tuple[float, ...]:
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        kept = torch.cat(self._kept)
        size = min(SUBSET, len(kept), len(self._reference))
        settings = {"kid_subsets": SUBSETS, "kid_subset_size": size, "rng_seed": SEED, "verbose": False}
        found = kid_features_to_metric(kept, self._reference, **settings)
        return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


class PrecisionRecall(_ToReference):
    """Precision and recall (Kynkaanniemi et al. 2019) with k = 3, on Inception features as ADM computes them.

    Precision is the share of images within the ball around some reference image that reaches its third neighbour among
    the reference images; recall exchanges the two sets.
    """

    fewest: ClassVar = NEIGHBOURS + 1

    @staticmethod
    def columns(who: Identity) -> tuple[Metric, ...]:
        rest: Mapping[str, Any] = {"least": MANIFOLD, "counted": True, "spec": ".4f"}
        near, covered = "share of the images near a reference image", "share of the reference images near an image"
        return (
            _metric(who, "precision", "precision", "plain_precision", "precision on {}", near, **rest),
            _metric(who, "recall", "recall", "plain_recall", "recall on {}", covered, **rest),
        )

    def compute(self) -> tuple[float, ...]:
        from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

        settings = {"prc_neighborhood": NEIGHBOURS, "save_cpu_ram": True, "verbose": False}
        found = prc_features_to_metric(torch.cat(self._kept), self._reference, **settings)
        return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]
