"""Change the settings of sampling by name."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from diffusion.steps import Sampler
from qdiff.errors import suggestion
from qdiff.pipelines.settings import Sampling

SamplingT = TypeVar("SamplingT", bound=Sampling)


def changed(sampling: SamplingT, sampler: Sampler, changes: Mapping[str, Any]) -> SamplingT:
    """Return the settings `sampling` with another sampler and with `changes`.

    Args:
        sampling: the settings so far.
        sampler: a dataclass; replaces the one in `sampling`.
        changes: name -> value, of a setting of the sampler, whose `num_steps` is called `steps` here, or of `sampling`.

    Raises:
        TypeError: an unknown setting, a value of another type, or a sampler that is not a dataclass.
        ValueError: a value outside its range.
    """
    if not is_dataclass(sampler) or isinstance(sampler, type):
        raise TypeError(f"sampler must be a name or a sampler with its settings, not {sampler!r}")
    settings: Any = sampler
    own = {field.name.replace("num_steps", "steps"): field.name for field in fields(settings)}
    known = {field.name for field in fields(sampling)} - {"sampler"}
    for name in changes.keys() - own.keys() - known:
        hint = suggestion(name, [*own, *known]) or f"use {', '.join(sorted(known.union(own)))}"
        raise TypeError(f"sampling has no setting '{name}': {hint}")
    settings = replace(settings, **{own[name]: value for name, value in changes.items() if name in own})
    return replace(sampling, sampler=settings, **{name: value for name, value in changes.items() if name in known})


def like(sampler: Sampler, kind: type, nfe: int) -> Sampler:
    """Return a sampler of the type `kind`, with the settings that it shares with `sampler`.

    Args:
        sampler: a dataclass.
        kind: a dataclass.
        nfe: number of steps if `sampler` has none.
    """
    kept = {"num_steps": nfe} | vars(sampler)
    return kind(**{field.name: kept[field.name] for field in fields(kind) if field.name in kept})
