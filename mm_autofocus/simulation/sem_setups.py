"""The scanning electron microscopes that there are to simulate: setup A and setup B of DeepFocus."""

from __future__ import annotations

from dataclasses import dataclass, field

from mm_autofocus.estimators.aberration import Aberration
from mm_autofocus.simulation.electron_probe import Probe


@dataclass(frozen=True, slots=True)
class ColumnSetup:
    """One instrument, aligned by its service engineer.

    Attributes
    ----------
    name
        What it is called.
    probe
        Its beam.
    working_distance_mm
        Where a flat specimen is in focus.
    beam_current_na
        Current that reaches the specimen.
    stigmator_um
        Astigmatic defocus of one unit of a stigmator, µm.
    stigmator_rotation_deg
        Angle of the stigmators' axes against those of an unrotated scan.
    shift_um_per_um
        Shift (x, y) of an unrotated image, µm for each µm of defocus: the beam is tilted.
    magnification_per_um
        Relative change (x, y) of the image's size for each µm of defocus.
    scan_rotation_deg
        Rotation of the scan that it starts with.
    electrons_per_pixel
        Detected electrons of a pixel of yield 1 in 200 ns.
    row_noise
        Standard deviation of the offset of a row, grey levels.
    dark_noise
        Standard deviation of a pixel without beam, grey levels.
    zero_error
        Standard deviations of what the column is off by when it is switched on: working distance µm, stigmators.
    stigmator_drift
        Change of the best stigmator values, units for each µm that focus drifts.
    """

    name: str
    probe: Probe = field(default_factory=Probe)
    working_distance_mm: float = 4.5
    beam_current_na: float = 1.5
    stigmator_um: float = 6.0
    stigmator_rotation_deg: float = 3.0
    shift_um_per_um: tuple[float, float] = (0.012, -0.009)
    magnification_per_um: tuple[float, float] = (2.0e-4, 1.6e-4)
    scan_rotation_deg: float = 0.0
    electrons_per_pixel: float = 84.0
    row_noise: float = 1.5
    dark_noise: float = 1.0
    zero_error: Aberration = field(default_factory=lambda: Aberration(2.0, 0.4, 0.4))
    stigmator_drift: float = 0.02

    @property
    def landing_kv(self) -> float:
        """Landing energy, kV."""
        return self.probe.voltage_kv


SETUP_A = ColumnSetup("A", Probe(8.7, 6.0, softness=0.2, voltage_kv=1.5))
"""Like a Zeiss Merlin at 1.5 kV and 1.5 nA (DeepFocus, Methods)."""

SETUP_B = ColumnSetup(
    "B",
    Probe(6.2, 8.0, softness=0.45, voltage_kv=1.2),
    working_distance_mm=6.0,
    beam_current_na=0.6,
    stigmator_um=4.3,
    stigmator_rotation_deg=-14.0,
    shift_um_per_um=(-0.006, 0.011),
    magnification_per_um=(1.5e-4, 1.5e-4),
    scan_rotation_deg=90.0,
    electrons_per_pixel=34.0,
    row_noise=2.0,
)
"""Like a Zeiss UltraPlus at 1.2 kV and 0.6 nA, its scan rotated by 90 degrees (DeepFocus, Methods)."""

SETUPS = {"A": SETUP_A, "B": SETUP_B}
