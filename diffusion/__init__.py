"""Diffusion mathematics and layers that pixel-space and latent models share; knows nothing of quantization."""
