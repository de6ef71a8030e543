"""The Python API of pipelines: what a notebook does."""

import copy
import io
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

import qdiff
from diffusion.steps import Model
from qdiff.calibration.data import CalibrationSet
from qdiff.checkpoints.quantized_file import read_quantized
from qdiff.errors import UserError
from qdiff.files.digest import tensors_digest
from qdiff.files.images import read_images
from qdiff.integers import weight_integers
from qdiff.phases import per_phase
from qdiff.pipelines.pipeline import Pipeline
from qdiff.pipelines.sharing import share_parameters
from qdiff.policy import QuantPolicy, QuantSpec
from qdiff.quant_model import QuantModel
from tests.command_line import script
from tests.ldm.tiny import AVERAGED, CLASSES, write_latent
from tests.ldm.tiny_text import write_text_model
from tests.qdiff.squant import assert_squant
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


def test_a_notebook_shows_images_as_one_grid(pixel):
    images = pixel.sample(4)
    grid = Image.open(io.BytesIO(images._repr_png_()))
    cells = [grid.crop((2 + 10 * x, 2 + 10 * y, 10 + 10 * x, 10 + 10 * y)) for y in range(2) for x in range(2)]
    assert grid.size == (22, 22) and [cell.tobytes() for cell in cells] == [image.tobytes() for image in images]


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


