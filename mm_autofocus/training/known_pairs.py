"""Pairs of frames at known knobs, as calibrating and recalibrating take them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mm_autofocus.errors import FocusError, LimitError
from mm_autofocus.estimators.aberration import Aberration
from mm_autofocus.strategy import Image

if TYPE_CHECKING:
    from mm_autofocus.microscope.microscope import Microscope

KNOBS = ("z", "stig_x", "stig_y")
"""Names of the knobs: working distance and stigmators."""

Offsets = Sequence[tuple[float, float, float]]


@dataclass(frozen=True, slots=True)
class KnownPair:
    """A pair and where the knobs stood.

    Attributes
    ----------
    under, over
        Frames at the lower and the higher working distance.
    knobs
        Of the midpoint. To calibrate, relative to anything that stays the same from pair to pair; to
        fine-tune, relative to the best values: the label.
    step_um, pixel_um
        As for `PairEstimator.estimate`.
    """

    under: Image
    over: Image
    knobs: Aberration
    step_um: float
    pixel_um: float


def take_pairs(
    microscope: Microscope,
    offsets: Offsets,
    *,
    half_step_um: float = 5.0,
    camera: str | None = None,
    exposure_ms: float | None = None,
) -> list[KnownPair]:
    """Take pairs at offsets from where the knobs stand, and put everything back.

    Parameters
    ----------
    microscope
        With the knobs "z", "stig_x" and "stig_y".
    offsets
        (working distance µm, stig x, stig y).
    half_step_um
        The frames of a pair lie so far on either side.
    camera, exposure_ms
        What to image with; the microscope's own by default.

    Raises
    ------
    FocusError
        When an offset leaves the limits, the pixel size is not known, or a frame can't be taken.
    """
    return list(taken_pairs(microscope, offsets, half_step_um=half_step_um, camera=camera, exposure_ms=exposure_ms))


def check_room(microscope: Microscope, offsets: Offsets, half_step_um: float = 5.0) -> None:
    """Check that pairs at these offsets from where the knobs stand stay within the limits.

    Raises
    ------
    LimitError
        When not; nothing has moved.
    """
    reach, half = np.array(offsets, dtype=float), np.array([half_step_um, 0.0, 0.0])
    low, high = reach.min(0) - half, reach.max(0) + half
    for name, down, up in zip(KNOBS, low, high, strict=True):
        knob = microscope.knob(name)
        here = knob.get()
        if here + down not in knob.limits or here + up not in knob.limits:
            raise LimitError(
                f"the pairs of frames need knob {name!r} from {here + down:.6g} to {here + up:.6g} {knob.unit}, its "
                f"limits are [{knob.limits.low:g}, {knob.limits.high:g}]; nothing has moved. Widen [knobs.{name}] "
                "limits if that is safe, bring the knob to their middle, or take smaller steps"
            )


def taken_pairs(
    microscope: Microscope,
    offsets: Offsets,
    *,
    half_step_um: float = 5.0,
    camera: str | None = None,
    exposure_ms: float | None = None,
) -> Generator[KnownPair, None, None]:
    """Yield each pair as it is taken; see `take_pairs`. Closing the iterator puts everything back, too."""
    pixel = microscope.pixel_um
    if pixel is None:
        raise FocusError("pairs of frames: the core knows no pixel size; define one in the configuration")
    knobs = [microscope.knob(name) for name in KNOBS]
    check_room(microscope, offsets, half_step_um)
    with microscope.preserved():
        start = np.array([knob.get() for knob in knobs])
        microscope.apply_imaging()
        for offset in offsets:
            target = start + np.array(offset)
            there = [float(knob.set(float(value))) for knob, value in zip(knobs[1:], target[1:], strict=True)]
            low = float(knobs[0].set(float(target[0] - half_step_um)))
            under, _ = microscope.snap(camera=camera, exposure_ms=exposure_ms)
            high = float(knobs[0].set(float(target[0] + half_step_um)))
            over, _ = microscope.snap(camera=camera, exposure_ms=exposure_ms)
            middle = np.array([(low + high) / 2, *there]) - start
            yield KnownPair(under, over, Aberration(*(float(v) for v in middle)), high - low, pixel)
        for knob, value in zip(knobs, start, strict=True):
            knob.set(float(value))


SMALL_EVERY = 3
"""Of the aberrations to label, each so-manieth is small."""


def random_aberrations(
    count: int, seed: int, *, defocus_um: float = 20.0, stigmator: float = 5.0
) -> list[tuple[float, float, float]]:
    """Return aberrations to label, drawn evenly between limits: the paper takes 10 at each of 10 locations.

    Every third is drawn smaller, down to a thirtieth (evenly in the logarithm): of a hundred even draws three are
    near focus, and a network that has hardly seen a sharp pair of its column reads one wrong by micrometres.
    """
    rng = np.random.default_rng([0xAB, seed])
    drawn = rng.uniform(-1.0, 1.0, (count, 3)) * np.array([defocus_um, stigmator, stigmator])
    drawn[SMALL_EVERY - 1 :: SMALL_EVERY] *= 10.0 ** rng.uniform(-1.5, 0.0, (count // SMALL_EVERY, 1))
    return [(float(z), float(x), float(y)) for z, x, y in drawn]
