"""What a configuration puts together: first stages and latent diffusion models."""