def refusal(kind: type[Exception], call: Callable[[], object]) -> str:
    """Return the one line with which a call is refused."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "count", "settings", "said"),
    [
        (TypeError, 1, {"step": 5}, "no setting 'step': did you mean steps?"),
        (TypeError, 1, {"scale": 3.0}, "no setting 'scale': use batch_size, eta, seed, skip_type, steps"),
        (TypeError, 1, {"sampler": "dpm", "eta": 1.0}, "no setting 'eta': use batch_size, method, order, "),
        (TypeError, 1, {"sampler": 3}, "sampler must be a name or a sampler with its settings, not 3"),
        (TypeError, 2.0, {}, "count must be a whole number, not 2.0"),
        (TypeError, 1, {"seed": 1.5}, "seed must be a whole number"),
        (TypeError, 1, {"steps": "20"}, "steps must be a whole number, not '20'"),
        (ValueError, 0, {}, "count must be at least 1, not 0"),
        (ValueError, 1, {"steps": 0}, "steps must be at least 1, not 0"),
        (ValueError, 1, {"eta": 2}, "eta must be in 0..1, not 2"),
        (ValueError, 1, {"skip_type": "quadratic"}, "skip_type must be one of uniform, quad, not 'quadratic'"),
        (ValueError, 1, {"sampler": "dpm", "order": 4}, "order must be in 1..3, not 4"),
        (ValueError, 1, {"sampler": "plms"}, "unknown sampler 'plms': use ddim, ddpm, dpm"),
        (ValueError, 1, {"seed": -1}, "seed must be in 0.."),
        (qdiff.UserError, 1, {"steps": 1001}, "steps=1001 must be in 1..1000, the timesteps of the schedule"),
    ],
)
def test_samples_that_are_refused(kind, count, settings, said, pixel):
    assert said in refusal(kind, lambda: pixel.sample(count, **settings))


def test_a_pipeline_as_text(pixel, quantized):
    sampler = "DDIM(steps=4, skip_type=uniform, eta=0.0), 4 network calls"
    assert repr(pixel) == f"<PixelPipeline {pixel.source}: {sampler}, not quantized, on cpu>"
    assert repr(quantized) == f"<PixelPipeline {pixel.source}: {sampler}, W4A8, split, on cpu>"


@pytest.mark.parametrize("which", ["pixel", "quantized"])
def test_copies_and_threads_sample_the_same_images(which, request):
    pipe = request.getfixturevalue(which)
    wanted = [pipe.sample(1, seed=seed).tensor for seed in range(4)]
    assert torch.equal(copy.deepcopy(pipe).sample(1, seed=0).tensor, wanted[0])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: pipe.sample(1, seed=seed).tensor, range(4)))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))


def test_a_network_without_weights_is_not_sampled(pixel):
    empty = pixel.with_network(copy.deepcopy(pixel.network).to("meta"))
    said = "the network has no weights, they are on the meta device: call load() first"
    assert refusal(ValueError, lambda: empty.sample(1)) == said
    assert refusal(ValueError, lambda: qdiff.quantize(empty, method="linear")) == said


def test_quantizing_leaves_the_pipeline_in_full_precision(pixel):
    before = pixel.sample(2).tensor
    state = {key: x.clone() for key, x in pixel.network.state_dict().items()}
    other = qdiff.quantize(pixel, weight_bits=2, method="linear")
    assert isinstance(other.network, QuantModel) and not pixel.is_quantized and other.is_quantized
    assert torch.equal(before, pixel.sample(2).tensor)
    assert not torch.equal(before, other.sample(2).tensor)
    assert all(torch.equal(x, pixel.network.state_dict()[key]) for key, x in state.items())
    said = "the pipeline is quantized already: give one in full precision"
    assert refusal(ValueError, lambda: qdiff.quantize(other)) == said


def test_sharing_parameters():
    network = tiny_network()
    copy = share_parameters(network)
    assert all(a is b for a, b in zip(network.parameters(), copy.parameters(), strict=True))
    assert all(a is not b for a, b in zip(network.modules(), copy.modules(), strict=True))


def test_saving_and_loading(pixel, quantized, tmp_path):
    quantized.save(tmp_path / "w4a8.safetensors")
    file = read_quantized(tmp_path / "w4a8.safetensors")
    assert (file.policy.weight.bits, file.policy.act.bits, file.policy.split) == (4, 8, True)
    assert file.provenance["settings"]["rounding"] == {"iterations": 4, "lr": 1e-2}
    assert file.provenance["settings"]["steps"] == {"iterations": 1, "lr": 4e-4}
    again = qdiff.load_pipeline(pixel.source, quantized=tmp_path / "w4a8.safetensors", steps=4, device="cpu")
    assert torch.equal(again.sample(2).tensor, quantized.sample(2).tensor)
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "w4a8.safetensors").read_bytes()


def test_saving_elsewhere(pixel, quantized, tmp_path):
    quantized.save(tmp_path / "new" / "folder" / "w4a8.safetensors")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["w4a8.safetensors"]
    (tmp_path / "file").touch()
    assert "nothing to save: call qdiff.quantize" in refusal(ValueError, lambda: pixel.save(tmp_path / "fp"))
    assert "path must be a str or a Path, not int" in refusal(TypeError, lambda: quantized.save(3))
    assert f"cannot write '{tmp_path}/file/x'" in refusal(qdiff.UserError, lambda: quantized.save(tmp_path / "file/x"))
    assert f"cannot write '{tmp_path}'" in refusal(qdiff.UserError, lambda: quantized.save(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"], "nothing is half-written"


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


CLOSED = {"weight_bits": 4, "method": "gptq", "spectrum_images": 1, "timesteps": 4, "samples": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def closed(pixel, tmp_path_factory) -> tuple[Path, Pipeline]:
    """A folder, and what was calibrated there in closed form, in two groups of steps."""
    folder = tmp_path_factory.mktemp("closed")
    return folder, qdiff.quantize(pixel, act_bits=8, split=True, act_groups=2, folder=folder, **CLOSED)


def test_groups_of_steps_are_in_the_policy(closed):
    _, pipe = closed
    firsts = [first for first, _ in pipe.network.policy.act_phases]
    assert len(firsts) == 1 and [t >= firsts[0] for t in pipe.timesteps] == [True, True, False, False]


def test_a_resumed_call_in_closed_form_ends_in_the_same_file(pixel, closed, tmp_path):
    folder, pipe = closed
    kept, again = (folder / "quantized.safetensors").read_bytes(), tmp_path / "again"
    shutil.copytree(folder, again)
    for unit in ("quantized", "journal/solve-011", "journal/ranges", "sensitivity/sensitivity-0000"):
        (again / f"{unit}.safetensors").unlink()
    arguments = {"act_bits": 8, "split": True, "act_groups": 2, "folder": again, **CLOSED}
    original = tensors_digest(pixel.network.state_dict())
    resumed = qdiff.quantize(pixel, **arguments)
    assert (again / "quantized.safetensors").read_bytes() == kept
    assert torch.equal(resumed.sample(2).tensor, pipe.sample(2).tensor)
    assert torch.equal(qdiff.quantize(pixel, **arguments).sample(2).tensor, pipe.sample(2).tensor), "it is loaded"
    assert tensors_digest(pixel.network.state_dict()) == original, (
        "the biases of the file are not those of the pipeline"
    )
    said = refusal(qdiff.UserError, lambda: qdiff.quantize(pixel, **{**arguments, "spectrum_images": 2}))
    assert "was calibrated with other spectrum_images: give another folder" in said


def test_a_pipeline_in_closed_form_is_saved_and_loaded(pixel, closed, tmp_path):
    folder, pipe = closed
    pipe.save(tmp_path / "q")
    assert (tmp_path / "q").read_bytes() == (folder / "quantized.safetensors").read_bytes()
    again = qdiff.load_pipeline(pixel.source, quantized=tmp_path / "q", steps=4, device="cpu")
    assert torch.equal(again.sample(2).tensor, pipe.sample(2).tensor)


def test_weights_without_data_are_saved_and_loaded(pixel, tmp_path):
    """Those of `squant`, the same with and without activations, and none of another method's folder."""
    squant_w4 = {"weight_bits": 4, "split": True, "method": "squant"}
    pipe = qdiff.quantize(pixel, folder=tmp_path / "w4", **squant_w4)
    assert [path.name for path in (tmp_path / "w4").iterdir()] == ["quantized.safetensors"], "no data, no journal"
    with_act = qdiff.quantize(pixel, act_bits=8, timesteps=2, samples=2, **squant_w4)
    for found in (pipe, with_act):
        assert_squant(found.network, tiny_network())
    pipe.save(tmp_path / "q")
    again = qdiff.load_pipeline(pixel.source, quantized=tmp_path / "q", steps=4, device="cpu")
    assert torch.equal(again.sample(2).tensor, pipe.sample(2).tensor)
    assert read_quantized(tmp_path / "q").provenance["settings"]["squant"] is True
    linear_w4 = squant_w4 | {"method": "linear"}
    said = refusal(UserError, lambda: qdiff.quantize(pixel, folder=tmp_path / "w4", **linear_w4))
    assert "was calibrated with other settings: give another folder" in said
    nearest = qdiff.quantize(pixel, folder=tmp_path / "nearest", **linear_w4)
    assert not torch.equal(nearest.sample(2).tensor, pipe.sample(2).tensor)
    said = refusal(UserError, lambda: qdiff.quantize(pixel, folder=tmp_path / "nearest", **squant_w4))
    assert "was calibrated with other settings: give another folder" in said


