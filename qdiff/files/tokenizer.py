"""CLIP tokenizer with a vocabulary from a folder or from the Hugging Face hub."""

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
    from transformers import PreTrainedTokenizerFast

REPOSITORY = "openai/clip-vit-large-patch14"  # has the text encoder of Stable Diffusion v1
VOCABULARY = ("vocab.json", "merges.txt")
WHOLE = "tokenizer.json"


class Tokenizer:
    """CLIP's tokenizer: lower case, byte-level BPE, between a start and an end token; see `load_tokenizer`.

    Args:
        clip: the tokenizer of transformers.
        max_length: tokens per prompt, at least 2.
    """

    def __init__(self, clip: "PreTrainedTokenizerFast", max_length: int):
        self.clip, self.max_length = clip, max_length

    def __call__(self, prompts: list[str]) -> Tensor:
        """Return the tokens of B >= 1 prompts, int64 of shape (B, max_length).

        Longer prompts are cut before the end token; shorter ones are padded, for CLIP with the end token.
        """
        prompts = [as_text(prompt) for prompt in prompts]
        padded = {"padding": "max_length", "max_length": self.max_length, "return_tensors": "pt"}
        return self.clip(prompts, truncation=True, **padded)["input_ids"]

    def cut(self, prompt: str) -> tuple[str, str]:
        """Split a prompt into the part within `max_length` tokens and the rest, which the encoder does not read."""
        prompt, room = as_text(prompt), self.max_length - 2  # without the start and the end token
        with _quiet("transformers"):  # which warns of long prompts
            spans = self.clip(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(spans) <= room:
            return prompt, ""
        end = spans[room][0]
        return prompt[:end].rstrip(), prompt[end:]


def load_tokenizer(path: Path | None, max_length: int, vocab_size: int) -> Tokenizer:
    """Load a CLIP tokenizer.

    Args:
        path: folder with a tokenizer as transformers saves it, `vocab.json` and `merges.txt` or `tokenizer.json`;
            None for that of `REPOSITORY`, from the local cache of the hub or else downloaded to it.
        max_length: tokens per prompt, at least 2.
        vocab_size: of the text encoder.

    Raises:
        UserError: the folder has no tokenizer, a damaged one, or one of another size; or the hub cannot be reached.
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
    """Return whether the folder contains a tokenizer."""
    return (folder / WHOLE).is_file() or has_vocabulary(folder)


def has_vocabulary(folder: Path) -> bool:
    """Return whether the folder contains a tokenizer as vocabulary and merges."""
    return all((folder / name).is_file() for name in VOCABULARY)


def clip_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Return the tokenizer of transformers with the vocabulary in a folder, without any checks."""
    from transformers import CLIPTokenizerFast  # type: ignore[attr-defined]  # an alias made at run time since 5.0

    with utf8_name(folder) as name:
        return CLIPTokenizerFast.from_pretrained(name, local_files_only=True)


def _read(folder: Path) -> "PreTrainedTokenizerFast":
    try:
        with _quiet("transformers"):
            tokenizer = clip_tokenizer(folder)
            tokenizer("a")  # some damage appears only in use
    except Exception as e:  # the reader raises nothing more specific
        reason = " ".join(str(e).split())
        raise UserError(f"the tokenizer in '{folder}' is damaged ({reason}): give another --clip_path FOLDER") from e
    return tokenizer


def _download() -> Path:
    """Download the tokenizer of `REPOSITORY` unless it is cached; return its folder."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = [try_to_load_from_cache(REPOSITORY, name) for name in VOCABULARY]
    files = [path for path in cached if isinstance(path, str)]
    try:
        if len(files) < len(VOCABULARY):
            with _quiet("huggingface_hub"):
                files = [hf_hub_download(REPOSITORY, name) for name in VOCABULARY]
    except Exception as e:  # the HTTP client of the hub has its own errors
        reason = " ".join(str(e).split())
        raise UserError(
            f"cannot get the tokenizer of {REPOSITORY} from the Hugging Face hub ({reason}): "
            f"give a folder with its {' and '.join(VOCABULARY)} with --clip_path FOLDER"
        ) from e
    return Path(files[0]).parent


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Silence a library's logger below errors inside."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
