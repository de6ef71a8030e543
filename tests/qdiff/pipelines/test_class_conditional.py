"""`scripts/sample_diffusion_ldm.py` on small latent models; what the scripts share is tested in test_sample_ddim.py."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.dpm_solver import dpm_solver
from diffusion.samplers import generalized
from diffusion.steps import Step
from ldm.guidance import guided
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.samplers import ddim, latent_timesteps
from qdiff.adapters.ldm import models
from qdiff.checkpoints.load import load_quantized
from qdiff.checkpoints.quantized_file import read_quantized
from qdiff.files.images import to_uint8
from qdiff.sampling.noise import batch_noise
from tests.command_line import script
from tests.ldm.tiny import AVERAGED, CLASSES, tiny_latent, write_latent
from tests.qdiff.squant import assert_squant

NAME = "sample_diffusion_ldm.py"
RUN = "--seed 5 -c 4 -e 0 --batch_size 2 --device cpu"
TWO = f"{RUN} --classes 3,7 --n_samples_per_class 2 --scale 2"
QUANTIZE = f"{TWO} --ptq --weight_bit 4 --quant_act --cali_st 2 --cali_n 3 --cali_batch_size 4"
LEARN = f"{QUANTIZE} --cali_iters 2 --cali_lr_w 1e-2 --cali_iters_a 2"
LINEAR = f"{QUANTIZE} --quant_mode linear"
NULL = "model.params.cond_stage_config.params.null_class"


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    write_latent(CLASSES, folder)
    return folder


@pytest.fixture(scope="module")
def averaged(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("averaged")
    write_latent(AVERAGED, folder)
    return folder


def run(model: Path, folder: Path, line: str) -> Path:
    """Run the script to its end; the run's folder."""
    ended = script(NAME, "-r", model, "-l", folder, *shlex.split(line))
    assert (ended.status, ended.err) == (0, ""), ended
    return folder


def refusal(model: Path, folder: Path, line: str) -> str:
    """The one line with which the script refuses; no image is made."""
    ended = script(NAME, "-r", model, "-l", folder, *shlex.split(line))
    assert ended.status == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended
    assert not list(folder.glob("img/*"))
    return ended.err


