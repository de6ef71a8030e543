"""Collect calibration data: the arguments of the network while it samples."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from qdiff.calibration.argument_names import named_arguments
from qdiff.calibration.data import PREFIX, CalibrationSet
from qdiff.calibration.kept_steps import kept_steps
from qdiff.calls import Call
from qdiff.files.journal import Journal

T = TypeVar("T")


class SamplerStep(Protocol):
    """The part of a sampler's step, yielded after each call of the network, that calibration uses."""

    @property
    def index(self) -> int: ...
    @property
    def t(self) -> float: ...
    @property
    def eps(self) -> Tensor: ...
    @property
    def x_prev(self) -> Tensor: ...


def collect(
    network: nn.Module,
    trajectory: Callable[[range], Iterable[SamplerStep]],
    steps: int,
    cali_st: int,
    cali_n: int,
    batch_size: int,
    journal: Journal,
    progress: Callable[[int], object] = lambda images: None,
    rows: int = 1,
) -> CalibrationSet:
    """Sample `cali_n` images and keep the network's arguments at `cali_st` steps of each (Q-Diffusion, section 3.2).

    Together the images have samples of all steps, see `kept_steps`.

    Args:
        network: called once per step, with positional and keyword arguments. Tensors (N, ...) are kept, in float32
            where floating; other arguments must be the same in all calls.
        trajectory: image indices -> the steps of their sampling, in order.
        steps: number of sampling steps.
        cali_st, cali_n: steps kept, and images.
        batch_size: images at a time.
        journal: finished batches; those of an earlier run are taken from it.
        progress: called after each step with the number of images in the batch.
        rows: rows of the network's batch per image, 2 with guidance: first one row of each image, then the other one
            of each.

    Returns:
        cali_st * cali_n * rows samples, grouped by the number of the kept step, then by row, whatever the batch size.

    Raises:
        ValueError: calls differ in more than their samples, or a tensor has no row per sample.
    """
    whole: dict[str, Tensor] = {}  # (cali_st, rows, images, ...)
    constants: dict[str, Any] | None = None
    for images in _batches(cali_n, batch_size):
        kept = torch.tensor([kept_steps(steps, cali_st, image, cali_n) for image in images])
        unit = f"images-{images.start:06d}-{images.stop:06d}-of-{cali_n:06d}"
        found = journal.read(unit)
        if found:
            batch, info = found
            progress(len(images) * (int(kept.max()) + 1))
        else:
            batch, info = _inputs_at(kept, network, trajectory(images), lambda: progress(len(images)))  # noqa: B023
            journal.write(unit, batch, info)
        constants = _agreed(constants, info.get("constants", {}))
        _agreed({*(whole or batch)}, {*batch})
        for key, x in batch.items():
            part = x.unflatten(1, (rows, -1))
            if key not in whole:  # room for all, once, because they may take much of the memory
                whole[key] = part.new_empty(*part.shape[:2], cali_n, *part.shape[3:])
            whole[key][:, :, images.start : images.stop] = part
    named = {key.removeprefix(PREFIX): x.flatten(0, 2) for key, x in whole.items()}
    return CalibrationSet.from_named(named, constants or {})


def collecting_calls(steps: int, cali_st: int, cali_n: int, batch_size: int) -> int:
    """Return the network calls, of one image each, that `collect` takes; arguments as there."""
    return sum(
        len(images) * (kept_steps(steps, cali_st, images[-1], cali_n)[-1] + 1)
        for images in _batches(cali_n, batch_size)
    )


def _batches(images: int, size: int) -> list[range]:
    return [range(start, min(start + size, images)) for start in range(0, images, size)]


def _inputs_at(
    kept: Tensor, network: nn.Module, steps: Iterable[SamplerStep], progress: Callable[[], object]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the arguments of the network at some of the steps.

    Args:
        kept: the steps of each image, (images, cali_st).
        network, steps, progress: see `collect`.

    Returns:
        Tensors `input_0`, `input_y`, ..., each (cali_st, N, ...), float32 where floating; and, where there are any,
        other arguments by name as `constants`.
    """
    given: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
    found: dict[str, Tensor] = {}
    constants: dict[str, Any] | None = None

    def note(module, args, kwargs):
        nonlocal given
        given = args, kwargs

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        for step in islice(steps, int(kept.max()) + 1):
            image, place = (kept == step.index).nonzero(as_tuple=True)
            if len(image):
                tensors, others = _batch(*given)
                constants = _agreed(constants, others)
                _agreed({*(found or tensors)}, {*tensors})
                for name, x in tensors.items():
                    of_images = _stored(x).unflatten(0, (-1, len(kept)))  # (rows, images, ...)
                    if name not in found:
                        found[name] = of_images.new_empty(kept.shape[1], *of_images.shape)
                    found[name][place, :, image] = of_images[:, image].transpose(0, 1)
            progress()
    finally:
        hook.remove()
    flat = {f"{PREFIX}{name}": x.flatten(1, 2) for name, x in found.items()}
    return flat, {"constants": constants} if constants else {}


def _batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, each (N, ...), and the other arguments of a call by name."""
    tensors, constants = named_arguments(args, kwargs)
    samples = len(Call(args, kwargs))
    for name, x in tensors.items():
        if not x.ndim or len(x) != samples:
            raise ValueError(
                f"the network is called with {samples} samples, but its argument {name} has the shape "
                f"{tuple(x.shape)}: expand it to one row per sample"
            )
    return tensors, constants


def _agreed(known: T | None, found: T) -> T:
    if known is not None and known != found:
        raise ValueError(f"the network is called with {found} and with {known}: these must be the same in all calls")
    return found


def _stored(x: Tensor) -> Tensor:
    x = x.detach().cpu()
    return x.float() if x.is_floating_point() else x.clone()
