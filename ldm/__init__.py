"""Latent diffusion: UNet, first stages, conditioners and samplers, under their published names."""
