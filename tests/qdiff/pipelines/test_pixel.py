import contextlib
import random
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from diffusion.dpm_solver import dpm_solver
from diffusion.samplers import ddpm_noisy, generalized, timestep_sequence
from diffusion.steps import Step
from qdiff.adapters.ddim.samplers import schedule
from qdiff.checkpoints.load import load_quantized
from qdiff.checkpoints.quantized_file import read_quantized
from qdiff.files.atomic import PARTIAL
from qdiff.files.images import to_uint8
from qdiff.sampling.noise import batch_noise
from tests.original_checkpoints import W4A8_SPLIT, W8A8, original_checkpoint
from tests.processes import forkserver
from tests.qdiff.squant import assert_squant
from tests.tiny import SCRIPT, sample_script, tiny_config, tiny_network, write_tiny

REPOSITORY = SCRIPT.parents[1]
IMAGES = 4
PICTURES = f"--timesteps 4 --max_images {IMAGES} --batch_size 2 --device cpu"
DATA = "--cali_st 2 --cali_n 3 --cali_batch_size 4"
ACT = "--ptq --weight_bit 4 --quant_act --split"
LEARN = f"{ACT} {DATA} --cali_iters 3 --cali_lr_w 1e-2 --cali_iters_a 2 --batch_size 1"
LINEAR = f"{ACT} {DATA} --quant_mode linear --batch_size 1"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def words(config: Path, folder: Path, line: str = "") -> list[str]:
    return ["--config", str(config), "-l", str(folder), *shlex.split(PICTURES), *shlex.split(line)]


def run(config: Path, folder: Path, line: str = "") -> Path:
    """Run the script to its end; the run's folder."""
    ended = sample_script(*words(config, folder, line))
    assert (ended.status, ended.err) == (0, ""), ended
    return folder


def refusal(config: Path, folder: Path, line: str = "") -> str:
    """The one line with which the script refuses."""
    ended = sample_script(*words(config, folder, line))
    assert ended.status == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended
    assert not list(folder.glob("img/*")) or "holds another run" in ended.err
    return ended.err


def files(folder: Path, pattern: str = "*.png") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob(pattern))}


def pixels(folder: Path) -> np.ndarray:
    """The images of a run, in order, int16 (N, 3, H, W)."""
    images = [Image.open(path) for path in sorted((folder / "img").iterdir())]
    return np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2).astype(np.int16)


Sample = Callable[[nn.Module, Tensor, Callable[[Tensor], Tensor]], Iterable[Step]]
ABAR, TAU = schedule(tiny_config().diffusion), timestep_sequence(1000, 4, "uniform")


def ddim(model, x_T, noise) -> Iterable[Step]:
    return generalized(model, x_T, TAU, ABAR, eta=0.0, noise=noise)


def expected(model: nn.Module, sample: Sample = ddim, *, seed=1234, shape=(3, 8, 8), images=IMAGES) -> np.ndarray:
    """The images of a network, made one by one, int16."""
    results = []
    for i in range(images):
        *_, last = sample(model, *batch_noise(seed, [i], shape))
        results.append(to_uint8(last.x_prev)[0].numpy().astype(np.int16))
    return np.stack(results)


def same_images(found: np.ndarray, wanted: np.ndarray) -> None:
    """Up to one level, because batches of another size are summed in another order."""
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1
    assert ((wanted > 0) & (wanted < 255)).mean() > 0.2, "black and white images compare nothing"


# In full precision


@pytest.fixture(scope="module")
def fp(config, tmp_path_factory) -> Path:
    return run(config, tmp_path_factory.mktemp("runs") / "fp")


def test_images_are_those_of_the_network(fp):
    same_images(pixels(fp), expected(tiny_network()))
    assert sorted(path.name for path in (fp / "img").iterdir()) == [f"00000{i}.png" for i in range(IMAGES)]
    assert Image.open(fp / "grid.png").size == (2 + 2 * 10, 2 + 2 * 10)
    assert sorted(path.name for path in fp.iterdir()) == [".lock", "config.yaml", "grid.png", "img", "log.txt"]


