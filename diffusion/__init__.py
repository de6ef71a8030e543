"""Diffusion mathematics and layers shared by pixel-space and latent models; knows nothing of quantization."""
