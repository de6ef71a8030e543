"""The wrapper that conditions the UNet of a latent diffusion model."""

import torch
from torch import Tensor, nn

# conditioning_key -> conditions: channels concatenated to the latent, and a context (for "adm", a class)
CONDITIONING = {
    None: set(),
    "concat": {"c_concat"},
    "crossattn": {"c_crossattn"},
    "hybrid": {"c_concat", "c_crossattn"},
    "adm": {"c_crossattn"},
}


class DiffusionWrapper(nn.Module):
    """A UNet and how it is conditioned.

    Args:
        diffusion_model: called with z_t, t and, if there is a context, the context as third argument, or with the class
            as `y`.
        conditioning_key: a key of `CONDITIONING`.

    Raises:
        ValueError: `conditioning_key` is unknown.
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
        """Predict the noise.

        Args:
            x: z_t, shape (B, C, H, W).
            t: timesteps, shape (B,).
            cond: `c_concat`, tensors (B, _, H, W) that are concatenated to the channels of `x`; `c_crossattn`, contexts
                (B, _, D) that are concatenated along their tokens, or classes (B,).

        Returns:
            shape (B, C', H, W) of the UNet's output.

        Raises:
            ValueError: the conditions are not exactly those of `conditioning_key`.
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
