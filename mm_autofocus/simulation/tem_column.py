"""The simulated condenser of a transmission electron microscope: lenses, a slow aperture, a disc on the detector."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.special import fresnel

from mm_autofocus.simulation.tem_day import (
    APERTURES,
    REFERENCE_MAGNIFICATION,
    TemDay,
    TemInstrument,
    TemOptics,
)

APERTURE_LIMIT = 8_388_608
"""The drive's integer range is from minus this to this less one; the window in which a hole passes beam is about
+-1000."""
LATENCY_S = 0.5
"""A captured frame shows the column as it was this long ago."""
SETTLE_S = 0.3
"""For this long after a change a frame is a blend of before and after."""
SPOT_PX = 2.5
"""Radius of the crossover's image at the reference magnification: a disc is never smaller."""
FLASH_EVERY_S = 6 * 3600.0
_FULL = 65535
_STIGMATOR = 0.01
"""Change of the disc's scale for one unit of a condenser stigmator, in relative C1 current."""
_TILT_PX = 0.05
"""Movement of the disc for one mrad of beam tilt: the pivot point is not quite on the specimen."""
_EDGE = np.linspace(-6.0, 14.0, 2001)

Settable = Literal[
    "c1", "c2", "objective", "intensity", "beam_shift_x", "beam_shift_y", "beam_tilt_x", "beam_tilt_y",
    "stig_x", "stig_y", "screen", "aperture_x", "aperture_y",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _State:
    """Everything that the operator sets, as the beam sees it."""

    c1: float = 1.0
    c2: float = 1.0
    objective: float = 1.0
    intensity: float = 1.0
    beam_shift_x: float = 0.0
    beam_shift_y: float = 0.0
    beam_tilt_x: float = 0.0
    beam_tilt_y: float = 0.0
    stig_x: float = 0.0
    stig_y: float = 0.0
    screen: bool = False
    aperture: tuple[float, float] = (0.0, 0.0)


RANGES: dict[str, tuple[float, float]] = {
    "c1": (0.5, 1.5),
    "c2": (0.5, 1.5),
    "objective": (0.5, 1.5),
    "intensity": (0.5, 1.5),
    "beam_shift_x": (-20.0, 20.0),
    "beam_shift_y": (-20.0, 20.0),
    "beam_tilt_x": (-50.0, 50.0),
    "beam_tilt_y": (-50.0, 50.0),
    "stig_x": (-1.0, 1.0),
    "stig_y": (-1.0, 1.0),
}
"""What each electrical knob accepts: lens values are relative (1 = 100 %), beam shift is in µm, tilt in mrad."""


class TemColumn:
    """A condenser that can be wobbled: paraxial transfer, Fresnel fringes, drift, flashes, late frames.

    The aperture lies in the plane of C2; the disc on the detector is its shadow, ``centre = A(C1, C2) (a - a0) + s``
    with radius ``|A| R``. At crossover A changes sign. Wobbling C1 moves the disc unless the hole is on axis. Time is
    simulated: `wait`, moves of the aperture and `image` advance `clock_s`, nothing sleeps.

    Parameters
    ----------
    seed
        Fixes the instrument and its noise.
    day
        Another alignment and another specimen each day; negative numbers are fine.
    aperture
        Number of the hole, a key of `APERTURES`.
    magnification
        Nominal magnification; the disc scales with it.
    size
        Frame edge in pixels; the field of view stays the same.
    capture
        "screen": what a screen capture gives (8 bits, contrast stretched to each frame). "camera": counts of a
        detector (16 bits, linear, it saturates).
    exposure_s
        Exposure of one frame.
    condition
        The day's state; None to draw it from the seeds. Tests pass their own.

    Raises
    ------
    ValueError
        For an aperture, magnification, size or exposure that does not exist.
    """

    def __init__(
        self,
        seed: int = 1,
        day: int = 0,
        aperture: int = 2,
        magnification: float = REFERENCE_MAGNIFICATION,
        *,
        size: int = 256,
        capture: Literal["screen", "camera"] = "screen",
        exposure_s: float = 0.1,
        optics: TemOptics | None = None,
        condition: TemDay | None = None,
    ) -> None:
        if aperture not in APERTURES:
            raise ValueError(f"aperture {aperture} does not exist; the strip has {sorted(APERTURES)}")
        if capture not in ("screen", "camera"):
            raise ValueError(f'capture = {capture!r}; it is "screen" or "camera"')
        if not 16 <= size <= 4096:
            raise ValueError(f"size = {size}; a frame has 16 to 4096 pixels on a side")
        self.seed, self.day, self.capture, self.size = seed, day, capture, size
        self.optics = optics or TemOptics()
        self.instrument = TemInstrument.make(seed)
        self._aperture_number = aperture
        self.condition = condition or TemDay.make(seed, day, aperture)
        self.clock_s = 0.0
        self.images = 0
        self.beam_on = True
        """False: the gun valve is shut; every frame is dark."""
        self.lens_responds = True
        """False: the supply of C1 takes values and ignores them."""
        self.aperture_responds = True
        """False: the aperture's drive is jammed."""
        self.speed = 400.0
        """Steps of the aperture per second."""
        self.magnification = magnification
        self.exposure_s = exposure_s
        self._rng = np.random.default_rng([seed, day % 2**32, aperture, 605])
        self._state = self._shown = _State()
        self._before = self._state
        self._changed_s = -math.inf
        self._commanded = [0, 0]
        self._actual = np.zeros(2)
        self._wander = np.zeros(2)
        self._centre = np.array(self.condition.centre)
        self._shift = np.array(self.condition.shift_px)
        self._flashed_s = 0.0
        y, x = np.mgrid[:size, :size].astype(np.float32)
        middle = (size - 1) / 2
        self._scale_px = size / 256.0
        self._x, self._y = (x - np.float32(middle)), (y - np.float32(middle))
        self._texture_at = self._rng.integers(0, 40, 2)

    # ------------------------------------------------------------------ knobs
    def get(self, name: str) -> float:
        """Return what a knob was set to; the aperture says where it stands, in whole steps.

        Raises
        ------
        KeyError
            For a knob that the column does not have.
        """
        if name in ("aperture_x", "aperture_y"):
            return float(round(self._actual[int(name == "aperture_y")]))
        if name == "screen":
            return float(self._state.screen)
        if name not in RANGES:
            raise KeyError(name)
        return float(getattr(self._state, name))

    def set(self, name: str, value: float) -> None:
        """Turn a knob. Lenses and coils answer at once, the aperture travels (`busy`).

        Raises
        ------
        KeyError
            For a knob that the column does not have.
        ValueError
            For a value outside its range, or not a number. Nothing has moved.
        """
        value = float(value)
        if name in ("aperture_x", "aperture_y"):
            if not -APERTURE_LIMIT <= value < APERTURE_LIMIT:
                raise ValueError(f"{name} = {value:g} is outside [{-APERTURE_LIMIT}, {APERTURE_LIMIT - 1}] steps")
            if self.aperture_responds:
                self._commanded[int(name == "aperture_y")] = round(value)
            return
        if name == "screen":
            self._change(screen=bool(value))
            return
        low, high = RANGES[name]
        if not low <= value <= high:
            raise ValueError(f"{name} = {value:g} is outside [{low:g}, {high:g}]")
        if name == "c1" and not self.lens_responds:
            return
        self._change(**{name: value})

    def __getattr__(self, name: str) -> Any:
        if name in RANGES or name in ("aperture_x", "aperture_y"):
            return self.get(name)
        if name == "screen":
            return bool(self._state.screen)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in RANGES or name in ("aperture_x", "aperture_y", "screen"):
            self.set(name, value)
        else:
            object.__setattr__(self, name, value)

    @property
    def aperture(self) -> int:
        """Number of the hole in use."""
        return self._aperture_number

    @aperture.setter
    def aperture(self, number: int) -> None:
        if number not in APERTURES:
            raise ValueError(f"aperture {number} does not exist; the strip has {sorted(APERTURES)}")
        other = TemDay.make(self.seed, self.day, number).centre
        this = TemDay.make(self.seed, self.day, self._aperture_number).centre
        self._centre = self._centre + np.array(other) - np.array(this)
        self._aperture_number = number
        self._changed()

    @property
    def radius_steps(self) -> float:
        """Radius of the hole in steps of the drive."""
        return APERTURES[self._aperture_number]

    @property
    def magnification(self) -> float:
        """Nominal magnification."""
        return self._magnification

    @magnification.setter
    def magnification(self, value: float) -> None:
        if not 50.0 <= value <= 2e6:
            raise ValueError(f"magnification = {value:g} is outside [50, 2000000]")
        self._magnification = float(value)

    @property
    def exposure_s(self) -> float:
        """Exposure of one frame, s."""
        return self._exposure_s

    @exposure_s.setter
    def exposure_s(self, value: float) -> None:
        if not 1e-4 <= value <= 60.0:
            raise ValueError(f"exposure = {value:g} s is outside [0.0001, 60] s")
        self._exposure_s = float(value)

    @property
    def busy(self) -> bool:
        """True while the aperture travels."""
        return bool(np.any(np.abs(self._actual - self._commanded) > self.instrument.play + 0.5))

    # ------------------------------------------------------------------ time
    def wait(self, seconds: float) -> None:
        """Let time pass: the aperture travels, the beam drifts, the gun fades and is flashed when it is due."""
        if seconds <= 0:
            return
        day = self.condition
        self.clock_s += seconds
        self._wander += self._rng.normal(0.0, day.drift_px * math.sqrt(min(seconds, 60.0)), 2)
        self._wander *= math.exp(-seconds / 600.0)
        self._centre = self._centre + self._rng.normal(0.0, day.centre_drift * math.sqrt(seconds), 2)
        self._travel(seconds)
        if self.clock_s - self._flashed_s > FLASH_EVERY_S:
            self.flash()

    def wait_aperture(self) -> None:
        """Let time pass until the aperture stands."""
        distance = float(np.max(np.abs(self._actual - self._commanded)))
        self.wait(distance / self.speed + 0.05 if self.busy else 0.0)

    def flash(self) -> None:
        """Flash the gun: the full current is back, and the source has moved a little."""
        self._flashed_s = self.clock_s
        self._centre = self._centre + self._rng.normal(0.0, 1.5, 2)
        self._shift = self._shift + self._rng.normal(0.0, 1.0, 2)

    def _travel(self, seconds: float) -> None:
        way = np.array(self._commanded, float) - self._actual
        length = float(np.max(np.abs(way)))
        if length <= self.instrument.play + 0.5:  # the drive stands as near as its play lets it
            return
        reach = self.speed * seconds
        if length <= reach:
            slip = np.sign(way) * self.instrument.play * self._rng.uniform(0.0, 1.0, 2)
            self._actual = np.array(self._commanded, float) - slip
        else:
            self._actual = self._actual + way * (reach / length)
        self._changed()

    def _change(self, **values: Any) -> None:
        new = replace(self._state, **values)
        if new != self._state:
            self._changed(new)

    def _changed(self, new: _State | None = None) -> None:
        aperture = (float(self._actual[0]), float(self._actual[1]))
        if self.clock_s - self._changed_s > 1e-9:  # several knobs turned at one time are one change
            self._before = self._state
        self._state = replace(new or self._state, aperture=aperture)
        self._changed_s = self.clock_s

    # ------------------------------------------------------------------ images
    def image(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Take a frame, shape (size, size): uint8 from a captured screen, uint16 from the camera. Takes `exposure_s`.

        A frame shows the column as it was 0.5 s before; one taken too early after a change is old or a blend, and a few
        are late in spite of a wait.
        """
        self.wait(self.exposure_s)
        self.images += 1
        age = self.clock_s - self._changed_s - LATENCY_S
        weight = 0.0 if age < 0 else min(age / SETTLE_S, 1.0)
        if weight == 1.0 and self.clock_s - self._changed_s < 5.0 and self._rng.random() < self.condition.stale:
            weight = float(self._rng.uniform(0.0, 0.8))
        light = np.zeros((self.size, self.size), np.float32)
        if weight > 0:
            light += np.float32(weight) * self._render(self._state)
        if weight < 1:
            light += np.float32(1.0 - weight) * self._render(self._before)
        return self._detect(light)

    def geometry(self, c1: float | None = None) -> tuple[float, float, float]:
        """Return the disc's true centre (x, y from the first pixel) and signed radius, in pixels; for scoring."""
        state = self._state if c1 is None else replace(self._state, c1=c1)
        centre, matrix = self._transfer(state)
        signed = float(np.sign(self._signed_scale(state)) * math.sqrt(abs(np.linalg.det(matrix))))
        middle = (self.size - 1) / 2
        return middle + float(centre[0]), middle + float(centre[1]), signed * self.radius_steps

    def truth(self) -> dict[str, float]:
        """Return where the aperture belongs, in steps; for scoring only."""
        return {"aperture_x": float(self._centre[0]), "aperture_y": float(self._centre[1])}

    def _signed_scale(self, state: _State) -> float:
        optics = self.optics
        c1 = state.c1 + self.condition.defocus
        return optics.scale(c1, state.c2 * state.intensity) / optics.scale_per_c1

    def _transfer(self, state: _State) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the disc's centre from the frame's middle, and the matrix aperture -> detector (pixels per step)."""
        day, unit, optics = self.condition, self.instrument, self.optics
        per_step = (
            optics.pixels * self._scale_px * self.magnification / REFERENCE_MAGNIFICATION * day.magnification
            / state.objective**2
        )  # fmt: skip
        turn = unit.turn + math.radians(optics.lens_turn_deg) * 10 * (
            (state.c1 - 1.0) + (state.c2 * state.intensity - 1.0) + 4.0 * (state.objective - 1.0)
        )
        cos, sin = math.cos(turn), math.sin(turn)
        axes = np.array([[cos, -unit.mirror * sin], [sin, unit.mirror * cos]])
        axes = axes @ np.array([[1 + unit.skew[0], unit.skew[1]], [0.0, 1 - unit.skew[0]]])
        a2 = 2 * day.ellipticity_angle
        ellipse = np.eye(2) + day.ellipticity * np.array([[math.cos(a2), math.sin(a2)], [math.sin(a2), -math.cos(a2)]])
        coils = _STIGMATOR * np.array([[state.stig_x, state.stig_y], [state.stig_y, -state.stig_x]])
        matrix = per_step * (self._signed_scale(state) * ellipse + coils) @ axes
        offset = np.array(state.aperture) - self._centre
        um = self._scale_px * 12.0 * self.magnification / REFERENCE_MAGNIFICATION  # pixels per µm of beam shift
        coil = np.array([[0.97, 0.12], [-0.10, 1.02]]) @ np.array([state.beam_shift_x, state.beam_shift_y])
        tilt = _TILT_PX * np.array([state.beam_tilt_x, state.beam_tilt_y])
        centre = matrix @ offset + um * (coil + tilt) + self._scale_px * (self._shift + self._wander)
        return centre, matrix

    def _render(self, state: _State) -> NDArray[np.float32]:
        """Electrons per pixel without noise."""
        dark = np.zeros((self.size, self.size), np.float32)
        if not self.beam_on or state.screen:
            return dark
        day = self.condition
        centre, matrix = self._transfer(state)
        radius = self.radius_steps
        spot = SPOT_PX * self._scale_px * self.magnification / REFERENCE_MAGNIFICATION
        u, s, vt = np.linalg.svd(matrix)
        s = np.hypot(s, max(spot, 0.5) / radius)
        inverse = ((vt.T / s) @ u.T).astype(np.float32)
        x, y = self._x - np.float32(centre[0]), self._y - np.float32(centre[1])
        ax, ay = inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y  # steps, from the hole
        height = np.sqrt(ax * ax + ay * ay)
        distance = (np.float32(radius) - height) * np.sqrt(x * x + y * y) / np.maximum(height, np.float32(1e-3))
        distance[height < 1e-2] = radius * float(s.min())
        disc_px = radius * math.sqrt(float(s[0] * s[1]))
        fringe = day.fringe_px * math.sqrt(self._scale_px * max(disc_px, 3.0 * self._scale_px) / 60.0) + 0.3
        edge = _edge(day.edge, day.coherence)
        light = np.asarray(np.interp(distance / fringe, _EDGE, edge, left=0.0, right=1.0), np.float32)
        bx = ax + np.float32(state.aperture[0] - self._centre[0] - day.beam_centre[0])
        by = ay + np.float32(state.aperture[1] - self._centre[1] - day.beam_centre[1])
        light *= np.exp((bx * bx + by * by) * np.float32(-0.5 / day.beam_sigma**2))
        film = _film(day.texture_seed, self.size)
        ox, oy = self._texture_at
        light *= 1 + np.float32(day.texture) * film[oy : oy + self.size, ox : ox + self.size]
        age = self.clock_s - self._flashed_s
        current = 0.7 + 0.3 * math.exp(-age / 7200.0)
        electrons = day.electrons * current * self.exposure_s / 0.1
        light *= np.float32(electrons * (40.0 * self._scale_px * radius / 170.0 / disc_px) ** 2)
        return light

    def _detect(self, light: NDArray[np.float32]) -> NDArray[np.uint8] | NDArray[np.uint16]:
        rng = self._rng
        noise = np.sqrt(light + np.float32(9.0))  # shot noise and 3 electrons of read noise
        counts = light + noise * rng.standard_normal(light.shape, dtype=np.float32)
        if self.capture == "camera":
            levels = np.clip(np.round(counts * np.float32(2.0) + 200.0), 0, _FULL)
            return np.asarray(levels, np.uint16)
        top = max(float(np.percentile(counts, 99.5)), 60.0)  # the display stretches the contrast, within reason
        levels = np.clip(np.round(counts * np.float32(229.0 / top) + 5.0), 0, 255)
        return np.asarray(levels, np.uint8)


@lru_cache(maxsize=16)
def _edge(kind: str, coherence: float) -> NDArray[np.float64]:
    """Intensity across the disc's edge: Fresnel diffraction at a straight edge, blurred by the source's size."""
    if kind == "soft":
        return np.asarray(0.5 * (1 + np.tanh(_EDGE / 1.5)))
    sine, cosine = fresnel(_EDGE)
    sharp = 0.5 * ((cosine + 0.5) ** 2 + (sine + 0.5) ** 2)
    return np.asarray(gaussian_filter1d(sharp, coherence * 100))


@lru_cache(maxsize=16)
def _film(seed: int, size: int) -> NDArray[np.float32]:
    """Return a carbon film: two scales of grain, unit standard deviation, 64 px larger than a frame."""
    noise = np.random.default_rng(seed).standard_normal((size + 64, size + 64))
    film = gaussian_filter(noise, 1.2) * 2.4 + gaussian_filter(noise[::-1], 5) * 8
    return np.asarray(film / film.std(), np.float32)
