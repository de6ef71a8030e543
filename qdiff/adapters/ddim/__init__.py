"""Pixel-space UNets of the package `ddim`."""