def pixels(folder: Path) -> np.ndarray:
    """The images of a run, in order, int16 (N, H, W, 3)."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "img").iterdir())]).astype(np.int16)


def eps(model: LatentDiffusion, labels: list[int | None], scale: float = 1.0):
    """The network for images of these classes, with guidance by the class 10, "no class"."""
    if None in labels:
        return guided(model.apply_model)
    classes = torch.tensor(labels), torch.full((len(labels),), 10)
    c, uc = (model.get_learned_conditioning({"class_label": rows}) for rows in classes)
    return guided(model.apply_model, c, uc, scale)


def walk(network, x_T: Tensor, noise, abar: Tensor) -> Iterable[Step]:
    return ddim(network, x_T, latent_timesteps(1000, 4), abar, eta=0.0, noise=noise)


@torch.no_grad()
def expected(
    model: LatentDiffusion, labels: list[int | None], sample=walk, *, scale: float = 2.0, seed: int = 5, batch: int = 1
) -> np.ndarray:
    """The images of a model, made one by one or in batches."""
    shape, found = (model.channels, model.image_size, model.image_size), []
    for start in range(0, len(labels), batch):
        some = labels[start : start + batch]
        noise = batch_noise(seed, range(start, start + len(some)), shape)
        *_, last = sample(eps(model, some, scale), *noise, model.alphas_cumprod)
        found.append(to_uint8(model.decode_first_stage(last.x_prev)).permute(0, 2, 3, 1).numpy())
    return np.concatenate(found).astype(np.int16)


def same_images(found: np.ndarray, wanted: np.ndarray) -> None:
    """Up to two levels, because batches of another size are summed in another order, and few codes of the first stage.

    An entry of the codebook that is as near as another one may be taken in its place. Pictures of quantized networks
    are compared in batches of the same size, because one activation that takes another code changes the whole image.
    """
    assert found.shape == wanted.shape
    assert (np.abs(found - wanted) > 2).mean() < 0.01
    assert ((wanted > 0) & (wanted < 255)).mean() > 0.2, "black and white images compare nothing"


@pytest.fixture(scope="module")
def fp(classes, tmp_path_factory) -> Path:
    return run(classes, tmp_path_factory.mktemp("runs") / "fp", TWO)


def test_classes_take_turns_and_guidance_is_that_of_the_formula(fp):
    model = tiny_latent(CLASSES)
    same_images(pixels(fp), expected(model, [3, 7, 3, 7]))
    assert (np.abs(pixels(fp) - expected(model, [3, 3, 3, 3])) > 2).mean() > 0.1
    assert (np.abs(pixels(fp) - expected(model, [3, 7, 3, 7], scale=1.0)) > 2).mean() > 0.1
    width, height = Image.open(fp / "grid.png").size
    assert (width, height) == (2 * 34 + 2, 2 * 34 + 2), "a column for each class"


def test_the_array_holds_the_images(fp):
    names = {path.name for path in fp.iterdir()}
    assert names == {".lock", "config.yaml", "grid.png", "img", "log.txt", "4x32x32x3-samples.npz"}
    with np.load(fp / "4x32x32x3-samples.npz", allow_pickle=False) as archive:
        assert archive.files == ["arr_0"] and archive["arr_0"].dtype == np.uint8
        assert np.array_equal(archive["arr_0"], pixels(fp))


def test_without_classes_all_take_turns_but_no_class(classes, tmp_path):
    folder = run(classes, tmp_path, f"{RUN} -n 12")
    same_images(pixels(folder), expected(tiny_latent(CLASSES), [*range(10), 0, 1], scale=1.0))


def test_without_a_null_class_all_are_real(classes, fp, tmp_path):
    """As with published models of 1,000 classes, whose configuration does not say; guidance needs one."""
    bare = shutil.copytree(classes, tmp_path / "bare")
    config = OmegaConf.load(bare / "config.yaml")
    del config.model.params.cond_stage_config.params.null_class
    OmegaConf.save(config, bare / "config.yaml")
    folder = run(bare, tmp_path / "all", f"{RUN} -n 12")
    same_images(pixels(folder), expected(tiny_latent(CLASSES), [*range(11), 0], scale=1.0))
    data = "--ptq --weight_bit 8 --quant_mode linear --quant_act --cali_st 1 --cali_n 40 -n 1"
    rows = load_file(run(bare, tmp_path / "q", f"{RUN} {data}") / "calibration_data.safetensors")["input_2"]
    table = tiny_latent(CLASSES).cond_stage_model.embedding.weight
    assert {int((table == row).all(1).nonzero()) for row in rows[:, 0]} == {*range(11)}
    assert "needs a null class" in refusal(bare, tmp_path / "none", TWO)
    assert np.array_equal(pixels(run(bare, tmp_path / "said", f"{TWO} {NULL}=10")), pixels(fp))


def test_what_is_done_otherwise_than_asked_is_said(classes, tmp_path):
    """6 does not divide 1,000: every 166th timestep is visited."""
    line = f"-r {classes} {RUN} -c 6 --classes 3,7 -n 1 -l {tmp_path}"
    said = "-c 6: 7 network calls per image, not 6"
    assert said in script(NAME, *shlex.split(f"{line} --dry-run")).out.splitlines()
    assert script(NAME, *shlex.split(line)).out.splitlines()[0] == said
    assert said in (tmp_path / "log.txt").read_text()
    text = Image.open(tmp_path / "img" / "000000.png").text
    assert "7 network calls" in text["sampler"] and text["class"] == "3"


def test_an_image_says_how_it_was_made(fp):
    text = Image.open(fp / "img" / "000003.png").text
    assert text["class"] == "7" and text["seed"] == "5, image 3" and text["precision"] == "full"
    assert text["sampler"] == "DDIM(steps=4, eta=0.0), 4 network calls, scale 2.0" and text["bits"] == "not quantized"
    assert Image.open(fp / "grid.png").text["class"] == "3, 7, 3, 7"
    log = (fp / "log.txt").read_text()
    assert "network calls" not in log


def test_averaged_weights_of_an_unconditional_model(averaged, tmp_path):
    model = write_latent(AVERAGED, tmp_path / "again")
    folder = run(averaged / "model.ckpt", tmp_path / "run", f"{RUN} -n 2")
    same_images(pixels(folder), expected(model, [None, None]))


STEPS = "model.params.timesteps=12"
SAMPLERS = {
    "-c 4 --dpm": lambda m, x, noise, abar: dpm_solver(m, x, abar, 4, order=2, method="multistep"),
    "-c 4 -e 0.5": lambda m, x, noise, abar: ddim(m, x, latent_timesteps(1000, 4), abar, eta=0.5, noise=noise),
    f"-v {STEPS}": lambda m, x, noise, abar: generalized(m, x, range(12), abar, eta=1.0, noise=noise),
}


@pytest.mark.parametrize("line", SAMPLERS)
def test_samplers(line, tmp_path):
    model = write_latent(AVERAGED, tmp_path / "model")
    if STEPS in line:  # another schedule, whose numbers the checkpoint holds
        config = OmegaConf.load(tmp_path / "model" / "config.yaml")
        config.model.params.timesteps = 12
        short = models.build(config)
        buffers = {key: x for key, x in short.named_buffers(recurse=False) if key != "scale_factor"}
        state = torch.load(tmp_path / "model" / "model.ckpt", weights_only=True)["state_dict"] | buffers
        torch.save(state, tmp_path / "model" / "model.ckpt")
        model.alphas_cumprod = short.alphas_cumprod
    folder = run(tmp_path / "model", tmp_path / "run", f"--seed 5 -n 2 --batch_size 2 --device cpu {line}")
    same_images(pixels(folder), expected(model, [None, None], SAMPLERS[line]))


def test_decoding_in_parts(averaged, tmp_path, monkeypatch):
    whole = run(averaged, tmp_path / "whole", f"{RUN} -n 3 --batch_size 3")
    sizes, decode = [], LatentDiffusion.decode_first_stage
    monkeypatch.setattr(LatentDiffusion, "decode_first_stage", lambda m, z: sizes.append(len(z)) or decode(m, z))
    monkeypatch.setattr(models, "DECODED", 2 * 32 * 32)
    parts = run(averaged, tmp_path / "parts", f"{RUN} -n 3 --batch_size 3")
    assert sizes == [2, 1]
    same_images(pixels(parts), pixels(whole))


LOAD = """
import sys
from pathlib import Path
from qdiff.cli.ldm_flags import ldm_parser
from qdiff.cli.parser import parse
from qdiff.cli.sample_ldm import pipeline_of
import torch.nn.modules.sparse, torch.testing
torch.nn.Embedding(2, 2, device="meta")  # which loads what torch needs for it
args = parse(ldm_parser(), ["-r", sys.argv[1], "--seed", "0", "--device", "cpu"])
Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
status = lambda key: int(Path("/proc/self/status").read_text().partition(key)[2].split()[0])
before = status("VmRSS:")
pipeline = pipeline_of(args)
assert pipeline.load()
print((status("VmHWM:") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux")
def test_loading_needs_little_more_memory_than_the_file(tmp_path):
    model = write_latent(AVERAGED, tmp_path)
    config = OmegaConf.load(tmp_path / "config.yaml")
    config.model.params.unet_config.params.model_channels = 128
    OmegaConf.save(config, tmp_path / "config.yaml")
    model = models.build(config)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.ckpt")
    size = (tmp_path / "model.ckpt").stat().st_size
    assert size > 50e6, "what else is loaded must not matter"
    done = subprocess.run([sys.executable, "-c", LOAD, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.3 * size


# Quantized


@pytest.fixture(scope="module")
def learned(classes, tmp_path_factory) -> Path:
    return run(classes, tmp_path_factory.mktemp("runs") / "learned", LEARN)


def quantized_model(file: Path, **flags) -> LatentDiffusion:
    model = tiny_latent(CLASSES)
    model.model.diffusion_model = load_quantized(model.model.diffusion_model, file, **flags)
    return model


def test_the_whole_job_with_guidance(learned, fp):
    assert (learned / "quantized.safetensors").exists() and not (learned / "collecting").exists()
    model = quantized_model(learned / "quantized.safetensors", weight_bit=4, act_bit=8)
    assert (np.abs(pixels(learned) - pixels(fp)) > 3).mean() > 0.1
    assert np.array_equal(pixels(learned), expected(model, [3, 7, 3, 7], batch=2))


def test_weights_rounded_without_data(classes, tmp_path):
    folder = run(classes, tmp_path, LINEAR.replace("linear", "squant"))
    model = quantized_model(folder / "quantized.safetensors", weight_bit=4, act_bit=8)
    assert_squant(model.model.diffusion_model, tiny_latent(CLASSES).model.diffusion_model)
    assert np.array_equal(pixels(folder), expected(model, [3, 7, 3, 7], batch=2))


def test_collected_data_are_what_guidance_gives_to_the_network(learned):
    data = load_file(learned / "calibration_data.safetensors")
    assert {key: tuple(x.shape) for key, x in data.items()} == {
        "input_0": (12, 3, 16, 16),
        "input_1": (12,),
        "input_2": (12, 1, 48),
    }
    assert data["input_1"].tolist() == [751, 751, 501] * 2 + [251, 251, 1] * 2
    table = tiny_latent(CLASSES).cond_stage_model.embedding.weight
    labels = [int((table == row).all(1).nonzero()) for row in data["input_2"][:, 0]]
    drawn = labels[3:6]
    assert labels == [10, 10, 10, *drawn] * 2 and 10 not in drawn, "all three without a class, then with their own"
    assert not set(drawn) <= {3, 7}, "classes are drawn from all, not from --classes"
    x = data["input_0"].view(2, 2, 3, 3, 16, 16)
    assert torch.equal(x[:, 0], x[:, 1]), "the same x with and without a class"
    noise, _ = batch_noise(5, [10**9, 10**9 + 1], (3, 16, 16))
    assert torch.equal(x[0, 0, :2], noise), "of images never sampled"


def test_the_batch_size_has_no_part_in_calibration(classes, learned, tmp_path):
    folder = run(classes, tmp_path, LINEAR.replace("--batch_size 2", "--batch_size 3"))
    found, wanted = (load_file(f / "calibration_data.safetensors") for f in (folder, learned))
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-4, atol=1e-4)


def test_more_images_later(classes, fp, tmp_path):
    folder = run(classes, tmp_path, TWO.replace("per_class 2", "per_class 1"))
    assert len(pixels(folder)) == 2 and (folder / "2x32x32x3-samples.npz").exists()
    run(classes / "model.safetensors", folder, TWO)
    same_images(pixels(folder), pixels(fp))
    assert [path.name for path in folder.glob("*.npz")] == ["4x32x32x3-samples.npz"]
    (folder / "img" / "000001.png").unlink()
    before = (folder / "4x32x32x3-samples.npz").stat().st_mtime_ns
    run(classes, folder, TWO)
    assert (folder / "4x32x32x3-samples.npz").stat().st_mtime_ns > before, "an image was made again"


def test_the_same_command_again_and_a_loaded_file(classes, learned, tmp_path):
    folder = shutil.copytree(learned, tmp_path / "copy")
    for i in (0, 1):  # a whole batch, so that it is made in one again
        (folder / "img" / f"00000{i}.png").unlink()
    run(classes, folder, LEARN)
    for i in range(4):
        name = f"00000{i}.png"
        assert (folder / "img" / name).read_bytes() == (learned / "img" / name).read_bytes()
    file = learned / "quantized.safetensors"
    line = f"{TWO} --ptq --weight_bit 4 --quant_act --resume --cali_ckpt {file}"
    again = run(classes, tmp_path / "resumed", line)
    assert np.array_equal(pixels(again), pixels(learned))
    assert not (again / "quantized.safetensors").exists()


def test_low_memory_changes_no_image_and_no_weight_of_the_unet_is_read(classes, learned, tmp_path):
    model = shutil.copytree(classes, tmp_path / "model")
    state = load_file(model / "model.safetensors")
    broken = {key: torch.full_like(x, torch.nan) if key.startswith("model.") else x for key, x in state.items()}
    save_file(broken, model / "model.safetensors")
    file = learned / "quantized.safetensors"
    line = f"{TWO} --ptq --weight_bit 4 --quant_act --resume --cali_ckpt {file} --low_memory"
    assert np.array_equal(pixels(run(model, tmp_path / "low", line)), pixels(learned))


def test_averages_are_not_read_either_with_a_calibrated_file(averaged, tmp_path):
    line = f"{RUN} -n 2 --ptq --weight_bit 8 --quant_mode linear"
    calibrated = run(averaged, tmp_path / "calibrated", line)
    line += f" --resume --cali_ckpt {calibrated / 'quantized.safetensors'}"
    line = line.replace(" --quant_mode linear", "")
    assert np.array_equal(pixels(run(averaged, tmp_path / "resumed", line)), pixels(calibrated))


def test_data_of_the_original_with_conditions(classes, learned, tmp_path):
    data = load_file(learned / "calibration_data.safetensors")
    x, t, c = (data[f"input_{i}"].unflatten(0, (2, 6)) for i in range(3))
    without, given = [0, 1, 2], [3, 4, 5]
    original = {
        "xs": [part[given] for part in x],
        "ts": [part[given] for part in t],
        "cs": [part[given] for part in c],
        "ucs": [part[without] for part in c],
    }
    torch.save(original, tmp_path / "data.pt")
    folder = run(classes, tmp_path / "run", f"{LINEAR} --cali_data_path {tmp_path / 'data.pt'}")
    ours = run(classes, tmp_path / "ours", f"{LINEAR} --cali_data_path {learned / 'calibration_data.safetensors'}")
    found, wanted = (read_quantized(f / "quantized.safetensors").state for f in (folder, ours))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted), "ranges do not depend on the order of samples"
    del original["ucs"]
    torch.save(original, tmp_path / "data.pt")
    text = refusal(classes, tmp_path / "c", f"{LINEAR} --cali_data_path {tmp_path / 'data.pt'}")
    assert "no lists 'xs', 'ts', 'ucs' and 'cs'" in text


def test_ranges_of_the_extremes_and_running_averages_of_the_softmax_alone(classes, learned, tmp_path):
    base = f"{LINEAR} --cali_data_path {learned / 'calibration_data.safetensors'}"
    lines = {"linear": "", "running": "--running_stat", "softmax": "--running_stat --rs_sm_only"}
    states = {
        name: read_quantized(run(classes, tmp_path / name, f"{base} {line}") / "quantized.safetensors").state
        for name, line in lines.items()
    }
    deltas = [key for key in states["linear"] if "act_quantizer" in key and key.endswith("delta")]
    for name in ("running", "softmax"):
        changed = [key for key in deltas if not torch.equal(states[name][key], states["linear"][key])]
        assert changed and (name == "running") == any("act_quantizer_w" not in key for key in changed)
    mse = read_quantized(learned / "quantized.safetensors").policy.act.range_search
    assert (mse, read_quantized(tmp_path / "linear" / "quantized.safetensors").policy.act.range_search) == (
        "mse",
        "minmax",
    )


def test_dry_run(classes, tmp_path):
    ended = script(NAME, "-r", classes, "-l", tmp_path / "run", *shlex.split(f"{LEARN} --dry-run"))
    assert (ended.status, ended.err) == (0, "")
    assert "blocks, 12 calibration samples" in ended.out and "sampling: 4 images, 4 steps" in ended.out
    assert not (tmp_path / "run").exists()


# What is refused

REFUSED = [
    (f"{RUN} model.params.timestep=20", "did you mean model.params.timesteps?"),
    (f"{RUN} nonsense=20", "has no key 'nonsense'"),
    (f"{RUN} model.params.timesteps=many", "has model.params.timesteps: 1000, a whole number"),
    (f"{RUN} model.params.timesteps=[", "no valid value"),
    (f"{RUN} model.params.unet_config.params.channel_mult=[1,3]", "does not fit the network"),
    (f"{RUN} model.params.unet_config.target=os.system", "target 'os.system' is not available"),
    (f"{RUN} surplus", "unexpected word 'surplus'"),
    (f"{RUN} model.params.linear_end=0.02", "has another noise schedule than"),
    (f"{RUN} model.params.timesteps=500", "has another noise schedule than"),
    (f"{RUN} model.params.channels=5", "describes no latent model"),
    (f"{RUN} model.params.image_size=17", "describes no latent model"),
    (f"{RUN} model.params.image_size=-1", "describes no latent model"),
    (f"{RUN} model.params.conditioning_key=adm", "describes no latent model"),
    (f"{RUN} model.params.cond_stage_config.params.n_classes=1 --dry-run", "null_class is 10, the classes are 0..0"),
    (f"{RUN} {NULL}=null --scale 2", f"--scale 2.0 needs a null class, .* {NULL}=NUMBER"),
    (f"{RUN} --cali_ckpt x --resume --ptq --classes 3,,7", "give numbers with commas"),
    ("--seed 1 -c 3 --dry-run", "-c 3: steps=3 leads to timestep 1000, but the last is 999: use 2 or 4"),
    ("--seed 1 -c 1001", "-c 1001: steps=1001 leads to timestep 1000, but the last is 999: use 500"),
    ("-c 4", "--seed is missing"),
    (f"{RUN} --classes 3,11", "--classes 11: the model has the classes 0..10, of which 10 is the null class"),
    (f"{RUN} --classes 3,11 {NULL}=null", "the model has the classes 0..10: give others"),
    (f"{RUN} --classes 3,x", "give numbers with commas"),
    (f"{RUN} --n_samples_per_class 2", "--n_samples_per_class needs --classes"),
    (f"{RUN} --classes 1 --n_samples_per_class 2 -n 4", "exclude each other"),
    (f"{RUN} -v", "exclude each other"),
    ("--seed 1 --dpm -e 0.5", "--eta 0.5 does not go with --dpm"),
    (f"{RUN} --ptq --cali_st 5", "--cali_st 5 asks for more timesteps than the 4 steps"),
    (f"{RUN} --ptq --quant_act --rs_sm_only", "--rs_sm_only needs --running_stat"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED)
def test_refusals(line, said, classes, tmp_path):
    found = refusal(classes, tmp_path / "run", line)
    assert said in found or re.search(said, found)


@pytest.mark.parametrize("line", ["--classes 1", "--scale 2"])
def test_an_unconditional_model_has_no_classes(line, averaged, tmp_path):
    assert f"{line.split()[0]}" in refusal(averaged, tmp_path, f"{RUN} {line}")


def test_models_that_are_not_there(classes, tmp_path):
    assert "no model in -r" in refusal(tmp_path / "none", tmp_path / "run", RUN)
    (tmp_path / "empty").mkdir()
    assert "a folder with model.ckpt or model.safetensors" in refusal(tmp_path / "empty", tmp_path / "run", RUN)
    shutil.copy(classes / "model.safetensors", tmp_path / "empty")
    assert "give it with --config" in refusal(tmp_path / "empty", tmp_path / "run", RUN)
    line = f"{RUN} -n 1 --config {classes / 'config.yaml'}"
    assert pixels(run(tmp_path / "empty", tmp_path / "run", line)).shape == (1, 32, 32, 3)
    other = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"embed_dim": 4}}
    OmegaConf.save({"model": other}, tmp_path / "empty/config.yaml")
    assert "describes no latent model" in refusal(tmp_path / "empty", tmp_path / "other", RUN)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("${oops}", "lacks a value"),
        ("???", "lacks a value"),
        (None, "describes no latent model"),
        ([16, 16], "describes no latent model"),
    ],
)
def test_values_that_are_none(value, said, classes, tmp_path):
    config = OmegaConf.load(classes / "config.yaml")
    config.model.params.image_size = value
    OmegaConf.save(config, tmp_path / "c.yaml")
    assert said in refusal(classes, tmp_path / "run", f"{RUN} --config {tmp_path / 'c.yaml'}")


