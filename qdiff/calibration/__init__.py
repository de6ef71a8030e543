"""Calibration: data from the sampling trajectory, then roundings and step sizes block by block."""
