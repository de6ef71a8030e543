"""Prompts as conditions of pictures and for calibration, and what the text encoder leaves out of them."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from qdiff.adapters.ldm.models import LatentDiffusion
from qdiff.files.tokenizer import Tokenizer
from qdiff.pipelines.conditions import Conditions

WARNED = 10  # prompts that are too long are quoted, the others are counted


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
