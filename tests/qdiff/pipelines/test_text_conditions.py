"""Prompts that are too long; what networks get is tested with the script."""

from types import SimpleNamespace

from qdiff.pipelines.text_conditions import WARNED, Prompts


class Words:
    """A tokenizer of three words."""

    max_length = 5

    def cut(self, prompt: str) -> tuple[str, str]:
        words = prompt.split()
        return " ".join(words[:3]), " ".join(words[3:])


def prompts(*turns: str, calibration: tuple[str, ...] = ()) -> Prompts:
    return Prompts(SimpleNamespace(), SimpleNamespace(tokenizer=Words()), turns, calibration)


def test_texts_of_images():
    found = prompts("a b c d e", "f", "a b c d e")
    assert found.text([0]) == found.text([2, 0, 3]) == {"prompt": "a b c", "prompt, left out": "d e"}
    assert found.text([1, 4]) == {"prompt": "f"}
    assert found.text(range(3)) == {"prompt": "a b c\nf", "prompt, left out": "d e\n"}


def test_warnings_quote_what_is_left_out_and_count_what_calibrates():
    found = prompts("a b c d e", "f", "a b c d e", calibration=("a b c d", "a", "a b c d"))
    limit = "the 5 tokens that the text encoder reads"
    quoted = f"the prompt 'a b c' exceeds {limit}: 'd e' is left out"
    assert found.warnings(calibrates=False) == [quoted]
    assert found.warnings(calibrates=True) == [quoted, f"1 of 2 calibration prompts exceed {limit} and are cut"]
    assert prompts("f", calibration=("f",)).warnings(calibrates=True) == []


def test_warnings_stay_few_and_short():
    lines = prompts(*(f"a b c {i}\n" + 9999 * "x" for i in range(99))).warnings(calibrates=False)
    assert len(lines) == WARNED + 1 and lines[-1].startswith(f"{99 - WARNED} more prompts exceed the")
    assert all(len(line) < 1200 and "\n" not in line for line in lines)
