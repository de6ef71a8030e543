"""Pipelines of unconditional and class-conditional latent models."""

from qdiff.pipelines.conditions import Conditions, conditions_of
from qdiff.pipelines.latent import LatentPipeline
from qdiff.pipelines.settings import ClassSampling


class ClassPipeline(LatentPipeline[ClassSampling]):
    """An unconditional or class-conditional latent model with its sampler."""

    steps_flag = "-c"

    def _conditions(self) -> Conditions:
        s = self.sampling
        return conditions_of(self.latent, s.classes, s.scale, s.seed)
