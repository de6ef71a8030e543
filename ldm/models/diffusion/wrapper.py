"""How the UNet of a latent diffusion model is conditioned."""

import torch
from torch import Tensor, nn

# How the UNet is conditioned -> what it needs: channels beside the latent, and a context (or a class, for "adm")
CONDITIONING = {
    None: set(),
    "concat": {"c_concat"},
    "crossattn": {"c_crossattn"},
    "hybrid": {"c_concat", "c_crossattn"},
    "adm": {"c_crossattn"},
}


class DiffusionWrapper(nn.Module):
    """A UNet and the way in which it is conditioned.

    Args:
        diffusion_model: called with z_t, t and, as its third argument, the context, or with the class as `y`.
        conditioning_key: a key of `CONDITIONING`.

    Raises:
        ValueError: another `conditioning_key`.
    """

    def __init__(self, diffusion_model: nn.Module, conditioning_key: str | None):
        super().__init__()
        if conditioning_key not in CONDITIONING:
            raise ValueError(
                f"conditioning_key '{conditioning_key}' is unknown: use one of {', '.join(map(str, CONDITIONING))}"
            )
        self.diffusion_model = diffusion_model
        self.conditioning_key = conditioning_key

    def forward(self, x: Tensor, t: Tensor, **cond: list[Tensor]) -> Tensor:
        """Predicted noise.

        Args:
            x: z_t, shape (B, C, H, W).
            t: timesteps, shape (B,).
            cond: `c_concat`, tensors (B, _, H, W) that are appended to the channels of `x`; `c_crossattn`, contexts
                (B, _, D) that are joined to one, or a class (B,).

        Raises:
            ValueError: not exactly what the model is conditioned on.
        """
        if cond.keys() != CONDITIONING[self.conditioning_key]:
            raise ValueError(
                f"a model with conditioning_key '{self.conditioning_key}' got {', '.join(cond) or 'no condition'}"
            )
        if "c_concat" in cond:
            x = torch.cat([x, *cond["c_concat"]], dim=1)
        match self.conditioning_key:
            case "crossattn" | "hybrid":
                return self.diffusion_model(x, t, torch.cat(cond["c_crossattn"], dim=1))
            case "adm":
                return self.diffusion_model(x, t, y=cond["c_crossattn"][0])
            case _:
                return self.diffusion_model(x, t)
