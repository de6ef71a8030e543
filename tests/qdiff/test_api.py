"""The Python API of pipelines: what a notebook does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import qdiff
from diffusion.steps import Model
from qdiff.checkpoints.quantized_file import read_quantized
from qdiff.errors import UserError
from qdiff.files.images import read_images
from qdiff.phases import per_phase
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.quantize import share_parameters
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.command_line import script
from tests.ldm.tiny import AVERAGED, CLASSES, write_latent
from tests.ldm.tiny_text import write_text_model
from tests.tiny import tiny_network, write_tiny

SHORT = {"iterations": 4, "timesteps": 2, "samples": 2, "batch_size": 4, "memory_bytes": 2**28}


@pytest.fixture(scope="module")
def pixel(tmp_path_factory) -> Pipeline:
    return qdiff.load_pipeline(write_tiny(tmp_path_factory.mktemp("pixel")), steps=4, device="cpu")


@pytest.fixture(scope="module")
def quantized(pixel) -> Pipeline:
    return qdiff.quantize(pixel, weight_bits=4, act_bits=8, split=True, **SHORT)


def test_images_are_pil_images_and_a_tensor(pixel):
    images = pixel.sample(3, seed=1)
    assert [image.size for image in images] == [(8, 8)] * 3
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in images)
    assert images.tensor.shape == (3, 3, 8, 8) and images.tensor.dtype == torch.uint8
    assert images[2].getpixel((5, 6)) == tuple(images.tensor[2, :, 6, 5].tolist())


def test_images_are_those_of_the_script(pixel, tmp_path):
    words = f"--config {pixel.source} --timesteps 4 --max_images 3 --batch_size 3 --seed 1 -l {tmp_path / 'run'}"
    assert script("sample_diffusion_ddim.py", *words.split()).status == 0
    written = read_images([tmp_path / "run" / "img" / f"{i:06d}.png" for i in range(3)])
    assert torch.equal(torch.as_tensor(written).float(), pixel.sample(3, seed=1).tensor.float())


def test_a_sample_depends_on_its_seed_and_number(pixel):
    three = pixel.sample(3, seed=5).tensor
    assert torch.equal(three, pixel.sample(3, seed=5).tensor)
    assert not torch.equal(three, pixel.sample(3, seed=6).tensor)
    one_by_one = pixel.sample(3, seed=5, batch_size=1).tensor
    assert (three.int() - one_by_one.int()).abs().max() <= 1  # batches of another size round otherwise


def test_settings_of_sampling(pixel):
    assert pixel.nfe == 4 and pixel.with_sampling(steps=5).nfe == 5
    assert str(pixel.with_sampling("dpm", steps=6)).startswith("DPMSolver(steps=6")
    assert pixel.nfe == 4, "the pipeline itself does not change"
    with pytest.raises(TypeError, match="no setting 'step': did you mean "):
        pixel.sample(1, step=5)
    with pytest.raises(ValueError, match="unknown sampler 'plms': use ddim, ddpm, dpm"):
        pixel.sample(1, sampler="plms")
    with pytest.raises(ValueError, match="seed must be in 0"):
        pixel.sample(1, seed=-1)
    with pytest.raises(ValueError, match="count must be at least 1"):
        pixel.sample(0)


def test_quantizing_leaves_the_pipeline_in_full_precision(pixel):
    before = pixel.sample(2).tensor
    state = {key: x.clone() for key, x in pixel.network.state_dict().items()}
    other = qdiff.quantize(pixel, weight_bits=2, method="linear")
    assert isinstance(other.network, QuantModel) and not pixel.is_quantized and other.is_quantized
    assert torch.equal(before, pixel.sample(2).tensor)
    assert not torch.equal(before, other.sample(2).tensor)
    assert all(torch.equal(x, pixel.network.state_dict()[key]) for key, x in state.items())
    with pytest.raises(ValueError, match="quantized already"):
        qdiff.quantize(other)


def test_sharing_parameters():
    network = tiny_network()
    copy = share_parameters(network)
    assert all(a is b for a, b in zip(network.parameters(), copy.parameters(), strict=True))
    assert all(a is not b for a, b in zip(network.modules(), copy.modules(), strict=True))


def test_saving_and_loading(pixel, quantized, tmp_path):
    quantized.save(tmp_path / "w4a8.safetensors")
    file = read_quantized(tmp_path / "w4a8.safetensors")
    assert (file.policy.weight.bits, file.policy.act.bits, file.policy.split) == (4, 8, True)
    assert file.provenance["settings"]["rounding"] == {"iterations": 4, "lr": 1e-3}
    assert file.provenance["settings"]["steps"] == {"iterations": 1, "lr": 4e-4}
    again = qdiff.load_pipeline(pixel.source, quantized=tmp_path / "w4a8.safetensors", steps=4, device="cpu")
    assert torch.equal(again.sample(2).tensor, quantized.sample(2).tensor)
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "w4a8.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"nothing to save: call qdiff\.quantize"):
        pixel.save(tmp_path / "fp.safetensors")


def test_a_folder_keeps_what_a_resumed_call_needs(pixel, quantized, tmp_path):
    kept = qdiff.quantize(pixel, weight_bits=4, act_bits=8, split=True, folder=tmp_path, **SHORT)
    assert {path.name for path in tmp_path.iterdir()} == {
        "calibration_data.safetensors",
        "journal",
        "quantized.safetensors",
    }
    assert torch.equal(kept.sample(2).tensor, quantized.sample(2).tensor)
    data = load_file(tmp_path / "calibration_data.safetensors")
    given = qdiff.quantize(
        pixel, weight_bits=4, act_bits=8, split=True, data=tmp_path / "calibration_data.safetensors", **SHORT
    )
    assert len(data["input_0"]) == 4
    assert torch.equal(given.sample(2).tensor, kept.sample(2).tensor)


def phased(first: int) -> QuantPolicy:
    return QuantPolicy(
        QuantSpec(4, per_channel=True, range_search="minmax"), QuantSpec(8), split=True, act_phases=((first, 3),)
    )


def by_timestep(pipeline: Pipeline, policy: QuantPolicy) -> tuple[Model, list[int]]:
    """A model of two uniform networks, one of which is chosen by the timestep; and the phases of its calls."""
    found: list[int] = []
    uniform = []
    for phase in policy.phases:
        mine = {key.replace(f".phases.{phase}.", "."): x for key, x in pipeline.network.quantized_state().items()}
        state = {key: x for key, x in mine.items() if ".phases." not in key}
        spec = replace(policy.act, bits=policy.act_for("any", phase=phase).bits)
        flat = replace(policy, act=spec, act_phases=())
        adapter = pipeline.network.adapter
        uniform.append(QuantModel.from_state(tiny_network(), flat, adapter, state).eval())

    def model(x, t):
        (value,) = {*t.tolist()}
        found.append(int(value >= policy.act_phases[0][0]))
        return uniform[found[-1]](x, t)

    return model, found


@pytest.fixture(scope="module")
def in_two_phases(pixel) -> Pipeline:
    return qdiff.quantize(pixel, policy=phased(500), **{**SHORT, "iterations": 8})


@pytest.mark.parametrize(
    ("sampler", "changes", "phases"),
    [
        ("ddim", {"steps": 5}, [1, 1, 0, 0, 0]),  # timesteps 800, 600, 400, 200, 0
        ("ddim", {"steps": 6, "skip_type": "quad"}, [1, 1, 0, 0, 0, 0]),  # 800, 512, 288, ...
        ("ddpm", {"steps": 2}, [1, 0]),  # 500, 0
        ("dpm", {"steps": 4, "method": "multistep"}, [1, 1, 0, 0]),  # 999, 749.25, 499.5, 249.75
        ("dpm", {"steps": 6}, None),
    ],
)
def test_activations_change_their_bits_at_the_right_step(in_two_phases, sampler, changes, phases):
    pipe = in_two_phases.with_sampling(sampler, **changes)
    model, found = by_timestep(pipe, pipe.network.policy)
    x, noise = pipe.noise([0, 1])
    expected = list(pipe.sampling.sampler.steps(model, x, pipe.abar, noise))
    steps = list(pipe.steps([0, 1]))
    assert phases in (None, found) and set(found) == {0, 1}
    for a, b in zip(steps, expected, strict=True):
        assert torch.equal(a.x_prev, b.x_prev)


def test_a_pipeline_with_phases_is_saved_and_loaded(pixel, in_two_phases, tmp_path):
    in_two_phases.save(tmp_path / "q")
    file = read_quantized(tmp_path / "q")
    assert file.policy == phased(500) and file.provenance["policy"] == json.loads(json.dumps(file.policy.to_dict()))
    for sampler in ("ddim", "dpm"):
        again = qdiff.load_pipeline(pixel.source, quantized=tmp_path / "q", sampler=sampler, steps=4, device="cpu")
        assert torch.equal(again.sample(2).tensor, in_two_phases.sample(2, sampler=sampler, steps=4).tensor)
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "q").read_bytes()


def test_a_phase_that_no_calibration_timestep_is_in(pixel, tmp_path):
    with pytest.raises(UserError, match=r"no sample at the timesteps from 900 on, .* raise --cali_st"):
        qdiff.quantize(pixel, policy=phased(900), folder=tmp_path, **SHORT)
    assert not (tmp_path / "quantized.safetensors").exists()


def test_a_resumed_call_with_phases_ends_in_the_same_file(pixel, in_two_phases, tmp_path):
    arguments = {"policy": phased(500), "folder": tmp_path / "kept", **SHORT, "iterations": 8}
    qdiff.quantize(pixel, **arguments)
    kept = (tmp_path / "kept" / "quantized.safetensors").read_bytes()
    (tmp_path / "kept" / "quantized.safetensors").unlink()
    for unit in ("weights-011", "ranges", "steps-007", "steps-016"):
        (tmp_path / "kept" / "journal" / f"{unit}.safetensors").unlink()
    resumed = qdiff.quantize(pixel, **arguments)
    assert (tmp_path / "kept" / "quantized.safetensors").read_bytes() == kept
    assert torch.equal(resumed.sample(2).tensor, in_two_phases.sample(2).tensor)
    with pytest.raises(UserError, match="results for other policy"):
        (tmp_path / "kept" / "quantized.safetensors").unlink()
        qdiff.quantize(pixel, **{**arguments, "policy": phased(400)})


def test_arguments_of_quantize(pixel):
    with pytest.raises(ValueError, match="method must be one of qdiff, linear"):
        qdiff.quantize(pixel, method="round")
    with pytest.raises(ValueError, match="bits must be"):
        qdiff.quantize(pixel, weight_bits=1)


@pytest.mark.parametrize(
    ("name", "sampling"), [(CLASSES, {"classes": [2, 5], "scale": 3.0}), (AVERAGED, {"sampler": "plms"})]
)
def test_latent_models(name, sampling, tmp_path):
    write_latent(name, tmp_path)
    pipe = qdiff.load_pipeline(tmp_path, steps=4, device="cpu", **sampling)
    images = pipe.sample(2)
    assert len(images) == 2 and images.tensor.shape[2:] == pipe.image_shape[1:]
    linear = qdiff.quantize(pipe, weight_bits=4, act_bits=8, method="linear", timesteps=2, samples=1)
    assert not torch.equal(linear.sample(2).tensor, images.tensor)
    assert torch.equal(pipe.sample(2).tensor, images.tensor)
    linear.save(tmp_path / "q.safetensors")
    again = qdiff.load_pipeline(tmp_path, quantized=tmp_path / "q.safetensors", steps=4, device="cpu", **sampling)
    assert torch.equal(again.sample(2).tensor, linear.sample(2).tensor)


def test_a_latent_model_in_phases(tmp_path):
    """With guidance, where a batch holds each image twice, at one timestep."""
    write_latent(CLASSES, tmp_path)
    pipe = qdiff.load_pipeline(tmp_path, steps=4, device="cpu", classes=[2, 5], scale=3.0)
    spec = QuantSpec(8, range_search="minmax")
    policy = QuantPolicy(act=spec, act_phases=((len(pipe.abar) // 2, 2),))
    made = qdiff.quantize(pipe, policy=policy, method="linear", timesteps=2, samples=1)
    made.save(tmp_path / "q")
    for sampler in ("ddim", "plms", "dpm"):
        again = qdiff.load_pipeline(tmp_path, quantized=tmp_path / "q", steps=4, device="cpu", sampler=sampler)
        again = again.with_sampling(classes=[2, 5], scale=3.0)
        active = [{part.active for part in per_phase(again.network)} for _ in again.steps([0, 1])]
        assert active == sorted(active, key=min, reverse=True) and [{0}, {1}] == [active[-1], active[0]]
        assert torch.equal(again.sample(2).tensor, made.sample(2, sampler=sampler).tensor)


def test_text_to_image(tmp_path):
    write_text_model(tmp_path)
    pipe = qdiff.load_pipeline(tmp_path / "model.ckpt", steps=4, height=32, width=32, device="cpu")
    a, b = pipe.sample(2, prompts=["a", "b"], scale=2.0).tensor
    assert not torch.equal(a, b)
    assert torch.equal(pipe.sample(1, prompts="a", scale=2.0).tensor[0], a)
    with pytest.raises(qdiff.UserError, match="no prompt"):
        pipe.sample(1)


def test_a_path_without_a_model(tmp_path: Path):
    with pytest.raises(qdiff.UserError, match="config"):
        qdiff.load_pipeline(tmp_path)
    with pytest.raises(qdiff.UserError, match="nowhere"):
        qdiff.load_pipeline(tmp_path / "nowhere.yml")
