"""Vocabularies of tokenizers in CLIP's layout, as files."""

import json
from collections.abc import Sequence
from pathlib import Path

from qdiff.files.atomic import replacing
from qdiff.files.tokenizer import VOCABULARY

END_OF_WORD = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def write_tokens(folder: Path, words: Sequence[str], merges: Sequence[str] = ()) -> None:
    """Write `vocab.json` and `merges.txt`, each whole or not at all.

    Args:
        folder: created if missing.
        words: the tokens in order, without the start and the end of a text, which come last.
        merges: pairs of tokens, with a space between, in the order in which they are merged.
    """
    contents = (
        json.dumps({word: i for i, word in enumerate([*words, *SPECIAL])}, ensure_ascii=False),
        "\n".join(["#version: 0.2", *merges, ""]),
    )
    for name, text in zip(VOCABULARY, contents):
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def byte_tokens() -> list[str]:
    """Return a token for each of the 256 bytes, and one for each that ends a word: with them, any text has tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return letters + [letter + END_OF_WORD for letter in letters]


def write_bytewise(folder: Path, size: int) -> None:
    """Write a tokenizer of `size` tokens, >= 514, of which texts use only those of bytes; see `write_tokens`."""
    letters = byte_tokens()
    write_tokens(folder, letters + [f"<|unused {i}|>" for i in range(size - len(letters) - len(SPECIAL))])
