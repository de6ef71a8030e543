"""Prompts -> tokens, with a vocabulary from a folder or from the Hugging Face hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from qdiff.errors import UserError
from qdiff.files.names import utf8_name
from qdiff.files.prompts import as_text

if TYPE_CHECKING:
    from transformers import CLIPTokenizerFast

REPOSITORY = "openai/clip-vit-large-patch14"  # whose text encoder Stable Diffusion v1 has
VOCABULARY = ("vocab.json", "merges.txt")
WHOLE = "tokenizer.json"


class Tokenizer:
    """CLIP's tokenizer: lower case, byte-level byte pairs, between a start and an end token; see `load_tokenizer`.

    Args:
        clip: the tokenizer of transformers.
        max_length: tokens of each prompt, at least 2.
    """

    def __init__(self, clip: "CLIPTokenizerFast", max_length: int):
        self.clip, self.max_length = clip, max_length

    def __call__(self, prompts: list[str]) -> Tensor:
        """B >= 1 prompts of any content -> int64 of shape (B, max_length).

        Longer prompts are cut before their end token, shorter ones are padded, which for CLIP is with the end token
        again.
        """
        prompts = [as_text(prompt) for prompt in prompts]
        padded = {"padding": "max_length", "max_length": self.max_length, "return_tensors": "pt"}
        return self.clip(prompts, truncation=True, **padded)["input_ids"]

    def cut(self, prompt: str) -> tuple[str, str]:
        """The part of a prompt that is within `max_length` tokens, and the rest, which is left out."""
        prompt, room = as_text(prompt), self.max_length - 2  # beside the start and the end token
        with _quiet("transformers"):  # it warns of long prompts, about which this is
            spans = self.clip(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(spans) <= room:
            return prompt, ""
        end = spans[room][0]
        return prompt[:end].rstrip(), prompt[end:]


def load_tokenizer(path: Path | None, max_length: int, vocab_size: int) -> Tokenizer:
    """CLIP's tokenizer with a vocabulary of one's own.

    Args:
        path: folder with a tokenizer as transformers saves it, `vocab.json` and `merges.txt` or `tokenizer.json`;
            None for that of `REPOSITORY`, from the hub's cache on this machine or else downloaded to it.
        max_length: tokens of each prompt, at least 2.
        vocab_size: of the text encoder.

    Raises:
        UserError: there is no tokenizer in the folder, it is damaged, or another model's; the hub cannot be reached.
    """
    folder = _download() if path is None else path
    if not has_tokenizer(folder):
        wanted = f"{' and '.join(VOCABULARY)}, or {WHOLE}"
        raise UserError(f"no tokenizer in '{folder}': give a folder with {wanted} with --clip_path FOLDER")
    clip = _read(folder)
    if len(clip) != vocab_size:
        raise UserError(
            f"the tokenizer in '{folder}' has {len(clip)} tokens, the model's text encoder {vocab_size}: give the "
            "model's own with --clip_path FOLDER"
        )
    return Tokenizer(clip, max_length)


def has_tokenizer(folder: Path) -> bool:
    """Whether there are the files of a tokenizer."""
    return (folder / WHOLE).is_file() or has_vocabulary(folder)


def has_vocabulary(folder: Path) -> bool:
    """Whether there is a tokenizer as its vocabulary and merges."""
    return all((folder / name).is_file() for name in VOCABULARY)


def _read(folder: Path) -> "CLIPTokenizerFast":
    from transformers import CLIPTokenizerFast

    try:
        with _quiet("transformers"), utf8_name(folder) as name:
            tokenizer = CLIPTokenizerFast.from_pretrained(name, local_files_only=True)
            tokenizer("a")  # some damage shows only in use
    except Exception as e:  # the reader raises nothing more specific
        reason = " ".join(str(e).split())
        raise UserError(f"the tokenizer in '{folder}' is damaged ({reason}): give another --clip_path FOLDER") from e
    return tokenizer


def _download() -> Path:
    """Folder in the hub's cache."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = [try_to_load_from_cache(REPOSITORY, name) for name in VOCABULARY]
    try:
        with _quiet("huggingface_hub"):
            files = (
                cached
                if all(isinstance(path, str) for path in cached)
                else [hf_hub_download(REPOSITORY, name) for name in VOCABULARY]
            )
    except Exception as e:  # those of whatever the hub's client uses for HTTP
        reason = " ".join(str(e).split())
        raise UserError(
            f"cannot get the tokenizer of {REPOSITORY} from the Hugging Face hub ({reason}): "
            f"give a folder with its {' and '.join(VOCABULARY)} with --clip_path FOLDER"
        ) from e
    return Path(files[0]).parent


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Errors only from a library's logger inside."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
