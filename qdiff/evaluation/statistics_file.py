"""Files of feature statistics."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qdiff.errors import UserError
from qdiff.evaluation.metrics import Statistics
from qdiff.files.atomic import replacing
from qdiff.files.names import utf8_name

KEYS = {"mu", "sigma", "n"}


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics as safetensors, whole or not at all. Raises OSError if the file cannot be written."""
    mu, sigma, n = statistics
    with replacing(path) as partial:
        save_file({"mu": mu, "sigma": sigma.contiguous(), "n": torch.tensor(n)}, partial)


def read_statistics(path: Path) -> Statistics:
    """Read what `write_statistics` wrote. Raises UserError if the file is missing, damaged or of another kind."""
    remedy = "give a file of feature statistics"
    try:
        with utf8_name(path) as name:
            found = load_file(name)
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror or e}): {remedy}") from e
    except SafetensorError as e:
        raise UserError(f"'{path}' cannot be read as safetensors ({e}): {remedy}") from e
    if found.keys() != KEYS or found["sigma"].shape != (*found["mu"].shape, *found["mu"].shape):
        raise UserError(f"'{path}' does not hold feature statistics: {remedy}")
    return Statistics(found["mu"], found["sigma"], int(found["n"]))
