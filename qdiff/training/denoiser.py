"""DDPM training of a network that predicts noise."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from qdiff.training.optimizer import Optim, warm_cosine


def stratified_timesteps(batch: int, num_timesteps: int, device: torch.device | str) -> Tensor:
    """Draw one timestep from each of B equal parts of 0..T-1; the loss varies less than with independent draws.

    Args:
        batch: B >= 1.
        num_timesteps: T >= 1.
        device: of the result.

    Returns:
        int64, shape (B,), ascending.
    """
    u = (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch
    return (u * num_timesteps).long().clamp(max=num_timesteps - 1)


def multiscale_loss(error: Tensor, base: float) -> Tensor:
    """Compute sum_k w_k mean(pool_k(error)^2), where pool_k averages squares of 2^k x 2^k pixels.

    A small error in the mean of eps is a colour cast in x_0, but only one of H * W directions in the plain mean square
    (cf. the multiscale loss of Hoogeboom et al. 2023, arXiv 2301.11093, section 3.4).

    Args:
        error: (B, C, H, W).
        base: >= 0; the weights w_k are proportional to base^k and sum to 1, so 0 gives the plain mean square.

    Returns:
        (B,).
    """
    levels = error.shape[-1].bit_length()
    weights = [base**k for k in range(levels)]
    loss = error.new_zeros(len(error))
    for k, weight in enumerate(weights):
        loss = loss + weight / sum(weights) * error.square().mean((1, 2, 3))
        error = F.avg_pool2d(error, 2) if k + 1 < levels else error
    return loss


class Denoiser(pl.LightningModule):
    """Minimises E w_t |eps - eps_theta(x_t, t)|^2 with w_t = clamp(1 / SNR_t, 1, `weight_limit`), divided by its mean.

    The norm is that of `multiscale_loss`. A limit of 1 gives the simple loss (Ho et al. 2020, equation 14). A larger
    one weights noisy timesteps more, where a small error in eps is a large one in x_0 and which a small network learns
    last (cf. Salimans and Ho 2022).

    Args:
        model: `model(x_t, t, *condition)` -> eps.
        alphas_cumprod: abar_t, shape (T,).
        optim, warmup, steps: see `warm_cosine`.
        weight_limit: >= 1.
        scale_base: `base` of `multiscale_loss`, >= 0.
    """

    alphas_cumprod: Tensor
    weight: Tensor

    def __init__(
        self,
        model: nn.Module,
        alphas_cumprod: Tensor,
        optim: Optim,
        *,
        warmup: int,
        steps: int,
        weight_limit: float,
        scale_base: float,
    ):
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)  # 20 % faster on a CPU
        weight = ((1 - alphas_cumprod) / alphas_cumprod).clamp(1, weight_limit)
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        self.register_buffer("weight", (weight / weight.mean()).float(), persistent=False)
        self.optim, self.warmup, self.steps, self.scale_base = optim, warmup, steps, scale_base

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Return the loss of a batch: x_0 (B, C, H, W) in [-1, 1], and further arguments of the model."""
        x0, *condition = batch
        t = stratified_timesteps(len(x0), len(self.alphas_cumprod), x0.device)
        abar = self.alphas_cumprod[t][:, None, None, None]
        eps = torch.randn_like(x0)
        error = self.model(abar.sqrt() * x0 + (1 - abar).sqrt() * eps, t, *condition) - eps
        loss = (self.weight[t] * multiscale_loss(error, self.scale_base)).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser and its schedule, see `warm_cosine`."""
        return warm_cosine(self.parameters(), self.optim, warmup=self.warmup, steps=self.steps)
