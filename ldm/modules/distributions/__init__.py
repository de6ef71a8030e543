"""Distributions returned by first stages."""
