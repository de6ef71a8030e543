"""From a configuration to the object that it describes."""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib import import_module
from typing import Any

_FIRST_STAGE = {
    "batch_resize_range",
    "ckpt_path",
    "colorize_nlabels",
    "ignore_keys",
    "image_key",
    "lossconfig",
    "lr_g_factor",
    "monitor",
    "remap",
    "sane_index_shape",
    "scheduler_config",
    "use_ema",
}
# Every class that a configuration may name -> its published parameters that matter to training alone, or not at all
TARGETS: dict[str, Collection[str]] = {
    "ldm.models.diffusion.ddpm.LatentDiffusion": {
        "ckpt_path",
        "clip_denoised",  # latents are never clipped
        "cond_stage_trainable",
        "first_stage_key",
        "ignore_keys",
        "l_simple_weight",
        "learn_logvar",
        "load_only_unet",
        "log_every_t",
        "logvar_init",
        "loss_type",
        "monitor",
        "num_timesteps_cond",
        "original_elbo_weight",
        "scheduler_config",
        "use_positional_encodings",
    },
    "ldm.models.autoencoder.AutoencoderKL": _FIRST_STAGE,
    "ldm.models.autoencoder.VQModelInterface": _FIRST_STAGE,
    "ldm.models.autoencoder.IdentityFirstStage": {"vq_interface"},
    "ldm.modules.diffusionmodules.openaimodel.UNetModel": {"image_size", "legacy", "use_checkpoint"},
    "ldm.modules.encoders.modules.ClassEmbedder": (),
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder": {"device"},
}
# What published configurations name for training; nothing is built for it
TRAINING_TARGETS = {
    "ldm.lr_scheduler.LambdaLinearScheduler",
    "ldm.lr_scheduler.LambdaWarmUpCosineScheduler",
    "ldm.lr_scheduler.LambdaWarmUpCosineScheduler2",
    "ldm.modules.losses.LPIPSWithDiscriminator",
    "ldm.modules.losses.contperceptual.LPIPSWithDiscriminator",
    "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "torch.nn.Identity",
}
NOTHING = {"__is_first_stage__", "__is_unconditional__"}


def instantiate_from_config(config: Mapping | str) -> Any:
    """Build the object that a section of a published configuration describes.

    Only the classes in `TARGETS` can be reached, whatever a file says.

    Args:
        config: mapping (an OmegaConf node too) with `target`, the published path of a class, and `params`, the
            arguments of its constructor; or one of the words `NOTHING`.

    Returns:
        the object, with random weights; None for the words in `NOTHING`.

    Raises:
        ValueError: a target that is none of ours, or parameters that its class does not have or that it lacks.
    """
    if isinstance(config, str) and config in NOTHING:
        return None
    if not isinstance(config, Mapping) or "target" not in config:
        raise ValueError(f"a model section needs a `target`, this one is: {config}")
    target, params = config["target"], config.get("params") or {}
    if not isinstance(target, str) or target not in TARGETS:
        raise ValueError(f"target '{target}' is not available{_did_you_mean(target, TARGETS)}")
    without_effect = TARGETS[target]
    for name in set(params) & set(without_effect):
        _check_training_target(name, params[name])
    module, _, cls = target.rpartition(".")  # both from TARGETS: a configuration reaches no other module
    used = {name: value for name, value in params.items() if name not in without_effect}
    return construct(getattr(import_module(module), cls), used, name=target, also_known=without_effect)


def construct(make: Callable, params: Mapping, *, name: str, also_known: Iterable[str] = ()) -> Any:
    """`make(**params)`; a parameter that it does not take or that is missing is a ValueError about `name`.

    `also_known` are suggested for a misspelt parameter beside those of `make`.
    """
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    own = {key: p for key, p in inspect.signature(make).parameters.items() if p.kind not in variadic}
    for key in params:
        if key not in own:
            raise ValueError(f"{name}: unknown parameter '{key}'{_did_you_mean(key, [*own, *also_known])}")
    for key, p in own.items():
        if p.default is inspect.Parameter.empty and key not in params:
            raise ValueError(f"{name}: parameter '{key}' is missing")
    return make(**params)


def _check_training_target(name: str, value: object) -> None:
    if isinstance(value, Mapping) and value.get("target", "torch.nn.Identity") not in TRAINING_TARGETS:
        raise ValueError(f"{name}: target '{value['target']}' is not available")


def _did_you_mean(word: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return f": did you mean '{close[0]}'?" if close else ""
