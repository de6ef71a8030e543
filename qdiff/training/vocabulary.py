"""Byte-pair vocabularies made from the training texts of a model."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from qdiff.errors import UserError
from qdiff.files.tokenizer import VOCABULARY, clip_tokenizer
from qdiff.files.vocabulary import SPECIAL, byte_tokens, write_tokens


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
    letters = byte_tokens()
    wanted = size - len(letters) - len(SPECIAL)
    merges = _merges(texts, size, letters)[: max(wanted, 0)]
    if len(merges) != wanted:
        possible = len(letters) + len(SPECIAL) + len(merges)
        raise UserError(f"a vocabulary of {size} tokens cannot be made from these names: make vocab_size {possible}")
    write_tokens(folder, [*letters, *(merge.replace(" ", "") for merge in merges)], merges)


def _merges(texts: Sequence[str], size: int, letters: list[str]) -> list[str]:
    """Return pairs by falling frequency, normalised and split as in CLIP; up to a total of `size` tokens."""
    with TemporaryDirectory() as scratch:
        write_tokens(Path(scratch), letters)
        bytewise = clip_tokenizer(Path(scratch))
        # Ties are ordered by the numbers of the letters, which only special tokens have from the start
        trained = bytewise.train_new_from_iterator([texts], size, new_special_tokens=letters, show_progress=False)
        trained.backend_tokenizer.model.save(scratch)
        return (Path(scratch) / VOCABULARY[1]).read_text(encoding="utf-8").splitlines()[1:]
