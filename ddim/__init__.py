"""Pixel-space diffusion: the UNet of the published DDPM and DDIM checkpoints; knows nothing of quantization."""
