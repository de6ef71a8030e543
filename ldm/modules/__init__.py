"""Layers and networks that latent diffusion models are built from."""
