"""What the pictures of a latent model are conditioned on: for every picture by its number, and for calibration."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from qdiff.adapters.ldm.models import ClassConditioner, LatentDiffusion, class_conditioner_of, text_conditioner_of
from qdiff.errors import UserError

WIDEST = 16  # columns of an overview
NULL_CLASS = "model.params.cond_stage_config.params.null_class"


class Conditions(ABC):
    """Conditions of pictures.

    Attributes:
        columns: how many kinds of pictures take turns, where an overview should show each in a column; else None.
    """

    columns: int | None = None

    @abstractmethod
    def of(self, images: Sequence[int]) -> Tensor | None:
        """Of pictures by their numbers, as the network takes them; None for a network without a condition."""

    @abstractmethod
    def for_calibration(self, images: Sequence[int]) -> Tensor | None:
        """Of pictures that calibration data come from."""

    @abstractmethod
    def none(self, count: int) -> Tensor | None:
        """What stands for no condition, that many times; only guidance asks for it."""

    def text(self, images: Sequence[int]) -> Mapping[str, str]:
        """What a PNG that shows these pictures says of their conditions."""
        return {}


class Unconditional(Conditions):
    """Of a network that takes none."""

    def of(self, images: Sequence[int]) -> None:
        return None

    def for_calibration(self, images: Sequence[int]) -> None:
        return None

    def none(self, count: int) -> None:
        return None


class Classes(Conditions):
    """Classes that take turns: picture i gets the i-th, from the start again after the last.

    Calibration data get classes drawn from all real ones, which the null class is not; see `ClassEmbedder`.

    Args:
        latent: the model.
        chosen: numbers of classes; None for all real ones.
        seed: of the draw.

    Raises:
        UserError: a class that the model does not have.
    """

    def __init__(self, latent: LatentDiffusion, chosen: Sequence[int] | None, seed: int):
        self.latent, self.seed = latent, seed
        self.embedder: ClassConditioner = latent.cond_stage_model
        last = self.embedder.embedding.num_embeddings - 1
        for i in chosen or ():
            if i > last:
                raise UserError(f"--classes {i}: the model has the classes 0..{last}{self._null()}: give others")
        self.turns = chosen or self.embedder.classes
        self.columns = len(chosen) if chosen and 1 < len(chosen) <= WIDEST else None

    def of(self, images: Sequence[int]) -> Tensor:
        return self._embedded([self._class_of(i) for i in images])

    def for_calibration(self, images: Sequence[int]) -> Tensor:
        real = self.embedder.classes
        return self._embedded([real[np.random.default_rng((self.seed, i)).integers(len(real))] for i in images])

    def none(self, count: int) -> Tensor:
        return self._embedded([self.embedder.null_class] * count)

    def text(self, images: Sequence[int]) -> Mapping[str, str]:
        return {"class": ", ".join(str(self._class_of(i)) for i in images)}

    def _class_of(self, image: int) -> int:
        return self.turns[image % len(self.turns)]

    def _null(self) -> str:
        null = self.embedder.null_class
        return "" if null is None else f", of which {null} stands for none"

    @torch.no_grad()
    def _embedded(self, labels: Sequence[int]) -> Tensor:
        labels = torch.tensor(labels, device=self.embedder.embedding.weight.device)
        return self.latent.get_learned_conditioning({self.embedder.key: labels})


def conditions_of(latent: LatentDiffusion, chosen: Sequence[int] | None, scale: float, seed: int) -> Conditions:
    """The conditions of a model without or with classes.

    Args:
        latent: the model.
        chosen, seed: see `Classes`.
        scale: of guidance.

    Raises:
        UserError: the model takes other conditions than classes, or none where the flags ask for them.
    """
    conditioner = latent.cond_stage_model
    if embedder := class_conditioner_of(latent):
        if scale != 1 and embedder.null_class is None:
            raise UserError(
                f"--scale {scale} needs a class that stands for none, which this model does not have: leave it out, or "
                f"say which one it is with {NULL_CLASS}=NUMBER"
            )
        return Classes(latent, chosen, seed)
    if text_conditioner_of(latent):
        raise UserError("a model with texts as conditions: sample it with scripts/txt2img.py")
    if conditioner is not None:
        kind = type(conditioner).__name__
        raise UserError(f"a model with the conditions of {kind} cannot be sampled here: give one with classes or none")
    if chosen or scale != 1:
        flag = "--classes" if chosen else f"--scale {scale}"
        raise UserError(f"{flag} needs a class-conditional model, which this one is not: leave it out")
    return Unconditional()
