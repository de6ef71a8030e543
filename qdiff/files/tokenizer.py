"""Prompts -> tokens, with a vocabulary from a folder or from the Hugging Face hub."""

import logging
from collections.abc import Callable, Iterator
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


def load_tokenizer(path: Path | None, max_length: int, vocab_size: int) -> Callable[[list[str]], Tensor]:
    """CLIP's tokenizer: lower case, byte-level byte pairs, between a start and an end token.

    Args:
        path: folder with a tokenizer as transformers saves it, `vocab.json` and `merges.txt` or `tokenizer.json`;
            None for that of `REPOSITORY`, from the hub's cache on this machine or else downloaded to it.
        max_length: tokens of each prompt, at least 2.
        vocab_size: of the text encoder.

    Returns:
        B >= 1 prompts of any content -> int64 of shape (B, max_length). Longer prompts are cut before their end
        token, shorter ones are padded, which for CLIP is with the end token again.

    Raises:
        UserError: there is no tokenizer in the folder, it is damaged, or another model's; the hub cannot be reached.
    """
    folder = _download() if path is None else path
    if not has_tokenizer(folder):
        wanted = f"{' and '.join(VOCABULARY)}, or {WHOLE}"
        raise UserError(f"no tokenizer in '{folder}': give a folder with {wanted} with --clip_path FOLDER")
    tokenizer = _read(folder)
    if len(tokenizer) != vocab_size:
        raise UserError(
            f"the tokenizer in '{folder}' has {len(tokenizer)} tokens, the model's text encoder {vocab_size}: give the "
            "model's own with --clip_path FOLDER"
        )

    def tokenize(prompts: list[str]) -> Tensor:
        prompts = [as_text(prompt) for prompt in prompts]
        tokens = tokenizer(prompts, truncation=True, padding="max_length", max_length=max_length, return_tensors="pt")
        return tokens["input_ids"]

    return tokenize


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
