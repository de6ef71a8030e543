"""Entry point for tools that still run setup.py; pyproject.toml declares everything."""

from setuptools import setup

setup()
