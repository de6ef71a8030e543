"""Training settings of a configuration: schemas of its sections."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from qdiff.config.schema import checked_section
from qdiff.errors import UserError


@dataclass
class Training:
    """Keys of the section `training` of every model."""

    batch_size: int
    n_iters: int
    snapshot_freq: int
    warmup: int = field(metadata={"minimum": 0})


@dataclass
class DenoiserTraining(Training):
    """Keys for a network that predicts noise."""

    weight_limit: float
    scale_base: float


@dataclass
class PixelTraining(DenoiserTraining):
    """Keys for a pixel-space model."""

    categories: list[str]


@dataclass
class LatentTraining(DenoiserTraining):
    """Keys for a latent model."""

    ema_rate: float
    drop_condition: float


@dataclass
class FirstStageTraining(Training):
    """Keys for a first stage."""

    ema_rate: float
    kl_weight: float
    edge_weight: float


@dataclass
class Optim:
    """Keys of the section `optim`."""

    lr: float
    weight_decay: float
    beta1: float
    eps: float
    grad_clip: float


@dataclass
class PixelData:
    """Keys of the section `data` that only training needs."""

    random_flip: bool


@dataclass
class PixelModel:
    """Keys of the section `model` that only training needs."""

    ema_rate: float


def classes_of(config: DictConfig, path: Path) -> list[str]:
    """Return the section `classes`, empty if there is none. Raises UserError unless it is a list of names."""
    found = config.get("classes")
    if found is None:
        return []
    if not isinstance(found, ListConfig) or not all(isinstance(name, str) for name in found):
        raise UserError(f"'{path}': classes is not a list of names: write one per line, after a dash")
    return list(found)


def training_sections(
    config: DictConfig | None, training: type[Training], path: Path, remedy: str, prefix: str = ""
) -> tuple[DictConfig, DictConfig]:
    """Return the checked sections `training` and `optim`.

    Args:
        config: the configuration, or a part of it; None if that part is missing.
        training: schema of the section `training`.
        path: the file, for error messages.
        remedy: what to do if a section is missing.
        prefix: name of the part with a trailing dot, such as "first_stage."; empty for the whole.

    Raises:
        UserError: as `checked_section`.
    """
    schemas = {"training": training, "optim": Optim}
    found = [checked_section(config, prefix + name, schema, path, remedy) for name, schema in schemas.items()]
    return found[0], found[1]
