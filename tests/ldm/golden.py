"""Latent diffusion models of the golden cases, with their weights."""

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import instantiate_from_config
from tests.golden_networks import GoldenCase, golden_state_dict, load_case

SCALE_FACTOR = 0.7  # of the case with a variational autoencoder


def golden_model(name: str, **unet: object) -> tuple[LatentDiffusion, GoldenCase]:
    """The model of the case in the folder `name` of tests/golden, in evaluation mode; outside `ema_scope` it has
    weights other than the golden ones where it has averages. `unet` are parameters that its network has instead."""
    case = load_case(name)
    case.settings.config.model.params.unet_config.params.update(unet)
    model = instantiate_from_config(case.settings.config.model).eval()
    state = golden_state_dict({key: p.shape for key, p in model.named_parameters()})
    if model.model_ema is not None:
        averaged = {key: p.shape for key, p in model.model.named_parameters()}
        drawn = golden_state_dict(averaged, prefix="model_ema.")
        state |= {f"model_ema.{key.replace('.', '')}": value for key, value in drawn.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not set(missing) & state.keys()
    if "scale_factor" in model.state_dict():
        model.scale_factor.fill_(SCALE_FACTOR)
    return model, case
