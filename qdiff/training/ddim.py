"""Training of a pixel-space model."""

from qdiff.adapters.ddim.samplers import schedule
from qdiff.checkpoints.weights import load_weights
from qdiff.config.pixel import build_network, load_config
from qdiff.config.schema import checked_section
from qdiff.errors import UserError
from qdiff.training.denoiser import Denoiser
from qdiff.training.images import ImageDataset, Unlabelled
from qdiff.training.job import TrainingJob
from qdiff.training.sections import PixelData, PixelModel, PixelTraining, training_sections
from qdiff.training.trainer import fit_as_configured, save_half, seed_process

REMEDY = "see configs/emoji32.yml for one"
PIXELS = {  # what `ImageDataset` returns: colours in [-1, 1] without noise
    "channels": 3,
    "rescaled": True,
    "logit_transform": False,
    "uniform_dequantization": False,
    "gaussian_dequantization": False,
}


def train(job: TrainingJob) -> None:
    """Train a network and write its EMA weights in float16 to the file `job.out`.

    Raises:
        UserError: the configuration is invalid or has no training settings, or a file cannot be read.
    """
    config = load_config(job.config)
    for key, value in PIXELS.items():
        if config.data[key] != value:
            raise UserError(f"'{job.config}': data.{key} is {config.data[key]}, training needs {value}: correct it")
    training, optim = training_sections(config, PixelTraining, job.config, REMEDY)
    flip = checked_section(config, "data", PixelData, job.config, REMEDY).random_flip
    ema_decay = checked_section(config, "model", PixelModel, job.config, REMEDY).ema_rate
    data = ImageDataset(job.data, config.data.image_size, training.categories, flip)
    seed_process(job.seed)
    network = build_network(config, job.config)
    if job.init:
        load_weights(network, job.init)
    denoiser = Denoiser(
        network,
        schedule(config.diffusion),
        optim,
        warmup=training.warmup,
        steps=training.n_iters,
        weight_limit=training.weight_limit,
        scale_base=training.scale_base,
    )
    save_half(job.out, fit_as_configured(denoiser, Unlabelled(data), job, training, optim, ema_decay=ema_decay))
