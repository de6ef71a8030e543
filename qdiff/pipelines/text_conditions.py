"""Prompts as conditions of images and of calibration data, and the parts of them that exceed the text encoder."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from qdiff.adapters.ldm.models import LatentDiffusion, TextConditioner
from qdiff.errors import UserError
from qdiff.files.tokenizer import Tokenizer
from qdiff.pipelines.conditions import Conditions

WARNED = 10  # prompts that are quoted because they are too long; more are counted


class Prompts(Conditions):
    """Alternating prompts: image i gets the i-th, starting over after the last.

    The empty prompt is the null condition.

    Args:
        latent: the model.
        encoder: its text encoder; it needs a tokenizer before conditions are computed.
        turns: prompts of the images.
        calibrating: prompts of calibration images.
    """

    def __init__(
        self, latent: LatentDiffusion, encoder: TextConditioner, turns: Sequence[str], calibrating: Sequence[str]
    ):
        self.latent, self.encoder = latent, encoder
        self.turns, self.calibrating = turns, calibrating

    def of(self, indices: Sequence[int]) -> Tensor:
        if not self.turns:
            raise UserError("no prompt: give prompts=... (on the command line, --prompt TEXT or --from-file FILE)")
        return self._encoded([self.turns[i % len(self.turns)] for i in indices])

    def for_calibration(self, indices: Sequence[int]) -> Tensor:
        return self._encoded([self.calibrating[i % len(self.calibrating)] for i in indices])

    def null(self, count: int) -> Tensor:
        return self._empty.expand(count, -1, -1)

    def text(self, indices: Sequence[int]) -> Mapping[str, str]:
        """Return the parts of the prompts that the encoder reads, and separately the parts that it leaves out."""
        shown = dict.fromkeys(self.turns[i % len(self.turns)] for i in indices)
        read, left_out = zip(*map(self.cut.get, shown))
        rest = {"prompt, left out": "\n".join(left_out)} if any(left_out) else {}
        return {"prompt": "\n".join(read)} | rest

    @cached_property
    def cut(self) -> Mapping[str, tuple[str, str]]:
        """The part of each prompt that the encoder reads, and the rest."""
        return {prompt: self.tokenizer.cut(prompt) for prompt in self.turns}

    def warnings(self, calibrates: bool) -> list[str]:
        """Return a line for each prompt that is too long, with the part left out, and one about calibration prompts."""
        limit = f"the {self.tokenizer.max_length} tokens that the text encoder reads"
        lines = [
            f"the prompt {_quoted(read, 60)} exceeds {limit}: {_quoted(rest, 1000)} is left out"
            for read, rest in self.cut.values()
            if rest
        ]
        if len(lines) > WARNED:
            lines[WARNED:] = [f"{len(lines) - WARNED} more prompts exceed {limit}"]
        prompts = set(self.calibrating) if calibrates else ()
        if cut := sum(bool(self.tokenizer.cut(prompt)[1]) for prompt in prompts):
            lines.append(f"{cut} of {len(prompts)} calibration prompts exceed {limit} and are cut")
        return lines

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's text encoder."""
        return cast(Tokenizer, self.encoder.tokenizer)

    @cached_property
    def _empty(self) -> Tensor:
        return self._encoded([""])

    @torch.no_grad()
    def _encoded(self, prompts: Sequence[str]) -> Tensor:
        return self.latent.get_learned_conditioning(list(prompts))


def _quoted(text: str, most: int) -> str:
    """Quote `text` in one line of at most `most` characters."""
    return repr(text if len(text) <= most else f"{text[:most]}...")
