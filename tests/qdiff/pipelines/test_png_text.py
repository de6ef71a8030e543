"""What the flags are called in a PNG."""

import shlex
from importlib.metadata import PackageNotFoundError, version

from qdiff.cli.parser import parse
from qdiff.cli.txt2img_flags import txt2img_parser
from qdiff.pipelines.png_text import bits_of, png_text


def flags(line: str):
    return parse(txt2img_parser(), shlex.split(f"--prompt a {line}"))


def test_bits_as_the_flags_say():
    assert bits_of(flags("")) == "not quantized"
    assert bits_of(flags("--ptq --weight_bit 4")) == "W4"
    assert bits_of(flags("--ptq --weight_bit 4 --quant_act --act_bit 6")) == "W4A6, A8 after softmax"
    assert bits_of(flags("--ptq --quant_act --sm_abit 16 --split")) == "W8A8, A16 after softmax, split"


def test_a_text_does_not_tell_how_the_network_came_about():
    """Pictures of a file are those of the run that calibrated it, byte for byte."""
    lines = ["--ptq", "--ptq --quant_mode linear", "--ptq --resume --cali_ckpt F --low_memory", "--ptq --n_samples 7"]
    texts = [png_text(flags(line), [3], "PLMS") for line in lines]
    assert all(text == texts[0] for text in texts) and texts[0]["bits"] == "W8"


def test_software_without_an_installation(monkeypatch):
    def missing(name: str):
        raise PackageNotFoundError(name)

    assert png_text(flags(""), [3], "PLMS")["Software"] == f"qdiff {version('qdiff')}"
    monkeypatch.setattr("qdiff.files.version.version", missing)
    assert png_text(flags(""), [3], "PLMS")["Software"] == "qdiff"
