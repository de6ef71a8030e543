"""Where the tensors of a pipeline are. A stand-in for a GPU is the meta device: what is left behind is seen there."""

import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from qdiff.cli import ddim_flags, pipeline, txt2img_flags
from qdiff.cli.parser import parse
from qdiff.cli.pipeline import Pipeline
from qdiff.cli.run import Run
from qdiff.cli.sample_ddim import PixelPipeline
from qdiff.cli.sample_txt2img import TextPipeline
from tests.command_line import script
from tests.ldm.tiny_text import write_text_model
from tests.tiny import write_tiny

ACT = "--ptq --weight_bit 4 --quant_act --split"
LINEAR = f"{ACT} --quant_mode linear --cali_st 2 --cali_n 2 --cali_batch_size 4 --device cpu"
META = torch.device("meta")


def pixel(folder: Path, line: str) -> list[str]:
    return shlex.split(f"--config {write_tiny(folder)} --timesteps 4 --max_images 1 -l {folder / 'run'} {line}")


def text(folder: Path, line: str) -> list[str]:
    write_text_model(folder)
    model = f"--config {folder / 'config.yaml'} --ckpt {folder / 'model.ckpt'} --f 2 --H 32 --W 32 --precision full"
    return shlex.split(f"{model} --prompt a --ddim_steps 4 --n_samples 1 --outdir {folder / 'run'} {line}")


SCRIPTS = {
    "pixel": ("sample_diffusion_ddim.py", pixel, ddim_flags.ddim_parser, PixelPipeline),
    "text": ("txt2img.py", text, txt2img_flags.txt2img_parser, TextPipeline),
}


def devices(module: nn.Module) -> set[str]:
    return {x.device.type for x in (*module.parameters(), *module.buffers())}


def loaded(line: str, name: str, folder: Path) -> Pipeline:
    _, words, parser, kind = SCRIPTS[name]
    made = kind(parse(parser(), words(folder, line)))
    made.load()
    return made


@pytest.mark.parametrize("flag", ["", "--low_memory"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_network_goes_to_the_device_with_its_calibrated_numbers(name, flag, tmp_path, monkeypatch):
    program, words, *_ = SCRIPTS[name]
    ended = script(program, *words(tmp_path, LINEAR))
    assert ended.status == 0, ended
    monkeypatch.setattr(pipeline, "find_device", lambda _: META)
    file = tmp_path / "run" / "quantized.safetensors"
    made = loaded(f"{ACT} --resume --cali_ckpt {file} {flag}", name, tmp_path)
    assert devices(made.network) == {"cpu"}, "its full-precision numbers, which nobody needs, stay here"
    if name == "text":
        assert devices(made.latent.cond_stage_model) | devices(made.latent.first_stage_model) == {"meta"}
    Run(made).quantization(tmp_path, batch_size=1).run()
    assert devices(made.network) == {"meta"}
    assert made.network(*made.example(2)).is_meta


@pytest.mark.parametrize("name", SCRIPTS)
def test_in_full_precision_a_network_is_on_the_device_once_it_is_loaded(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "find_device", lambda _: META)
    made = loaded("", name, tmp_path)
    assert devices(made.network) == {"meta"} and made.network(*made.example(2)).is_meta
