"""A simulated laser autofocus on the simulated plate microscope: its camera, its laser, and the device that focuses."""

from mm_autofocus_devices.laser.instrument import LaserInstrument, LaserOptions, discard_laser, open_laser

__all__ = ["LaserInstrument", "LaserOptions", "discard_laser", "open_laser"]
