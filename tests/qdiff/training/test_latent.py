"""Training of a first stage and of a latent model: the losses against their formulas, the scripts in processes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn
from torch.distributions import Normal, kl_divergence

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from qdiff.adapters.latent_diffusion import build
from qdiff.errors import UserError
from qdiff.training.first_stage import Autoencoder, edges, kl_to_standard_normal
from qdiff.training.latent import ClassConditional, encode, train
from qdiff.training.trainer import ema_weights
from tests.command_line import SCRIPTS, script
from tests.golden_networks import load_case

OPTIM = {"lr": 1e-3, "weight_decay": 0.0, "beta1": 0.9, "eps": 1e-8, "grad_clip": 1.0}
COMMON = {"batch_size": 4, "n_iters": 4, "snapshot_freq": 2, "warmup": 1, "ema_rate": 0.5}
CATEGORIES = ["blues", "reds"]
NO_CLASS = 2


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures of two categories, and a small latent model of three classes, the last of which is none."""
    config = load_case("ldm_class_w4a8").settings.config
    params = config.model.params
    params.image_size, params.scale_by_std = 8, True
    params.cond_stage_config.params.n_classes = 3
    params.unet_config.params.attention_resolutions = [2]
    stage = params.first_stage_config
    stage.target, ddconfig = "ldm.models.autoencoder.AutoencoderKL", stage.params.ddconfig
    del stage.params.n_embed
    ddconfig.double_z, ddconfig.resolution = True, 16
    config.classes = CATEGORIES
    config.first_stage = {"training": COMMON | {"kl_weight": 1e-4, "edge_weight": 1.0}, "optim": OPTIM}
    config.training = COMMON | {"weight_limit": 2, "scale_base": 1, "drop_class": 0.5}
    config.optim = OPTIM
    OmegaConf.save(config, tmp_path / "c.yaml")
    images = np.zeros((8, 16, 16, 3), dtype=np.uint8)
    images[::2, 4:12, :, 0] = 255
    images[1::2, 2:6, 4:, 2] = 255
    category = np.array(["reds", "blues"] * 4)
    np.savez(tmp_path / "data.npz", images=images, names=category, category=category)
    return tmp_path


def start(folder: Path, script: str, words: str) -> None:
    command = [sys.executable, SCRIPTS / script, *f"--config c.yaml --data data.npz --run run_{script} {words}".split()]
    ended = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()


def test_a_first_stage_then_a_model_that_can_be_sampled(folder):
    start(folder, "train_first_stage.py", "--out first.safetensors")
    start(folder, "train_ldm.py", "--first_stage first.safetensors --out model")
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
    z = encode(model, torch.cat([x, x.flip(-1)])) * model.scale_factor
    assert z.std().item() == pytest.approx(1, abs=1e-3)
    averaged = ema_weights(folder / "run_train_ldm.py" / "last.ckpt")
    for key, x in averaged.items():
        assert torch.equal(state[key.removeprefix("model.")], x.half()), "what was trained is what is written"
    again = folder / "again"
    start(folder, "train_ldm.py", "--first_stage first.safetensors --out again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model" / "model.safetensors").read_bytes()
    line = f"-r {folder / 'model'} -l {folder / 'out'} --seed 1 -n 2 -c 2 --scale 2"
    assert script("sample_diffusion_ldm.py", *line.split()).status == 0
    assert len(list((folder / "out" / "img").iterdir())) == 2


def test_categories_of_other_pictures_are_refused(folder):
    config = OmegaConf.load(folder / "c.yaml")
    config.classes = ["reds", "blues"]  # labels count in alphabetical order
    OmegaConf.save(config, folder / "c.yaml")
    first = build(config).first_stage_model.state_dict()
    torch.save(first, folder / "first.pth")
    options = {"first_stage": folder / "first.pth", "init": None, "seed": 0, "devices": 1}
    with pytest.raises(UserError, match=r"has the categories \['blues', 'reds'\]"):
        train(folder / "c.yaml", folder / "data.npz", folder / "run", folder / "out", **options)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training", None, "has no section 'training'"),
        ("training.drop_class", "much", "training.drop_class is wrong"),
        ("training.n_iters", 0, "n_iters is 0"),
        ("optim", {"lr": 1e-3}, "lacks optim.weight_decay"),
        ("model.params.use_ema", True, "use_ema must be false"),
        ("model.params.scale_by_std", False, "scale_by_std must be true"),
        ("model.params.cond_stage_config.params.n_classes", 2, "n_classes is 2, make it 3"),
        ("classes", [], "must name its `classes`"),
    ],
)
def test_configurations_that_are_refused(key, value, said, folder):
    config = OmegaConf.load(folder / "c.yaml")
    OmegaConf.update(config, key, value, merge=False)
    OmegaConf.save(config, folder / "c.yaml")
    options = {"first_stage": folder / "f", "init": None, "seed": 0, "devices": 1}
    with pytest.raises(UserError, match=said):
        train(folder / "c.yaml", folder / "data.npz", folder / "run", folder / "out", **options)
    assert not (folder / "out").exists() and not (folder / "run").exists()


def test_a_training_does_not_go_on_with_other_latents(folder):
    start(folder, "train_first_stage.py", "--out first.safetensors")
    start(folder, "train_ldm.py", "--first_stage first.safetensors --out model")
    changed = {key: 2 * x for key, x in load_file(folder / "first.safetensors").items()}
    torch.save(changed, folder / "other.pth")
    options = {"first_stage": folder / "other.pth", "init": None, "seed": 0, "devices": 1}
    with pytest.raises(UserError, match="has other latents"):
        train(folder / "c.yaml", folder / "data.npz", folder / "run_train_ldm.py", folder / "again", **options)


def test_classes_are_dropped_in_training_alone(folder):
    torch.manual_seed(0)
    latent: LatentDiffusion = build(OmegaConf.load(folder / "c.yaml"))
    given = []
    latent.cond_stage_model.register_forward_pre_hook(lambda module, args: given.append(args[0]["class_label"]))
    model = ClassConditional(latent, drop_class=0.25)
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