@pytest.mark.parametrize("method", ["linear", "squant", "gptq"])
def test_symmetric_weights_of_8_bits_need_no_shift_in_int8(pixel, method):
    settings = {"method": method, "act_bits": 8, "timesteps": 2, "samples": 2}

    def shifts(**others) -> int:
        layers = qdiff.quantize(pixel, **settings, **others).network.layers().values()
        return sum(int(part.shift.count_nonzero()) for layer in layers for part in weight_integers(layer))

    assert shifts() > 0 and shifts(symmetric_weights=True) == 0


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        (ValueError, {"method": "round"}, "method must be one of qdiff, gptq, squant, linear, not 'round'"),
        (ValueError, {"weight_bits": 1}, "weight_bits must be in 2..8, not 1"),
        (ValueError, {"weight_bits": 16}, "weight_bits must be in 2..8, not 16"),
        (ValueError, {"act_bits": 1}, "act_bits must be in 2..16, not 1"),
        (ValueError, {"symmetric": True}, "symmetric needs act_bits: give the bits of activations"),
        (TypeError, {"act_bits": "8"}, "act_bits must be a whole number, not '8'"),
        (ValueError, {"act_bits": 8, "softmax_bits": 17}, "softmax_bits must be in 2..16, not 17"),
        (ValueError, {"iterations": 0}, "iterations must be at least 1, not 0"),
        (ValueError, {"iterations": -1}, "iterations must be at least 1, not -1"),
        (ValueError, {"act_bits": 8, "act_iterations": 0}, "act_iterations must be at least 1, not 0"),
        (ValueError, {"lr": 0}, "lr must be in 1e-08..1.0, not 0"),
        (ValueError, {"act_lr": -1}, "act_lr must be in 1e-08..1.0, not -1"),
        (ValueError, {"timesteps": 0}, "timesteps must be at least 1, not 0"),
        (ValueError, {"samples": 0}, "samples must be at least 1, not 0"),
        (TypeError, {"samples": 1.5}, "samples must be a whole number, not 1.5"),
        (ValueError, {"spectrum_images": -1}, "spectrum_images must be at least 0, not -1"),
        (ValueError, {"act_bits": 8, "act_groups": 0}, "act_groups must be in 1..1, not 0"),
        (ValueError, {"act_bits": 8, "act_groups": 5, "timesteps": 4}, "act_groups must be in 1..4, not 5"),
        (ValueError, {"act_groups": 2, "timesteps": 4}, "groups of steps are for activations"),
        (ValueError, {"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (ValueError, {"memory_bytes": -1}, "memory_bytes must be at least 0, not -1"),
        (ValueError, {"devices": 0}, "devices must be at least 1, not 0"),
        (UserError, {"devices": 3}, "--cali_devices 3 does not divide --cali_batch_size 32"),
        (UserError, {"devices": 2, "method": "squant"}, "--cali_devices 2: only --quant_mode qdiff learns"),
        (UserError, {"devices": 2, "method": "linear"}, "--cali_devices 2: only --quant_mode qdiff learns"),
        (TypeError, {"data": CalibrationSet((torch.ones(1, 3, 8, 8),))}, "data must be a str or a Path, not Calibr"),
        (TypeError, {"folder": 3}, "folder must be a str or a Path, not int"),
        (TypeError, {"policy": "w4a8"}, "policy must be a QuantPolicy, not 'w4a8'"),
        (ValueError, {"policy": QuantPolicy(), "weight_bits": 4}, "policy replaces the bits, split, "),
        (ValueError, {"policy": QuantPolicy(weight_rules=(("x", 4),))}, "the pattern 'x' matches no layer"),
    ],
    ids=str,
)
def test_arguments_that_quantize_refuses(kind, arguments, said, pixel):
    assert said in refusal(kind, lambda: qdiff.quantize(pixel, **{"timesteps": 1, "samples": 1, **arguments}))


