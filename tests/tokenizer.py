"""A tokenizer as transformers saves it: 256 bytes and a few merges."""

import json
from collections.abc import Sequence
from pathlib import Path

LENGTH = 10
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [b for b in range(256) if b not in PRINTABLE]
# Byte-level pairs write a byte as a character: itself if it is printable, else the next one from 256 on
LETTER = {b: chr(b) for b in PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(OTHERS)}
BYTE = {letter: b for b, letter in LETTER.items()}
MERGES = ["r e", "re d</w>", "a p", "ap p"]


def vocabulary(merges: Sequence[str]) -> list[str]:
    letters = LETTER.values()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    return [*words, "<|startoftext|>", "<|endoftext|>"]


VOCABULARY = vocabulary(MERGES)
START, END = len(VOCABULARY) - 2, len(VOCABULARY) - 1


def write(folder: Path, merges: Sequence[str] = MERGES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary(merges))}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


def numbers(*words: str) -> list[int]:
    return [VOCABULARY.index(word) for word in words]


def padded(tokens: list[int], length: int = LENGTH) -> list[int]:
    row = [START, *tokens][: length - 1]
    return row + [END] * (length - len(row))
