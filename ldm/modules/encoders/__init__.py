"""Conditioners: what turns a class or a text into the context of the UNet."""
