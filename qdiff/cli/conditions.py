"""What the pictures of a latent model are conditioned on: for every picture by its number, and for calibration."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from qdiff.adapters.latent_diffusion import ClassEmbedder, LatentDiffusion
from qdiff.errors import UserError

WIDEST = 16  # columns of an overview


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
        """What stands for no condition, that many times."""


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

    Calibration data get classes drawn from all that the model has. Its last class stands for none, as in the published
    ImageNet model.

    Args:
        latent: the model.
        chosen: numbers of classes; None for all but the last.
        seed: of the draw.

    Raises:
        UserError: a class that the model does not have.
    """

    def __init__(self, latent: LatentDiffusion, chosen: Sequence[int] | None, seed: int):
        self.latent, self.seed = latent, seed
        self.no_class = latent.cond_stage_model.embedding.num_embeddings - 1
        wrong = [i for i in chosen or () if i > self.no_class]
        if wrong:
            last = f"0..{self.no_class}, of which the last is none"
            raise UserError(f"--classes {wrong[0]}: the model has the classes {last}: give others")
        if self.no_class < 1:
            raise UserError("the model has a single class, which stands for none: sample another model")
        self.turns = chosen or range(self.no_class)
        self.columns = len(chosen) if chosen and 1 < len(chosen) <= WIDEST else None

    def of(self, images: Sequence[int]) -> Tensor:
        return self._embedded([self.turns[i % len(self.turns)] for i in images])

    def for_calibration(self, images: Sequence[int]) -> Tensor:
        return self._embedded([int(np.random.default_rng((self.seed, i)).integers(self.no_class)) for i in images])

    def none(self, count: int) -> Tensor:
        return self._embedded([self.no_class] * count)

    @torch.no_grad()
    def _embedded(self, labels: Sequence[int]) -> Tensor:
        conditioner = self.latent.cond_stage_model
        labels = torch.tensor(labels, device=conditioner.embedding.weight.device)
        return self.latent.get_learned_conditioning({conditioner.key: labels})


class Prompts(Conditions):
    """Texts that take turns: picture i gets the i-th, from the start again after the last; the empty one is none.

    Args:
        latent: the model; its text encoder has a tokenizer.
        turns: prompts of the pictures.
        for_calibration: prompts of calibration data.
    """

    def __init__(self, latent: LatentDiffusion, turns: Sequence[str], for_calibration: Sequence[str]):
        self.latent, self.turns, self.calibrating = latent, turns, for_calibration

    def prompt(self, image: int) -> str:
        """What a picture is to show."""
        return self.turns[image % len(self.turns)]

    def of(self, images: Sequence[int]) -> Tensor:
        return self._encoded([self.prompt(i) for i in images])

    def for_calibration(self, images: Sequence[int]) -> Tensor:
        return self._encoded([self.calibrating[i % len(self.calibrating)] for i in images])

    def none(self, count: int) -> Tensor:
        return self._empty.expand(count, -1, -1)

    @cached_property
    def _empty(self) -> Tensor:
        return self._encoded([""])

    @torch.no_grad()
    def _encoded(self, prompts: Sequence[str]) -> Tensor:
        return self.latent.get_learned_conditioning(list(prompts))


def conditions_of(latent: LatentDiffusion, chosen: Sequence[int] | None, scale: float, seed: int) -> Conditions:
    """The conditions of a model without or with classes.

    Args:
        latent: the model.
        chosen, seed: see `Classes`.
        scale: of guidance.

    Raises:
        UserError: the model takes other conditions than classes, or none where the flags ask for them.
    """
    if isinstance(latent.cond_stage_model, ClassEmbedder):
        return Classes(latent, chosen, seed)
    if latent.cond_stage_model is not None:
        kind = type(latent.cond_stage_model).__name__
        raise UserError(f"a model with the conditions of {kind} cannot be sampled here: give one with classes or none")
    if chosen or scale != 1:
        flag = "--classes" if chosen else f"--scale {scale}"
        raise UserError(f"{flag} needs a class-conditional model, which this one is not: leave it out")
    return Unconditional()
