"""Pixel-space diffusion: the UNet of the published DDPM/DDIM checkpoints, noise schedules and samplers.

Pure networks and mathematics: this package opens no file, names no device and knows nothing of quantization.
"""
