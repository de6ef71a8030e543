"""Runs from their folders: what samples the same images again, and folders that cannot."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import qdiff
from qdiff.errors import UserError
from qdiff.evaluation.record_file import read_evaluation
from qdiff.files.images import read_images
from qdiff.pipelines.eps_error import relative_eps_error
from tests.command_line import qdiff as command
from tests.command_line import refusal, script
from tests.ldm.tiny import CLASSES, write_latent
from tests.ldm.tiny_text import write_text_model
from tests.tiny import sample_script, write_tiny

LINEAR = "--ptq --quant_mode linear --weight_bit 4 --cali_st 2 --cali_n 2"
ACTS = f"{LINEAR} --quant_act --act_groups 2 --keep8 ends"


@pytest.fixture(autouse=True, scope="module")
def on_one_thread(one_thread):
    """Images are compared with those of other calls."""


def pixel_run(folder: Path, line: str = "", name: str = "run") -> Path:
    words = f"--timesteps 4 --max_images 3 --batch_size 3 --seed 7 --device cpu {line} -l {folder / name}"
    ended = sample_script("--config", folder / "tiny.yml", *words.split())
    assert ended.status == 0, ended.err
    return folder / name


@pytest.fixture(scope="module")
def pixel(tmp_path_factory) -> Path:
    """A folder with a model and three runs: fp, w4a8 and w4, which reads the file of w4a8."""
    folder = tmp_path_factory.mktemp("pixel")
    write_tiny(folder)
    pixel_run(folder, name="fp")
    file = pixel_run(folder, f"{ACTS} --split", "w4a8") / "quantized.safetensors"
    pixel_run(folder, f"--ptq --weight_bit 4 --split --resume --cali_ckpt {file}", "w4")
    return folder


@pytest.fixture
def own(pixel, tmp_path) -> Path:
    """A copy of the same, whose runs name the copied model."""
    folder = tmp_path / "pixel"
    shutil.copytree(pixel, folder)
    for path in folder.glob("*/config.yaml"):
        path.write_text(path.read_text().replace(str(pixel), str(folder)))
    return folder


def images_of(folder: Path) -> torch.Tensor:
    return read_images(sorted((folder / "img").glob("*.png")))


@pytest.mark.parametrize("name", ["fp", "w4a8", "w4"])
def test_a_pixel_space_run_samples_its_images_again(name, pixel):
    run = qdiff.load_run(pixel / name, device="cpu")
    pipeline = run.load()
    assert torch.equal(pipeline.sample(3).tensor, images_of(pixel / name))
    told = run.model()
    assert told.bops == pipeline.bops().bops and told.step_bops == told.bops / 4
    fp = qdiff.load_pipeline(pixel / "tiny.yml", device="cpu").network
    assert told.parameters == sum(x.numel() for x in fp.parameters())
    file = pixel / "w4a8" / "quantized.safetensors"
    assert told.file_bytes == (4 * told.parameters if name == "fp" else file.stat().st_size)
    assert told.source == str(pixel / "tiny.yml")


def test_of_a_latent_run_and_a_text_run_too(tmp_path):
    write_latent(CLASSES, tmp_path / "latent")
    line = f"--n_samples_per_class 1 --classes 5,3 -c 2 --seed 3 --scale 2 --device cpu {ACTS} -l {tmp_path / 'a'}"
    assert script("sample_diffusion_ldm.py", "-r", tmp_path / "latent", *line.split()).status == 0
    write_text_model(tmp_path / "text")
    model = ("--config", tmp_path / "text" / "config.yaml", "--ckpt", tmp_path / "text" / "model.ckpt")
    line = f"--H 32 --W 64 --ddim_steps 2 --plms --n_samples 2 --n_iter 1 --device cpu {ACTS} --outdir {tmp_path / 'b'}"
    prompt = ("--prompt", "red apple", "--precision", "full")
    assert script("txt2img.py", *model, *prompt, *line.split()).status == 0
    for name, count in {"a": 2, "b": 2}.items():
        run = qdiff.load_run(tmp_path / name, device="cpu")
        pipeline = run.load()
        assert torch.equal(pipeline.sample(count).tensor, images_of(tmp_path / name))
        assert run.model().bops == pipeline.bops().bops
    (tmp_path / "text" / "model.ckpt").unlink()
    assert "no model in --ckpt" in refused(run.model)


def test_the_model_in_full_precision_and_its_quantized_network(pixel):
    run = qdiff.load_run(pixel / "w4", device="cpu")
    fp = run.load_full_precision()
    quantized = run.quantized(fp)
    assert torch.equal(fp.sample(3).tensor, images_of(pixel / "fp"))
    assert torch.equal(quantized.sample(3).tensor, images_of(pixel / "w4"))
    with pytest.raises(UserError, match="fp' is in full precision: give a run with --ptq"):
        qdiff.load_run(pixel / "fp").quantized(fp)


def test_evaluate_and_plot_take_the_folders(pixel, tmp_path):
    out = tmp_path / "w4a8.json"
    words = ("--fp", pixel / "fp", "--metrics", "mae,eps", "--device", "cpu", "-o", out)
    ended = command("evaluate", pixel / "w4a8", *words)
    assert ended.status == 0, ended.err
    quantized, fp = (qdiff.load_run(pixel / name, device="cpu").load() for name in ("w4a8", "fp"))
    found = read_evaluation(out)
    errors = relative_eps_error(quantized, fp, range(3))
    assert found.values["eps"] == pytest.approx(sum(errors) / 4) and min(errors) > 0
    assert found.rows[-1].name == "relative squared error of eps, 3 images"
    assert found.model == qdiff.load_run(pixel / "w4a8").model()
    lines = ended.out.splitlines()
    assert [line.split("  ")[0] for line in lines[3:6]] == ["file of the network", "BOPs per step", "BOPs per image"]
    without = command("evaluate", pixel / "w4a8", "--fp", pixel / "fp", "--device", "cpu")
    assert "squared error of eps" not in without.out, "it samples, so it must be asked for"
    for kind in ("trajectory", "images"):
        plot = tmp_path / f"{kind}.svg"
        ended = command("plot", kind, "--run", pixel / "w4a8", pixel / "w4", "-n", 1, "--device", "cpu", "-o", plot)
        assert (ended.status, ended.err) == (0, "") and "<!-- w4a8" in plot.read_text()
    for kind in ("ranges", "split", "layers"):
        ended = command(
            "plot", kind, "--run", pixel / "w4a8", "-n", 1, "--device", "cpu", "-o", tmp_path / f"{kind}.svg"
        )
        assert (ended.status, ended.err) == (0, "")
    ended = command("plot", "tradeoff", out, "--metric", "mae", "--cost", "bops", "-o", tmp_path / "t.svg")
    assert (ended.status, ended.err) == (0, "")
    assert "<!-- bit operations per image [T] -->" in (tmp_path / "t.svg").read_text()


# Folders that cannot


def refused(do: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        do()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_weights_are_refused(own):
    weights = load_file(own / "tiny.safetensors")
    weights["conv_in.bias"] += 1
    save_file(weights, own / "tiny.safetensors")
    for name in ("fp", "w4a8"):
        run = qdiff.load_run(own / name, device="cpu")
        assert run.model().bops, "which does not depend on them"
        said = refused(run.load)
        assert f"{name}' was made with other files: sha256.weights was '" in said and said.endswith("put those back")
    assert qdiff.load_run(own / "w4", device="cpu").load().is_quantized, "it never had them"


def test_another_configuration_is_refused(own):
    config = OmegaConf.load(own / "tiny.yml")
    config.diffusion.beta_end = 0.003
    OmegaConf.save(config, own / "tiny.yml")
    for name in ("fp", "w4a8", "w4"):
        run = qdiff.load_run(own / name, device="cpu")
        for do in (run.model, run.load, run.load_full_precision):
            assert "was made with other files: config.diffusion.beta_end was 0.002 and is 0.003 now" in refused(do)


def test_another_quantized_file_is_refused(own):
    shutil.copy(pixel_run(own, LINEAR, "other") / "quantized.safetensors", own / "w4a8" / "quantized.safetensors")
    run = qdiff.load_run(own / "w4", device="cpu")
    assert "was calibrated without --split" in refused(run.model)
    assert "was made with other files: sha256.cali_ckpt" in refused(run.load)


def test_a_run_that_was_not_finished_is_refused(own):
    (own / "w4a8" / "quantized.safetensors").unlink()
    run = qdiff.load_run(own / "w4a8", device="cpu")
    for do in (run.model, run.load):
        assert "quantized.safetensors'" in refused(do)


def test_calibration_data_may_be_gone(own):
    data = own / "w4a8" / "calibration_data.safetensors"
    given = pixel_run(own, f"{LINEAR} --quant_act --cali_data_path {data}", "given")
    data.unlink()
    assert torch.equal(qdiff.load_run(given, device="cpu").load().sample(3).tensor, images_of(given))


def edited(folder: Path, **flags: object) -> Path:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for name, value in flags.items():
        section = config["flags" if name in config["flags"] else "free"]
        section[name] = value
    path.write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"timesteps": "many"}, "timesteps: 'many' is not a whole number in 1.."),
        ({"timesteps": None}, "timesteps: '' is not a whole number"),
        ({"timesteps": True}, "timesteps: 'True' is not a whole number"),
        ({"skip_type": "cubic"}, "skip_type: 'cubic' is unknown: use uniform or quad"),
        ({"ptq": "yes"}, "ptq: 'yes' is no value of --ptq"),
        ({"keep8": ["ends", "middle"]}, "keep8: 'middle' is unknown"),
        ({"eta": 0.5, "sample_type": "dpm_solver"}, "--eta needs --sample_type generalized"),
        ({"speed": 3}, "does not have the flags of a sampling script: give the folder of a run"),
        ({"config": "gone.yml"}, "config: no 'gone.yml' here: work in the folder in which the run was made"),
    ],
)
def test_recorded_flags_that_are_none(flags, said, own):
    run = qdiff.load_run(edited(own / "fp", **flags))
    message = refused(run.model)
    assert said in message
    assert str(own / "fp") in message or "--eta" in message


def test_a_machine_with_fewer_devices_will_do(own):
    edited(own / "w4a8", cali_devices=8, cali_memory=1e5, device="cuda:7")
    assert qdiff.load_run(own / "w4a8", device="cpu").load().is_quantized


def test_folders_that_are_no_runs(tmp_path, pixel):
    assert "is not the configuration of a run" in refused(qdiff.load_run(tmp_path).model)
    with pytest.raises(TypeError, match="folder must be a str or a Path, not int"):
        qdiff.load_run(3)
    words = ("--fp", pixel / "fp", "--metrics", "eps", "--device", "cpu")
    assert "--metrics eps needs the folders of two runs" in refusal("evaluate", pixel / "w4" / "img", *words)
    words = ("--device", "cpu", "-o", tmp_path / "a.svg")
    assert "fp' is in full precision: give a run with --ptq" in refusal("plot", "layers", "--run", pixel / "fp", *words)
    assert "--run and --config exclude each other" in refusal("plot", "split", "--run", "a", "--config", "b", *words)
    assert "--run names 'a' twice" in refusal("plot", "images", "--run", "a", "a", *words)


def test_runs_that_sample_otherwise_are_not_drawn_together(own):
    edited(own / "w4", eta=0.5)
    words = ("--device", "cpu", "-o", own / "a.svg")
    said = refusal("plot", "trajectory", "--run", own / "w4a8", own / "w4", *words)
    assert "w4' samples otherwise than" in said and not (own / "a.svg").exists()
