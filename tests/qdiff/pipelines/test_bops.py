"""Bit operations of an image: those of a network call, for every step, and for both rows of guidance."""

from dataclasses import replace

import pytest
import torch

import qdiff
from qdiff.evaluation.bops import network_bops
from qdiff.pipelines.pipeline import Pipeline
from qdiff.policy import QuantPolicy, QuantSpec
from tests.ldm.tiny import AVERAGED, CLASSES, write_latent
from tests.ldm.tiny_text import write_text_model
from tests.tiny import write_tiny

W4A8 = QuantPolicy(QuantSpec(4, per_channel=True, range_search="minmax"), QuantSpec(8, range_search="minmax"))


@pytest.fixture(scope="module")
def pixel(tmp_path_factory) -> Pipeline:
    return qdiff.load_pipeline(write_tiny(tmp_path_factory.mktemp("pixel")), steps=4, device="cpu")


def linear(pipe: Pipeline, policy: QuantPolicy = W4A8) -> Pipeline:
    return qdiff.quantize(pipe, policy=policy, method="linear", timesteps=2, samples=1)


def test_full_precision(pixel):
    found = pixel.bops()
    assert found.call == network_bops(pixel.network, pixel.example(3))
    assert found.bops == found.fp_bops == 4 * found.call.macs * 32 * 32
    assert found.steps == 4 * [found.call.fp_bops]
    assert pixel.with_sampling(steps=10).bops().bops == 10 * found.call.fp_bops


def test_a_quantized_network(pixel):
    pipe = linear(pixel)
    found, layers = pipe.bops(), pipe.network.layers()
    products = {path: leaf for path, leaf in found.call.leaves.items() if path not in layers}
    assert set(products) == {path for path in found.call.leaves if path.endswith("matmul")} and len(products) == 8
    by_hand = sum(leaf.macs * (8 * 8 if path in products else 4 * 8) for path, leaf in found.call.leaves.items())
    assert found.bops == 4 * by_hand
    assert found.fp_bops == pixel.bops().fp_bops


def test_each_step_has_the_bits_of_its_phase(pixel):
    pipe = linear(pixel, replace(W4A8, act_phases=((400, 4),)))
    found = pipe.bops()
    assert pipe.timesteps == [750, 500, 250, 0] and found.phases == (1, 1, 0, 0)
    assert found.steps == [found.call.bops(1)] * 2 + [found.call.bops(0)] * 2
    assert found.bops == 2 * (found.call.bops(0) + found.call.bops(1)) < 4 * found.call.bops(0)


def test_guidance_counts_both_rows(tmp_path):
    write_latent(CLASSES, tmp_path)
    pipe = qdiff.load_pipeline(tmp_path, steps=4, device="cpu", classes=[2, 5])
    alone, guided = pipe.bops(), pipe.with_sampling(scale=3.0).bops()
    assert alone.call == guided.call and guided.bops == 2 * alone.bops and guided.macs == 2 * alone.macs
    calls = []
    hook = pipe.network.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    pipe.sample(1, scale=3.0, sampler="plms")
    hook.remove()
    assert pipe.with_sampling("plms", scale=3.0).bops().macs == sum(calls) * alone.call.macs == 10 * alone.call.macs


def test_an_unconditional_model(tmp_path):
    write_latent(AVERAGED, tmp_path)
    pipe = qdiff.load_pipeline(tmp_path, steps=4, device="cpu")
    assert pipe.bops().bops == 4 * network_bops(pipe.network, pipe.example(1)).bops()


def test_a_text_model_needs_no_prompt_and_counts_images_of_its_size(tmp_path):
    write_text_model(tmp_path)
    pipe = qdiff.load_pipeline(tmp_path / "model.ckpt", steps=4, height=32, width=32, device="cpu")
    small, wide = pipe.bops(), pipe.with_sampling(width=64).bops()
    assert 2 * small.macs < wide.macs < 4 * small.macs, "convolutions take twice, attention four times"
    quantized = qdiff.quantize(pipe, weight_bits=4, method="linear", timesteps=2, samples=1)
    assert quantized.bops().macs == small.macs
    context = quantized.bops().call.leaves["model.middle_block.1.transformer_blocks.0.attn2.to_k"]
    layer = quantized.network.layers()["model.middle_block.1.transformer_blocks.0.attn2.to_k"]
    assert context.macs == 7 * layer.codes.numel(), "a context of 7 tokens"


def test_a_pipeline_keeps_its_values(pixel):
    before = [x.clone() for x in pixel.network.parameters()]
    pixel.bops()
    assert all(torch.equal(a, b) for a, b in zip(before, pixel.network.parameters()))
