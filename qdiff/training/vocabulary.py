"""Byte-pair vocabularies made from the training texts of a model."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from qdiff.errors import UserError
from qdiff.files.atomic import replacing
from qdiff.files.tokenizer import VOCABULARY, clip_tokenizer

END_OF_WORD = "</w>"
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def write_vocabulary(texts: Sequence[str], size: int, folder: Path) -> None:
    """Make a vocabulary in CLIP's layout and write `vocab.json` and `merges.txt`.

    Its tokens are, in order: 256 bytes, 256 bytes that end a word, merges by falling frequency, and the start and the
    end of a text. Every text can be encoded, because every byte has a token.

    Args:
        texts: at least one.
        size: number of tokens, >= 514.
        folder: created if missing.

    Raises:
        UserError: the texts do not suffice for `size` tokens, or `size` is too small.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    letters += [letter + END_OF_WORD for letter in letters]
    wanted = size - len(letters) - len(SPECIAL)
    merges = _merges(texts, size, letters)[: max(wanted, 0)]
    if len(merges) != wanted:
        possible = len(letters) + len(SPECIAL) + len(merges)
        raise UserError(f"a vocabulary of {size} tokens cannot be made from these names: make vocab_size {possible}")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, letters, merges)


def _merges(texts: Sequence[str], size: int, letters: list[str]) -> list[str]:
    """Return pairs by falling frequency, normalised and split as in CLIP; up to a total of `size` tokens."""
    with TemporaryDirectory() as scratch:
        _write(Path(scratch), letters, [])
        bytewise = clip_tokenizer(Path(scratch))
        # Ties are ordered by the numbers of the letters, which only special tokens have from the start
        trained = bytewise.train_new_from_iterator([texts], size, new_special_tokens=letters, show_progress=False)
        trained.backend_tokenizer.model.save(scratch)
        return (Path(scratch) / VOCABULARY[1]).read_text(encoding="utf-8").splitlines()[1:]


def _write(folder: Path, letters: list[str], merges: list[str]) -> None:
    words = [*letters, *(merge.replace(" ", "") for merge in merges), *SPECIAL]
    contents = (
        json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False),
        "\n".join(["#version: 0.2", *merges, ""]),
    )
    for name, text in zip(VOCABULARY, contents):
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
