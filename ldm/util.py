"""Build the object that a published configuration describes."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from ldm.published import MEANINGS, TARGETS, TRAINING_TARGETS, UNAVAILABLE, OtherParameters

NOTHING = {"__is_first_stage__", "__is_unconditional__"}


class NotAvailable(ValueError):
    """A valid configuration needs parts of the published code that are not implemented here."""

    def __init__(self, parts: Iterable[str]):
        first, *others = parts
        super().__init__(f"{first} is not available" + "".join(f", nor is {other}" for other in others))


def instantiate_from_config(config: Mapping | str) -> Any:
    """Build the object that a section of a published configuration describes.

    Only the classes in `TARGETS` are imported, whatever the configuration names.

    Args:
        config: mapping or OmegaConf node with `target`, the published path of a class, and `params`, the arguments of
            its constructor; or one of the words in `NOTHING`.

    Returns:
        the object, with random weights; None for the words in `NOTHING`.

    Raises:
        NotAvailable: this section, or one inside it, needs parts of the published code that are not implemented here.
        ValueError: an unknown target, or a parameter that is unknown or missing.
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
    """Call `make(**params)`, leaving out published parameters that have no effect.

    Args:
        make: class or function.
        params: its arguments, by name.
        name: what is made, for error messages.
        others: published parameters that `make` does not take, or takes with some values only.

    Raises:
        NotAvailable: a published parameter has a value that is not implemented here.
        ValueError: a parameter is unknown or missing.
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
    """Return the constructor's parameters of the class that a `target` names, and their annotations; {} if unknown."""
    if not isinstance(target, str) or target not in TARGETS:
        return {}
    return {name: parameter.annotation for name, parameter in _parameters(_class_of(target)).items()}


def _class_of(target: str) -> type:
    """Return the class of one of `TARGETS`, the only modules that a configuration can import."""
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def _parameters(make: Callable) -> dict[str, inspect.Parameter]:
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return {key: p for key, p in inspect.signature(make).parameters.items() if p.kind not in variadic}


def _refuse_unavailable(config: Mapping) -> None:
    """Raise `NotAvailable` with all that is missing, classes first: a class often explains a parameter."""
    sections = list(_sections(config))
    names = [str(section["target"]).rpartition(".")[2] for section in sections]
    parts = [f"{UNAVAILABLE[name]} ({name})" for name in dict.fromkeys(names) if name in UNAVAILABLE]
    for name, section in zip(names, sections):
        others = TARGETS.get(str(section["target"]), OtherParameters())
        parts += _unavailable_parameters(name, section.get("params") or {}, others)
    if parts:
        raise NotAvailable(parts)


def _sections(config: Mapping) -> Iterator[Mapping]:
    """Yield `config` and, recursively, those of its parameters that have a `target` and are not ignored."""
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
    """Return whether `value` is among `values`, or `values` is None; `value` need not be hashable."""
    return values is None or any(value == other for other in values)


def _check_training_target(name: str, value: object) -> None:
    if isinstance(value, Mapping) and value.get("target", "torch.nn.Identity") not in TRAINING_TARGETS:
        raise ValueError(f"{name}: target '{value['target']}' is not available")


def _did_you_mean(word: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return f": did you mean '{close[0]}'?" if close else ""
