"""Pipelines of latent models without conditions or with classes."""

from qdiff.pipelines.conditions import Conditions, conditions_of
from qdiff.pipelines.latent import LatentPipeline
from qdiff.pipelines.settings import ClassSampling


class ClassPipeline(LatentPipeline[ClassSampling]):
    """A latent model without conditions or with classes, and how it is sampled."""

    steps_flag = "-c"

    def _conditions(self) -> Conditions:
        s = self.sampling
        return conditions_of(self.latent, s.classes, s.scale, s.seed)
