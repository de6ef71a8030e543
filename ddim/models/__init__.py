"""Networks of pixel-space models."""
