"""Latent diffusion: UNet, first stages, conditioners and samplers, named as in the published configurations."""
