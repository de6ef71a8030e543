"""Post-training quantization of diffusion models: Q-Diffusion (arXiv 2302.04304) and PTQD (arXiv 2305.10657)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdiff.adaptive_rounding import AdaRoundQuantizer
    from qdiff.block_recon import block_reconstruction
    from qdiff.checkpoints.load import load_quantized
    from qdiff.quant_block import QuantBlock
    from qdiff.quant_layer import QuantModule, UniformAffineQuantizer
    from qdiff.quant_model import QuantModel

# Imported on first use (PEP 562), because `qdiff.cli` must not wait for torch to print a help text.
_HOME = {
    "AdaRoundQuantizer": "qdiff.adaptive_rounding",
    "QuantBlock": "qdiff.quant_block",
    "QuantModel": "qdiff.quant_model",
    "QuantModule": "qdiff.quant_layer",
    "UniformAffineQuantizer": "qdiff.quant_layer",
    "block_reconstruction": "qdiff.block_recon",
    "load_quantized": "qdiff.checkpoints.load",
}
__all__ = [
    "AdaRoundQuantizer",
    "QuantBlock",
    "QuantModel",
    "QuantModule",
    "UniformAffineQuantizer",
    "block_reconstruction",
    "load_quantized",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
