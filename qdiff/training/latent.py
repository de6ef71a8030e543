"""Training of a conditional latent model: its UNet and its conditioner, on a finished first stage."""

import shutil
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from qdiff.adapters.ldm.models import AutoencoderKL, LatentDiffusion
from qdiff.checkpoints.weights import load_weights
from qdiff.config.latent import build_latent, load_latent_config
from qdiff.errors import UserError
from qdiff.files.atomic import replacing
from qdiff.pipelines.quantization import digest
from qdiff.training.conditioning import TrainingCondition, condition_of
from qdiff.training.denoiser import Denoiser
from qdiff.training.first_stage import EXAMPLE, side_of
from qdiff.training.pictures import Pictures
from qdiff.training.sections import LatentTraining, classes_of, sections
from qdiff.training.trainer import fit_as_configured, seed_process

ENCODED = 256  # pictures that are encoded at a time


class Conditional(nn.Module):
    """The UNet of a latent model, called with conditions as whole numbers.

    While it is trained, a condition becomes none with probability `drop`: that is what guidance needs (Ho and
    Salimans 2022, arXiv 2207.12598, algorithm 1).

    Args:
        latent: the model; its first stage has no part in this one.
        condition: what the pictures show.
        drop: 0..1.
    """

    def __init__(self, latent: LatentDiffusion, condition: TrainingCondition, drop: float):
        super().__init__()
        self.model, self.cond_stage_model = latent.model, condition.conditioner
        self.condition, self.drop = condition, drop

    def forward(self, x: Tensor, t: Tensor, numbers: Tensor) -> Tensor:
        """x: z_t (B, C, H, W); t: (B,); numbers: (B, ...) -> predicted noise."""
        if self.training:
            dropped = torch.rand(len(numbers), device=numbers.device) < self.drop
            numbers = numbers.clone()
            numbers[dropped] = self.condition.none.to(numbers.device)
        return self.model(x, t, c_crossattn=[self.condition.embed(numbers)])


@torch.no_grad()
def encode(latent: nn.Module, images: Tensor) -> Tensor:
    """Means of the latents of images (N, 3, H, W) in -1..1, before `scale_factor`."""
    parts = [latent.encode_first_stage(part).mode() for part in images.split(ENCODED)]
    return torch.cat(parts)


def train(
    config_path: Path,
    data_path: Path,
    run_dir: Path,
    out: Path,
    *,
    first_stage: Path,
    init: Path | None,
    seed: int,
    devices: int,
) -> None:
    """Train on the latents of the pictures; write a folder as published ones are laid out.

    Args:
        out: the folder, of `config.yaml` and `model.safetensors` with EMA weights in half precision.
        first_stage: weights of the first stage.
        init: weights of a model with such a UNet, which this one's starts as, and so does a text encoder if their
            tokenizer lies beside.

    Raises:
        UserError: the configuration is none or has no settings of a training, or a file cannot be read.
    """
    config = load_latent_config(config_path)
    training, optim = sections(config, LatentTraining, config_path, EXAMPLE)
    seed_process(seed)
    latent = build_latent(config, config_path)
    _check_kind(latent, config_path)
    pictures = Pictures(data_path, side_of(config, config_path), classes_of(config, config_path))
    condition = condition_of(latent, pictures, config, config_path, run_dir, init)
    if init:
        load_weights(latent.model, init)
    load_weights(latent.first_stage_model, first_stage)
    latent.first_stage_model.eval()
    data = _latents(latent, condition, pictures)
    _same_latents(run_dir, data)
    denoiser = Denoiser(
        Conditional(latent, condition, training.drop_condition),
        latent.alphas_cumprod.double(),
        optim,
        warmup=training.warmup,
        steps=training.n_iters,
        weight_limit=training.weight_limit,
        scale_base=training.scale_base,
    )
    weights = fit_as_configured(denoiser, data, run_dir, training, optim, ema_decay=training.ema_rate, devices=devices)
    trained = {key.removeprefix("model."): x for key, x in weights.items()}
    latent.load_state_dict(latent.state_dict() | trained)
    write_folder(out, latent, config)
    for file in condition.files:
        shutil.copyfile(file, out / file.name)


def _check_kind(latent: nn.Module, path: Path) -> None:
    """Raises UserError for a model that cannot be trained here."""
    wrong = {
        "its first stage must be an AutoencoderKL": not isinstance(latent.first_stage_model, AutoencoderKL),
        "model.params.scale_by_std must be true": "scale_factor" not in latent.state_dict(),
        "model.params.use_ema must be false, for the averages are written as the weights": latent.model_ema is not None,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"{path} describes no model that can be trained here: {what}")


def write_folder(folder: Path, latent: nn.Module, config: DictConfig) -> None:
    """Write `config.yaml` and `model.safetensors`, parameters in half precision, buffers (the schedule) as they are."""
    parameters = dict(latent.named_parameters())
    state = {key: (x.half() if key in parameters else x).contiguous() for key, x in latent.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as partial:
        save_file(state, partial)
    published = {key: config[key] for key in ("model", "classes") if key in config}
    with replacing(folder / "config.yaml") as partial:
        OmegaConf.save(OmegaConf.create(published), partial)


def _same_latents(run_dir: Path, data: TensorDataset) -> None:
    """Refuse to go on with a training whose latents were others. Raises UserError."""
    note, found = run_dir / "latents.txt", digest(dict(zip(("z", "condition"), data.tensors)))
    if note.exists() and note.read_text() != found:
        raise UserError(
            f"the training in {run_dir} has other latents: give its --first_stage and --data, or another --run"
        )
    with replacing(note) as partial:
        partial.write_text(found)


def _latents(latent: nn.Module, condition: TrainingCondition, pictures: Pictures) -> TensorDataset:
    """Latents of unit variance and conditions; sets the model's `scale_factor`."""
    images, numbers = pictures.images, condition.of(pictures)
    if condition.mirrored:
        images, numbers = torch.cat([images, images.flip(-1)]), torch.cat([numbers, numbers])
    z = encode(latent, images)
    latent.scale_factor.fill_(1 / z.std())
    return TensorDataset(z * latent.scale_factor, numbers)
