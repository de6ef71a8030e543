"""Conditions as texts, and prompts that are too long; what networks get is tested with the scripts."""

from types import SimpleNamespace

import pytest

from ldm.modules.encoders.modules import ClassEmbedder
from qdiff.adapters.latent_diffusion import FrozenCLIPEmbedder
from qdiff.cli.conditions import WARNED, Classes, Prompts, Unconditional, conditions_of
from qdiff.errors import UserError
from tests.ldm.tiny_text import ENCODER, TOKENS


class Words:
    """A tokenizer of three words."""

    max_length = 5

    def cut(self, prompt: str) -> tuple[str, str]:
        words = prompt.split()
        return " ".join(words[:3]), " ".join(words[3:])


def prompts(*turns: str, calibration: tuple[str, ...] = ()) -> Prompts:
    return Prompts(SimpleNamespace(cond_stage_model=SimpleNamespace(tokenizer=Words())), turns, calibration)


def test_texts_of_pictures():
    found = prompts("a b c d e", "f", "a b c d e")
    assert found.text([0]) == found.text([2, 0, 3]) == {"prompt": "a b c", "prompt, left out": "d e"}
    assert found.text([1, 4]) == {"prompt": "f"}
    assert found.text(range(3)) == {"prompt": "a b c\nf", "prompt, left out": "d e\n"}
    assert Unconditional().text([0]) == {}


def test_warnings_quote_what_is_left_out_and_count_what_calibrates():
    found = prompts("a b c d e", "f", "a b c d e", calibration=("a b c d", "a", "a b c d"))
    beyond = "beyond the 5 tokens that the text encoder reads"
    quoted = f"the prompt 'a b c' goes {beyond}, left out is 'd e'"
    assert found.warnings(calibrates=False) == [quoted]
    assert found.warnings(calibrates=True) == [quoted, f"1 of 2 prompts for calibration go {beyond}, and are cut"]
    assert prompts("f", calibration=("f",)).warnings(calibrates=True) == []


def test_warnings_stay_few_and_short():
    lines = prompts(*(f"a b c {i}\n" + 9999 * "x" for i in range(99))).warnings(calibrates=False)
    assert len(lines) == WARNED + 1 and lines[-1].startswith(f"{99 - WARNED} more prompts go beyond")
    assert all(len(line) < 1200 and "\n" not in line for line in lines)


def classes(**params) -> SimpleNamespace:
    return SimpleNamespace(cond_stage_model=ClassEmbedder(4, **params))


def test_classes_of_pictures():
    assert Classes(classes(n_classes=3, null_class=1), None, 0).text(range(3)) == {"class": "0, 2, 0"}
    assert Classes(classes(n_classes=3, null_class=1), [1, 2], 0).text([0]) == {"class": "1"}
    assert Classes(classes(n_classes=3), None, 0).text(range(4)) == {"class": "0, 1, 2, 0"}


def test_the_published_models_of_1000_and_1001_classes():
    assert list(Classes(classes(), None, 0).turns) == list(range(1000))
    assert list(Classes(classes(n_classes=1001), None, 0).turns) == list(range(1000))
    assert isinstance(conditions_of(classes(n_classes=1001), None, 3.0, 0), Classes)
    with pytest.raises(UserError, match=r"--scale 3.0 needs a class that stands for none.*null_class=NUMBER"):
        conditions_of(classes(), None, 3.0, 0)


def test_a_model_of_texts_has_a_script_of_its_own():
    encoder = FrozenCLIPEmbedder(max_length=TOKENS, config=ENCODER)
    with pytest.raises(UserError, match=r"scripts/txt2img\.py"):
        conditions_of(SimpleNamespace(cond_stage_model=encoder), None, 1.0, 0)
