"""The tokenizer of prompts, on a vocabulary of 256 bytes and a few merges."""

import logging
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizerFast

from qdiff.errors import UserError
from qdiff.files.tokenizer import load_tokenizer
from tests.tokenizer import BYTE, END, LENGTH, LETTER, START, VOCABULARY, numbers, padded, write


def in_bytes(text: str) -> list[int]:
    """Tokens of one word that no pair of `MERGES` occurs in."""
    *body, last = text.encode()
    return numbers(*(LETTER[b] for b in body), f"{LETTER[last]}</w>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenize(folder):
    return load_tokenizer(folder, LENGTH, len(VOCABULARY))


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("", []),
        (" \t\r\n ", []),
        ("red apple", numbers("red</w>", "app", "l", "e</w>")),
        ("  RED\n\nApple ", numbers("red</w>", "app", "l", "e</w>")),
        ("redo", numbers("re", "d", "o</w>")),
        ("b2", numbers("b</w>", "2</w>")),
        ("é", in_bytes("é")),
        ("e\u0301", in_bytes("é")),
        ("🍎", in_bytes("🍎")),
        ("\x00\x01", in_bytes("\x00\x01")),
        ("\ud83d", in_bytes("?")),
        ("red " * 3, numbers("red</w>") * 3),
        ("red " * 50_000, numbers("red</w>") * 8),
        ("x" * 100_000, numbers("x") * 8),
    ],
)
def test_tokens_of_odd_prompts(tokenize, prompt, tokens):
    found = tokenize([prompt])
    assert found.dtype == torch.int64
    assert found.tolist() == [padded(tokens)]


def test_prompts_do_not_depend_on_their_neighbours(tokenize):
    prompts = ["red", "", "red " * 20, "🍎"]
    assert torch.equal(tokenize(prompts), torch.cat([tokenize([p]) for p in prompts]))


STABLE = st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp", "Cn"))


@given(st.text(st.one_of(STABLE, st.just(" ")), max_size=12))
def test_every_byte_comes_through(folder, text):
    text = unicodedata.normalize("NFC", text.lower())
    tokens = load_tokenizer(folder, 200, len(VOCABULARY))([text])[0].tolist()
    assert tokens[0] == START
    words = tokens[1 : tokens.index(END)]
    letters = "".join(VOCABULARY[i] for i in words).replace("</w>", "")
    assert bytes(BYTE[letter] for letter in letters).decode() == text.replace(" ", "")
    assert set(tokens[len(words) + 1 :]) == {END}


@pytest.mark.parametrize("length", [2, 3, 7, 77])
def test_a_prompt_is_cut_before_its_end_token(folder, length):
    whole = load_tokenizer(folder, 200, len(VOCABULARY))(["a red apple " * 9])[0].tolist()
    cut = load_tokenizer(folder, length, len(VOCABULARY))(["a red apple " * 9])[0].tolist()
    assert cut == padded(whole[1 : whole.index(END)], length)
    assert len(cut) == length
    assert cut[-1] == END


@pytest.mark.parametrize(
    ("prompt", "read", "left_out"),
    [
        ("", "", ""),
        (" red ", " red ", ""),
        ("red " * 8, "red " * 8, ""),
        ("red " * 9, "red " * 7 + "red", "red "),
        ("RED\tRed  red\nred red red red red,\n an Apple", "RED\tRed  red\nred red red red red", ",\n an Apple"),
        ("red red red red red red red apple pie", "red red red red red red red app", "le pie"),
        ("red red red red red red 🍎🍎", "red red red red red red", "🍎🍎"),
        ("red red red red red red red \ud83d !", "red red red red red red red ?", "!"),
    ],
)
def test_what_is_left_out_of_a_prompt(tokenize, caplog, prompt, read, left_out):
    assert tokenize.cut(prompt) == (read, left_out)
    assert tokenize([prompt]).tolist() == tokenize([read]).tolist() or left_out[0] in "l🍎", "within a word"
    assert caplog.messages == []


