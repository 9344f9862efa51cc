"""Calibration of a sensor against a reference: comparison, straight line, file, figure."""
