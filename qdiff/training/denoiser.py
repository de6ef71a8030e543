"""DDPM training of a noise predictor."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdiff.training.optimizer import warm_cosine


def stratified_timesteps(batch: int, num_timesteps: int, device) -> Tensor:
    """One uniform draw from each of `batch` equal parts of 0..T-1: the loss varies less than with independent draws."""
    u = (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch
    return (u * num_timesteps).long().clamp(max=num_timesteps - 1)


def multiscale_loss(error: Tensor, base: float) -> Tensor:
    """sum_k w_k mean(pool_k(error)^2), where pool_k averages squares of 2^k pixels a side; (B, C, H, W) -> (B,).

    The weights w_k are proportional to base^k and sum to 1; base 0 gives the plain mean square.

    A small error in the mean of eps is a colour cast in x0, but only one of H * W directions in the plain mean square
    (cf. the multiscale loss of Hoogeboom et al. 2023, arXiv 2301.11093, section 3.4).
    """
    levels = error.shape[-1].bit_length()
    weights = [base**k for k in range(levels)]
    loss = error.new_zeros(len(error))
    for k, weight in enumerate(weights):
        loss = loss + weight / sum(weights) * error.square().mean((1, 2, 3))
        error = F.avg_pool2d(error, 2) if k + 1 < levels else error
    return loss


class Denoiser(pl.LightningModule):
    """E w_t |eps - eps_theta(x_t, t)|^2 with w_t = clamp(1 / SNR_t, 1, `weight_limit`), divided by its mean.

    The norm is that of `multiscale_loss`.
    Limit 1 is the simple loss (Ho et al. 2020, equation 14). A larger one makes the noisy timesteps count more: there
    a small error in eps is a large one in x0, and a small network learns them last (cf. Salimans and Ho 2022).

    Args:
        model: `model(x_t, t, *condition)` -> eps.
        alphas_cumprod: abar_t, shape (T,).
        optim, warmup, steps: see `warm_cosine`.
        weight_limit: at least 1.
        scale_base: `base` of `multiscale_loss`, at least 0.
    """

    def __init__(
        self,
        model: nn.Module,
        alphas_cumprod: Tensor,
        optim,
        *,
        warmup: int,
        steps: int,
        weight_limit: float,
        scale_base: float,
    ):
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)  # a fifth less time on a CPU
        weight = ((1 - alphas_cumprod) / alphas_cumprod).clamp(1, weight_limit)
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        self.register_buffer("weight", (weight / weight.mean()).float(), persistent=False)
        self.optim, self.warmup, self.steps, self.scale_base = optim, warmup, steps, scale_base

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """`batch`: x0 (B, C, H, W), and what else the model takes."""
        x0, *condition = batch
        t = stratified_timesteps(len(x0), len(self.alphas_cumprod), x0.device)
        abar = self.alphas_cumprod[t][:, None, None, None]
        eps = torch.randn_like(x0)
        error = self.model(abar.sqrt() * x0 + (1 - abar).sqrt() * eps, t, *condition) - eps
        loss = (self.weight[t] * multiscale_loss(error, self.scale_base)).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        return warm_cosine(self.parameters(), self.optim, warmup=self.warmup, steps=self.steps)
