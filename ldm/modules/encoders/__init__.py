"""Conditioners, which turn classes or texts into the context of the UNet."""
