"""Training of a first stage and of a latent model: the losses against their formulas, the scripts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributions import Normal, kl_divergence

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from qdiff.adapters.ldm.models import build
from qdiff.errors import UserError
from qdiff.training.conditioning import Categories, Names
from qdiff.training.first_stage import Autoencoder, edges, kl_to_standard_normal
from qdiff.training.images import ImageDataset
from qdiff.training.job import TrainingJob
from qdiff.training.latent import Conditional, encode, train
from qdiff.training.trainer import ema_weights
from tests.command_line import script
from tests.golden_networks import load_case
from tests.ldm.tiny_text import ENCODER, TOKENS

OPTIM = {"lr": 1e-3, "weight_decay": 0.0, "beta1": 0.9, "eps": 1e-8, "grad_clip": 1.0}
COMMON = {"batch_size": 4, "n_iters": 4, "snapshot_freq": 2, "warmup": 1, "ema_rate": 0.5}
CATEGORIES = ["blues", "reds"]
NO_CLASS = 2


def write_inputs(folder: Path) -> Path:
    """Write images of two categories, and a small latent model of three classes, the last being the null class."""
    config = load_case("ldm_class_w4a8").settings.config
    params = config.model.params
    params.image_size, params.scale_by_std = 8, True
    params.cond_stage_config.params.update(n_classes=3, null_class=NO_CLASS)
    params.unet_config.params.attention_resolutions = [2]
    stage = params.first_stage_config
    stage.target, ddconfig = "ldm.models.autoencoder.AutoencoderKL", stage.params.ddconfig
    del stage.params.n_embed
    ddconfig.double_z, ddconfig.resolution = True, 16
    config.classes = CATEGORIES
    config.first_stage = {"training": COMMON | {"kl_weight": 1e-4, "edge_weight": 1.0}, "optim": OPTIM}
    config.training = COMMON | {"weight_limit": 2, "scale_base": 1, "drop_condition": 0.5}
    config.optim = OPTIM
    OmegaConf.save(config, folder / "c.yaml")
    images = np.zeros((8, 16, 16, 3), dtype=np.uint8)
    images[::2, 4:12, :, 0] = 255
    images[1::2, 2:6, 4:, 2] = 255
    category = np.array(["reds", "blues"] * 4)
    np.savez(folder / "data.npz", images=images, names=category, category=category)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_inputs(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Train a first stage and a model with the scripts, in a folder of inputs."""
    folder = write_inputs(tmp_path_factory.mktemp("trained"))
    first = folder / "first.safetensors"
    start(folder, "train_first_stage.py", "--out", first)
    start(folder, "train_ldm.py", "--first_stage", first, "--out", folder / "model")
    return folder


def job(folder: Path, **options) -> TrainingJob:
    return TrainingJob(folder / "c.yaml", folder / "data.npz", folder / "run", folder / "out", **options)


def start(folder: Path, name: str, *words: object) -> None:
    inputs = "--config", folder / "c.yaml", "--data", folder / "data.npz", "--run", folder / f"run_{name}"
    ended = script(name, *inputs, *words)
    assert ended.status == 0, ended.err


def test_a_first_stage_then_a_model_that_can_be_sampled(trained, tmp_path):
    folder = trained
    first, state = load_file(folder / "first.safetensors"), load_file(folder / "model" / "model.safetensors")
    assert {x.dtype for x in first.values()} == {torch.float16}
    for key, x in first.items():
        assert torch.equal(state[f"first_stage_model.{key}"], x), "the first stage stays as it was"
    config = OmegaConf.load(folder / "model" / "config.yaml")
    assert config.classes == CATEGORIES and set(config) == {"model", "classes"}
    model = build(config)
    assert state.keys() == model.state_dict().keys()
    model.load_state_dict(state)
    schedule = build(config).alphas_cumprod
    assert state["alphas_cumprod"].dtype == torch.float32 and torch.equal(state["alphas_cumprod"], schedule)
    with np.load(folder / "data.npz") as archive:
        x = torch.tensor(archive["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    z = encode(model.first_stage_model, torch.cat([x, x.flip(-1)])) * model.scale_factor
    assert z.std().item() == pytest.approx(1, abs=1e-3)
    averaged = ema_weights(folder / "run_train_ldm.py" / "last.ckpt")
    for key, x in averaged.items():
        assert torch.equal(state[key.removeprefix("model.")], x.half()), "what was trained is what is written"
    again = tmp_path / "again"
    train_again(folder, again, folder / "first.safetensors")
    assert (again / "model.safetensors").read_bytes() == (folder / "model" / "model.safetensors").read_bytes()
    line = f"-r {folder / 'model'} -l {tmp_path / 'out'} --seed 1 -n 2 -c 2 --scale 2"
    assert script("sample_diffusion_ldm.py", *line.split()).status == 0
    assert len(list((tmp_path / "out" / "img").iterdir())) == 2


def test_categories_of_other_images_are_refused(folder):
    config = OmegaConf.load(folder / "c.yaml")
    config.classes = ["reds", "blues"]  # labels count in alphabetical order
    OmegaConf.save(config, folder / "c.yaml")
    first = build(config).first_stage_model.state_dict()
    torch.save(first, folder / "first.pth")
    with pytest.raises(UserError, match=r"has the categories \['blues', 'reds'\]"):
        train(job(folder), folder / "first.pth")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training", None, "has no section 'training'"),
        ("training.drop_condition", "much", "training.drop_condition is wrong"),
        ("training.n_iters", 0, "training.n_iters is 0: make it at least 1"),
        ("optim", {"lr": 1e-3}, "lacks optim.weight_decay"),
        ("model.params.use_ema", True, "use_ema must be false"),
        ("model.params.scale_by_std", False, "scale_by_std must be true"),
        ("model.params.cond_stage_config.params.n_classes", 4, "n_classes is 4, make it 3"),
        ("model.params.cond_stage_config.params.null_class", None, "names no null class"),
        ("model.params.first_stage_config.params.ddconfig.in_channels", 1, "images in colour"),
        ("classes", [], "must name its `classes`"),
        ("classes", None, "must name its `classes`"),
        ("classes", "blues", "classes is not a list of names"),
    ],
)
def test_configurations_that_are_refused(key, value, said, folder):
    config = OmegaConf.load(folder / "c.yaml")
    OmegaConf.update(config, key, value, merge=False)
    OmegaConf.save(config, folder / "c.yaml")
    with pytest.raises(UserError, match=said):
        train(job(folder), folder / "f")
    assert not (folder / "out").exists() and not (folder / "run").exists()


