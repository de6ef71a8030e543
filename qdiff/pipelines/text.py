"""Text-to-image pipelines."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from qdiff.adapters.ldm.models import TextConditioner, text_conditioner_of
from qdiff.errors import UserError
from qdiff.files.digest import tensors_digest
from qdiff.files.images import Shape
from qdiff.files.prompts import read_prompts
from qdiff.files.tokenizer import has_tokenizer, load_tokenizer
from qdiff.pipelines.latent import LatentPipeline
from qdiff.pipelines.settings import LatentModel, TextSampling
from qdiff.pipelines.text_conditions import Prompts

DEFAULT_PROMPTS = "prompts.txt"


class PlaceholderTokenizer:
    """A stand-in for a missing tokenizer in a plan, for which any tokens will do."""

    def __init__(self, max_length: int):
        self.max_length = max_length

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return zeros in the shape of the tokens of B prompts, int64 (B, max_length)."""
        return torch.zeros(len(prompts), self.max_length, dtype=torch.long)

    def cut(self, prompt: str) -> tuple[str, str]:
        """Return the whole prompt as the part that is read."""
        return prompt, ""


class TextPipeline(LatentPipeline[TextSampling]):
    """A text-to-image model with its sampler."""

    steps_flag = "--ddim_steps"
    conditions: Prompts

    def __init__(self, model: LatentModel, sampling: TextSampling):
        super().__init__(model, sampling)
        own = {"--C": (model.channels, self.latent.channels), "--f": (model.factor, self._factor)}
        for flag, (given, has) in own.items():
            if given not in (None, has):
                raise UserError(f"{flag} {given} does not fit '{self.source}', which has {has}: leave {flag} out")

    def _configure(self, sampling: TextSampling) -> None:
        super()._configure(sampling)
        unit = self._factor * self.stride
        for flag, size in (("--H", sampling.height), ("--W", sampling.width)):
            if size and size % unit:
                near = max(1, round(size / unit)) * unit
                raise UserError(f"{flag} {size} must be a multiple of {unit} for this model: make it {near}")

    def _conditions(self) -> Prompts:
        calibrating = self.sampling.calibration_prompts or default_prompts()
        return Prompts(self.latent, self._encoder, self.sampling.prompts, calibrating)

    @property
    def _encoder(self) -> TextConditioner:
        encoder = text_conditioner_of(self.latent)
        if encoder is None:
            raise UserError(f"'{self.source}' has no text encoder: sample it with scripts/sample_diffusion_ldm.py")
        return encoder

    @property
    def _factor(self) -> int:
        return cast(int, self.latent.first_stage_model.factor)

    @property
    def latent_shape(self) -> Shape:
        channels, *size = super().latent_shape
        asked = self.sampling.height, self.sampling.width
        height, width = (pixels // self._factor if pixels else own for pixels, own in zip(asked, size))
        return channels, height, width

    def load(self, *, network: bool = True) -> Mapping[str, Tensor]:
        encoder = self._encoder  # before the weights, because a missing tokenizer is found faster
        encoder.tokenizer = load_tokenizer(self._tokenizer_folder(), encoder.max_length, encoder.vocab_size)
        return super().load(network=network)

    def init_random(self) -> None:
        encoder, folder = self._encoder, self._tokenizer_folder()
        if folder is None:  # a plan downloads nothing
            encoder.tokenizer = PlaceholderTokenizer(encoder.max_length)
        else:
            encoder.tokenizer = load_tokenizer(folder, encoder.max_length, encoder.vocab_size)
        super().init_random()

    def _tokenizer_folder(self) -> Path | None:
        weights = self.model.weights
        beside = weights if weights.is_dir() else weights.parent
        return self.model.tokenizer or (beside if has_tokenizer(beside) else None)

    def noise_streams(self, indices: Sequence[int]) -> Sequence[int]:
        period = self.sampling.noise_period
        return [i % period for i in indices] if period else indices

    def digests(self) -> Mapping[str, str]:
        c = self.conditions
        return {"tokens": tensors_digest({"tokens": c.tokenizer([*c.turns, *c.calibrating, ""])})}

    def warnings(self, calibrates: bool) -> list[str]:
        return self.conditions.warnings(calibrates)


def default_prompts() -> tuple[str, ...]:
    """Return the prompts for calibration that come with the package."""
    return tuple(read_prompts(Path(str(resources.files("qdiff.pipelines") / DEFAULT_PROMPTS)), "--cali_prompts"))
