"""Layers and networks of latent diffusion models."""
