"""Changes of sampling settings by name, as keyword arguments of a pipeline give them."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from diffusion.steps import Sampler
from qdiff.errors import suggestion
from qdiff.pipelines.settings import Sampling

SamplingT = TypeVar("SamplingT", bound=Sampling)


def changed(sampling: SamplingT, sampler: Sampler, changes: Mapping[str, Any]) -> SamplingT:
    """Return other settings.

    Args:
        sampling: the present ones.
        sampler: a dataclass, in place of theirs.
        changes: name -> value, of a setting of the sampler, whose `num_steps` is called `steps` here, or of `sampling`.

    Raises:
        TypeError: there is no such setting.
        ValueError: an impossible value.
    """
    own = {field.name.replace("num_steps", "steps"): field.name for field in _fields(sampler)}
    known = {field.name for field in fields(sampling)} - {"sampler"}
    for name in changes.keys() - own.keys() - known:
        hint = suggestion(name, [*own, *known]) or f"use {', '.join(sorted(known.union(own)))}"
        raise TypeError(f"sampling has no setting '{name}': {hint}")
    settings: Any = sampler
    settings = replace(settings, **{own[name]: value for name, value in changes.items() if name in own})
    return replace(sampling, sampler=settings, **{name: value for name, value in changes.items() if name in known})


def like(sampler: Sampler, kind: type, nfe: int) -> Sampler:
    """Return a sampler of another kind with the settings of this one that both have.

    Args:
        sampler: a dataclass.
        kind: of the other one, a dataclass.
        nfe: number of steps, if `sampler` has none.
    """
    kept = {"num_steps": nfe} | vars(sampler)
    return kind(**{field.name: kept[field.name] for field in fields(kind) if field.name in kept})


def _fields(sampler: Any) -> tuple[Any, ...]:
    return fields(sampler)
