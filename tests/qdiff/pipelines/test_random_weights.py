"""Random weights in a file: the scripts' loaders take it, whatever the kind of model."""

import resource
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

import qdiff
from qdiff.adapters.ldm import samplers
from qdiff.files.tokenizer import load_tokenizer
from qdiff.pipelines.class_conditional import ClassPipeline
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.random_weights import write_random_weights
from qdiff.pipelines.settings import ClassSampling, LatentModel, TextSampling
from qdiff.pipelines.text import TextPipeline
from tests.ldm.tiny import AVERAGED, CLASSES, write_latent
from tests.ldm.tiny_text import TOKENS, text_config
from tests.tiny import write_tiny

NOTHING = Path("not/there.safetensors")


def latent(name: str, folder: Path) -> Pipeline:
    write_latent(name, folder)
    sampling = ClassSampling(samplers.DDIM(2))
    return ClassPipeline(LatentModel(folder / "config.yaml", NOTHING, device="cpu"), sampling)


def text(folder: Path) -> Pipeline:
    OmegaConf.save(text_config(), folder / "config.yaml")
    sampling = TextSampling(samplers.DDIM(2), prompts=("red apple",))
    return TextPipeline(LatentModel(folder / "config.yaml", NOTHING, device="cpu"), sampling)


MODELS = {
    "pixel": lambda folder: qdiff.load_pipeline(write_tiny(folder), steps=2, device="cpu"),
    "classes": lambda folder: latent(CLASSES, folder),
    "averaged": lambda folder: latent(AVERAGED, folder),
    "text": text,
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_with_random_weights_is_one_with_these_weights(kind, tmp_path):
    pipeline, path = MODELS[kind](tmp_path), tmp_path / "random" / "model.safetensors"
    write_random_weights(pipeline, path)
    drawn = {name: x for name, x in pipeline.module.named_parameters()}
    stored = load_file(path)
    assert drawn.keys() <= stored.keys()
    assert all(stored[name].dtype == torch.float16 for name in drawn)
    config = next(p for p in tmp_path.iterdir() if p.suffix in (".yml", ".yaml"))
    prompts = {"prompts": ("red apple",)} if kind == "text" else {}
    loaded = qdiff.load_pipeline(config, weights=path, steps=2, device="cpu", **prompts)
    for name, x in loaded.module.named_parameters():
        assert torch.equal(x, drawn[name].half().float()), name
    assert loaded.sample(2, seed=0).tensor.float().std() > 1, "the sampler refuses what is not finite"


def test_the_same_model_gets_the_same_weights(tmp_path):
    for name in "ab":
        write_random_weights(qdiff.load_pipeline(write_tiny(tmp_path), device="cpu"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_activations_keep_their_size(tmp_path):
    pipeline = MODELS["pixel"](tmp_path)
    write_random_weights(pipeline, tmp_path / "w")
    parameters = dict(pipeline.module.named_parameters())
    weight = parameters["mid.block_1.conv1.weight"]
    assert (weight.square().mean() * weight[0].numel()).item() == pytest.approx(1, rel=0.05)
    assert torch.equal(parameters["norm_out.weight"], torch.ones_like(parameters["norm_out.weight"]))
    assert not parameters["conv_out.bias"].any() and parameters["conv_out.weight"].any(), "which training starts from 0"


def test_a_text_encoder_has_a_tokenizer_beside_its_weights(tmp_path):
    pipeline = text(tmp_path)
    write_random_weights(pipeline, tmp_path / "random" / "model.safetensors")
    size = pipeline.conditions.encoder.vocab_size
    assert load_tokenizer(tmp_path / "random", TOKENS, size)(["red"]).shape == (1, TOKENS)
    own = LatentModel(tmp_path / "config.yaml", NOTHING, device="cpu", tokenizer=tmp_path / "random")
    write_random_weights(TextPipeline(own, pipeline.sampling), tmp_path / "again" / "model.safetensors")
    assert [p.name for p in (tmp_path / "again").iterdir()] == ["model.safetensors"], "it has one already"


def test_a_failed_write_leaves_nothing(tmp_path):
    pipeline, folder = qdiff.load_pipeline(write_tiny(tmp_path), device="cpu"), tmp_path / "random"
    folder.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/random/w'"):
            write_random_weights(pipeline, folder / "w")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*folder.iterdir()]
