"""Readouts of a laser autofocus: from one camera image to a defocus, its expected error, and whether to believe it."""

from mm_autofocus.readouts.model import Card, LaserModel, load_model
from mm_autofocus.readouts.reading import Reading, Readout, Signal, SignalLimits

__all__ = ["Card", "LaserModel", "Reading", "Readout", "Signal", "SignalLimits", "load_model"]