def test_a_training_does_not_go_on_with_other_latents(trained, tmp_path):
    changed = {key: 2 * x for key, x in load_file(trained / "first.safetensors").items()}
    torch.save(changed, tmp_path / "other.pth")
    with pytest.raises(UserError, match="has other latents"):
        train_again(trained, tmp_path / "again", tmp_path / "other.pth")


def test_a_model_starts_as_the_unet_of_another(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "qdiff.training.latent.fit_as_configured", lambda denoiser, *a, **kw: denoiser.model.state_dict()
    )
    written = trained / "model" / "model.safetensors"
    text_inputs(tmp_path)
    train(job(tmp_path, init=written, seed=5), trained / "first.safetensors")
    before, after = load_file(written), load_file(tmp_path / "out" / "model.safetensors")
    unet = [key for key in before if key.startswith("model.")]
    assert unet and all(torch.equal(before[key], after[key]) for key in unet)


def test_a_text_model_is_trained_with_its_encoder_and_vocabulary(trained, tmp_path):
    config, _ = text_inputs(tmp_path)
    train(job(tmp_path), trained / "first.safetensors")
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["config.yaml", "merges.txt", "model.safetensors", "vocab.json"]
    state = load_file(out / "model.safetensors")
    torch.manual_seed(0)
    drawn = build(OmegaConf.load(config)).state_dict()
    encoder = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(state[encoder], drawn[encoder].half())
    line = f"--config {out / 'config.yaml'} --ckpt {out / 'model.safetensors'} --prompt reds --outdir {tmp_path / 's'} "
    line += "--plms --H 16 --W 16 --f 2 --C 3 --ddim_steps 2 --n_samples 2 --n_iter 1"
    ended = script("txt2img.py", *line.split())
    assert ended.status == 0, ended.err
    assert len(list((tmp_path / "s" / "img").iterdir())) == 2


@pytest.mark.parametrize(("size", "said"), [(300, "make vocab_size 514"), (9999, "make vocab_size 5")])
def test_vocabularies_that_are_refused(size, said, tmp_path):
    text_inputs(tmp_path, size)
    with pytest.raises(UserError, match=said):
        train(job(tmp_path), tmp_path / "f")


def text_inputs(folder: Path, size: int = 517) -> tuple[Path, Path]:
    """Write inputs for a model with a text encoder instead of classes."""
    write_inputs(folder)
    config = OmegaConf.load(folder / "c.yaml")
    width = config.model.params.unet_config.params.context_dim
    config.model.params.cond_stage_config = {
        "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
        "params": {"max_length": TOKENS, "config": ENCODER | {"hidden_size": width, "vocab_size": size}},
    }
    del config.classes
    OmegaConf.save(config, folder / "c.yaml")
    return folder / "c.yaml", folder / "data.npz"


def train_again(folder: Path, out: Path, first_stage: Path) -> None:
    train(replace(job(folder), run=folder / "run_train_ldm.py", out=out), first_stage)


