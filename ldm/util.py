"""From a configuration to the object that it describes."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from ldm.published import MEANINGS, TARGETS, TRAINING_TARGETS, UNAVAILABLE, OtherParameters

NOTHING = {"__is_first_stage__", "__is_unconditional__"}


class NotAvailable(ValueError):
    """A configuration is right, and asks for parts of the published code that are not here."""

    def __init__(self, parts: Iterable[str]):
        first, *others = parts
        super().__init__(f"{first} is not available" + "".join(f", nor is {other}" for other in others))


def instantiate_from_config(config: Mapping | str) -> Any:
    """Build the object that a section of a published configuration describes.

    Only the classes in `TARGETS` can be reached, whatever a file says.

    Args:
        config: mapping (an OmegaConf node too) with `target`, the published path of a class, and `params`, the
            arguments of its constructor; or one of the words `NOTHING`.

    Returns:
        the object, with random weights; None for the words in `NOTHING`.

    Raises:
        NotAvailable: it, or a section within it, asks for what the published code has and this one has not.
        ValueError: a target that is none of ours, or parameters that its class does not have or that it lacks.
    """
    if isinstance(config, str) and config in NOTHING:
        return None
    if not isinstance(config, Mapping) or "target" not in config:
        raise ValueError(f"a model section needs a `target`, this one is: {config}")
    _refuse_unavailable(config)
    target, params = config["target"], config.get("params") or {}
    if not isinstance(target, str) or target not in TARGETS:
        raise ValueError(f"target '{target}' is not available{_did_you_mean(target, TARGETS)}")
    others = TARGETS[target]
    for name in set(params) & set(others.ignored):
        _check_training_target(name, params[name])
    return construct(_class_of(target), params, name=target, others=others)


def construct(make: Callable, params: Mapping, *, name: str, others: OtherParameters | None = None) -> Any:
    """`make(**params)`, without those of its other published parameters that change nothing.

    Raises:
        NotAvailable: a published parameter has a value that is not available.
        ValueError: a parameter, of those that `name` has, is unknown or missing.
    """
    others = others or OtherParameters()
    if unavailable := _unavailable_parameters(name, params, others):
        raise NotAvailable(unavailable)
    own, known = _parameters(make), {*others.ignored, *others.only}
    for key in params:
        if key not in own and key not in known:
            raise ValueError(f"{name}: unknown parameter '{key}'{_did_you_mean(key, [*own, *known])}")
    for key, p in own.items():
        if p.default is inspect.Parameter.empty and key not in params:
            raise ValueError(f"{name}: parameter '{key}' is missing")
    return make(**{key: value for key, value in params.items() if key in own})


def parameter_types(target: object) -> dict[str, object]:
    """The parameters of the class that a `target` names, with their annotations; none unless it is one of ours."""
    if not isinstance(target, str) or target not in TARGETS:
        return {}
    return {name: parameter.annotation for name, parameter in _parameters(_class_of(target)).items()}


def _class_of(target: str) -> type:
    """One of `TARGETS`: a configuration reaches no other module."""
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def _parameters(make: Callable) -> dict[str, inspect.Parameter]:
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return {key: p for key, p in inspect.signature(make).parameters.items() if p.kind not in variadic}


def _refuse_unavailable(config: Mapping) -> None:
    """Name everything at once that is not available, classes first: they are why some parameters are not either."""
    sections = list(_sections(config))
    names = [str(section["target"]).rpartition(".")[2] for section in sections]
    parts = [f"{UNAVAILABLE[name]} ({name})" for name in dict.fromkeys(names) if name in UNAVAILABLE]
    for name, section in zip(names, sections):
        others = TARGETS.get(str(section["target"]), OtherParameters())
        parts += _unavailable_parameters(name, section.get("params") or {}, others)
    if parts:
        raise NotAvailable(parts)


def _sections(config: Mapping) -> Iterator[Mapping]:
    """`config` and the sections with a `target` among its parameters, but not those that are ignored."""
    yield config
    params = config.get("params") or {}
    ignored = TARGETS.get(str(config["target"]), OtherParameters()).ignored
    for key in params:
        if key not in ignored and isinstance(params[key], Mapping) and "target" in params[key]:
            yield from _sections(params[key])


def _unavailable_parameters(name: str, params: Mapping, others: OtherParameters) -> list[str]:
    wrong = [f"{key}: {params[key]}" for key in params if not _available(params[key], others.only.get(key))]
    return [f"{MEANINGS[text]} ({text})" if text in MEANINGS else f"{text} ({name})" for text in wrong]


def _available(value: object, values: Iterable[object] | None) -> bool:
    """Whether it is one of the values, if these are all; a list, which has no hash, may be asked for too."""
    return values is None or any(value == other for other in values)


def _check_training_target(name: str, value: object) -> None:
    if isinstance(value, Mapping) and value.get("target", "torch.nn.Identity") not in TRAINING_TARGETS:
        raise ValueError(f"{name}: target '{value['target']}' is not available")


def _did_you_mean(word: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return f": did you mean '{close[0]}'?" if close else ""