def test_only_pipelines_are_quantized(pixel):
    said = "pipeline must be one that qdiff.load_pipeline returned, not Model"
    assert refusal(TypeError, lambda: qdiff.quantize(pixel.network)) == said


def test_the_folder_of_another_calibration(pixel, quantized, tmp_path):
    """A finished file is taken only by the call that made it; another one may not pass it off as its own."""
    linear = {"method": "linear", "weight_bits": 4}
    first = qdiff.quantize(pixel, folder=tmp_path / "new" / "folder", **linear)
    file = tmp_path / "new" / "folder" / "quantized.safetensors"
    again = qdiff.quantize(pixel, folder=file.parent, **linear)
    assert torch.equal(first.sample(1).tensor, again.sample(1).tensor)
    other = copy.deepcopy(pixel.network)
    other.conv_in.bias.data[3] += 1e-6
    for pipe, what in ((pixel.with_sampling(seed=1), "settings"), (pixel.with_network(other), "weights")):
        said = refusal(qdiff.UserError, lambda p=pipe: qdiff.quantize(p, folder=file.parent, **linear))
        assert (
            said == f"'{file}' was calibrated with other {what}: give another folder, or delete it to calibrate again"
        )
    (tmp_path / "file").touch()
    said = refusal(qdiff.UserError, lambda: qdiff.quantize(pixel, folder=tmp_path / "file", **linear))
    assert (
        said == f"cannot use '{tmp_path / 'file'}' (File exists): move it away, or give another folder with folder=..."
    )


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


