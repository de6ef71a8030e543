"""`scripts/txt2img.py` on a small text-to-image model; what scripts share is tested beside the others."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusion.dpm_solver import dpm_solver
from ldm.guidance import guided
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.samplers import ddim, latent_timesteps, plms
from qdiff.checkpoints.load import load_quantized
from qdiff.cli.parser import parse
from qdiff.cli.txt2img_flags import txt2img_parser
from qdiff.errors import UserError
from qdiff.files.images import to_uint8
from qdiff.pipelines.watermark import MESSAGE, METHOD, watermark
from qdiff.sampling.noise import batch_noise
from tests.command_line import script
from tests.ldm.tiny_text import TOKENS, write_text_model
from tests.qdiff.squant import assert_squant
from tests.tokenizer import MERGES, VOCABULARY, write

RUN = "--ddim_steps 4 --seed 5 --device cpu --H 32 --W 32 --f 2 --C 4 --scale 2"
LEARN = "--ptq --weight_bit 4 --quant_act --sm_abit 16 --split --cali_st 2 --cali_n 3 --cali_batch_size 4"
LEARN = f"{LEARN} --cali_iters 2 --cali_lr_w 1e-2 --cali_iters_a 2 --running_stat"


LIMIT = f"the {TOKENS} tokens that the text encoder reads"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_text_model(folder)
    return folder


@pytest.fixture(scope="module")
def latent(tmp_path_factory) -> LatentDiffusion:
    return write_text_model(tmp_path_factory.mktemp("again"))


def words(model: Path, folder: Path, line: str) -> list:
    return [
        *("--config", model / "config.yaml", "--ckpt", model / "model.ckpt", "--outdir", folder),
        *shlex.split(RUN),
        *shlex.split(line),
    ]


def run(model: Path, folder: Path, line: str) -> Path:
    """Run the script to its end; it warns of prompts that are too long, as most of those for calibration are here."""
    ended = script("txt2img.py", *words(model, folder, line))
    assert ended.status == 0 and all(LIMIT in said for said in ended.err.splitlines()), ended
    return folder


def refusal(model: Path, folder: Path, line: str) -> str:
    ended = script("txt2img.py", *words(model, folder, line))
    assert ended.status == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended
    assert not list(folder.glob("img/*"))
    return ended.err


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "img").iterdir())]).astype(np.int16)


def walk_ddim(network, x, abar, noise):
    return ddim(network, x, latent_timesteps(1000, 4), abar, eta=0.0, noise=noise)


@torch.no_grad()
def expected(latent, prompts, sample=walk_ddim, *, streams=None, scale=2.0, batch=1) -> np.ndarray:
    """The images of prompts, made one by one or in batches."""
    found, streams = [], streams or range(len(prompts))
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        c, uc = (latent.get_learned_conditioning(texts) for texts in (some, [""]))
        x_T, noise = batch_noise(5, streams[start : start + batch], (4, 16, 16))
        *_, last = sample(guided(latent.apply_model, c, uc.expand_as(c), scale), x_T, latent.alphas_cumprod, noise)
        found.append(to_uint8(latent.decode_first_stage(last.x_prev)).permute(0, 2, 3, 1).numpy())
    return np.concatenate(found).astype(np.int16)


def same_images(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert (np.abs(found - wanted) > 2).mean() < 0.01
    assert ((wanted > 0) & (wanted < 255)).mean() > 0.2, "black and white images compare nothing"


@pytest.fixture(scope="module")
def fp(model, tmp_path_factory) -> Path:
    line = '--prompt "red app" --n_samples 2 --n_iter 2'
    return run(model, tmp_path_factory.mktemp("runs") / "fp", line)


def test_images_are_those_of_the_prompt(fp, latent):
    same_images(pixels(fp), expected(latent, ["red app"] * 4))
    assert (np.abs(pixels(fp) - expected(latent, ["a"] * 4)) > 2).mean() > 0.1
    size = pixels(fp).shape[1] + 2
    assert Image.open(fp / "grid.png").size == (2 * size + 2, 2 * size + 2), "as wide as --n_samples"


def test_an_image_says_how_it_was_made(fp):
    text = Image.open(fp / "img" / "000003.png").text
    assert text["prompt"] == "red app" and text["seed"] == "5, image 3" and text["bits"] == "not quantized"
    assert "DDIM" in text["sampler"] and "scale 2.0" in text["sampler"] and text["Software"].startswith("qdiff ")
    assert text["precision"] == "full", "on a CPU, where nothing else was asked for"
    overview = Image.open(fp / "grid.png").text
    assert overview == text | {"seed": "5, image 0, 1, 2, 3"}


def test_what_is_left_out_of_a_prompt_is_said(model, tmp_path):
    line = '--prompt "red red Red red  red\tan apple" --n_samples 1 --n_iter 1'
    ended = script("txt2img.py", *words(model, tmp_path / "run", line))
    said = f"the prompt 'red red Red red  red' exceeds {LIMIT}: 'an apple' is left out"
    assert (ended.status, ended.err) == (0, f"WARNING: {said}\n")
    assert f"WARNING {said}" in (tmp_path / "run" / "log.txt").read_text()
    text = Image.open(tmp_path / "run" / "img" / "000000.png").text
    assert (text["prompt"], text["prompt, left out"]) == ("red red Red red  red", "an apple")
    assert said in script("txt2img.py", *words(model, tmp_path / "dry", f"{line} --dry-run")).out
    short = run(model, tmp_path / "short", '--prompt "red red Red red  red" --n_samples 1 --n_iter 1')
    assert np.array_equal(pixels(short), pixels(tmp_path / "run")), "what is left out has no part in the image"
    assert "prompt, left out" not in Image.open(short / "img" / "000000.png").text


def test_plms_takes_one_network_call_more(model, tmp_path):
    ended = script("txt2img.py", *words(model, tmp_path, "--prompt red --n_samples 1 --n_iter 1 --plms"))
    assert ended.out.startswith("--ddim_steps 4: 5 network calls per image, not 4\n")
    text = Image.open(tmp_path / "img" / "000000.png").text
    assert text["sampler"] == "PLMS(steps=4), 5 network calls, scale 2.0"


SAMPLERS = {
    "--plms": lambda m, x, abar, noise: plms(m, x, latent_timesteps(1000, 4), abar),
    "--dpm": lambda m, x, abar, noise: dpm_solver(m, x, abar, 4, order=2, method="multistep"),
    "--ddim_eta 0.5": lambda m, x, abar, noise: ddim(m, x, latent_timesteps(1000, 4), abar, eta=0.5, noise=noise),
}


@pytest.mark.parametrize("line", SAMPLERS)
def test_samplers(line, model, latent, tmp_path):
    folder = run(model, tmp_path, f"--prompt red --n_samples 2 --n_iter 1 {line}")
    same_images(pixels(folder), expected(latent, ["red"] * 2, SAMPLERS[line]))


def test_prompts_of_a_file(model, latent, tmp_path):
    """Every line is rendered, also those of a last group that is smaller; empty ones and ends of lines are not."""
    (tmp_path / "p.txt").write_bytes("\ufeffred app\r\n\r\n  red \n\U0001f34e\n".encode() + b"x" * 5000 + b"\n\n")
    prompts = ["red app", "red", "\U0001f34e", "x" * 5000]
    line = f"--from-file {tmp_path / 'p.txt'} --n_samples 3 --n_iter 1"
    folder = run(model, tmp_path / "run", line)
    same_images(pixels(folder), expected(latent, prompts))
    texts = [Image.open(path).text["prompt"] for path in sorted((folder / "img").iterdir())]
    assert texts == [*prompts[:3], "x" * 5]
    run(model, folder, line.replace("--n_iter 1", "--n_iter 2"))
    same_images(pixels(folder), expected(latent, prompts * 2))
    (tmp_path / "p.txt").write_text("another")
    ended = script("txt2img.py", *words(model, folder, line))
    assert ended.status == 2 and "sha256.from_file" in ended.err


def test_the_same_noise_again(model, latent, tmp_path):
    folder = run(model, tmp_path, "--prompt red --n_samples 2 --n_iter 2 --fixed_code")
    same_images(pixels(folder), expected(latent, ["red"] * 4, streams=[0, 1, 0, 1]))


def test_larger_images_and_what_is_skipped(model, tmp_path):
    line = "--prompt red --n_samples 1 --n_iter 1"
    large = run(model, tmp_path / "large", f"{line} --H 48 --W 64 --skip_grid --no_grad_ckpt")
    assert pixels(large).shape[1:] == (48, 64, 3) and not (large / "grid.png").exists()


def test_an_overview_alone(model, fp, tmp_path):
    line = '--prompt "red app" --n_samples 2 --skip_save'
    ended = script("txt2img.py", *words(model, tmp_path / "run", f"{line} --n_iter 2"))
    assert ended.out.strip().endswith(f"4 images in {tmp_path / 'run' / 'grid.png'}") and ended.status == 0
    assert (tmp_path / "run" / "grid.png").read_bytes() == (fp / "grid.png").read_bytes()
    assert not list((tmp_path / "run" / "img").iterdir())
    assert "flags.n_iter" in refusal(model, tmp_path / "run", f"{line} --n_iter 3"), "none can be added"
    again = script("txt2img.py", *words(model, tmp_path / "run", f"{line} --n_iter 2"))
    assert again.out.startswith("finished before") and again.status == 0
    grid = tmp_path / "run" / "grid.png"
    grid.write_bytes(grid.read_bytes()[:-1])
    damaged = script("txt2img.py", *words(model, tmp_path / "run", f"{line} --n_iter 2"))
    assert damaged.status == 2 and damaged.err.startswith(f"error: '{grid}' is incomplete")


def test_an_overview_alone_shows_them_all(model, tmp_path):
    line = "--prompt a --n_samples 70 --n_iter 1 --n_rows 10 --skip_save --ddim_steps 1 --scale 1"
    folder = run(model, tmp_path, line)
    assert Image.open(folder / "grid.png").size == (10 * 34 + 2, 7 * 34 + 2)


def test_nothing_is_kept(model, tmp_path):
    line = "--prompt red --n_samples 2 --n_iter 1 --ddim_steps 1 --skip_save --skip_grid"
    ended = script("txt2img.py", *words(model, tmp_path, line))
    assert (ended.status, ended.err) == (0, "") and "2 images made, none kept" in ended.out
    assert not list(tmp_path.rglob("*.png"))


def test_images_are_added(model, latent, fp, tmp_path):
    """With more at a time, and an empty prompt."""
    shutil.copytree(fp, tmp_path / "more")
    line = '--prompt "red app" --n_samples 3 --n_iter 2'
    same_images(pixels(run(model, tmp_path / "more", line)), expected(latent, ["red app"] * 6))
    same_images(pixels(run(model, tmp_path / "b", "--prompt '' --n_samples 2 --n_iter 1")), expected(latent, [""] * 2))
    line = '--prompt "red app" --n_iter 1 --fixed_code'
    run(model, tmp_path / "fixed", f"{line} --n_samples 1")
    ended = script("txt2img.py", *words(model, tmp_path / "fixed", f"{line} --n_samples 2"))
    assert ended.status == 2 and "flags.n_samples" in ended.err, "it decides which noise comes again"


def test_a_checkpoint_as_safetensors_without_the_level_of_the_text_model(model, fp, tmp_path):
    state = torch.load(model / "model.ckpt", weights_only=True)["state_dict"]
    for name in ("config.yaml", "vocab.json", "merges.txt"):
        shutil.copy(model / name, tmp_path)
    renamed = {key.replace(".transformer.text_model.", ".transformer."): x.clone() for key, x in state.items()}
    renamed = {key: x for key, x in renamed.items() if not key.endswith("position_ids")}
    save_file(renamed, tmp_path / "model.safetensors")
    line = f'--prompt "red app" --n_samples 2 --n_iter 2 --ckpt {tmp_path / "model.safetensors"}'
    folder = run(model, tmp_path / "run", line)
    assert np.array_equal(pixels(folder), pixels(fp))


def test_half_precision_on_the_cpu_if_asked_for(model, fp, tmp_path):
    line = '--prompt "red app" --n_samples 2 --n_iter 2'
    found = pixels(run(model, tmp_path / "bf16", f"{line} --precision bf16"))
    difference = np.abs(found - pixels(fp))
    assert 0 < difference.mean() < 20
    assert np.array_equal(pixels(run(model, tmp_path / "full", f"{line} --precision full")), pixels(fp))
    assert "--precision fp16 needs CUDA" in refusal(model, tmp_path / "fp16", f"{line} --precision fp16")


# Quantized


@pytest.fixture(scope="module")
def learned(model, tmp_path_factory) -> Path:
    line = f'--prompt "red app" --n_samples 2 --n_iter 1 {LEARN}'
    return run(model, tmp_path_factory.mktemp("runs") / "learned", line)


def test_the_whole_job(learned, model, tmp_path):
    latent = write_text_model(tmp_path)
    file = learned / "quantized.safetensors"
    latent.model.diffusion_model = load_quantized(
        latent.model.diffusion_model, file, weight_bit=4, act_bit=8, split=True, sm_abit=16
    )
    assert np.array_equal(pixels(learned), expected(latent, ["red app"] * 2, batch=2)), "in batches of the same size"
    data = load_file(learned / "calibration_data.safetensors")
    assert tuple(data["input_2"].shape) == (12, 7, 64)
    none = latent.get_learned_conditioning([""])
    assert all(torch.allclose(row, none[0], atol=1e-5) for row in data["input_2"][:3])
    assert len({tuple(row.flatten().tolist()) for row in data["input_2"][3:6]}) == 3, "a prompt each"


def test_weights_rounded_without_data(model, tmp_path):
    line = "--ptq --weight_bit 4 --split --quant_mode squant"
    folder = run(model, tmp_path / "run", f'--prompt "red app" --n_samples 2 --n_iter 1 {line}')
    network = write_text_model(tmp_path).model.diffusion_model
    latent = write_text_model(tmp_path)
    file = folder / "quantized.safetensors"
    latent.model.diffusion_model = load_quantized(latent.model.diffusion_model, file, weight_bit=4, split=True)
    assert_squant(latent.model.diffusion_model, network)
    assert np.array_equal(pixels(folder), expected(latent, ["red app"] * 2, batch=2))
    assert not (folder / "calibration_data.safetensors").exists()


def test_a_quantized_run_says_what_it_is(learned):
    assert Image.open(learned / "img" / "000000.png").text["bits"] == "W4A8, A16 after softmax, split"
    log = (learned / "log.txt").read_text()
    assert re.search(f"[0-9]+ of [0-9]+ calibration prompts exceed {LIMIT}", log)


def test_prompts_for_calibration(model, tmp_path):
    (tmp_path / "p.txt").write_text("red\n")
    line = f"--prompt a --n_samples 1 --n_iter 1 {LEARN} --cali_prompts {tmp_path / 'p.txt'}".replace(
        "--cali_iters 2", ""
    )
    line = line.replace("--cali_lr_w 1e-2 --cali_iters_a 2 --running_stat", "--quant_mode linear")
    folder = run(model, tmp_path / "run", line)
    rows = load_file(folder / "calibration_data.safetensors")["input_2"]
    assert torch.equal(rows[3], rows[4]) and not torch.equal(rows[0], rows[3])


def test_a_list_of_prompts_comes_with_the_program():
    from qdiff.pipelines.text import DEFAULT_PROMPTS, resources

    lines = (resources.files("qdiff.pipelines") / DEFAULT_PROMPTS).read_text().splitlines()
    assert len(set(lines)) == len(lines) >= 128 and all(line.strip() for line in lines)


REFUSED = [
    ("--prompt a --laion400m", "--laion400m is not available"),
    ("", "give --prompt TEXT or --from-file FILE"),
    ("--prompt a --H 33", "--H 33 must be a multiple of 4 for this model: make it 32"),
    ("--prompt a --f 4", "--f 4 does not fit "),
    ("--prompt a --C 3", "--C 3 does not fit "),
    ("--prompt a --plms --ddim_eta 0.5", "--ddim_eta 0.5 does not go with --plms"),
    ("--prompt a --plms --dpm", "exclude each other"),
    ("--prompt a --from-file x", "exclude each other"),
    ("--from-file missing.txt", "cannot read --from-file missing.txt"),
    ("--prompt a --clip_path nowhere", "no tokenizer in 'nowhere'"),
    ("--prompt a --ddim_steps 9", "--ddim_steps 9: steps=9 leads to timestep 1000, but the last is 999: use 8 or 10"),
    ("--prompt a --cali_prompts x", "--cali_prompts needs --ptq"),
    ("--prompt a --ckpt nowhere/model.ckpt", "no model in --ckpt 'nowhere/model.ckpt'"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED)
def test_refusals(line, said, model, tmp_path):
    assert said in refusal(model, tmp_path / "run", line)


def test_a_tokenizer_of_another_model(model, tmp_path):
    write(tmp_path / "larger", [*MERGES, "l e</w>"])
    said = refusal(model, tmp_path / "run", f"--prompt a --clip_path {tmp_path / 'larger'}")
    assert f"has {len(VOCABULARY) + 1} tokens, the model's text encoder {len(VOCABULARY)}" in said


@pytest.mark.parametrize("override", [{"channels": 3}, {"image_size": 15}])
def test_a_configuration_whose_parts_do_not_fit(override, model, tmp_path):
    config = OmegaConf.load(model / "config.yaml")
    config.model.params.update(override)
    OmegaConf.save(config, tmp_path / "config.yaml")
    said = refusal(model, tmp_path / "run", f"--prompt a --config {tmp_path / 'config.yaml'}")
    assert "describes no latent model" in said


def test_files_without_prompts(model, tmp_path):
    (tmp_path / "p.txt").write_text("\n \r\n")
    assert "contains no prompts" in refusal(model, tmp_path / "run", f"--from-file {tmp_path / 'p.txt'}")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    assert "give a UTF-8 text file" in refusal(model, tmp_path / "run", f"--from-file {tmp_path / 'p.txt'}")


def test_a_model_without_text(tmp_path):
    from tests.ldm.tiny import CLASSES, write_latent

    write_latent(CLASSES, tmp_path)
    line = f"--prompt a --C 3 --f 2 --ckpt {tmp_path / 'model.safetensors'}"
    assert "has no text encoder" in refusal(tmp_path, tmp_path / "run", line)


def test_published_defaults():
    args = parse(txt2img_parser(), ["--prompt", "a"])
    published = {
        "ddim_steps": 50, "ddim_eta": 0.0, "n_iter": 2, "n_samples": 3, "n_rows": 0,
        "scale": 7.5, "seed": 42, "precision": "autocast", "weight_bit": 8, "act_bit": 8, "quant_mode": "qdiff",
        "cali_st": 1, "cali_batch_size": 32, "cali_n": 1024, "cali_iters": 20000, "cali_iters_a": 5000,
        "cali_lr": 4e-4, "cali_p": 2.4, "sm_abit": 8,
        "config": Path("configs/stable-diffusion/v1-inference.yaml"),
        "ckpt": Path("models/ldm/stable-diffusion-v1/model.ckpt"), "logdir": Path("outputs/txt2img-samples"),
    }  # fmt: skip
    off = "skip_grid skip_save plms laion400m fixed_code no_grad_ckpt split rs_sm_only ptq quant_act resume resume_w "
    published |= dict.fromkeys(f"{off} cond running_stat verbose".split(), False)
    without = ("from_file", "cali_ckpt", "cali_data_path", "H", "W", "C", "f")  # the four are the model's
    added = {"device": "auto", "cali_devices": 1, "cali_range_n": 256, "keep8": ()}
    added |= dict.fromkeys(("a_sym", "a_min_max", "correct_bias", "dpm", "dry_run", "low_memory", "watermark"), False)
    added |= {"w_sym": False, "preset": None, "correct_interpolate": False, "backend": "simulated"}
    added |= dict.fromkeys(("act_groups", "cali_spectrum_n"), 1)
    added |= dict.fromkeys(
        ("cali_lr_w", "cali_memory", "cali_prompts", "clip_path", "bops_budget", "correct", "correct_parts")
    )
    added |= {"correct_fit": "ptqd", "correct_n": 64, "mixed_precision": (), "snr_ratio": "norm"}
    assert vars(args) == {"prompt": "a"} | published | dict.fromkeys(without) | added


COMMANDS = [
    "--plms --cond --ptq --weight_bit 4 --quant_mode qdiff --no_grad_ckpt --split --n_samples 2 --resume --cali_ckpt F",
    "--plms --cond --ptq --weight_bit 4 --quant_mode qdiff --no_grad_ckpt --split --n_samples 2 --resume --quant_act "
    "--act_bit 8 --sm_abit 16 --cali_ckpt F",
    "--plms --cond --ptq --weight_bit 4 --quant_mode qdiff --quant_act --act_bit 8 --cali_st 2 --cali_batch_size 8 "
    "--cali_n 3 --no_grad_ckpt --split --running_stat --sm_abit 16 --cali_iters 1 --cali_iters_a 1 --cali_data_path D",
]


@pytest.mark.parametrize("line", COMMANDS)
def test_published_commands(line, model, learned, tmp_path):
    line = line.replace(" F", f" {learned / 'quantized.safetensors'}")
    line = line.replace(" D", f" {learned / 'calibration_data.safetensors'}")
    folder = run(model, tmp_path, f'--prompt "an astronaut" --n_iter 1 {line}')
    file = folder / "quantized.safetensors"
    same = write_text_model(tmp_path / "model")
    found = pixels(folder)
    prompts, batch = ["an astronaut"] * len(found), len(found)
    full = expected(same, prompts, SAMPLERS["--plms"], batch=batch)
    acts = {"act_bit": 8, "sm_abit": 16} if "--quant_act" in line else {}
    calibrated = file if file.exists() else learned / "quantized.safetensors"
    load_quantized(same.model.diffusion_model, calibrated, weight_bit=4, split=True, **acts)
    assert np.array_equal(found, expected(same, prompts, SAMPLERS["--plms"], batch=batch))
    assert not np.array_equal(found, full), "the network is quantized, as the file says"
    assert OmegaConf.load(folder / "config.yaml").flags.prompt == "an astronaut"


def test_the_size_is_the_models_where_none_is_given(model, tmp_path):
    config, ckpt = model / "config.yaml", model / "model.ckpt"
    line = "--prompt red --ddim_steps 2 --n_samples 1 --n_iter 1 --plms --cond --device cpu"
    ended = script("txt2img.py", "--config", config, "--ckpt", ckpt, "--outdir", tmp_path, *line.split())
    assert ended.status == 0, ended.err
    assert pixels(tmp_path).shape == (1, 32, 32, 3)


def test_a_folder_as_the_checkpoint(model, fp, tmp_path):
    line = f'--prompt "red app" --n_samples 2 --n_iter 2 --ckpt {shutil.copytree(model, tmp_path / "model")}'
    assert np.array_equal(pixels(run(model, tmp_path / "run", line)), pixels(fp))
    write(tmp_path, [*MERGES, "l e</w>"])  # the tokenizer of another model, in the folder above
    run(model, tmp_path / "dry", f"{line} --dry-run")


def test_a_plan_needs_no_tokenizer(model, tmp_path):
    config = shutil.copy(model / "config.yaml", tmp_path)
    line = f"--prompt red --ddim_steps 4 --device cpu {LEARN} --dry-run --outdir {tmp_path / 'o'}"
    ended = script("txt2img.py", "--config", config, "--ckpt", tmp_path / "missing.ckpt", *shlex.split(line))
    assert (ended.status, ended.err) == (0, "") and "calibration samples" in ended.out


def test_a_watermark_needs_its_package_and_large_images(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imwatermark", None)
    assert "pip install 'qdiff[watermark]'" in refusal(model, tmp_path / "a", "--prompt red --watermark")
    monkeypatch.setitem(sys.modules, "imwatermark", SimpleNamespace(WatermarkEncoder=None))
    with pytest.raises(UserError, match="needs colour images"):
        watermark(1, 256, 256)
    assert "at least 65536 pixels" in refusal(model, tmp_path / "b", "--prompt red --watermark")


def test_a_watermark_can_be_read():
    """Most of its bits in smooth images; in others about half, by chance."""
    imwatermark = pytest.importorskip("imwatermark")
    drawn = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(0.3 * drawn, size=(256, 256), mode="bicubic")
    marked, decoder = watermark(3, 256, 256)(images), imwatermark.WatermarkDecoder("bytes", 8 * len(MESSAGE))
    assert marked.shape == images.shape and 0 < (marked - images).abs().mean() < 0.05
    wanted = np.unpackbits(np.frombuffer(MESSAGE, dtype=np.uint8))
    for given, low, high in ((marked, 0.8, 1), (images, 0.4, 0.6)):
        for pixels in to_uint8(given).permute(0, 2, 3, 1).numpy():
            read = np.frombuffer(decoder.decode(pixels[..., ::-1].copy(), METHOD), dtype=np.uint8)
            assert low <= (np.unpackbits(read) == wanted).mean() <= high
