"""Calibration: data from the sampling trajectory, then roundings and step sizes block by block."""

from qdiff.block_recon import Schedule
from qdiff.calibration.data import CalibrationSet
from qdiff.calibration.job import calibrate
from qdiff.calibration.reporter import Reporter
from qdiff.calibration.settings import CalibrationSettings

__all__ = ["CalibrationSet", "CalibrationSettings", "Reporter", "Schedule", "calibrate"]
