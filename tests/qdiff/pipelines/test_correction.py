"""Corrections of pipelines: `qdiff.correct`, `with_correction`, `--correct`."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import qdiff
from qdiff.correction.file import read_correction, write_correction
from qdiff.correction.parts import PARTS
from qdiff.errors import UserError
from qdiff.pipelines.binding import network_digest
from qdiff.pipelines.correction import FitCorrection
from qdiff.pipelines.pipeline import Pipeline
from tests.command_line import script
from tests.ldm.tiny import CLASSES, write_latent
from tests.ldm.tiny_text import write_text_model
from tests.tiny import sample_script, write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")
LINEAR = {"weight_bits": 4, "act_bits": 8, "split": True, "method": "linear", "timesteps": 2, "samples": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny(path)
    return path


@pytest.fixture(scope="module")
def pixel(folder) -> Pipeline:
    return qdiff.load_pipeline(folder / "tiny.yml", steps=4, device="cpu", eta=0.5, batch_size=4)


@pytest.fixture(scope="module")
def quantized(pixel) -> Pipeline:
    return qdiff.quantize(pixel, **LINEAR)


@pytest.fixture(scope="module")
def corrected(pixel, quantized) -> Pipeline:
    return qdiff.correct(quantized, pixel, images=8)


def test_statistics_are_those_of_both_networks_on_the_trajectory(pixel, quantized, corrected):
    fitted = range(10**6, 10**6 + 4)  # the first half
    model = quantized.calibration_model_for(fitted)
    for i, step in enumerate(pixel.calibration_steps(fitted)):
        error = model(step.x_t, torch.full((4,), step.t)) - step.eps
        bias = error.double().mean((0, 2, 3))
        torch.testing.assert_close(corrected.correction.bias[i], bias, rtol=1e-3, atol=1e-5)


def test_sampling_is_corrected(quantized, corrected):
    assert corrected.correction.used
    assert not torch.equal(corrected.sample(2).tensor, quantized.sample(2).tensor)
    off = corrected.with_correction(corrected.correction.only(()))
    assert torch.equal(off.sample(2).tensor, quantized.sample(2).tensor)
    assert torch.equal(corrected.with_correction(None).sample(2).tensor, quantized.sample(2).tensor)
    again = quantized.with_correction(corrected.correction)
    assert torch.equal(again.sample(2, seed=5).tensor, corrected.sample(2, seed=5).tensor)


@pytest.mark.parametrize("fit", ["ptqd", "trajectory"])
def test_the_batch_size_does_not_matter(fit, pixel, quantized):
    found = [
        qdiff.correct(quantized.with_sampling(batch_size=size), pixel, fit=fit, images=6, parts=["bias"]).correction
        for size in (1, 6)
    ]
    # codes turn with the rounding errors of another batch size
    torch.testing.assert_close(found[0].bias, found[1].bias, rtol=0.1, atol=0.02)


def test_a_file_serves_the_network_that_is_read_from_its_file(tmp_path, folder, quantized, corrected):
    corrected.save_correction(tmp_path / "c.safetensors")
    quantized.save(tmp_path / "q.safetensors")
    again = qdiff.load_pipeline(
        folder / "tiny.yml", quantized=tmp_path / "q.safetensors", steps=4, device="cpu", eta=0.5, batch_size=4
    ).with_correction(tmp_path / "c.safetensors")
    assert torch.equal(again.sample(2).tensor, corrected.sample(2).tensor)
    assert network_digest(again.network) == network_digest(quantized.network)


def refused(make) -> str:
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "cause"),
    [({"eta": 0.0}, "sampler"), ({"sampler": "dpm"}, "sampler"), ({"steps": 2}, "other steps"),
     ({"skip_type": "quad"}, "other steps")],
)  # fmt: skip
def test_other_sampling_is_refused(change, cause, quantized, corrected):
    assert cause in refused(lambda: quantized.with_sampling(**change).with_correction(corrected.correction))
    assert cause in refused(lambda: corrected.with_sampling(**change))
    corrected.with_sampling(seed=7, batch_size=1)


def test_another_network_is_refused(pixel, corrected):
    other = qdiff.quantize(pixel, **LINEAR | {"weight_bits": 8})
    assert "was fitted for network" in refused(lambda: other.with_correction(corrected.correction))
    assert corrected.with_network(other.network).correction is None


def test_guidance_is_part_of_it(tmp_path):
    write_latent(CLASSES, tmp_path)
    pipe = qdiff.load_pipeline(tmp_path, steps=4, device="cpu", scale=2.0, eta=1.0)
    quantized = qdiff.quantize(pipe, **LINEAR)
    table = qdiff.correct(quantized, pipe, images=4).correction
    assert "scale" in refused(lambda: quantized.with_sampling(scale=1.5).with_correction(table))
    assert quantized.with_correction(table).with_network(quantized.network).correction is None
    half = qdiff.load_pipeline(tmp_path, steps=4, device="cpu", scale=2.0, eta=1.0, precision="bf16")
    assert "precision" in refused(lambda: half.with_network(quantized.network).with_correction(table))
    fitted = range(10**6, 10**6 + 2)
    step = next(pipe.calibration_steps(fitted))
    error = quantized.calibration_model_for(fitted)(step.x_t, torch.full((2,), step.t)) - step.eps
    torch.testing.assert_close(table.bias[0], error.double().mean((0, 2, 3)), rtol=1e-3, atol=1e-5)


def test_other_steps_on_request(quantized, corrected):
    fewer = quantized.with_sampling(steps=2)
    table = fewer.with_correction(corrected.correction, interpolate=True).correction
    assert len(table.timesteps) == fewer.nfe
    same = [corrected.correction.timesteps.index(t) for t in table.timesteps]
    torch.testing.assert_close(table.bias, corrected.correction.bias[same])


def test_a_fit_on_the_trajectory_holds_for_its_steps_alone(pixel, quantized):
    table = qdiff.correct(quantized, pixel, images=4, fit="trajectory").correction
    fewer = quantized.with_sampling(steps=2)
    assert "its own steps alone" in refused(lambda: fewer.with_correction(table, interpolate=True))


@pytest.mark.parametrize("sampler", ["dpm", "ddpm"])
def test_a_fit_on_the_trajectory_needs_ddim(sampler, pixel, quantized):
    other = quantized.with_sampling(sampler)
    assert "needs DDIM" in refused(lambda: qdiff.correct(other, pixel, images=4, fit="trajectory"))
    assert "variance" in qdiff.correct(other, pixel, images=4).correction.parts


def test_wrong_arguments(pixel, quantized, corrected):
    with pytest.raises(ValueError, match="full precision"):
        qdiff.correct(pixel, pixel)
    with pytest.raises(ValueError, match="is quantized"):
        qdiff.correct(quantized, quantized)
    with pytest.raises(ValueError, match="nothing to correct"):
        pixel.with_correction(corrected.correction)
    with pytest.raises(ValueError, match="no correction to save"):
        quantized.save_correction("x")
    for wrong in ({"fit": "x"}, {"images": 3}, {"parts": ["x"]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            qdiff.correct(quantized, pixel, **wrong)


@pytest.mark.parametrize("fit", ["ptqd", "trajectory"])
@pytest.mark.parametrize("calls", [1, 9, 17, 30])
def test_interrupted_at_any_call_the_same_call_ends_the_same(fit, calls, tmp_path, pixel, quantized):
    """Nothing that was finished is computed again."""
    done = 0

    def count(module, args):
        nonlocal done
        done += 1
        if done == calls:
            raise KeyboardInterrupt

    job = {"images": 6, "fit": fit, "folder": tmp_path / "kept"}
    quantized = quantized.with_sampling(batch_size=1)
    handle = quantized.network.register_forward_pre_hook(count)
    with pytest.raises(KeyboardInterrupt):
        qdiff.correct(quantized, pixel, **job)
    first, done = done - 1, 100
    resumed = qdiff.correct(quantized, pixel, **job).correction
    second, done = done - 100, 100
    whole = qdiff.correct(quantized, pixel, **job | {"folder": tmp_path / "other"}).correction
    handle.remove()
    assert torch.equal(resumed.bias, whole.bias) and resumed.parts == whole.parts
    lost = pixel.nfe if fit == "ptqd" else 6  # calls of a batch of trajectories, or of one step
    assert done - 100 <= first + second <= done - 100 + lost
    kept, other = (tmp_path / name / "correction.safetensors" for name in ("kept", "other"))
    assert kept.read_bytes() == other.read_bytes()
    assert [*kept.parent.iterdir()] == [kept]


def test_a_finished_fit_is_read(tmp_path, pixel, quantized, corrected):
    corrected.save_correction(tmp_path / "correction.safetensors")
    before = (tmp_path / "correction.safetensors").stat().st_mtime_ns
    qdiff.correct(quantized, pixel, images=8, folder=tmp_path)
    assert (tmp_path / "correction.safetensors").stat().st_mtime_ns == before
    assert "images" in refused(lambda: qdiff.correct(quantized, pixel, images=6, folder=tmp_path))


# ---- the scripts

RUN = "--timesteps 4 --eta 0.5 --max_images 3 --batch_size 1 --device cpu"
PTQ = "--ptq --weight_bit 4 --quant_act --split --quant_mode linear --cali_st 2 --cali_n 2"


def sampled(folder: Path, name: str, line: str):
    words = f"{RUN} {line}".split()
    return sample_script("--config", folder / "tiny.yml", "-l", folder / name, *words)


def pixels(folder: Path) -> list[bytes]:
    return [Image.open(path).tobytes() for path in sorted((folder / "img").glob("*.png"))]


@pytest.fixture(scope="module")
def auto(folder) -> Path:
    ended = sampled(folder, "auto", f"{PTQ} --correct auto --correct_n 8")
    assert (ended.status, ended.err) == (0, ""), ended
    assert "correction, ptqd fit:" in ended.out and all(f"  {name}" in ended.out for name in PARTS)
    return folder / "auto"


def test_auto_fits_after_quantization(auto, folder):
    table = read_correction(auto / "correction.safetensors")
    assert table.provenance["images"] == 8
    assert not (auto / "correcting").exists()
    plain = sampled(folder, "plain", PTQ)
    assert plain.status == 0 and pixels(folder / "plain") != pixels(auto)
    text = Image.open(auto / "img" / "000000.png").text["correction"]
    assert text == f"ptqd: {', '.join(table.used)}"
    assert "correction" not in Image.open(folder / "plain" / "img" / "000000.png").text
    assert "correct" not in (folder / "plain" / "config.yaml").read_text().replace("correct_bias", "")


def test_the_same_command_resumes(auto, folder):
    before = (auto / "correction.safetensors").read_bytes(), pixels(auto)
    (auto / "img" / "000001.png").unlink()
    ended = sampled(folder, "auto", f"{PTQ} --correct auto --correct_n 8")
    assert ended.status == 0, ended
    assert ((auto / "correction.safetensors").read_bytes(), pixels(auto)) == before
    other = sampled(folder, "auto", f"{PTQ} --correct auto --correct_n 6")
    assert other.status == 2 and "correct_n was 8" in other.err


def test_a_file_gives_the_same_images(auto, folder):
    line = f"--ptq --weight_bit 4 --quant_act --split --resume --cali_ckpt {auto / 'quantized.safetensors'}"
    ended = sampled(folder, "file", f"{line} --correct {auto / 'correction.safetensors'}")
    assert ended.status == 0, ended
    assert pixels(folder / "file") == pixels(auto)


def test_a_file_that_does_not_fit_is_refused_before_any_work(auto, folder):
    file = auto / "correction.safetensors"
    steps = sampled(folder, "refused", f"{PTQ} --timesteps 2 --correct {file}")
    assert steps.status == 2 and "other steps" in steps.err and "--correct_interpolate" in steps.err
    eta = sampled(folder, "refused", f"{PTQ} --eta 1 --correct {file}")
    assert eta.status == 2 and "DDIM, eta 0.5, not DDIM, eta 1.0" in eta.err
    assert {path.name for path in (folder / "refused").iterdir()} <= {"log.txt", ".lock"}
    accepted = sampled(
        folder,
        "fewer",
        f"--ptq --weight_bit 4 --quant_act --split --resume --cali_ckpt {auto / 'quantized.safetensors'} --timesteps 2 "
        f"--correct {file} --correct_interpolate",
    )
    assert accepted.status == 0, accepted
    other = sampled(folder, "other", f"{PTQ} --weight_bit 8 --correct {file}")
    assert other.status == 2 and "was fitted for network" in other.err


def test_a_damaged_file_in_the_folder_of_the_run(auto, folder):
    shutil.copytree(auto, folder / "damaged")
    (folder / "damaged" / "correction.safetensors").write_bytes(b"x")
    ended = sampled(folder, "damaged", f"{PTQ} --correct auto --correct_n 8")
    assert ended.status == 2 and ended.err.count("\n") == 1 and "not a whole safetensors file" in ended.err


def test_the_plan(folder):
    ended = sampled(folder, "plan", f"{PTQ} --correct auto --correct_n 8 --dry_run")
    assert ended.status == 0
    assert f"correction: ptqd fit on 8 images, {(2 * 8 + 3 * 4) * 4} network calls" in ended.out
    assert not (folder / "plan").exists()


def test_network_calls_are_as_planned(pixel, quantized):
    for fit in ("ptqd", "trajectory"):
        done = 0

        def count(module, args):
            nonlocal done
            done += len(args[0])

        handles = [p.network.register_forward_pre_hook(count) for p in (pixel, quantized)]
        parts = qdiff.correct(quantized, pixel, images=6, fit=fit).correction.parts
        for handle in handles:
            handle.remove()
        untried = [name for name in ("slope", "bias") if not (parts[name].on or parts[name].note)]
        walks = len(untried) if len(untried) < 2 else 3  # the uncorrected one too if there is nothing to compare
        left = 3 * walks if fit == "ptqd" else 0  # half of the images
        assert done == FitCorrection(fit, 6).calls(pixel.nfe) - left * pixel.nfe


@pytest.mark.parametrize(
    "line",
    ["--correct auto", "--ptq --correct_n 8", "--ptq --correct auto --correct_interpolate",
     "--ptq --correct x.safetensors --correct_fit ptqd", "--ptq --correct auto --correct_parts k",
     "--ptq --correct auto --correct_n 3"],
)  # fmt: skip
def test_flags_that_do_not_go_together(line, folder):
    ended = sampled(folder, "flags", line)
    assert ended.status == 2 and "--correct" in ended.err and ended.err.count("\n") == 1


def test_a_latent_model(tmp_path):
    write_latent(CLASSES, tmp_path)
    line = "-n 2 -c 4 --scale 2 --seed 1 --device cpu --ptq --weight_bit 4 --quant_act --quant_mode linear"
    words = [*line.split(), "--cali_st", "2", "--cali_n", "2", "--correct", "auto", "--correct_n", "4"]
    ended = script("sample_diffusion_ldm.py", "-r", tmp_path, "-l", tmp_path / "run", *words)
    assert (ended.status, ended.err) == (0, ""), ended
    table = read_correction(tmp_path / "run" / "correction.safetensors")
    assert table.made_for["scale"] == 2.0 and table.made_for["sampler"] == "DDIM, eta 1.0"


def test_a_table_of_another_number_of_channels(tmp_path, quantized, corrected):
    table = corrected.correction
    names = ("slope", "slope_error", "bias", "bias_error")
    fewer = type(table)(**vars(table) | {name: getattr(table, name)[:, :1].clone() for name in names})
    write_correction(tmp_path / "c.safetensors", fewer)
    assert "channels" in refused(lambda: quantized.with_correction(tmp_path / "c.safetensors"))


def test_a_run_is_made_again_with_its_correction(auto, monkeypatch):
    """`evaluate` and others take the pipeline of a run from its folder."""
    run = qdiff.load_run(auto, device="cpu")
    table = read_correction(auto / "correction.safetensors")
    assert torch.equal(run.load().correction.bias, table.bias)
    assert torch.equal(run.quantized(run.load_full_precision()).correction.bias, table.bias)


def test_ranks_share_a_correction(folder, monkeypatch):
    """Rank 1 loads what rank 0 fitted."""
    line = f"{PTQ} --correct auto --correct_n 4"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert sampled(folder, "ranks", line).status == 0
    file = folder / "ranks" / "correction.safetensors"
    before = file.stat().st_mtime_ns
    (folder / "ranks" / "img" / "000001.png").unlink()
    monkeypatch.setenv("RANK", "1")
    ended = sampled(folder, "ranks", line)
    assert ended.status == 0 and "correction" not in ended.out, ended
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize(("flag", "calls"), [("--plms", 5), ("--dpm", 4)])
def test_text_to_image_with_multistep_samplers(flag, calls, tmp_path):
    """They add no noise, so that the variance is said to be off, and have no fit on the trajectory."""
    write_text_model(tmp_path)
    model = ["--config", tmp_path / "config.yaml", "--ckpt", tmp_path / "model.ckpt", "--outdir", tmp_path / "run"]
    line = f"--prompt red {flag} --ddim_steps 4 --seed 5 --device cpu --H 32 --W 32 --f 2 --C 4 --scale 2 --n_samples 1"
    line += " --n_iter 1 --ptq --weight_bit 4 --quant_act --quant_mode linear --cali_st 2 --cali_n 2"
    ended = script("txt2img.py", *model, *f"{line} --correct auto --correct_n 4".split())
    assert ended.status == 0, ended
    assert "variance  off, the sampler adds no noise" in ended.out
    table = read_correction(tmp_path / "run" / "correction.safetensors")
    assert len(table.timesteps) == calls and table.bias.any(dim=1).all()
    line += " --correct auto --correct_fit trajectory"
    other = script("txt2img.py", *model[:-1], tmp_path / "x", *line.split())
    assert other.status == 2 and "needs DDIM" in other.err
