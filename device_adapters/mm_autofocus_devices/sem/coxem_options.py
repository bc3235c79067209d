"""What a configuration must tell the client of a COXEM SEM because the dialect does not."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from mm_autofocus.errors import HardwareError

WORKING_DISTANCE_MM = (1.0, 100.0)
MAGNIFICATION = (10.0, 1e6)
"""What the client sends at all: the dialect does not tell the instrument's ranges, so a .toml's limits must."""
XY_UM = (-60_000.0, 60_000.0)


@dataclass(frozen=True, slots=True)
class CoxemOptions:
    """What a configuration must say because the dialect does not: property Options, "name=value; name=value".

    Attributes
    ----------
    folder
        Where the program leaves its images.
    working_distance_mm, magnification
        What is set when the devices are initialized: nobody can ask the instrument where it stands.
    x_um, y_um
        Where the stage is sent then; without them it is left alone, and there can be no XY device.
    move_s
        How long a stage move takes at most, seconds: nothing tells when it has arrived.
    image_s
        Longest wait for the image after a reply, seconds.
    stage_unit_um
        Length of the stage's unit on the wire; a millimetre is assumed.
    display_mm
        Width of the picture that the magnification refers to.
    """

    folder: str
    working_distance_mm: float
    magnification: float
    x_um: float | None = None
    y_um: float | None = None
    move_s: float = 5.0
    image_s: float = 8.0
    stage_unit_um: float = 1000.0
    display_mm: float = 114.3

    @classmethod
    def parse(cls, text: str) -> CoxemOptions:
        """Read the property.

        Raises
        ------
        HardwareError
            A name is unknown or missing, or a value is no number in its range.
        """
        known = {field.name for field in fields(cls)}
        given = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
        given = {name.strip(): value.strip() for name, value in given.items()}
        unknown = [p.strip() for p in text.split(";") if p.strip() and p.split("=", 1)[0].strip() not in given]
        unknown += sorted(given.keys() - known)
        missing = [name for name in ("folder", "working_distance_mm", "magnification") if not given.get(name)]
        if unknown or missing:
            raise HardwareError(
                f"Options {text!r} of the COXEM dialect: "
                + "; ".join([f"{name!r} is unknown" for name in unknown] + [f"{name} is missing" for name in missing])
                + '. Write for example "folder=coxem-images; working_distance_mm=10; magnification=500".'
            )
        numbers: dict[str, float] = {}
        for name in (name for name in given if name != "folder"):
            low, high = _RANGES.get(name, (0.0, 1e6))
            try:
                numbers[name] = float(given[name])
            except ValueError:
                numbers[name] = math.nan
            if not low <= numbers[name] <= high:
                raise HardwareError(
                    f"Options of the COXEM dialect: {name}={given[name]} must be a number from {low:g} to {high:g}."
                )
        if ("x_um" in numbers) != ("y_um" in numbers):
            raise HardwareError("Options of the COXEM dialect: x_um and y_um belong together; give both or none.")
        return cls(folder=given["folder"], **numbers)


_RANGES = {
    "working_distance_mm": WORKING_DISTANCE_MM, "magnification": MAGNIFICATION, "x_um": XY_UM, "y_um": XY_UM,
    "move_s": (0.0, 60.0), "image_s": (0.1, 600.0), "stage_unit_um": (1e-3, 1e6), "display_mm": (1.0, 1000.0),
}  # fmt: skip
