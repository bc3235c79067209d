"""What can be chosen about the simulated plate microscope, and what it knows about each of its images."""

from __future__ import annotations

from dataclasses import dataclass, field

from mm_autofocus.simulation.detector import Detector
from mm_autofocus.simulation.optics import Optics
from mm_autofocus.simulation.specimen import Kind
from mm_autofocus_devices.plate.motion import AxisSettings

_Z_AXIS = AxisSettings(-250.0, 250.0, speed_um_per_s=1000.0, settle_s=0.01, backlash_um=0.3)
_XY_AXIS = AxisSettings(-10_000.0, 10_000.0, speed_um_per_s=40_000.0, settle_s=0.03)


@dataclass(frozen=True, slots=True)
class PlateOptions:
    """Everything that can be chosen about the instrument.

    Attributes
    ----------
    seed
        Fixes plate, specimen, drift and noise.
    wells, blank_wells, specimen
        Number of wells ("6", "24", "96", "384", "1536"), those without specimen, and what grows in the others
        ("fluorescence", "stained", "beads").
    height_span_um, height_um
        Highest minus lowest focal plane over the plate, and its middle.
    drift_um_per_h
        Steady drift; a warm-up of the same size and a random walk of a tenth of it come with it.
    empty_field_fraction, debris_well_fraction
        Fraction of blank 300 µm squares, and of wells with dust above the cells.
    speed
        0: never sleep. Otherwise simulated seconds per real second.
    z_axis, xy_axis
        Mechanics of the stages. The xy limits are widened to the plate.
    optics, detector, field_px
        Objective, camera, and the side of its sensor in pixels.
    """

    seed: int = 0
    wells: str = "96"
    blank_wells: tuple[str, ...] = ()
    specimen: Kind = "fluorescence"
    height_span_um: float = 100.0
    height_um: float = 0.0
    drift_um_per_h: float = 2.0
    empty_field_fraction: float = 0.0
    debris_well_fraction: float = 0.1
    speed: float = 0.0
    z_axis: AxisSettings = _Z_AXIS
    xy_axis: AxisSettings = _XY_AXIS
    optics: Optics = field(default_factory=Optics)
    detector: Detector = field(default_factory=Detector)
    field_px: int = 512


@dataclass(frozen=True, slots=True)
class Exposure:
    """The truth about one image.

    Attributes
    ----------
    clock_s
        Middle of the exposure.
    x_um, y_um
        Centre of the field.
    nominal_z_um, actual_z_um, focus_z_um
        What the stage reported, where it was, and where it should have been.
    blank
        True when no cell has its centre in the field.
    channel, exposure_ms, light_ms
        Channel, exposure, and how long the lamp shone on the specimen.
    """

    clock_s: float
    x_um: float
    y_um: float
    nominal_z_um: float
    actual_z_um: float
    focus_z_um: float
    blank: bool
    channel: str
    exposure_ms: float
    light_ms: float

    @property
    def defocus_um(self) -> float:
        """How far the image was out of focus."""
        return self.actual_z_um - self.focus_z_um
