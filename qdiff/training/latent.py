"""Training of a conditional latent model: its UNet and conditioner, on a trained first stage."""

import shutil
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from qdiff.adapters.ldm.models import AutoencoderKL, LatentDiffusion, kl_first_stage_of
from qdiff.checkpoints.weights import load_weights
from qdiff.config.latent import build_latent, load_latent_config
from qdiff.errors import UserError
from qdiff.files.atomic import replacing
from qdiff.files.digest import tensors_digest
from qdiff.training.conditioning import TrainingCondition, condition_of
from qdiff.training.denoiser import Denoiser
from qdiff.training.first_stage import REMEDY, image_side
from qdiff.training.images import ImageDataset
from qdiff.training.job import TrainingJob
from qdiff.training.sections import LatentTraining, classes_of, training_sections
from qdiff.training.trainer import fit_as_configured, seed_process

ENCODED = 256  # images encoded at a time


class Conditional(nn.Module):
    """The UNet and conditioner of a latent model, called with conditions as integers.

    In training mode, a condition is replaced by the null condition with probability `drop`, as guidance needs it (Ho
    and Salimans 2022, arXiv 2207.12598, algorithm 1).

    Args:
        latent: the model; its first stage is not included.
        condition: how images are conditioned.
        drop: probability, 0..1.
    """

    def __init__(self, latent: LatentDiffusion, condition: TrainingCondition, drop: float):
        super().__init__()
        self.model, self.cond_stage_model = latent.model, condition.conditioner
        self.condition, self.drop = condition, drop

    def forward(self, x: Tensor, t: Tensor, numbers: Tensor) -> Tensor:
        """Predict the noise of z_t.

        Args:
            x: z_t, (B, C, H, W).
            t: timesteps, (B,), int64.
            numbers: conditions, (B, ...), int64.

        Returns:
            (B, C, H, W).
        """
        if self.training:
            dropped = torch.rand(len(numbers), device=numbers.device) < self.drop
            numbers = numbers.clone()
            numbers[dropped] = self.condition.null.to(numbers.device)
        return self.model(x, t, c_crossattn=[self.condition.embed(numbers)])


@torch.no_grad()
def encode(first_stage: AutoencoderKL, images: Tensor) -> Tensor:
    """Return the means of the latents of images (N, 3, H, W) in [-1, 1], before `scale_factor`."""
    return torch.cat([first_stage.encode(batch).mode() for batch in images.split(ENCODED)])


def train(job: TrainingJob, first_stage: Path) -> None:
    """Train on the latents of images and write a folder as published models are laid out.

    The folder `job.out` gets `config.yaml`, `model.safetensors` with EMA weights in float16 and, for a text model, the
    tokenizer. With `job.init`, the UNet starts from that model, and so does a text encoder whose tokenizer lies in the
    same folder.

    Args:
        job: files and settings.
        first_stage: weights of the first stage.

    Raises:
        UserError: the configuration is invalid or has no training settings, or a file cannot be read.
    """
    config = load_latent_config(job.config)
    training, optim = training_sections(config, LatentTraining, job.config, REMEDY)
    seed_process(job.seed)
    latent = build_latent(config, job.config)
    autoencoder = _trainable(latent, job.config)
    dataset = ImageDataset(job.data, image_side(config, job.config), classes_of(config, job.config))
    condition = condition_of(latent, dataset, config, job)
    if job.init:
        load_weights(latent.model, job.init)
    load_weights(autoencoder, first_stage)
    data = _latents(latent, autoencoder.eval(), condition, dataset)
    _check_same_latents(job.run, data)
    denoiser = Denoiser(
        Conditional(latent, condition, training.drop_condition),
        latent.get_buffer("alphas_cumprod").double(),
        optim,
        warmup=training.warmup,
        steps=training.n_iters,
        weight_limit=training.weight_limit,
        scale_base=training.scale_base,
    )
    weights = fit_as_configured(denoiser, data, job, training, optim, ema_decay=training.ema_rate)
    latent.load_state_dict(latent.state_dict() | weights)
    write_folder(job.out, latent, config)
    for file in condition.files:
        shutil.copyfile(file, job.out / file.name)


def _trainable(latent: LatentDiffusion, path: Path) -> AutoencoderKL:
    """Check that the model can be trained and return its first stage. Raises UserError otherwise."""
    first_stage = kl_first_stage_of(latent)
    if first_stage is None:
        raise UserError(f"'{path}': this model cannot be trained: its first stage must be an AutoencoderKL")
    wrong = {
        "model.params.scale_by_std must be true": "scale_factor" not in latent.state_dict(),
        "model.params.use_ema must be false, because averages are written as the weights": latent.model_ema is not None,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(f"'{path}': this model cannot be trained: {what}")
    return first_stage


def write_folder(folder: Path, latent: LatentDiffusion, config: DictConfig) -> None:
    """Write `config.yaml` and `model.safetensors`, with parameters in float16 and buffers (the schedule) unchanged."""
    parameters = dict(latent.named_parameters())
    state = {key: (x.half() if key in parameters else x).contiguous() for key, x in latent.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as partial:
        save_file(state, partial)
    published = {key: config[key] for key in ("model", "classes", "sampling") if key in config}
    with replacing(folder / "config.yaml") as partial:
        OmegaConf.save(OmegaConf.create(published), partial)


def _check_same_latents(run_dir: Path, data: TensorDataset) -> None:
    """Record the digest of the latents. Raises UserError if the run to resume had others."""
    note, found = run_dir / "latents.txt", tensors_digest(dict(zip(("z", "condition"), data.tensors)))
    if note.exists() and note.read_text() != found:
        raise UserError(
            f"the training in '{run_dir}' has other latents: give its --first_stage and --data, or another --run"
        )
    with replacing(note) as partial:
        partial.write_text(found)


def _latents(
    latent: LatentDiffusion, first_stage: AutoencoderKL, condition: TrainingCondition, dataset: ImageDataset
) -> TensorDataset:
    """Return latents of unit variance and their conditions; set the model's `scale_factor`."""
    images, numbers = dataset.images, condition.of(dataset)
    if condition.mirrored:
        images, numbers = torch.cat([images, images.flip(-1)]), torch.cat([numbers, numbers])
    z = encode(first_stage, images)
    scale_factor = latent.get_buffer("scale_factor").fill_(1 / z.std())
    return TensorDataset(z * scale_factor, numbers)
