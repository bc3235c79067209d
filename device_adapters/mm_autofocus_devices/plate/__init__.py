"""A simulated widefield microscope with a multiwell plate: what users try first."""

from mm_autofocus_devices.plate.instrument import PlateInstrument
from mm_autofocus_devices.plate.options import Exposure, PlateOptions
from mm_autofocus_devices.plate.registry import discard_instrument, open_instrument

__all__ = ["Exposure", "PlateInstrument", "PlateOptions", "discard_instrument", "open_instrument"]
