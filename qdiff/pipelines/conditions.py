"""Conditions of images, by image index, and of calibration images; for latent models."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from qdiff.adapters.ldm.models import ClassConditioner, LatentDiffusion, class_conditioner_of, text_conditioner_of
from qdiff.errors import UserError

MAX_COLUMNS = 16  # of a grid with one column per class
NULL_CLASS = "model.params.cond_stage_config.params.null_class"


class Conditions(ABC):
    """Conditions of images and of calibration images.

    Attributes:
        columns: number of alternating conditions if a grid should show each in its own column; else None.
    """

    columns: int | None = None

    @abstractmethod
    def of(self, indices: Sequence[int]) -> Tensor | None:
        """Return the conditions (B, M, D) of the images with these indices; None for an unconditional network."""

    @abstractmethod
    def for_calibration(self, indices: Sequence[int]) -> Tensor | None:
        """Return the conditions of calibration images; see `of`."""

    @abstractmethod
    def null(self, count: int) -> Tensor | None:
        """Return the null condition, repeated `count` times, (count, M, D); only guidance needs it."""

    def text(self, indices: Sequence[int]) -> Mapping[str, str]:
        """Return the text chunks about their conditions for a PNG of these images."""
        return {}


class Unconditional(Conditions):
    """No conditions, for an unconditional network."""

    def of(self, indices: Sequence[int]) -> None:
        return None

    def for_calibration(self, indices: Sequence[int]) -> None:
        return None

    def null(self, count: int) -> None:
        return None


class Classes(Conditions):
    """Alternating classes: image i gets the i-th, starting over after the last.

    Classes of calibration images are drawn from all but the null class; see `ClassEmbedder`.

    Args:
        latent: the model.
        embedder: the model's class embedder.
        chosen: class indices; None takes all but the null class.
        seed: seed of the draw.

    Raises:
        UserError: the model does not have one of the classes.
    """

    def __init__(self, latent: LatentDiffusion, embedder: ClassConditioner, chosen: Sequence[int] | None, seed: int):
        self.latent, self.embedder, self.seed = latent, embedder, seed
        last = self.embedder.embedding.num_embeddings - 1
        for i in chosen or ():
            if i > last:
                raise UserError(f"--classes {i}: the model has the classes 0..{last}{self._null_note()}: give others")
        self.turns = chosen or self.embedder.classes
        self.columns = len(chosen) if chosen and 1 < len(chosen) <= MAX_COLUMNS else None

    def of(self, indices: Sequence[int]) -> Tensor:
        return self._embedded([self._class_of(i) for i in indices])

    def for_calibration(self, indices: Sequence[int]) -> Tensor:
        real = self.embedder.classes
        return self._embedded([real[np.random.default_rng((self.seed, i)).integers(len(real))] for i in indices])

    def null(self, count: int) -> Tensor:
        null = self.embedder.null_class
        assert null is not None, "guidance is refused without a null class"
        return self._embedded([null] * count)

    def text(self, indices: Sequence[int]) -> Mapping[str, str]:
        return {"class": ", ".join(str(self._class_of(i)) for i in indices)}

    def _class_of(self, index: int) -> int:
        return self.turns[index % len(self.turns)]

    def _null_note(self) -> str:
        null = self.embedder.null_class
        return "" if null is None else f", of which {null} is the null class"

    @torch.no_grad()
    def _embedded(self, labels: Sequence[int]) -> Tensor:
        numbers = torch.tensor(labels, device=self.embedder.embedding.weight.device)
        return self.latent.get_learned_conditioning({self.embedder.key: numbers})


def conditions_of(latent: LatentDiffusion, chosen: Sequence[int] | None, scale: float, seed: int) -> Conditions:
    """Return the conditions of an unconditional or class-conditional model.

    Args:
        latent: the model.
        chosen, seed: see `Classes`.
        scale: guidance scale.

    Raises:
        UserError: the model takes conditions other than classes, or the settings need classes that it does not have.
    """
    conditioner = latent.cond_stage_model
    if embedder := class_conditioner_of(latent):
        if scale != 1 and embedder.null_class is None:
            raise UserError(
                f"--scale {scale} needs a null class, which this model does not have: leave it out, or name the class "
                f"with {NULL_CLASS}=NUMBER"
            )
        return Classes(latent, embedder, chosen, seed)
    if text_conditioner_of(latent):
        raise UserError("this is a text-to-image model: sample it with scripts/txt2img.py")
    if conditioner is not None:
        kind = type(conditioner).__name__
        raise UserError(f"models conditioned by {kind} cannot be sampled: give one with classes or without conditions")
    if chosen or scale != 1:
        flag = "--classes" if chosen else f"--scale {scale}"
        raise UserError(f"{flag} needs a class-conditional model, this one is unconditional: leave it out")
    return Unconditional()
