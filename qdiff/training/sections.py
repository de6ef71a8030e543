"""What a configuration says of training."""

from pathlib import Path

from omegaconf import DictConfig

from qdiff.errors import UserError


def sections(config: DictConfig | None, path: Path, where: str = "") -> tuple[DictConfig, DictConfig]:
    """The sections `training` and `optim`.

    Args:
        config: the configuration, or a section of it.
        path: its file, for the error message.
        where: name of that section.

    Raises:
        UserError: one of them is missing.
    """
    for name in ("training", "optim"):
        if config is None or name not in config:
            full = f"{where}.{name}" if where else name
            raise UserError(f"{path} has no section '{full}': see configs/emoji32.yml for one")
    return config.training, config.optim
