"""Protocol of a run, read from its folder: how its images were sampled and rounded."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from qdiff.errors import UserError
from qdiff.evaluation.record import SamplingRecord

CONFIG = "config.yaml"  # in the folder of a run
SAMPLER = re.compile(r"(?P<sampler>\w+\(.*\)), (?P<nfe>\d+) network calls(, scale (?P<scale>\S+))?")


def read_config(path: Path) -> dict:
    """Read the configuration of a run. Raises UserError if the file is none."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"'{path}' is not the configuration of a run: give another folder, or its images alone")
    return config


def section(config: Mapping, name: str) -> Mapping:
    """Return a section of a configuration; empty if it has none of that name."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def rounding_of(data: Mapping[str, object]) -> str:
    """Return how images of a model are rounded to 8 bits; `data` is that section of its configuration, or empty."""
    return "down" if data.get("uniform_dequantization") else "nearest"


def labels_of(texts: Iterable[Mapping[str, str]], classes: object) -> list[str] | None:
    """Return the names of the classes that text chunks of our PNGs state, one each.

    Args:
        texts: of one image each.
        classes: names by index, as the configuration of a model has them.

    Returns:
        as many names as texts; None if a text states no class, or a class has no name.
    """
    if not isinstance(classes, list):
        return None
    numbers = [text.get("class", "") for text in texts]
    known = {str(i): str(name) for i, name in enumerate(classes)}
    return [known[number] for number in numbers] if known.keys() >= {*numbers} else None


def sampling_record(text: Mapping[str, str], weights: str | None = None) -> SamplingRecord | None:
    """Return what the text chunks of our PNGs say about sampling; None if they are not ours."""
    found = SAMPLER.fullmatch(text.get("sampler", ""))
    if not found or not {"seed", "bits", "precision"} <= text.keys():
        return None
    sampler, scale = found["sampler"], found["scale"]
    steps, eta = (re.search(rf"{name}=([^,)]+)", sampler) for name in ("steps", "eta"))
    return SamplingRecord(
        sampler,
        int(steps[1]) if steps else None,
        int(found["nfe"]),
        float(eta[1]) if eta else None,
        float(scale) if scale else None,
        int(text["seed"].partition(",")[0]),
        text["bits"],
        text["precision"],
        weights,
    )
