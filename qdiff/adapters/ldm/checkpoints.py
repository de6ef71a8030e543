"""Convert checkpoints of latent models to the model's state dict, and log why each difference is harmless."""

import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.diffusionmodules.util import diffusion_coefficients, make_beta_schedule
from ldm.modules.ema import LitEma
from ldm.modules.encoders.clip import to_published
from qdiff.adapters.ldm.models import text_conditioner_of
from qdiff.errors import UserError, first_of
from qdiff.files.state_dicts import StateDict

log = logging.getLogger(__name__)

# Keys of a file that the model does not have -> why they have no effect
SURPLUS = {
    r"ddim_(alphas|alphas_prev|sigmas|sqrt_one_minus_alphas)": "buffers of a sampler, computed for every run",
    r"lvlb_weights|logvar": "weights of the training loss",
    r"first_stage_model\.loss\..+": "loss of the autoencoder's training",
    r"first_stage_model\.model_ema\..+": "averages of the autoencoder's training",
    r"first_stage_model\.colorize": "colours of the training's images",
    r"cond_stage_model\.(transformer\.)?(logit_scale|text_projection(\.weight)?)": "CLIP's head, which is not used",
    r"embedding_manager\..+": "words that textual inversion added",
}
EMA = "model_ema."
TEXT_ENCODER = "cond_stage_model.transformer."
RTOL = 1e-4  # between noise schedules in float32, which depend on the order of operations

Notes = list[str]


def schedule(config: Mapping) -> dict[str, Tensor]:
    """Compute the buffers of a configuration's noise schedule.

    Returns:
        float32 tensors of shape (T,), by name; see `diffusion_coefficients`.
    """
    defaults = {name: p.default for name, p in inspect.signature(LatentDiffusion).parameters.items()}
    names = ("beta_schedule", "timesteps", "linear_start", "linear_end", "cosine_s", "v_posterior")
    *schedule, v_posterior = (config["model"]["params"].get(name, defaults[name]) for name in names)
    return diffusion_coefficients(make_beta_schedule(*schedule), v_posterior)


@dataclass(frozen=True)
class PublishedKeys:
    """Convert the tensors of a checkpoint to the keys of a latent model; `load_weights` refuses what still differs.

    Args:
        latent: the model, on any device.
        config: its configuration, including overrides.
        source: file of the configuration, for error messages.
    """

    latent: LatentDiffusion
    config: Mapping
    source: Path

    def __call__(self, path: str | Path, chosen: StateDict) -> tuple[dict[str, Tensor], Notes]:
        """Rename tensors, compute the noise schedule, and leave out tensors without effect.

        Args:
            path: the checkpoint, for error messages.
            chosen: its tensors, and whether they are averages.

        Returns:
            the tensors, shapes and dtypes as in the file, and a phrase for each difference.

        Raises:
            UserError: the noise schedule or scale factor of the file contradicts the configuration.
        """
        state, own = dict(chosen.tensors), self.latent.state_dict().keys()
        self._name_text_encoder(state)
        notes = [*self._schedule(path, state), *self._averages(path, state, chosen.averaged)]
        notes += self._scale_factor(path, state)
        for pattern, reason in SURPLUS.items():
            surplus = [key for key in state if key not in own and re.fullmatch(pattern, key)]
            for key in surplus:
                del state[key]
            if surplus:
                notes.append(f"left out {first_of(surplus)} ({reason})")
        return state, notes

    def _name_text_encoder(self, state: dict[str, Tensor]) -> None:
        """Rename the text encoder's tensors, in place: transformers 5 has other names, and no positions."""
        if conditioner := text_conditioner_of(self.latent):
            encoder = {key: state.pop(key) for key in list(state) if key.startswith(TEXT_ENCODER)}
            to_published(conditioner.transformer, encoder, TEXT_ENCODER)
            state |= encoder

    def _schedule(self, path: str | Path, state: dict[str, Tensor]) -> Notes:
        """Compare the file's noise schedule with that of the configuration, and replace it by the latter, in place."""
        right = schedule(self.config)
        if any(key in state and not _same(state[key], right[key]) for key in ("betas", "alphas_cumprod")):
            raise UserError(
                f"'{path}' has another noise schedule than '{self.source}' with its overrides: leave the keys of the "
                "schedule as they were in training"
            )
        computed = [key for key in right if key not in state or state[key].dtype != torch.float32]
        state |= right
        return [f"computed {first_of(computed)} (the noise schedule of the configuration)"] if computed else []

    def _averages(self, path: str | Path, state: dict[str, Tensor], averaged: bool) -> Notes:
        """Keep one of averages and raw weights, or complete one from the other, as the model needs it, in place."""
        for key in [key for key in state if key.startswith(EMA) and "_orig_mod" in key]:  # of a compiled network
            state[key.replace("_orig_mod", "")] = state.pop(key)
        parameters = dict(self.latent.model.named_parameters())
        names = {f"model.{name}": f"{EMA}{name.replace('.', '')}" for name in parameters}
        raw, averages = (any(key in state for key in keys) for keys in (names, names.values()))
        if self.latent.model_ema is None:
            surplus = {key: state.pop(key) for key in list(state) if key.startswith(EMA)}
            if averages and not raw:
                state |= {name: surplus[average] for name, average in names.items() if average in surplus}
                return [f"averages '{EMA}*', because there are no raw weights 'model.*'"]
            reason = "averages; the configuration takes the raw weights, use_ema: false"
            return [f"left out {first_of(surplus)} ({reason})"] if surplus else []
        state |= {f"{EMA}{name}": x for name, x in LitEma(nn.Module()).state_dict().items()}
        if averages:  # the raw weights are replaced, and need not even be read
            state |= {name: state[x] for name, x in names.items() if x in state and (name in state or not raw)}
            return [f"averages '{EMA}*' instead of the raw weights"]
        state |= {average: state[name] for name, average in names.items() if name in state}
        if averaged:
            return []
        log.warning("'%s' has no averages ('%s*'): its raw weights are used", path, EMA)
        return ["raw weights 'model.*' instead of averages"]

    def _scale_factor(self, path: str | Path, state: dict[str, Tensor]) -> Notes:
        """Leave out a scale factor that the configuration gives too, in place; they must agree."""
        own = self.latent.scale_factor
        if "scale_factor" not in state or isinstance(own, Tensor):
            return []
        given = state.pop("scale_factor")
        if not _same(given.reshape(-1), torch.tensor([float(own)])):
            raise UserError(
                f"'{path}' has scale_factor {given.tolist()}, but '{self.source}' has {own}: give the configuration of "
                "this model"
            )
        return ["left out 'scale_factor' (the configuration gives the same)"]


def _same(x: Tensor, right: Tensor) -> bool:
    """Return whether `x`, from a file, equals `right` up to the precision of its dtype."""
    if not x.is_floating_point() or x.shape != right.shape:
        return False
    kind = torch.finfo(x.dtype)
    return torch.allclose(x.to(right.dtype), right, rtol=max(RTOL, kind.eps), atol=kind.tiny)
