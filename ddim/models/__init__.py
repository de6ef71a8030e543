"""Networks of the pixel-space models."""