SAMPLERS = {
    "--sample_type dpm_solver": lambda m, x, noise: dpm_solver(
        m, x, ABAR, 4, order=3, method="singlestep", skip_type="time_uniform"
    ),
    "--sample_type dpm_solver --dpm_order 2 --dpm_method multistep --skip_type quad": lambda m, x, noise: dpm_solver(
        m, x, ABAR, 4, order=2, method="multistep", skip_type="time_quadratic"
    ),
    "--sample_type ddpm_noisy": lambda m, x, noise: ddpm_noisy(m, x, TAU, ABAR, noise=noise),
    "--eta 0.5 --skip_type quad": lambda m, x, noise: generalized(
        m, x, timestep_sequence(1000, 4, "quad"), ABAR, eta=0.5, noise=noise
    ),
}


@pytest.mark.parametrize("line", SAMPLERS)
def test_samplers(line, config, fp, tmp_path):
    found = pixels(run(config, tmp_path, line))
    same_images(found, expected(tiny_network(), SAMPLERS[line]))
    assert (np.abs(found - pixels(fp)) > 1).mean() > 0.2


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_image_does_not_depend_on_the_batch_size(batch_size, config, fp, tmp_path):
    same_images(pixels(run(config, tmp_path, f"--batch_size {batch_size}")), pixels(fp))


def test_an_image_depends_on_the_seed(config, fp, tmp_path):
    found = pixels(run(config, tmp_path, "--seed 7"))
    same_images(found, expected(tiny_network(), seed=7))
    assert (np.abs(found - pixels(fp)) > 1).mean() > 0.2


def test_sequence(config, fp, tmp_path):
    folder = run(config, tmp_path, "--sequence --max_images 2")
    steps = list(ddim(tiny_network(), *batch_noise(1234, range(2), (3, 8, 8))))
    for i in range(2):
        frames = sorted((folder / "sequence" / f"00000{i}").iterdir())
        assert [path.name for path in frames] == ["000000.png", "000001.png", "000002.png", "000003.png"]
        last = np.asarray(Image.open(frames[-1]))
        assert all(np.array_equal(last, Image.open(run / "img" / f"00000{i}.png")) for run in (folder, fp))
        for path, step in zip(frames, steps):
            frame = np.asarray(Image.open(path)).transpose(2, 0, 1).astype(np.int16)
            assert np.abs(frame - to_uint8(step.x_prev)[i].numpy()).max() <= 1


@pytest.mark.parametrize("changed", [{"rescaled": False}, {"rescaled": False, "logit_transform": True}])
def test_pixels_are_what_the_configuration_says(changed, config, tmp_path):
    other = OmegaConf.load(config)
    other.data.update(changed)
    other.model.weights = str(config.parent / other.model.weights)
    OmegaConf.save(other, tmp_path / "other.yml")
    folder = run(tmp_path / "other.yml", tmp_path / "run", "--sequence --max_images 1")
    *_, last = ddim(tiny_network(), *batch_noise(1234, [0], (3, 8, 8)))
    v = last.x_prev.sigmoid() if changed.get("logit_transform") else last.x_prev
    wanted = (255 * v.clamp(0, 1)).round().numpy().astype(np.int16)
    same_images(pixels(folder), wanted)
    frame = np.asarray(Image.open(folder / "sequence" / "000000" / "000003.png")).transpose(2, 0, 1)
    assert np.array_equal(frame, pixels(folder)[0]), "those of every step too"


def test_what_is_done_otherwise_than_asked_is_said(config, tmp_path):
    """6 does not divide 1,000: every 166th timestep is visited."""
    said, line = "--timesteps 6: 7 network calls per image, not 6", "--timesteps 6 --max_images 1"
    assert said in sample_script(*words(config, tmp_path, f"{line} --dry-run")).out.splitlines()
    assert sample_script(*words(config, tmp_path, line)).out.splitlines()[0] == said
    assert said in (tmp_path / "log.txt").read_text()
    text = Image.open(tmp_path / "img" / "000000.png").text
    assert text["sampler"] == "DDIM(steps=6, skip_type=uniform, eta=0.0), 7 network calls"
    assert text["seed"] == "1234, image 0" and text["bits"] == "not quantized" and text["precision"] == "full"


def test_more_images_later(config, fp, tmp_path):
    folder = run(config, tmp_path, "--max_images 3")
    assert len(files(folder / "img")) == 3
    before = times(folder / "img")
    run(config, folder)
    assert files(folder / "img") == files(fp / "img") or np.abs(pixels(folder) - pixels(fp)).max() <= 1
    assert times(folder / "img").items() >= before.items()


