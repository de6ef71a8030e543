"""Conditioners: what turns a class into the context of the UNet."""
