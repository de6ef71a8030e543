"""Post-training quantization of diffusion models (Q-Diffusion, Li et al., ICCV 2023, arXiv 2302.04304)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdiff.adapters import Adapter, Contraction, ProductKind
    from qdiff.adaptive_rounding import AdaRoundQuantizer
    from qdiff.backends import execute
    from qdiff.block_recon import Schedule, block_reconstruction
    from qdiff.calibration.data import CalibrationSet
    from qdiff.calibration.job import calibrate
    from qdiff.calibration.settings import CalibrationSettings
    from qdiff.checkpoints.load import load_as_written, load_quantized, save_quantized
    from qdiff.cli.recorded import load_run
    from qdiff.errors import UserError
    from qdiff.files.journal import Journal
    from qdiff.pipelines.correct import correct
    from qdiff.pipelines.evaluate import evaluate
    from qdiff.pipelines.load import load_pipeline
    from qdiff.pipelines.quantize import quantize
    from qdiff.policy import QuantPolicy, QuantSpec
    from qdiff.quant_block import QuantBlock
    from qdiff.quant_layer import QuantModule, UniformAffineQuantizer
    from qdiff.quant_model import QuantModel

# Imported on first use (PEP 562), because `qdiff.cli` must not wait for torch to print a help text.
_HOME = {
    "AdaRoundQuantizer": "qdiff.adaptive_rounding",
    "Adapter": "qdiff.adapters",
    "CalibrationSet": "qdiff.calibration.data",
    "CalibrationSettings": "qdiff.calibration.settings",
    "Contraction": "qdiff.adapters",
    "Journal": "qdiff.files.journal",
    "ProductKind": "qdiff.adapters",
    "QuantBlock": "qdiff.quant_block",
    "QuantModel": "qdiff.quant_model",
    "QuantModule": "qdiff.quant_layer",
    "QuantPolicy": "qdiff.policy",
    "QuantSpec": "qdiff.policy",
    "Schedule": "qdiff.block_recon",
    "UniformAffineQuantizer": "qdiff.quant_layer",
    "UserError": "qdiff.errors",
    "block_reconstruction": "qdiff.block_recon",
    "calibrate": "qdiff.calibration.job",
    "correct": "qdiff.pipelines.correct",
    "evaluate": "qdiff.pipelines.evaluate",
    "execute": "qdiff.backends",
    "load_as_written": "qdiff.checkpoints.load",
    "load_pipeline": "qdiff.pipelines.load",
    "load_quantized": "qdiff.checkpoints.load",
    "load_run": "qdiff.cli.recorded",
    "quantize": "qdiff.pipelines.quantize",
    "save_quantized": "qdiff.checkpoints.load",
}
__all__ = [
    "AdaRoundQuantizer",
    "Adapter",
    "CalibrationSet",
    "CalibrationSettings",
    "Contraction",
    "Journal",
    "ProductKind",
    "QuantBlock",
    "QuantModel",
    "QuantModule",
    "QuantPolicy",
    "QuantSpec",
    "Schedule",
    "UniformAffineQuantizer",
    "UserError",
    "block_reconstruction",
    "calibrate",
    "correct",
    "evaluate",
    "execute",
    "load_as_written",
    "load_pipeline",
    "load_quantized",
    "load_run",
    "quantize",
    "save_quantized",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
