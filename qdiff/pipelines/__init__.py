"""Models with their samplers and conditions, from weights to images."""
