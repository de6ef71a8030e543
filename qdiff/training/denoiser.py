"""DDPM training of a noise predictor."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def stratified_timesteps(batch: int, num_timesteps: int, device) -> Tensor:
    """One uniform draw from each of `batch` equal parts of 0..T-1: the loss varies less than with independent draws."""
    u = (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch
    return (u * num_timesteps).long().clamp(max=num_timesteps - 1)


class Denoiser(pl.LightningModule):
    """The simple loss E |eps - eps_theta(x_t, t)|^2 (Ho et al. 2020, equation 14).

    Args:
        model: `model(x_t, t)` -> eps.
        alphas_cumprod: abar_t, shape (T,).
        optim: section with `lr`, `beta1`, `eps`, `weight_decay`.
        warmup: steps over which the learning rate rises linearly.
    """

    def __init__(self, model: nn.Module, alphas_cumprod: Tensor, optim, warmup: int):
        super().__init__()
        self.model = model
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        self.optim, self.warmup = optim, warmup

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x0, _ = batch
        t = stratified_timesteps(len(x0), len(self.alphas_cumprod), x0.device)
        abar = self.alphas_cumprod[t][:, None, None, None]
        eps = torch.randn_like(x0)
        loss = F.mse_loss(self.model(abar.sqrt() * x0 + (1 - abar).sqrt() * eps, t), eps)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        o = self.optim
        adam = torch.optim.Adam(
            self.parameters(), lr=o.lr, betas=(o.beta1, 0.999), eps=o.eps, weight_decay=o.weight_decay
        )
        ramp = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, (step + 1) / max(self.warmup, 1)))
        return {"optimizer": adam, "lr_scheduler": {"scheduler": ramp, "interval": "step"}}
