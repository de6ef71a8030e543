"""First stages and latent diffusion models, as configurations name them."""
