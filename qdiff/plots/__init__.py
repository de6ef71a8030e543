"""Plots of numbers and images, as matplotlib figures; needs the extra `plot`."""
