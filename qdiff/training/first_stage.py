"""Training of a first stage: the autoencoder between pictures and latents."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from qdiff.adapters.ldm.models import AutoencoderKL
from qdiff.checkpoints.weights import load_weights
from qdiff.config.latent import build_latent, load_latent_config
from qdiff.errors import UserError
from qdiff.training.optimizer import warm_cosine
from qdiff.training.pictures import Pictures
from qdiff.training.sections import FirstStageTraining, classes_of, sections
from qdiff.training.trainer import fit_as_configured, save_half, seed_process

EXAMPLE = "configs/latent-diffusion/emoji64.yaml"


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, (B, C, H, W) -> (B, C, H, W - 1) and (B, C, H - 1, W)."""
    return x.diff(dim=-1), x.diff(dim=-2)


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, averaged over all elements (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


class Autoencoder(pl.LightningModule):
    """|x' - x| + |x' - x|^2 + `edge_weight` |edges(x') - edges(x)| + `kl_weight` KL, each a mean over all elements.

    The square makes wrong colours count, the edges keep a small decoder from blurring what has sharp outlines.

    Args:
        model: with `encode` to a posterior and `decode`, as `AutoencoderKL`.
        optim, warmup, steps: see `warm_cosine`.
        kl_weight, edge_weight: at least 0.
    """

    def __init__(self, model: nn.Module, optim, *, warmup: int, steps: int, kl_weight: float, edge_weight: float):
        super().__init__()
        self.model, self.optim, self.warmup, self.steps = model, optim, warmup, steps
        self.kl_weight, self.edge_weight = kl_weight, edge_weight

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, _ = batch
        posterior = self.model.encode(x)
        z = posterior.mean + (0.5 * posterior.logvar).exp() * torch.randn_like(posterior.mean)
        decoded = self.model.decode(z)
        error = decoded - x
        pixels = error.abs().mean() + error.square().mean()
        outlines = sum((a - b).abs().mean() for a, b in zip(edges(decoded), edges(x))) / 2
        kl = kl_to_standard_normal(posterior.mean, posterior.logvar)
        self.log_dict({"pixels": pixels, "outlines": outlines, "kl": kl}, prog_bar=True)
        return pixels + self.edge_weight * outlines + self.kl_weight * kl

    def configure_optimizers(self) -> dict:
        return warm_cosine(self.parameters(), self.optim, warmup=self.warmup, steps=self.steps)


def side_of(config: DictConfig, path: Path) -> int:
    """Pixels along an edge of the pictures that a first stage is for. Raises UserError unless they are in colour."""
    ddconfig = config.model.params.first_stage_config.params.ddconfig
    if (ddconfig.in_channels, ddconfig.out_ch) != (3, 3):
        raise UserError(f"{path}: ddconfig.in_channels and out_ch must be 3, for pictures are in colour")
    return ddconfig.resolution


def train(
    config_path: Path, data_path: Path, run_dir: Path, out: Path, *, init: Path | None, seed: int, devices: int
) -> None:
    """Train the first stage of a configuration and write its EMA weights in half precision to `out`.

    `init` are weights to start from.

    Raises:
        UserError: the configuration is none or has no settings of a training, or the pictures cannot be read.
    """
    config = load_latent_config(config_path)
    training, optim = sections(config.get("first_stage"), FirstStageTraining, config_path, EXAMPLE, "first_stage")
    seed_process(seed)
    first_stage = build_latent(config, config_path).first_stage_model
    if not isinstance(first_stage, AutoencoderKL):
        raise UserError(f"{config_path}: only a first stage of the class AutoencoderKL can be trained")
    data = Pictures(data_path, side_of(config, config_path), classes_of(config, config_path), flip=True)
    if init:
        load_weights(first_stage, init)
    first_stage.to(memory_format=torch.channels_last)
    autoencoder = Autoencoder(
        first_stage,
        optim,
        warmup=training.warmup,
        steps=training.n_iters,
        kl_weight=training.kl_weight,
        edge_weight=training.edge_weight,
    )
    weights = fit_as_configured(
        autoencoder, data, run_dir, training, optim, ema_decay=training.ema_rate, devices=devices
    )
    save_half(out, {key.removeprefix("model."): x for key, x in weights.items()})