def test_names_are_tokens_and_the_empty_name_is_the_null_condition(tmp_path):
    config, data = text_inputs(tmp_path)
    latent, dataset = build(OmegaConf.load(config)), ImageDataset(data, 16)
    names = Names(latent.cond_stage_model, dataset, tmp_path / "vocabulary", None)
    tokens = names.of(dataset)
    start_of_text, end = 515, 516
    assert tokens.shape == (8, TOKENS) and (tokens[:, 0] == start_of_text).all()
    assert torch.equal(tokens[0], tokens[2]) and not torch.equal(tokens[0], tokens[1])
    assert names.null.tolist() == [start_of_text] + [end] * (TOKENS - 1)
    assert torch.equal(names.embed(tokens), latent.get_learned_conditioning(dataset.names))


def test_a_text_encoder_goes_on_with_the_vocabulary_of_the_model_that_it_starts_as(tmp_path):
    config, data = text_inputs(tmp_path)
    first, dataset = build(OmegaConf.load(config)), ImageDataset(data, 16)
    learned = Names(first.cond_stage_model, dataset, tmp_path / "first", None)
    save_file(first.state_dict(), tmp_path / "first" / "model.safetensors")
    dataset.names = ["quite", "other", "words"] * 3
    second = build(OmegaConf.load(config))
    names = Names(second.cond_stage_model, dataset, tmp_path / "second", tmp_path / "first" / "model.safetensors")
    for file, other in zip(names.files, learned.files, strict=True):
        assert file.parent != other.parent and file.read_bytes() == other.read_bytes()
    tokens = names.of(dataset)
    assert torch.equal(names.embed(tokens), learned.embed(tokens))


def test_a_vocabulary_is_made_where_none_of_the_layout_lies_beside(tmp_path):
    config, data = text_inputs(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")  # the other layout of a tokenizer, in one file
    latent, dataset = build(OmegaConf.load(config)), ImageDataset(data, 16)
    names = Names(latent.cond_stage_model, dataset, tmp_path / "made", tmp_path / "model.safetensors")
    assert all(file.is_file() for file in names.files)


def test_classes_are_dropped_in_training_alone(folder):
    torch.manual_seed(0)
    config = OmegaConf.load(folder / "c.yaml")
    latent: LatentDiffusion = build(config)
    given = []
    latent.cond_stage_model.register_forward_pre_hook(lambda module, args: given.append(args[0]["class_label"]))
    model = Conditional(latent, Categories(latent.cond_stage_model, config, folder / "c.yaml"), drop=0.25)
    x, t, label = torch.randn(400, 3, 8, 8), torch.zeros(400).long(), torch.ones(400).long()
    with torch.no_grad():
        model(x, t, label)
        evaluated = model.eval()(x[:2], t[:2], label[:2])
    dropped = (given[0] == NO_CLASS).float().mean().item()
    assert set(given[0].tolist()) == {1, NO_CLASS} and dropped == pytest.approx(0.25, abs=0.08)
    assert given[1].tolist() == [1, 1] and label.unique().tolist() == [1]
    with torch.no_grad():
        context = latent.get_learned_conditioning({"class_label": label[:2]})
        assert torch.equal(evaluated, latent.apply_model(x[:2], t[:2], context))


def test_any_class_may_be_the_null_class(folder):
    config = OmegaConf.load(folder / "c.yaml")
    config.model.params.cond_stage_config.params.null_class = 1
    latent, dataset = build(config), ImageDataset(folder / "data.npz", 16)
    categories = Categories(latent.cond_stage_model, config, folder / "c.yaml")
    assert categories.null == 1
    assert [CATEGORIES[0 if n == 0 else 1] for n in categories.of(dataset).tolist()] == dataset.names
    assert set(categories.of(dataset).tolist()) == {0, 2}


def test_divergence_is_that_of_the_distributions():
    mean, logvar = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    exact = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_to_standard_normal(mean, logvar), exact)


def test_edges_are_differences_of_neighbours():
    x = torch.tensor([[[[1.0, 2.0, 4.0], [0.0, 0.0, 7.0]]]])
    across, down = edges(x)
    assert across.tolist() == [[[[1, 2], [0, 7]]]] and down.tolist() == [[[[-1, -2, 3]]]]


class Brighter(nn.Module):
    """Encodes to x with no spread worth mentioning, decodes to 2 x + 1/2."""

    def encode(self, x):
        return DiagonalGaussianDistribution(torch.cat([x, torch.full_like(x, -30.0)], dim=1))

    def decode(self, z):
        return 2 * z + 0.5


def test_loss_of_an_autoencoder():
    x = torch.rand(2, 3, 8, 8)
    module = Autoencoder(Brighter(), None, warmup=1, steps=1, kl_weight=0.1, edge_weight=2.0)
    module.log_dict = lambda *args, **kwargs: None
    pixels = (x + 0.5).mean() + (x + 0.5).square().mean()
    outlines = ((x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()) / 2
    kl = kl_to_standard_normal(x, torch.full_like(x, -30.0))
    found = module.training_step((x, None), 0)
    torch.testing.assert_close(found, pixels + 2 * outlines + 0.1 * kl, rtol=1e-4, atol=1e-5)
