"""What the pictures of a latent model are conditioned on: for every picture by its number, and for calibration."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from qdiff.adapters.latent_diffusion import ClassEmbedder, FrozenCLIPEmbedder, LatentDiffusion
from qdiff.errors import UserError
from qdiff.files.tokenizer import Tokenizer

WIDEST = 16  # columns of an overview
WARNED = 10  # prompts that are too long are quoted, the others are counted
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
        self.embedder: ClassEmbedder = latent.cond_stage_model
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


class Prompts(Conditions):
    """Texts that take turns: picture i gets the i-th, from the start again after the last; the empty one is none.

    Args:
        latent: the model; its text encoder has a tokenizer.
        turns: prompts of the pictures.
        for_calibration: prompts of calibration data.
    """

    def __init__(self, latent: LatentDiffusion, turns: Sequence[str], for_calibration: Sequence[str]):
        self.latent, self.turns, self.calibrating = latent, turns, for_calibration

    def of(self, images: Sequence[int]) -> Tensor:
        return self._encoded([self.turns[i % len(self.turns)] for i in images])

    def for_calibration(self, images: Sequence[int]) -> Tensor:
        return self._encoded([self.calibrating[i % len(self.calibrating)] for i in images])

    def none(self, count: int) -> Tensor:
        return self._empty.expand(count, -1, -1)

    def text(self, images: Sequence[int]) -> Mapping[str, str]:
        """The prompts as far as the encoder reads them, and apart what it leaves out."""
        shown = dict.fromkeys(self.turns[i % len(self.turns)] for i in images)
        read, left_out = zip(*map(self.cut.get, shown))
        rest = {"prompt, left out": "\n".join(left_out)} if any(left_out) else {}
        return {"prompt": "\n".join(read)} | rest

    @cached_property
    def cut(self) -> Mapping[str, tuple[str, str]]:
        """Of each prompt of a picture the part that the encoder reads, and the rest."""
        return {prompt: self._tokenizer.cut(prompt) for prompt in self.turns}

    def warnings(self, calibrates: bool) -> list[str]:
        """What is left out of prompts that are too long, and of how many that calibration data come from."""
        beyond = f"beyond the {self._tokenizer.max_length} tokens that the text encoder reads"
        lines = [
            f"the prompt {_quoted(read, 60)} goes {beyond}, left out is {_quoted(rest, 1000)}"
            for read, rest in self.cut.values()
            if rest
        ]
        if len(lines) > WARNED:
            lines[WARNED:] = [f"{len(lines) - WARNED} more prompts go {beyond}"]
        prompts = set(self.calibrating) if calibrates else ()
        if cut := sum(bool(self._tokenizer.cut(prompt)[1]) for prompt in prompts):
            lines.append(f"{cut} of {len(prompts)} prompts for calibration go {beyond}, and are cut")
        return lines

    @property
    def _tokenizer(self) -> Tokenizer:
        return self.latent.cond_stage_model.tokenizer

    @cached_property
    def _empty(self) -> Tensor:
        return self._encoded([""])

    @torch.no_grad()
    def _encoded(self, prompts: Sequence[str]) -> Tensor:
        return self.latent.get_learned_conditioning(list(prompts))


def _quoted(text: str, most: int) -> str:
    """In one line, of at most so many characters."""
    return repr(text if len(text) <= most else f"{text[:most]}...")


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
    if isinstance(conditioner, ClassEmbedder):
        if scale != 1 and conditioner.null_class is None:
            raise UserError(
                f"--scale {scale} needs a class that stands for none, which this model does not have: leave it out, or "
                f"say which one it is with {NULL_CLASS}=NUMBER"
            )
        return Classes(latent, chosen, seed)
    if isinstance(conditioner, FrozenCLIPEmbedder):
        raise UserError("a model with texts as conditions: sample it with scripts/txt2img.py")
    if conditioner is not None:
        kind = type(conditioner).__name__
        raise UserError(f"a model with the conditions of {kind} cannot be sampled here: give one with classes or none")
    if chosen or scale != 1:
        flag = "--classes" if chosen else f"--scale {scale}"
        raise UserError(f"{flag} needs a class-conditional model, which this one is not: leave it out")
    return Unconditional()
