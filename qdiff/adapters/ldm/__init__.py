"""Latent diffusion models of the package `ldm`."""
