"""Pipelines that a backend computes: `with_backend`, `load_pipeline(backend=)`, `--backend`; and what they refuse."""

from pathlib import Path

import pytest
import torch
from torch import nn

import qdiff
from qdiff import backends
from qdiff.backends import BACKENDS, Backend
from qdiff.calls import Call
from qdiff.checkpoints.load import load_quantized
from qdiff.errors import UserError
from qdiff.pipelines.pipeline import Pipeline
from qdiff.quant_model import QuantModel
from tests.ldm.tiny import CLASSES, write_latent
from tests.tiny import sample_script, tiny_network, write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")
LINEAR = {"weight_bits": 4, "act_bits": 8, "split": True, "method": "linear", "timesteps": 2, "samples": 2}


class Negated(nn.Module):
    """Predicts the opposite of a network, so that it is told who predicts."""

    def __init__(self, model: QuantModel):
        super().__init__()
        self.model = model

    def forward(self, *args: object) -> torch.Tensor:
        return -self.model(*args)


@pytest.fixture(autouse=True)
def negating(monkeypatch):
    """A backend that this machine has, in the place of PyTorch's."""
    made = Backend(lambda model, example: (Negated(model), ["some of it"]), lambda: None)
    monkeypatch.setitem(BACKENDS, "torch", made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny(path)
    return path


@pytest.fixture(scope="module")
def pixel(folder) -> Pipeline:
    return qdiff.load_pipeline(folder / "tiny.yml", steps=3, device="cpu", eta=0.5, batch_size=2)


@pytest.fixture(scope="module")
def quantized(pixel) -> Pipeline:
    return qdiff.quantize(pixel, **LINEAR)


def test_sampling_calls_what_the_backend_made(pixel, quantized):
    executed = quantized.with_backend("torch")
    expected = quantized.with_network(Negated(quantized.network)).sample(3).tensor
    assert torch.equal(executed.sample(3).tensor, expected)
    assert not torch.equal(expected, quantized.sample(3).tensor), "the pipeline that it is from has not changed"
    assert (executed.execution.backend, executed.execution.report[0]) == ("torch", "some of it")
    assert quantized.execution is None


def test_the_network_is_described_without_its_values(quantized):
    executed = quantized.with_backend("torch")
    assert isinstance(executed.network, QuantModel) and executed.is_quantized
    assert all(x.is_meta for x in [*executed.network.parameters(), *executed.network.buffers()])
    assert executed.bops() == quantized.bops()
    assert "W4A8, split" in repr(executed)


def test_latent_models(tmp_path):
    write_latent(CLASSES, tmp_path)
    pipe = qdiff.load_pipeline(tmp_path, steps=4, device="cpu", scale=2.0)
    quantized = qdiff.quantize(pipe, **LINEAR)
    executed = quantized.with_backend("torch")
    expected = quantized.with_network(Negated(quantized.network)).sample(2).tensor
    assert torch.equal(executed.sample(2).tensor, expected)
    assert executed.bops() == quantized.bops()


def test_a_correction_stays_and_may_come_later(pixel, quantized):
    corrected = qdiff.correct(quantized, pixel, images=4)
    executed = corrected.with_backend("torch")
    assert executed.correction is corrected.correction
    later = quantized.with_backend("torch").with_correction(corrected.correction)
    assert torch.equal(later.sample(2).tensor, executed.sample(2).tensor)
    assert torch.equal(executed.with_sampling(seed=3).sample(2).tensor, later.sample(2, seed=3).tensor)


def test_a_file_is_loaded_for_a_backend(folder, tmp_path, quantized):
    quantized.save(tmp_path / "q.safetensors")
    settings = {"steps": 3, "eta": 0.5, "batch_size": 2, "device": "cpu", "quantized": tmp_path / "q.safetensors"}
    executed = qdiff.load_pipeline(folder / "tiny.yml", backend="torch", **settings)
    assert torch.equal(executed.sample(2).tensor, quantized.with_backend("torch").sample(2).tensor)
    with pytest.raises(ValueError, match=r"backend='torch' needs a quantized file: give quantized=\.\.\."):
        qdiff.load_pipeline(folder / "tiny.yml", backend="torch")
    with pytest.raises(ValueError, match="backend must be one of simulated, "):
        qdiff.load_pipeline(folder / "tiny.yml", backend="tensorrt", **settings)


def test_what_needs_values_is_refused(pixel, quantized, tmp_path):
    executed = quantized.with_backend("torch")
    for call in (lambda: executed.save(tmp_path / "x.safetensors"), lambda: executed.with_backend("torch")):
        with pytest.raises(ValueError, match="the network is executed by 'torch': use the pipeline that it is from"):
            call()
    assert not (tmp_path / "x.safetensors").exists()
    with pytest.raises(ValueError, match="full precision"):
        pixel.with_backend("torch")
    with pytest.raises(ValueError, match="backend must be one of"):
        quantized.with_backend("tensorrt")


def test_low_precision_is_refused(tmp_path):
    write_latent(CLASSES, tmp_path)
    pipe = qdiff.load_pipeline(tmp_path, steps=4, device="cpu", precision="bf16")
    with pytest.raises(UserError, match="--backend and --precision bf16 exclude each other"):
        qdiff.quantize(pipe, **LINEAR).with_backend("torch")


def words(folder: Path, out: Path, *more: object) -> list[object]:
    data = ("--timesteps", 3, "--max_images", 2, "--batch_size", 2, "--cali_st", 2, "--cali_n", 2)
    quantization = ("--ptq", "--quant_mode", "linear", "--weight_bit", 4, "--quant_act", "--split")
    return ["--config", folder / "tiny.yml", "-l", out, "--device", "cpu", *data, *quantization, *more]


def test_the_scripts_sample_with_a_backend_and_record_it(folder, tmp_path):
    out = tmp_path / "run"
    ended = sample_script(*words(folder, out, "--backend", "torch"))
    assert ended.status == 0, ended.err
    assert "backend torch:\n  some of it\n" in ended.out
    assert "backend: torch" in (out / "config.yaml").read_text()
    other = sample_script(*words(folder, out))
    assert other.status == 2 and "backend" in other.err and other.err.count("\n") == 1
    file = ("--resume", "--cali_ckpt", out / "quantized.safetensors")
    loaded = sample_script(*words(folder, tmp_path / "again", "--backend", "torch", *file))
    assert loaded.status == 0, loaded.err
    for name in ("000000.png", "000001.png"):
        assert (tmp_path / "again" / "img" / name).read_bytes() == (out / "img" / name).read_bytes()


def test_auto_is_recorded_as_what_it_means(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKENDS, "openvino", Backend(BACKENDS["openvino"].make, lambda: "not installed"))
    ended = sample_script(*words(folder, tmp_path / "run", "--backend", "auto"))
    assert ended.status == 0, ended.err
    assert "backend: torch" in (tmp_path / "run" / "config.yaml").read_text()
    again = sample_script(*words(folder, tmp_path / "run", "--backend", "torch"))
    assert again.status == 0, again.err


def test_a_run_is_made_again_where_its_backend_is_missing(folder, tmp_path, monkeypatch):
    assert sample_script(*words(folder, tmp_path / "run", "--backend", "torch")).status == 0
    monkeypatch.setitem(BACKENDS, "torch", Backend(BACKENDS["torch"].make, lambda: "not on this machine"))
    again = qdiff.load_run(tmp_path / "run", device="cpu").load()
    assert again.is_quantized and again.execution is None, "simulated"


def test_a_simulated_run_records_nothing_of_it(folder, tmp_path):
    """So that runs of earlier versions resume."""
    assert sample_script(*words(folder, tmp_path / "run")).status == 0
    recorded = (tmp_path / "run" / "config.yaml").read_text()
    assert not [name for name in ("backend", "w_sym", "preset") if name in recorded]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--backend", "tensorrt"], "'tensorrt' is unknown"),
        (["--backend", "openvino"], "--backend openvino: pip install it"),
        (["--backend", "onnxruntime", "--act_groups", 2], "--backend onnxruntime serves no activations with bits or"),
    ],
)
def test_bad_backends_are_one_line(more, message, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKENDS, "openvino", Backend(BACKENDS["openvino"].make, lambda: "pip install it"))
    monkeypatch.setitem(BACKENDS, "onnxruntime", Backend(BACKENDS["onnxruntime"].make, lambda: None))
    ended = sample_script(*words(folder, tmp_path / "run", *more))
    assert ended.status == 2 and message in ended.err and ended.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.png"))


def test_load_quantized_executes(tmp_path, quantized, monkeypatch):
    monkeypatch.undo()
    if missing := backends.BACKENDS["torch"].lacking():
        pytest.skip(missing)
    quantized.save(tmp_path / "q.safetensors")
    flags = {"weight_bit": 4, "act_bit": 8, "split": True}
    executed = load_quantized(tiny_network(), tmp_path / "q.safetensors", **flags, backend="torch")
    simulated = load_quantized(tiny_network(), tmp_path / "q.safetensors", **flags)
    call = Call((torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 700])))
    with torch.no_grad():
        found, expected = call(executed), call(simulated)
    assert not executed.layers() and (found - expected).norm() < 0.2 * expected.norm()
    with pytest.raises(ValueError, match="backend must be one of simulated, torch"):
        load_quantized(tiny_network(), tmp_path / "q.safetensors", **flags, backend="openvino")
