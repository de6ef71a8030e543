"""Where the tensors of a pipeline are. A stand-in for a GPU is the meta device: what is left behind is seen there."""

import shlex
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from qdiff.cli import sample_ddim, sample_txt2img
from qdiff.cli.ddim_flags import ddim_parser
from qdiff.cli.parser import Parser, parse
from qdiff.cli.sample import quantization_of
from qdiff.cli.txt2img_flags import txt2img_parser
from qdiff.pipelines import base
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.text import TextPipeline
from tests.command_line import script
from tests.ldm.tiny_text import write_text_model
from tests.tiny import write_tiny

ACT = "--ptq --weight_bit 4 --quant_act --split"
LINEAR = f"{ACT} --quant_mode linear --cali_st 2 --cali_n 2 --cali_batch_size 4 --device cpu"
META = torch.device("meta")


class Script(NamedTuple):
    program: str
    write: Callable[[Path], object]
    words: str
    parser: Callable[[], Parser]
    pipeline_of: Callable[[Namespace], Pipeline]


TEXT = "--config {0}/config.yaml --ckpt {0}/model.ckpt --f 2 --H 32 --W 32 --precision full --prompt a --ddim_steps 4"
SCRIPTS = {
    "pixel": Script(
        "sample_diffusion_ddim.py",
        write_tiny,
        "--config {0}/tiny.yml --timesteps 4 --max_images 1 -l {0}/run",
        ddim_parser,
        sample_ddim.pipeline_of,
    ),
    "text": Script(
        "txt2img.py",
        write_text_model,
        f"{TEXT} --n_samples 1 --outdir {{0}}/run",
        txt2img_parser,
        sample_txt2img.pipeline_of,
    ),
}


@pytest.fixture(params=SCRIPTS, scope="module")
def calibrated(request, tmp_path_factory) -> tuple[Script, Path]:
    """A script, and the folder of a model that it has calibrated."""
    made, folder = SCRIPTS[request.param], tmp_path_factory.mktemp(request.param)
    made.write(folder)
    ended = script(made.program, *shlex.split(f"{made.words.format(folder)} {LINEAR}"))
    assert ended.status == 0, ended
    return made, folder


@pytest.fixture
def build(calibrated, monkeypatch) -> Callable[[str], Pipeline]:
    """Return the pipeline with more flags, on the device that stands in for a GPU."""
    made, folder = calibrated
    monkeypatch.setattr(base, "find_device", lambda _: META)
    return lambda line: made.pipeline_of(flags(made, folder, line))


def flags(made: Script, folder: Path, line: str) -> Namespace:
    return parse(made.parser(), shlex.split(f"{made.words.format(folder)} {line}"))


def devices(module: nn.Module) -> set[str]:
    return {x.device.type for x in (*module.parameters(), *module.buffers())}


@pytest.mark.parametrize("flag", ["", "--low_memory"])
def test_a_network_goes_to_the_device_with_its_calibrated_numbers(flag, calibrated, build, tmp_path):
    line = f"{ACT} --resume --cali_ckpt {calibrated[1] / 'run' / 'quantized.safetensors'} {flag}"
    found = build(line)
    found.load(network=False)
    assert devices(found.network) == {"cpu"}, "its full-precision numbers, which nobody needs, stay here"
    if isinstance(found, TextPipeline):
        assert devices(found.latent.cond_stage_model) | devices(found.latent.first_stage_model) == {"meta"}
    network = quantization_of(flags(*calibrated, line)).run(found, tmp_path)
    quantized = found.with_network(network)
    assert quantized.network is network and devices(network) == {"meta"}
    assert quantized.example(2)(network).is_meta


def test_in_full_precision_a_network_is_on_the_device_once_it_is_loaded(build):
    found = build("")
    found.load()
    assert devices(found.network) == {"meta"} and found.example(2)(found.network).is_meta


def test_a_plan_computes_on_the_device(build):
    found = build("--dry-run")
    found.init_random()
    assert devices(found.network) == {"meta"} and found.example(2)(found.network).is_meta


def test_the_shape_of_a_finished_image_is_known_beforehand(build):
    found = build("--dry-run")
    shape = found.image_shape
    found.init_random()
    assert shape == found.image_shape == found.decode(torch.zeros(1, *found.latent_shape, device=META)).shape[1:]


def test_flags_are_checked_before_a_plan_initialises_anything(tmp_path):
    write_text_model(tmp_path)
    args = parse(txt2img_parser(), shlex.split(f"{TEXT.format(tmp_path)} --device cpu --dry-run"))
    found = sample_txt2img.pipeline_of(args)
    assert devices(found.latent) == {"meta"}
    found.init_random()
    assert devices(found.latent) == {"cpu"}
    assert all(x.isfinite().all() for x in found.latent.state_dict().values())
    assert found.latent.decode_first_stage(found.example(1)(found.network)).isfinite().all()


def test_sampling_calls_the_network_of_the_pipeline(calibrated):
    found = calibrated[0].pipeline_of(flags(*calibrated, "--dry-run --device cpu"))
    found.init_random()

    class Counted(nn.Module):
        def __init__(self, network: nn.Module):
            super().__init__()
            self.network, self.calls = network, 0

        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.network(*args)

    counted = Counted(found.network)
    other = found.with_network(counted)
    assert len(list(other.steps([0]))) == other.nfe == counted.calls
    list(found.steps([0]))
    assert counted.calls == other.nfe, "the first pipeline still calls its own"