def test_a_folder_that_transformers_saved(folder, tokenize, tmp_path):
    CLIPTokenizerFast.from_pretrained(folder).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):  # which version 4 saves too
        (tmp_path / name).unlink(missing_ok=True)
    prompts = ["A red apple", "", "🍎 " * 30]
    assert torch.equal(load_tokenizer(tmp_path, LENGTH, len(VOCABULARY))(prompts), tokenize(prompts))


def test_any_name_of_a_folder_will_do(folder, tokenize, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "bad\udcff")
    assert torch.equal(load_tokenizer(copied, LENGTH, len(VOCABULARY))(["red"]), tokenize(["red"]))


@pytest.mark.parametrize("length", [1, 5])
def test_transformers_says_nothing(length, tmp_path, monkeypatch, caplog):
    """It warns once of texts longer than that, be it as the tokenizer is tried, or for a prompt."""
    write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(f'{{"model_max_length": {length}}}')
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [caplog.handler])
    tokenize = load_tokenizer(tmp_path, LENGTH, len(VOCABULARY))
    tokenize(["red apple " * 99])
    assert tokenize.cut("red apple " * 99)[1]
    assert caplog.messages == []
    CLIPTokenizerFast.from_pretrained(tmp_path)("red apple")
    assert "longer than" in caplog.text  # so its loggers are as loud as before


def refusal(path: Path | None) -> str:
    with pytest.raises(UserError) as error:
        load_tokenizer(path, LENGTH, len(VOCABULARY))
    said = str(error.value)
    assert "\n" not in said
    assert "--clip_path FOLDER" in said
    return said


@pytest.mark.parametrize("present", [(), ("vocab.json",), ("merges.txt",), ("tokenizer_config.json",)])
def test_a_folder_without_a_tokenizer(tmp_path, present):
    for name in present:
        (tmp_path / name).write_text("{}")
    assert refusal(tmp_path).startswith(f"no tokenizer in '{tmp_path}': give a folder with vocab.json and merges.txt")
    assert refusal(tmp_path / "nowhere").startswith("no tokenizer in ")


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": "{"},
        {"tokenizer.json": "null"},
        {"tokenizer.json": "{}"},
        {"vocab.json": "", "merges.txt": ""},
        {"vocab.json": "[]", "merges.txt": "#version: 0.2\n"},
        {"vocab.json": "{}", "merges.txt": "#version: 0.2\n"},
        {"vocab.json": '{"a": 0}', "merges.txt": "#version: 0.2\na b\n"},
    ],
    ids=str,
)
def test_a_damaged_tokenizer(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert refusal(tmp_path).startswith(f"the tokenizer in '{tmp_path}' is damaged (")


OFFLINE = """
from qdiff.errors import UserError
from qdiff.files.tokenizer import load_tokenizer
from tests.tokenizer import BYTE, END, LENGTH, LETTER, MERGES, START, VOCABULARY, numbers, padded, write
try:
    print(load_tokenizer(None, 5, len(VOCABULARY))(["red"]).tolist())
except UserError as e:
    print(e)
"""


def offline(cache: Path) -> str:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    ended = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=True, env=env)
    assert ended.stderr == ""
    return ended.stdout


def test_offline_the_cache_of_the_hub_serves_or_the_error_names_the_flag(tmp_path):
    said = offline(tmp_path)
    assert said.startswith("cannot get the tokenizer of openai/clip-vit-large-patch14 from the Hugging Face hub (")
    assert said.endswith("): give a folder with its vocab.json and merges.txt with --clip_path FOLDER\n")
    assert said.count("\n") == 1
    revision = "0" * 40
    repository = tmp_path / "models--openai--clip-vit-large-patch14"
    write(repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision / "vocab.json").rename(tmp_path / "kept")
    (repository / ".no_exist" / revision).mkdir(parents=True)
    (repository / ".no_exist" / revision / "vocab.json").touch()
    assert offline(tmp_path).startswith("cannot get the tokenizer of openai/clip"), "noted as not there"
    shutil.rmtree(repository / ".no_exist")
    (tmp_path / "kept").rename(repository / "snapshots" / revision / "vocab.json")
    assert offline(tmp_path) == f"{[padded(numbers('red</w>'), 5)]}\n"
