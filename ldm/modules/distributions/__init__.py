"""Distributions that the first stages return."""
