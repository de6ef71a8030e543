"""Watches layers and attention products of a network while a pipeline samples."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from qdiff.adapters import adapter_for
from qdiff.functional import at_least_float32
from qdiff.operations import OPERATIONS
from qdiff.pipelines.pipeline import Pipeline
from qdiff.quant_model import QuantModel
from qdiff.ranges import RowSummary, summarize

See = Callable[[str, tuple[Tensor, ...], Tensor], None]
"""`see(path, inputs, output)` after a call of the module at `path`; it must not change the tensors."""


@contextmanager
def watching(modules: Mapping[str, nn.Module], see: See) -> Iterator[None]:
    """Call `see` after every call of the modules inside."""

    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: see(path, inputs, output)

    handles = [module.register_forward_hook(hook(path)) for path, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a network in full precision, by the paths that they have once it is quantized."""
    return {path: m for path, m in network.named_modules(prefix="model") if type(m) in OPERATIONS}


def sites(network: nn.Module) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
    """Return the modules of a network in full precision whose inputs a policy may quantize, by path.

    Each comes with the names of its inputs, as the rules of a `QuantPolicy` write them: the path of a layer, and
    `<path>.<operand>` for each operand of an attention product.
    """
    products = adapter_for(network).products
    found: dict[str, tuple[nn.Module, tuple[str, ...]]] = {}
    for path, module in network.named_modules(prefix="model"):
        if type(module) in OPERATIONS:
            found[path] = module, (path,)
        elif type(module) in products:
            found[path] = module, tuple(f"{path}.{operand}" for operand in products[type(module)].operands)
    return found


def check_full_precision(pipeline: Pipeline) -> None:
    """Check that a pipeline is in full precision and has weights. Raises ValueError otherwise."""
    pipeline.check_loaded()
    if pipeline.is_quantized:
        raise ValueError("the pipeline is quantized: give one in full precision")


def quantized_network(pipeline: Pipeline, like: Pipeline) -> QuantModel:
    """Return the network of a quantized pipeline that samples as `like` does. Raises ValueError if it does not."""
    if not isinstance(pipeline.network, QuantModel):
        raise ValueError("the other pipeline is in full precision: give one whose network is quantized")
    if pipeline.execution:
        raise ValueError(
            f"the network is executed by '{pipeline.execution.backend}': give the pipeline that it is from"
        )
    if pipeline.sampling != like.sampling or pipeline.latent_shape != like.latent_shape:
        raise ValueError(
            f"the pipelines sample differently, {like.sampling} and {pipeline.sampling}: give both the same settings"
        )
    return pipeline.network


def summary_of(x: Tensor) -> RowSummary:
    """Return the extremes of a tensor of any shape, and up to 65,536 evenly spaced values, as one row on the CPU."""
    low, high, values = summarize(at_least_float32(x).reshape(1, -1))
    return RowSummary(low.cpu(), high.cpu(), values.clone().cpu())  # not a view, which would keep all of x