@pytest.mark.parametrize("line", ["", LINEAR])
def test_an_image_that_is_not_of_the_run_is_refused_before_any_work(line, config, tmp_path):
    folder = tmp_path / "run"
    (folder / "img").mkdir(parents=True)
    run(config, folder, f"{line} --max_images 1")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    foreign = folder / "img" / "000002.png"
    Image.new("RGB", (80, 80)).save(foreign)
    before = times(folder)
    ended = sample_script(*words(config, folder, line))
    assert ended.status == 2 and ended.err == (
        f"error: '{foreign}' is a different image (8-bit RGB, 80 x 80) than expected (8-bit RGB, 8 x 8): "
        "move or delete it, and run the same command again\n"
    )
    after = times(folder)
    assert {Path(name).name for name in after if after[name] != before.get(name)} <= {"log.txt", ".lock", "config.yaml"}
    foreign.unlink()
    run(config, folder, line)
    assert pixels(folder).shape == (IMAGES, 3, 8, 8)


def test_weights_of_a_flag_in_half_precision(config, tmp_path):
    weights = {key: x.half() for key, x in tiny_network().state_dict().items()}
    torch.save(weights, tmp_path / "w.pth")
    model = tiny_network()
    model.load_state_dict(weights)
    same_images(pixels(run(config, tmp_path / "run", f"--ckpt {tmp_path / 'w.pth'}")), expected(model))


def test_the_bundled_model(tmp_path):
    line = "--max_images 1 --timesteps 2"
    folder = run(REPOSITORY / "configs" / "emoji32.yml", tmp_path, line)
    assert pixels(folder).shape == (1, 3, 32, 32)
    assert pixels(folder).std() > 10


def test_as_a_program(config, fp, tmp_path):
    command = [sys.executable, SCRIPT, *words(config, tmp_path / "run", "--max_images 2")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"2 images in {tmp_path / 'run' / 'img'}")
    assert files(tmp_path / "run" / "img").items() <= files(fp / "img").items()
    text = refusal(config, tmp_path / "run", "--max_images 2 --eta 0.5")
    assert "eta was 0.0 and is 0.5 now" in text


# Quantized


@pytest.fixture(scope="module")
def learned(config, tmp_path_factory) -> Path:
    """The whole job, undisturbed."""
    return run(config, tmp_path_factory.mktemp("runs") / "learned", LEARN)


@pytest.fixture(scope="module")
def linear(config, tmp_path_factory) -> Path:
    return run(config, tmp_path_factory.mktemp("runs") / "linear", LINEAR)


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def quantized(folder: Path) -> Path:
    return folder / "quantized.safetensors"


FLAGS = {"weight_bit": 4, "act_bit": 8, "split": True}


def test_the_whole_job(learned):
    names = {path.name for path in learned.iterdir()}
    assert names == {
        ".lock",
        "config.yaml",
        "log.txt",
        "grid.png",
        "img",
        "journal",
        "calibration_data.safetensors",
    } | {"quantized.safetensors"}
    model = load_quantized(tiny_network(), quantized(learned), **FLAGS)
    same_images(pixels(learned), expected(model))
    assert (np.abs(pixels(learned) - expected(tiny_network())) > 3).mean() > 0.2
    log = (learned / "log.txt").read_text()
    assert log.count(": loss ") == 36 and "weights model.conv_in: loss" in log and "steps model.conv_out: loss" in log
    assert "18 blocks, 6 calibration samples" in log


def test_collected_data_are_inputs_of_the_sampling_trajectory(learned, linear):
    data = load_file(learned / "calibration_data.safetensors")
    assert data["input_1"].tolist() == [750, 750, 500, 250, 250, 0], "every second of 4 steps"
    images = [10**9, 10**9 + 1, 10**9 + 2]
    steps = list(ddim(tiny_network(), *batch_noise(1234, images, (3, 8, 8))))
    x = torch.cat([torch.cat([steps[i].x_t[:2], steps[i + 1].x_t[2:]]) for i in (0, 2)])
    torch.testing.assert_close(data["input_0"], x, rtol=1e-4, atol=1e-4)
    assert files(learned, "cal*") == files(linear, "cal*")