# Command lines that people already have

COMMANDS = [
    "-n 20 --batch_size 10 -c 200 -e 1.0 --seed 41 --ptq --weight_bit 4 --resume --cali_ckpt F",
    "-n 20 --batch_size 10 -c 200 -e 1.0 --seed 41 --ptq --weight_bit 8 --quant_act --act_bit 8 --a_sym --resume "
    "--cali_ckpt F",
    "-n 20 --batch_size 10 -c 400 -e 0.0 --seed 41 --ptq --weight_bit 4 --resume --cali_ckpt F",
    "-n 20 --batch_size 10 -c 400 -e 0.0 --seed 41 --ptq --weight_bit 8 --quant_act --act_bit 8 --resume --cali_ckpt F",
    "-n 50000 --batch_size 10 -c 200 -e 1.0 --seed 40 --ptq --weight_bit 4 --quant_mode qdiff --cali_st 20 "
    "--cali_batch_size 32 --cali_n 256 --quant_act --act_bit 8 --a_sym --a_min_max --running_stat --cali_data_path F",
    "-n 50000 --batch_size 10 -c 400 -e 0.0 --seed 40 --ptq --weight_bit 4 --quant_mode qdiff --cali_st 20 "
    "--cali_batch_size 32 --cali_n 256 --quant_act --act_bit 8 --cali_data_path F",
]


