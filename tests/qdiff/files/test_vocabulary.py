"""Vocabularies that are written: the tokenizer that reads them gives every text tokens."""

import json

import pytest

from qdiff.files.tokenizer import load_tokenizer
from qdiff.files.vocabulary import byte_tokens, write_bytewise, write_tokens
from tests.tokenizer import LETTER, MERGES, numbers, padded, write


def test_a_token_for_each_byte_within_and_at_the_end_of_a_word():
    letters = byte_tokens()
    assert len({*letters}) == 512 and {*LETTER.values()} == {*letters[:256]}
    assert letters[256:] == [f"{letter}</w>" for letter in letters[:256]]


@pytest.mark.parametrize("size", [514, 600, 49408])
def test_a_tokenizer_of_bytes_of_any_size(size, tmp_path):
    write_bytewise(tmp_path / "new", size)
    tokenizer, letters = load_tokenizer(tmp_path / "new", 6, size), byte_tokens()
    a, e = letters.index("a"), letters.index("e</w>")
    assert tokenizer(["ae"]).tolist() == [[size - 2, a, e, size - 1, size - 1, size - 1]]
    start, *tokens = tokenizer(["a red \U0001f34e"])[0].tolist()
    assert start == size - 2 and all(token < 512 for token in tokens[:-1]), "the others are not used"


def test_merges_are_written_too(tmp_path):
    words = [*LETTER.values(), *(f"{letter}</w>" for letter in LETTER.values()), *(m.replace(" ", "") for m in MERGES)]
    write_tokens(tmp_path / "a", words, MERGES)
    write(tmp_path / "b")
    own, theirs = ([(tmp_path / x / name).read_text() for name in ("vocab.json", "merges.txt")] for x in "ab")
    assert json.loads(own[0]) == json.loads(theirs[0]) and own[1] == theirs[1]
    tokenizer = load_tokenizer(tmp_path / "a", 10, len(words) + 2)
    assert tokenizer(["redo"]).tolist() == [padded(numbers("re", "d", "o</w>"))]
