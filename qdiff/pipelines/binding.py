"""What a correction belongs to: the quantized network and everything else that its trajectories depend on."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from qdiff.correction.table import CorrectionTable
from qdiff.errors import UserError
from qdiff.files.digest import content_digest, tensors_digest
from qdiff.pipelines.base import BasePipeline
from qdiff.pipelines.settings import GuidedSampling
from qdiff.quant_model import QuantModel

STEPS = ("num_steps", "skip_type")  # settings of samplers that place the steps
AGAIN = "fit it for this run, or sample as it was fitted"


def network_digest(network: QuantModel) -> str:
    """Return the digest of a quantized network, the same for one calibrated now and for one read from its file."""
    state = network.quantized_state()
    zero_points = {key: x + 0.0 for key, x in state.items() if key.endswith(".zero_point")}  # a file holds no -0.0
    return content_digest({"policy": network.policy.to_dict()}, state | zero_points)


def made_for(pipeline: BasePipeline, known: str | None = None) -> dict[str, Any]:
    """Return what a correction of this pipeline belongs to, JSON values by name.

    Args:
        pipeline: its network is quantized.
        known: the digest of its network, if it is known already.
    """
    sampling, network = pipeline.sampling, pipeline.network
    sampler: Any = sampling.sampler
    settings = [f"{name} {value}" for name, value in asdict(sampler).items() if name not in STEPS]
    if known is None:
        assert isinstance(network, QuantModel)
        known = pipeline.execution.digest if pipeline.execution else network_digest(network)
    return {
        "network": known,
        "sampler": ", ".join([type(sampler).__name__, *settings]),
        "scale": sampling.scale if isinstance(sampling, GuidedSampling) else 1.0,
        "schedule": tensors_digest({"abar": pipeline.abar}),
        "latents": list(pipeline.latent_shape),
        "precision": pipeline.precision,
    }


def log_snr(pipeline: BasePipeline) -> list[float]:
    """Return log(abar / (1 - abar)) at each network call; between timesteps it is interpolated."""
    abar = pipeline.abar.detach().cpu().double()
    known, t = (abar / (1 - abar)).log(), torch.tensor(pipeline.timesteps, dtype=torch.float64)
    low = t.floor().long().clamp(0, len(abar) - 1)
    return torch.lerp(known[low], known[(low + 1).clamp(max=len(abar) - 1)], t - low).tolist()


def checked(
    table: CorrectionTable, wanted: Mapping[str, Any], pipeline: BasePipeline, name: str, interpolate: bool
) -> CorrectionTable:
    """Return the correction for the steps of a pipeline.

    Args:
        table: the correction.
        wanted: what it must belong to, see `made_for`.
        pipeline: the pipeline.
        name: of the correction, for error messages.
        interpolate: accept one for other steps.

    Raises:
        UserError: it was fitted for another network or sampling.
    """
    changed = [key for key in wanted if table.made_for.get(key) != wanted[key]]
    if changed:
        key = changed[0]
        there, here = (_short(x) for x in (table.made_for.get(key, "unknown"), wanted[key]))
        raise UserError(f"{name} was fitted for {key} {there}, not {here}: {AGAIN}")
    if table.slope.shape[1] != pipeline.latent_shape[0]:
        raise UserError(f"{name} has {table.slope.shape[1]} channels, the model {pipeline.latent_shape[0]}: {AGAIN}")
    timesteps = [float(t) for t in pipeline.timesteps]
    if list(table.timesteps) == timesteps:
        return table
    steps = f"{name} was fitted for other steps ({len(table.timesteps)} calls there, {len(timesteps)} here)"
    if not interpolate:
        raise UserError(f"{steps}: {AGAIN}, or add --correct_interpolate")
    if table.fit != "ptqd":
        raise UserError(f"{steps}, and a fit on the quantized trajectory holds for its own steps alone: {AGAIN}")
    return table.at(timesteps, log_snr(pipeline))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 64 else f"{text[:12]}..."
