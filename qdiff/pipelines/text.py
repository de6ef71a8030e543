"""`scripts/txt2img.py`: latent models with a text encoder."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from diffusion.steps import Sampler
from qdiff.adapters.ldm.models import TextConditioner, text_conditioner_of
from qdiff.adapters.ldm.samplers import DDIM, PLMS, DPMSolver
from qdiff.config.latent import find_checkpoint
from qdiff.errors import UserError
from qdiff.files.pictures import picture_shape
from qdiff.files.prompts import as_text, read_prompts
from qdiff.files.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from qdiff.pipelines.latent import LatentPipeline
from qdiff.pipelines.pipeline import AskedSteps
from qdiff.pipelines.precision import precision_of, resolved
from qdiff.pipelines.quantization import digest
from qdiff.pipelines.run import carry_out
from qdiff.pipelines.text_conditions import Prompts
from qdiff.pipelines.watermark import watermark
from qdiff.sampling.run_folder import RunFolder

DEFAULT_PROMPTS = "prompts.txt"


def sampler_of(args: Namespace) -> Sampler:
    """The sampler that the flags name."""
    if args.plms:
        return PLMS(args.ddim_steps)
    return DPMSolver(args.ddim_steps) if args.dpm else DDIM(args.ddim_steps, args.ddim_eta)


def _as_it_is(images: Tensor) -> Tensor:
    return images


class PlaceholderTokenizer:
    """Stands in a plan for a tokenizer that is not there: a plan needs tokens to compute with, and no file."""

    def __init__(self, max_length: int):
        self.max_length = max_length

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), self.max_length, dtype=torch.long)

    def cut(self, prompt: str) -> tuple[str, str]:
        """The whole of it, for all that is known."""
        return prompt, ""


class TextPipeline(LatentPipeline):
    """A text-to-image model as the flags describe it.

    Raises:
        UserError: what the flags or the configuration ask for cannot be.
    """

    folder_flag = "--outdir"
    files = ("from_file", "cali_prompts")

    def __init__(self, args: Namespace):
        prompts = read_prompts(args.from_file, "--from-file") if args.from_file else [as_text(args.prompt)]
        own = Path(str(resources.files("qdiff.pipelines") / DEFAULT_PROMPTS))
        cali_prompts = read_prompts(args.cali_prompts or own, "--cali_prompts")
        checkpoint = None if args.dry_run else find_checkpoint(args.ckpt, "--ckpt")
        asked = AskedSteps("--ddim_steps", args.ddim_steps)
        super().__init__(args, args.config, checkpoint, (), sampler_of(args), asked)
        self.images = args.n_iter * (len(prompts) if args.from_file else args.n_samples)
        self.batch_size = args.n_samples
        self.columns = args.n_rows or args.n_samples
        self.shape = self._shape()
        encoder = text_conditioner_of(self.latent)
        if encoder is None:
            raise UserError(f"the model of {args.config} takes no text: sample it with scripts/sample_diffusion_ldm.py")
        encoder.tokenizer = self._tokenizer(encoder)
        self.conditions = Prompts(self.latent, prompts, cali_prompts)
        self.tokens = digest({"tokens": encoder.tokenizer([*prompts, *cali_prompts, ""])})
        args.precision = resolved(args.precision, self.device)  # recorded, for another device may compute otherwise
        self.precision = precision_of(args.precision, self.device)
        self.mark = watermark(*self.image_shape) if args.watermark else _as_it_is

    @property
    def free(self) -> tuple[str, ...]:
        a, always = self.args, ("config", "ckpt", "clip_path", "skip_grid", "no_grad_ckpt")
        if a.skip_save:  # there are no pictures to add others to
            return always
        return (*always, "n_iter", "n_rows") if a.fixed_code else (*always, "n_iter", "n_rows", "n_samples")

    def _shape(self) -> tuple[int, int, int]:
        a, channels, f = self.args, self.latent.channels, self.latent.first_stage_model.factor
        for flag, given, own in (("--C", a.C, channels), ("--f", a.f, f)):
            if given not in (None, own):
                raise UserError(f"{flag} {given} is not what the model of {a.config} has: give {flag} {own}")
        unit = f * self.network.stride
        for flag, size in (("--H", a.H), ("--W", a.W)):
            if size and size % unit:
                near = max(1, round(size / unit)) * unit
                raise UserError(f"{flag} {size} is no multiple of {unit}, as the model needs it: make it {near}")
        own = self.latent.image_size
        return channels, a.H // f if a.H else own, a.W // f if a.W else own

    def _tokenizer(self, encoder: TextConditioner) -> Tokenizer | PlaceholderTokenizer:
        ckpt = self.checkpoint or self.args.ckpt
        beside = ckpt if ckpt.is_dir() else ckpt.parent
        folder = self.args.clip_path or (beside if has_tokenizer(beside) else None)
        if folder is None and self.args.dry_run:
            return PlaceholderTokenizer(encoder.max_length)
        return load_tokenizer(folder, encoder.max_length, encoder.vocab_size)

    def noise_of(self, images: Sequence[int]) -> Sequence[int]:
        return [i % self.args.n_samples for i in images] if self.args.fixed_code else images

    def digests(self) -> Mapping[str, str]:
        return {"tokens": self.tokens}

    def finished(self, folder: RunFolder) -> bool:
        if not self.args.skip_save or not folder.grid.exists():
            return False
        picture_shape(folder.grid)  # refuses a damaged one
        return True

    def warnings(self, calibrates: bool) -> list[str]:
        return self.conditions.warnings(calibrates)

    def apply_model(self, x: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        with self.precision:
            return super().apply_model(x, t, c).float()

    def decode(self, x: Tensor) -> Tensor:
        with self.precision:
            images = super().decode(x).float()
        return self.mark(images)

    def finish(self, pictures: Sequence[Path], folder: RunFolder) -> str:
        a = self.args
        if not a.skip_save:
            return f"in {folder.images}" if a.skip_grid else super().finish(pictures, folder)
        if not a.skip_grid:
            self.overview(pictures, folder)
        for picture in pictures:
            picture.unlink()
        return "made, none kept" if a.skip_grid else f"in {folder.grid}"


def sample(args: Namespace) -> None:
    """Run the script with its flags. Raises UserError for whatever the user can mend."""
    carry_out(TextPipeline(args))
