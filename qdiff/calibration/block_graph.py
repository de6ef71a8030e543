"""The order in which a forward calls the blocks, and whose outputs each of them depends on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from qdiff.calls import Call, Samples, detached
from qdiff.quant_model import QuantModel


@dataclass(frozen=True)
class BlockNode:
    """A block within a forward.

    Args:
        module: the block.
        sources: blocks whose outputs it depends on other than through another block.
        call: its arguments, without samples and on the meta device: shapes and dtypes.
        output: what it returns, likewise.
    """

    module: nn.Module
    sources: frozenset[nn.Module]
    call: Call
    output: Samples

    @property
    def captured_bytes(self) -> int:
        """Bytes of its inputs and outputs, per sample."""
        return self.call.sample_bytes + self.output.sample_bytes


def trace_blocks(model: QuantModel, modules: Sequence[nn.Module], sample: Call) -> list[BlockNode]:
    """Return the blocks in the order in which a forward calls them.

    The outputs of every block are detached and made variables: a block's sources are those whose outputs its arguments
    have a gradient by. A block that returns samples without gradients, as integers, is a source of all later ones.

    Args:
        model: in evaluation mode.
        modules: the blocks, each called once per forward.
        sample: arguments of the network for one sample.

    Raises:
        ValueError: a forward calls a block not at all or more than once, or without samples.
    """
    nodes: list[BlockNode] = []
    variables: dict[nn.Module, list[Tensor]] = {}  # of the blocks called so far
    untracked: set[nn.Module] = set()

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        try:
            call, returned = Call(detached(args), detached(kwargs), 1), Samples(detached(output), 1)
        except ValueError as error:
            raise ValueError(f"{path_of(model, module)} cannot be calibrated by itself: {error}") from None
        sources = untracked | _differentiable(variables, tree_leaves((args, kwargs)))
        nodes.append(BlockNode(module, frozenset(sources), call.to("meta").empty(0), returned.to("meta").empty(0)))
        if not all(x.is_floating_point() for x in returned.tensors):
            untracked.add(module)
        cut = tree_map_only(Tensor, _variable, output)
        variables[module] = [x for x in tree_leaves(cut) if isinstance(x, Tensor) and x.requires_grad]
        return tree_map_only(Tensor, Tensor.clone, cut)  # a leaf that requires gradients cannot be changed in place

    handles = [module.register_forward_hook(after, with_kwargs=True) for module in modules]
    try:
        with torch.enable_grad(), model.full_precision():
            sample(model)
    finally:
        for handle in handles:
            handle.remove()
    called = [node.module for node in nodes]
    for module in modules:
        if (times := called.count(module)) != 1:
            raise ValueError(f"the network calls {path_of(model, module)} {times} times: a block must be called once")
    return nodes


def _variable(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.is_floating_point())


def _differentiable(variables: dict[nn.Module, list[Tensor]], arguments: Sequence[Any]) -> set[nn.Module]:
    """Return the modules with a variable by which one of the arguments has a gradient."""
    ends = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    owners = [(module, x) for module, xs in variables.items() for x in xs]
    if not ends or not owners:
        return set()
    starts = [x for _, x in owners]
    gradients = torch.autograd.grad(
        ends, starts, [torch.ones_like(x) for x in ends], retain_graph=True, allow_unused=True
    )
    return {module for (module, _), gradient in zip(owners, gradients) if gradient is not None}


def path_of(model: nn.Module, module: nn.Module) -> str:
    """Return the name of a module of the model."""
    return next(path for path, other in model.named_modules() if other is module)


def sources_of(nodes: Sequence[BlockNode]) -> frozenset[nn.Module]:
    """Return the blocks that any of these depends on."""
    return frozenset().union(*(node.sources for node in nodes))


def cache_bytes_per_sample(nodes: Sequence[BlockNode]) -> int:
    """Return the peak bytes per sample of a prefix cache: outputs of finished blocks that later blocks depend on.

    Each is counted twice, for the quantized and for the full-precision network.
    """
    peak = 0
    for i, node in enumerate(nodes):
        needed = sources_of(nodes[i:]) | {node.module}
        peak = max(peak, sum(done.output.sample_bytes for done in nodes[: i + 1] if done.module in needed))
    return 2 * peak


def cached_samples(nodes: Sequence[BlockNode], samples: int, batch_size: int, memory: int) -> int:
    """Return for how many samples memory can hold outputs: whole batches, beside the largest captured block.

    Args:
        nodes: from `trace_blocks`.
        samples: size of the calibration set.
        batch_size: samples per forward.
        memory: bytes.
    """
    room = memory - samples * max(node.captured_bytes for node in nodes)
    batches = max(0, room) // (max(1, cache_bytes_per_sample(nodes)) * batch_size)
    return min(samples, batches * batch_size)