def test_linear_rounds_to_nearest(linear, learned):
    nearest, ours = (read_quantized(quantized(folder)).state for folder in (linear, learned))
    codes = [key for key in ours if key.endswith(".codes")]
    weights = tiny_network().state_dict()
    for key in codes:
        w = weights[key.removeprefix("model.").replace(".codes", ".weight")]
        layer = key.removesuffix(".codes")
        if f"{layer}.weight_quantizer.delta" in nearest:
            low, high = (x.clamp(max=0) if i == 0 else x.clamp(min=0) for i, x in enumerate(_ends(w)))
            delta = ((high - low) / 15).view(-1, *[1] * (w.ndim - 1))
            exact = ((w / delta).round() + (-low.view_as(delta) / delta).round()).clamp(0, 15)
            assert (nearest[key] != exact).float().mean() < 1e-3, key
    changed = sum((nearest[key] != ours[key]).sum().item() for key in codes)
    assert changed > 1000, "learned rounding decides otherwise"


def _ends(w: Tensor) -> tuple[Tensor, Tensor]:
    return w.flatten(1).amin(1), w.flatten(1).amax(1)


def test_learned_is_closer_to_full_precision_than_linear(learned, linear):
    """The outputs at 4-bit weights; images of random weights need not be that close."""
    stored = load_file(learned / "calibration_data.safetensors")
    data = stored["input_0"], stored["input_1"]
    with torch.no_grad():
        wanted = tiny_network()(*data)
        errors = [
            (load_quantized(tiny_network(), quantized(folder), weight_bit=4, split=True)(*data) - wanted)
            .square()
            .mean()
            for folder in (learned, linear)
        ]
    assert errors[0] < 0.95 * errors[1]


def test_weights_rounded_without_data(config, tmp_path):
    line = "--ptq --weight_bit 4 --split --quant_mode squant --batch_size 1"
    folder = run(config, tmp_path / "run", line)
    assert not {"calibration_data.safetensors", "journal"} & {path.name for path in folder.iterdir()}
    model = load_quantized(tiny_network(), quantized(folder), weight_bit=4, split=True)
    assert_squant(model, tiny_network())
    same_images(pixels(folder), expected(model))
    other = line.replace("squant", "linear")
    assert "flags.quant_mode was 'squant' and is 'linear' now" in refusal(config, folder, other)
    (tmp_path / "other").mkdir()
    shutil.copy(quantized(folder), tmp_path / "other")
    assert "was calibrated with other settings: give another folder" in refusal(config, tmp_path / "other", other)


def test_activations_of_weights_rounded_without_data(config, linear, tmp_path):
    """They have the ranges that they have with linear weights; their biases may be corrected."""
    folder = run(config, tmp_path, f"{LINEAR.replace('linear', 'squant')} --correct_bias --cali_spectrum_n 0")
    assert_squant(load_quantized(tiny_network(), quantized(folder), **FLAGS), tiny_network())
    ours, theirs = (read_quantized(quantized(x)) for x in (folder, linear))
    assert ours.policy == theirs.policy
    bias = "model.conv_in.bias"
    assert not torch.equal(ours.state[bias], theirs.state[bias])
    first = "model.conv_in.act_quantizer.delta"  # of the input, which no weight changes
    assert torch.equal(ours.state[first], theirs.state[first])


def test_without_split_and_without_activations(config, tmp_path):
    line = f"--ptq --weight_bit 4 {DATA} --cali_iters 2 --max_images 2"
    folder = run(config, tmp_path, line)
    file = read_quantized(quantized(folder))
    assert (file.splits, file.policy.act, file.policy.weight.bits) == ({}, None, 4)
    units = sorted(path.stem for path in (folder / "journal").glob("*.safetensors"))
    assert units == [f"weights-{i:03d}" for i in range(18)]


