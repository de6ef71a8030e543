"""Latent diffusion models and their samplers."""
