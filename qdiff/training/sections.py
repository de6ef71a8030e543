"""What a configuration says of training."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qdiff.config.pixel import one_line
from qdiff.errors import UserError


@dataclass
class Training:
    """Keys of the section `training` of every model."""

    batch_size: int
    n_iters: int
    snapshot_freq: int
    warmup: int


@dataclass
class DenoiserTraining(Training):
    """Those of a network that predicts noise."""

    weight_limit: float
    scale_base: float


@dataclass
class PixelTraining(DenoiserTraining):
    """Those of a pixel-space model."""

    categories: list[str]


@dataclass
class LatentTraining(DenoiserTraining):
    """Those of a latent model."""

    ema_rate: float
    drop_condition: float


@dataclass
class FirstStageTraining(Training):
    """Those of a first stage."""

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


def classes_of(config: DictConfig, path: Path) -> list[str]:
    """The section `classes`, empty where there is none. Raises UserError for anything else than a list of words."""
    found = config.get("classes")
    if found is None:
        return []
    if not isinstance(found, ListConfig) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{path}: classes is no list of names: write one in each line, behind a dash")
    return list(found)


def sections(
    config: DictConfig | None, training: type[Training], path: Path, example: str, where: str = ""
) -> tuple[DictConfig, DictConfig]:
    """The sections `training` and `optim`, checked.

    Args:
        config: the configuration, or a section of it.
        training: the keys of the first one.
        path: its file, for the error message.
        example: a configuration that has them.
        where: name of that section.

    Raises:
        UserError: a section or key is missing, or a value is not what it must be.
    """
    found = []
    for name, keys in (("training", training), ("optim", Optim)):
        full = f"{where}.{name}" if where else name
        if not isinstance(config, DictConfig) or not isinstance(config.get(name), DictConfig):
            raise UserError(f"{path} has no section '{full}': see {example} for one")
        given, wanted = config[name], OmegaConf.structured(keys)
        for key in wanted:
            if key not in given:
                raise UserError(f"{path} lacks {full}.{key}: see {example} for it")
            try:
                OmegaConf.update(wanted, key, given[key], merge=False)
            except OmegaConfBaseException as e:
                raise UserError(f"{path}: {full}.{key} is wrong ({one_line(e)}): correct it") from e
        found.append(wanted)
    for key in ("batch_size", "n_iters", "snapshot_freq"):
        if found[0][key] < 1:
            raise UserError(f"{path}: {key} is {found[0][key]}: make it at least 1")
    return found[0], found[1]