def test_the_same_command_again_does_nothing_new(config, learned, tmp_path):
    folder = shutil.copytree(learned, tmp_path / "copy")
    before = times(folder)
    run(config, folder, LEARN)
    after = times(folder)
    changed = {Path(name).name for name in after if after[name] != before.get(name)}
    assert changed <= {"config.yaml", "log.txt", "grid.png", ".lock"}
    assert (folder / "grid.png").read_bytes() == (learned / "grid.png").read_bytes()


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (f"{LEARN} --seed 3", "seed was 1234 and is 3 now"),
        (LEARN.replace("--weight_bit 4", "--weight_bit 8"), "weight_bit was 4 and is 8 now"),
        (LEARN.replace("--split", ""), "split was True and is False now"),
        (f"{LEARN} --timesteps 5", "timesteps was 4 and is 5 now"),
        ("", "ptq was True and is False now"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(line, change, config, learned):
    before = times(learned)
    text = refusal(config, learned, line)
    assert change in text and "another folder with -l" in text
    after = times(learned)
    assert {name for name in after if after[name] != before.get(name)} <= {
        str(learned / "log.txt"),
        str(learned / ".lock"),
    }


def test_resume_with_our_file_needs_nothing_else(learned, tmp_path):
    bare = tiny_config()
    OmegaConf.save(bare, tmp_path / "bare.yml")  # names no weights
    copied = shutil.copy(quantized(learned), tmp_path / "q")
    folder = run(tmp_path / "bare.yml", tmp_path / "run", f"{ACT} --resume --cali_ckpt {copied} --batch_size 1")
    assert files(folder / "img") == files(learned / "img")
    assert not quantized(folder).exists() and not (folder / "journal").exists()


def test_resume_with_the_weights_alone(config, learned, tmp_path):
    line = f"--ptq --weight_bit 4 --split --resume --cali_ckpt {quantized(learned)}"
    model = load_quantized(tiny_network(), quantized(learned), weight_bit=4, split=True)
    same_images(pixels(run(config, tmp_path / "run", line)), expected(model))


@pytest.mark.parametrize("name", [W4A8_SPLIT, W8A8])
def test_resume_with_a_file_of_the_original(name, tmp_path):
    original = original_checkpoint(name)
    bare, s = original.config, original.case.settings
    bare.diffusion.beta_end = tiny_config().diffusion.beta_end
    OmegaConf.save(bare, tmp_path / "bare.yml")
    torch.save(original.state, tmp_path / "ckpt.pth")
    line = f"--ptq --weight_bit {s.weight_bit} {'--split' if s.split else ''} --resume --batch_size 1 --max_images 2"
    line += f" --quant_act --act_bit {s.act_bit} {'--a_sym' if s.a_sym else ''} --sm_abit {s.sm_abit}"
    folder = run(tmp_path / "bare.yml", tmp_path / "run", f"{line} --cali_ckpt {tmp_path / 'ckpt.pth'}")
    model = load_quantized(original.network(), tmp_path / "ckpt.pth", **original.flags())
    same_images(pixels(folder), expected(model, shape=(3, 16, 16), images=2))


def test_resume_with_another_file_is_refused(config, learned, tmp_path):
    line = f"{ACT} --resume --cali_ckpt "
    assert "weights of 4 bits" in refusal(config, tmp_path, line.replace("_bit 4", "_bit 8") + str(quantized(learned)))
    assert "cannot read" in refusal(config, tmp_path / "b", line + str(tmp_path / "missing"))
    fp = config.parent / "tiny.safetensors"
    assert "full-precision checkpoint" in refusal(config, tmp_path / "c", line + str(fp))
    assert "add it" in refusal(config, tmp_path / "d", line.replace("--split", "") + str(quantized(learned)))


def test_activations_calibrated_on_calibrated_weights(config, learned, tmp_path):
    line = f"{LEARN} --running_stat --sm_abit 16 --resume_w --cali_ckpt {quantized(learned)}"
    folder = run(config, tmp_path, line)
    before, file = read_quantized(quantized(learned)), read_quantized(quantized(folder))
    assert file.policy.softmax_bits == 16
    for key, x in before.state.items():
        if "act_quantizer" not in key:
            assert torch.equal(file.state[key], x), key
    ranges = load_file(folder / "journal" / "ranges.safetensors")
    steps = [key for key in ranges if key.endswith(".delta")]
    softmax = [key for key in steps if "act_quantizer_w" in key]
    assert len(softmax) == 4 and all(torch.equal(file.state[key], ranges[key]) for key in softmax)
    assert sum(not torch.equal(file.state[key], ranges[key]) for key in steps) > 10
    units = {path.stem.partition("-")[0] for path in (folder / "journal").glob("*.safetensors")}
    assert units == {"ranges", "steps"}
    model = load_quantized(tiny_network(), quantized(folder), **FLAGS, sm_abit=16)
    same_images(pixels(folder), expected(model))


def test_data_of_the_original(config, linear, tmp_path):
    """A file with the same samples at their places among others gives the same quantized file."""
    data = load_file(linear / "calibration_data.safetensors")
    other, never = torch.full((5, 3, 8, 8), torch.nan), torch.full((5,), -1)
    xs, ts = [other.clone() for _ in range(4)], [never.clone() for _ in range(4)]
    for group, step in enumerate((0, 2)):
        samples = slice(3 * group, 3 * group + 3)
        xs[step][:3], ts[step][:3] = data["input_0"][samples], data["input_1"][samples]
    torch.save({"xs": xs, "ts": ts}, tmp_path / "data.pt")
    folder = run(config, tmp_path / "run", f"{LINEAR} --cali_data_path {tmp_path / 'data.pt'}")
    assert quantized(folder).read_bytes() == quantized(linear).read_bytes()
    assert files(folder / "img") == files(linear / "img")
    torch.save({"xs": xs[:3], "ts": ts[:3]}, tmp_path / "data.pt")
    assert "cali_data_path" in refusal(config, folder, f"{LINEAR} --cali_data_path {tmp_path / 'data.pt'}")


def test_data_of_dpm_solver_have_its_timesteps(config, tmp_path):
    folder = run(config, tmp_path, f"{LINEAR} --sample_type dpm_solver --cali_st 4 --max_images 1")
    steps = dpm_solver(lambda x, t: x, torch.zeros(1, 1), ABAR, 4, order=3, method="singlestep")
    ts = load_file(folder / "calibration_data.safetensors")["input_1"].view(4, 3)
    assert ts.tolist() == [[pytest.approx(step.t)] * 3 for step in steps]
    assert (ts % 1 > 0).any()


# Killed


def start(argv: list[str]) -> None:
    tqdm.set_lock(threading.RLock())  # not one of several processes, which kills would leak
    sys.exit(sample_script(*argv).status)


def wait_for(change: Callable[[], bool], process) -> None:
    while process.is_alive() and not change():
        time.sleep(0.002)


def test_killed_at_any_moment_the_same_command_ends_the_same(config, learned, tmp_path):
    context = forkserver()
    folder, rng, moments = tmp_path / "run", random.Random(0), []
    wanted = files(learned / "journal", "*.safetensors")
    argv = words(config, folder, LEARN)

    def count(pattern: str) -> int:
        return len(list(folder.glob(pattern)))

    stages = [("config.yaml", 0.1), ("[cj]o*/*.safetensors", 0.01)]  # collecting, or already the journal
    for pattern, most in stages + [("journal/*.safetensors", 0.1)] * 3 + [("img/*.png", 0.01)] * 2:
        process = context.Process(target=start, args=(argv,))
        process.start()
        before = count(pattern)
        wait_for(lambda: count(pattern) > before, process)  # noqa: B023 - called at once
        process.join(rng.uniform(0, most))
        process.kill()
        process.join()
        moments.append("sampling" if quantized(folder).exists() else "calibrating")
        assert process.exitcode == -9, "it ended before it was killed"
        assert files(folder / "journal", "*.safetensors").items() <= wanted.items()
        assert files(folder / "img").items() <= files(learned / "img").items()
        assert not quantized(folder).exists() or quantized(folder).read_bytes() == quantized(learned).read_bytes()
    assert moments.count("calibrating") >= 3 and moments.count("sampling") >= 2
    run(config, folder, LEARN)
    assert quantized(folder).read_bytes() == quantized(learned).read_bytes()
    assert files(folder) == files(learned)
    assert (folder / "calibration_data.safetensors").read_bytes() == (
        learned / "calibration_data.safetensors"
    ).read_bytes()
    assert not (folder / "collecting").exists()
    left = [path for path in folder.rglob("*") if PARTIAL in path.name or "captured" in path.name]
    assert left == []


# The plan


def test_dry_run_writes_nothing_and_needs_no_weights(tmp_path, monkeypatch):
    OmegaConf.save(tiny_config(), tmp_path / "bare.yml")
    monkeypatch.chdir(tmp_path)
    for line, blocks in ((LEARN, 18), (LINEAR, 0), ("", 0)):
        ended = sample_script(*words(tmp_path / "bare.yml", tmp_path / "run", f"{line} --dry-run"))
        assert (ended.status, ended.err) == (0, "")
        assert f"{sum(p.numel() for p in tiny_network().parameters()):,} parameters on cpu" in ended.out
        assert f"sampling: {IMAGES} images, 4 steps" in ended.out
        assert ended.out.count(" MiB ") == blocks
        assert ("18 blocks, 6 calibration samples" in ended.out) == bool(blocks)
    assert [path.name for path in tmp_path.iterdir()] == ["bare.yml"]


def test_dry_run_reads_the_calibrated_file(config, learned, tmp_path):
    line = f"{ACT} --dry-run --resume --cali_ckpt"
    ended = sample_script(*words(config, tmp_path / "run", f"{line} {quantized(learned)}"))
    assert (ended.status, ended.err) == (0, "") and f"calibrated weights: {quantized(learned)}" in ended.out
    (tmp_path / "cut").write_bytes(quantized(learned).read_bytes()[:-9])
    assert f"'{tmp_path / 'cut'}'" in refusal(config, tmp_path / "run", f"{line} {tmp_path / 'cut'}")
    for flag, other in (("--resume", "--weight_bit 8"), ("--resume_w", "--weight_bit 8")):
        line = f"{LEARN} --dry-run {flag} --cali_ckpt {quantized(learned)} {other}"
        assert "--weight_bit" in refusal(config, tmp_path / "run", line)
    assert not (tmp_path / "run").exists()


# Input that is wrong


def test_wrong_input_is_one_line(config, tmp_path):
    good = tiny_network().state_dict()
    bad = good | {"conv_in.bias": torch.full_like(good["conv_in.bias"], torch.nan)}
    save_file(bad, tmp_path / "nan.safetensors")
    assert "'conv_in.bias' holds nan" in refusal(config, tmp_path / "a", f"--ckpt {tmp_path / 'nan.safetensors'}")
    other = tiny_config()
    other.model.ch_mult = [1, 1]
    OmegaConf.save(other, tmp_path / "other.yml")
    weights = config.parent / "tiny.safetensors"
    assert "does not fit the network" in refusal(tmp_path / "other.yml", tmp_path / "b", f"--ckpt {weights}")
    assert "names no weights: give weights=... (on the command line, --ckpt FILE" in refusal(
        tmp_path / "other.yml", tmp_path / "c"
    )
    assert "cannot read" in refusal(tmp_path / "missing.yml", tmp_path / "d")
    assert "cannot read" in refusal(config, tmp_path / "e", f"--ckpt {tmp_path / 'missing.pth'}")
    assert "--timesteps 1001" in refusal(config, tmp_path / "f", "--timesteps 1001")
    for name, change, line, said in (
        ("sigma", {"model.out_ch": 6}, "--dry-run", "learned variances (learn_sigma) are not available"),
        (
            "logit",
            {"data.logit_transform": True, "data.rescaled": False},
            "--sample_type ddpm_noisy",
            "clips x to -1..1",
        ),
        ("jsd", {"diffusion.beta_schedule": "jsd"}, "--timesteps 1000 --dry-run", "strictly within (0, 1)"),
    ):
        other = tiny_config()
        for key, value in change.items():
            OmegaConf.update(other, key, value)
        OmegaConf.save(other, tmp_path / f"{name}.yml")
        assert said in refusal(tmp_path / f"{name}.yml", tmp_path / name, line)
        assert not (tmp_path / name).exists()
    assert "unknown flag --wieght_bit: did you mean --weight_bit" in refusal(config, tmp_path / "g", "--wieght_bit 4")


def test_weights_that_overflow_stop_before_any_image(config, tmp_path):
    huge = {key: x * 1e20 for key, x in tiny_network().state_dict().items()}
    save_file(huge, tmp_path / "huge.safetensors")
    line = f"--ckpt {tmp_path / 'huge.safetensors'}"
    assert "image 0 is not finite" in refusal(config, tmp_path / "a", line)
    assert "not finite: check the weights" in refusal(config, tmp_path / "b", f"{line} {LEARN}")
    with contextlib.suppress(FileNotFoundError):
        assert files(tmp_path / "b") == {}