def test_arguments_that_load_pipeline_refuses(pixel, tmp_path):
    load, source = qdiff.load_pipeline, pixel.source
    for name in ("weights", "config", "quantized"):
        said = refusal(TypeError, lambda n=name: load(tmp_path if n == "config" else source, **{n: 3}))
        assert said == f"{name} must be a str or a Path, not int"
    assert refusal(TypeError, lambda: load(7)) == "path must be a str or a Path, not int"
    assert "no setting 'step': did you mean steps?" in refusal(TypeError, lambda: load(source, step=3))
    assert "device must be auto, cpu, cuda" in refusal(ValueError, lambda: load(source, device="gpu"))
    assert "precision 'bf16' needs a latent model" in refusal(ValueError, lambda: load(source, precision="bf16"))
    assert "path is a YAML file" in refusal(ValueError, lambda: load(source, config=source))
    assert "cannot read 'w.pth'" in refusal(qdiff.UserError, lambda: load(source, weights="w.pth"))
    assert "cannot read 'q'" in refusal(qdiff.UserError, lambda: load(source, quantized="q"))


def test_a_path_without_a_model(tmp_path: Path):
    said = f"no '{tmp_path / 'config.yaml'}': put the model's config.yaml there, or give it with --config"
    assert refusal(qdiff.UserError, lambda: qdiff.load_pipeline(tmp_path)) == said
    nowhere = tmp_path / "nowhere"
    assert refusal(qdiff.UserError, lambda: qdiff.load_pipeline(nowhere)) == f"no '{nowhere}' and {said}"
    assert "nowhere.yml" in refusal(qdiff.UserError, lambda: qdiff.load_pipeline(tmp_path / "nowhere.yml"))


def test_a_file_of_another_network(quantized, tmp_path):
    quantized.save(tmp_path / "w4a8.safetensors")
    write_latent(CLASSES, tmp_path / "latent")
    load = partial(qdiff.load_pipeline, tmp_path / "latent", quantized=tmp_path / "w4a8.safetensors")
    assert "w4a8.safetensors' does not fit the network: it lacks" in refusal(qdiff.UserError, load)


def test_a_checkpoint_with_a_configuration_in_pixel_space(pixel, tmp_path):
    """The path, not the file that the configuration names, holds the weights."""
    state = {key: torch.zeros_like(x) for key, x in pixel.network.state_dict().items()}
    torch.save(state, tmp_path / "zeros.pth")
    found = qdiff.load_pipeline(tmp_path / "zeros.pth", config=pixel.source, steps=4, device="cpu")
    assert not any(x.any() for x in found.network.parameters())


def test_settings_of_a_configuration(pixel, tmp_path):
    config = OmegaConf.load(pixel.source)
    config.model.weights = str((pixel.source.parent / config.model.weights).resolve())
    config.sampling |= {"steps": 5, "skip_type": "quad", "eta": 0.5}
    OmegaConf.save(config, tmp_path / "own.yml")
    found = qdiff.load_pipeline(tmp_path / "own.yml", device="cpu")
    assert str(found.sampling.sampler) == "DDIM(steps=5, skip_type=quad, eta=0.5)"
    found = qdiff.load_pipeline(tmp_path / "own.yml", device="cpu", sampler="dpm", order=2)
    assert str(found.sampling.sampler) == "DPMSolver(steps=5, skip_type=quad, order=2, method=singlestep)"
    config.sampling.eta = 2
    OmegaConf.save(config, tmp_path / "wrong.yml")
    said = refusal(qdiff.UserError, lambda: qdiff.load_pipeline(tmp_path / "wrong.yml"))
    assert said == f"'{tmp_path / 'wrong.yml'}', section 'sampling': eta must be in 0..1, not 2: correct it"
