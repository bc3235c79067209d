"""What a simulated transmission electron microscope is, and what changes on it from one day to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
"""Shape (2,)."""

APERTURES: dict[int, float] = {1: 100.0, 2: 170.0, 3: 300.0, 4: 430.0}
"""Radius of the hole, in steps of the aperture's drive, by number; the gun's beam is about 330 steps wide."""

REFERENCE_MAGNIFICATION = 5000.0


@dataclass(frozen=True, slots=True)
class TemOptics:
    """The illumination system: gun crossover, C1, C2 with the aperture, specimen (paraxial, lengths in mm).

    Attributes
    ----------
    source_to_c1, c1_to_c2, c2_to_specimen
        Distances.
    f1
        Focal length of C1 at its nominal excitation; it goes with the inverse square of the excitation.
    lens_turn_deg
        Rotation of the image for 10 % more current in C1 or C2.
    pixels
        Detector pixels for one step of the aperture's drive, when the disc is magnified by what 100 % of C1 current
        (extrapolated from nominal) would do, at magnification 5000.
    """

    source_to_c1: float = 80.0
    c1_to_c2: float = 160.0
    c2_to_specimen: float = 120.0
    f1: float = 12.0
    lens_turn_deg: float = 8.0
    pixels: float = 13.7

    @property
    def f2(self) -> float:
        """Focal length of C2 that brings the crossover onto the specimen at nominal C1."""
        return 1.0 / (1.0 / self.c2_to_specimen + 1.0 / self.virtual_distance(1.0))

    def virtual_distance(self, c1: float) -> float:
        """Distance from the image of the gun crossover (by C1) to C2, for a relative excitation of C1."""
        f1 = self.f1 / c1**2
        return self.c1_to_c2 - 1.0 / (1.0 / f1 - 1.0 / self.source_to_c1)

    def scale(self, c1: float, c2: float = 1.0) -> float:
        """Size of the beam at the specimen over its size at the aperture: ``1 + L/d(C1) - L/f2(C2)``, negative beyond.

        A ray from the crossover's image at distance d passes the aperture at height x with slope x/d, is bent by
        -x/f2 there, and reaches the specimen L further at ``x (1 + L/d - L/f2)``.
        """
        length = self.c2_to_specimen
        return 1.0 + length / self.virtual_distance(c1) - length * c2**2 / self.f2

    @property
    def scale_per_c1(self) -> float:
        """Derivative of `scale` by the relative excitation of C1 at nominal."""
        return (self.scale(1.0001) - self.scale(0.9999)) / 2e-4


@dataclass(frozen=True, slots=True)
class TemInstrument:
    """What is built into one microscope: how the aperture's axes lie on the detector, and the play of its drive.

    Attributes
    ----------
    turn
        Angle of the aperture's x axis on the detector, radians.
    mirror
        1 or -1: handedness of the aperture's axes on the detector.
    skew
        Relative difference of the two drives' step sizes, and their angle's departure from 90 degrees (radians).
    play
        Backlash of the aperture's drive, steps.
    """

    seed: int
    turn: float
    mirror: int
    skew: tuple[float, float]
    play: float = 0.6

    @classmethod
    def make(cls, seed: int) -> TemInstrument:
        """Draw an instrument."""
        rng = np.random.default_rng([seed, 601])
        return cls(
            seed=seed,
            turn=float(rng.uniform(0.0, 2.0 * math.pi)),
            mirror=int(rng.choice([-1, 1])),
            skew=(float(rng.normal(0.0, 0.02)), float(rng.normal(0.0, 0.02))),
        )


@dataclass(frozen=True, slots=True)
class TemDay:
    """What changes from day to day (and a little with each flash of the gun).

    Attributes
    ----------
    centre
        Position of the aperture's drive (x, y) at which the hole is on the optic axis of the beam, steps.
    shift_px
        Where the crossover falls on the detector, relative to its middle.
    defocus
        Excitation of C1 that is missing at nominal to have the crossover on the specimen (relative).
    magnification
        True over nominal magnification.
    coherence
        Blur of the Fresnel fringes at the disc's edge, in units of the fringe variable.
    fringe_px
        Width of the first fringe for a disc of 60 px radius.
    beam_centre, beam_sigma
        Middle and width of the gun's beam in the aperture's plane, steps.
    ellipticity, ellipticity_angle
        Of the disc.
    electrons
        Electrons per pixel in a disc of 40 px radius within one exposure, with a gun that was just flashed.
    texture
        Relative contrast of the carbon film.
    texture_seed
        Which film.
    drift_px
        Movement of the beam on the detector, px per square root of a second.
    centre_drift
        Movement of `centre`, steps per square root of a second.
    stale
        Share of frames that are late in spite of the wait: they show, wholly or blended in, the state before.
    edge
        "fresnel": fringes of a straight edge. "soft": an aperture out of focus, no fringes.
    """

    centre: tuple[float, float]
    shift_px: tuple[float, float]
    defocus: float
    magnification: float
    coherence: float
    fringe_px: float
    beam_centre: tuple[float, float]
    beam_sigma: float
    ellipticity: float
    ellipticity_angle: float
    electrons: float
    texture_seed: int
    texture: float = 0.05
    drift_px: float = 0.2
    centre_drift: float = 0.08
    stale: float = 0.04
    edge: str = "fresnel"

    @classmethod
    def make(cls, seed: int, day: int, aperture: int) -> TemDay:
        """Draw a day of an instrument; each hole of the aperture strip has a centre of its own."""
        unit = np.random.default_rng([seed, 602])
        rng = np.random.default_rng([seed, day % 2**32, 603])
        hole = np.random.default_rng([seed, aperture, 604]).normal(0.0, 25.0, 2)
        centre = hole + rng.normal(0.0, 8.0, 2)
        shift = unit.normal(0.0, 4.0, 2) + rng.normal(0.0, 6.0, 2)
        beam = unit.normal(0.0, 15.0, 2) + rng.normal(0.0, 20.0, 2)
        return cls(
            centre=(float(centre[0]), float(centre[1])),
            shift_px=(float(shift[0]), float(shift[1])),
            defocus=float(rng.normal(0.0, 0.004)),
            magnification=float(np.exp(rng.normal(0.0, 0.06))),
            coherence=float(rng.choice([0.15, 0.3, 0.6])),
            fringe_px=float(3.0 * np.exp(rng.normal(0.0, 0.2))),
            beam_centre=(float(beam[0]), float(beam[1])),
            beam_sigma=float(330.0 * np.exp(rng.normal(0.0, 0.15))),
            ellipticity=float(abs(0.03 + rng.normal(0.0, 0.01))),
            ellipticity_angle=float(unit.uniform(0.0, math.pi) + rng.normal(0.0, 0.1)),
            electrons=float(900.0 * np.exp(rng.normal(0.0, 0.3))),
            texture_seed=int(rng.integers(2**31)),
        )