@pytest.mark.parametrize("line", COMMANDS)
def test_published_commands(line, averaged, tmp_path):
    """As published, but for the file that F stands for and for the amount of work."""
    small = {"-n": 1, "-c": 4, "--cali_st": 2, "--cali_n": 2, "--cali_batch_size": 2}
    short = line
    for flag, value in small.items():
        short = re.sub(rf"{flag} \d+", f"{flag} {value}", short)
    short += " --cali_iters 1 --cali_iters_a 1" if "--cali_data_path" in short else ""
    weight_bit, a_sym = re.search(r"--weight_bit (\d)", line)[1], "--a_sym" if "--a_sym" in line else ""
    act = f"--quant_act --cali_st 2 --cali_n 2 {a_sym}" if "--quant_act" in line else ""
    make = f"--seed 1 -n 1 -c 4 --ptq --quant_mode linear --weight_bit {weight_bit} {act}"
    made = run(averaged, tmp_path / "made", make)
    file = made / ("quantized.safetensors" if "--resume" in line else "calibration_data.safetensors")
    folder = run(averaged, tmp_path / "run", re.sub(r" F\b", f" {file}", short))
    calibrated = (made if "--resume" in line else folder) / "quantized.safetensors"
    seed, eta = int(re.search(r"--seed (\d+)", line)[1]), float(re.search(r"-e ([\d.]+)", line)[1])

    def with_noise(network, x_T: Tensor, noise, abar: Tensor) -> Iterable[Step]:
        return ddim(network, x_T, latent_timesteps(1000, 4), abar, eta=eta, noise=noise)

    model, found = tiny_latent(AVERAGED), pixels(folder)
    model.adopt_ema()
    full = expected(model, [None], with_noise, seed=seed)
    acts = {"act_bit": 8, "a_sym": bool(a_sym)} if act else {}
    load_quantized(model.model.diffusion_model, calibrated, weight_bit=int(weight_bit), **acts)
    assert np.array_equal(found, expected(model, [None], with_noise, seed=seed))
    assert not np.array_equal(found, full), "the network is quantized, as the file says"
