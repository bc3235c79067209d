"""The knobs of an electron column as a vector, inside their limits, and the frames and pairs taken with them."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np

from mm_autofocus.errors import HardwareError, StrategyError
from mm_autofocus.estimators.aberration import PairEstimate, Vector
from mm_autofocus.request import FocusRequest
from mm_autofocus.strategy import Frame, Image, Look

STIGMATORS = ("stig_x", "stig_y")
"""Names of the knobs that turn the stigmators."""

MIN_SIDE_PX = 32
"""A frame smaller than this along a side is refused."""


def stigmators_of(request: FocusRequest) -> tuple[str, ...]:
    """Return the stigmators that a request lets turn: both, or none.

    Raises
    ------
    StrategyError
        When it has one only.
    """
    there = tuple(name for name in STIGMATORS if name in request.start)
    if len(there) == 1:
        (missing,) = set(STIGMATORS) - set(there)
        raise StrategyError(
            f"knob {there[0]!r} is there, {missing!r} is not; add [knobs.{missing}], or set stigmate = false to leave "
            "the stigmators alone"
        )
    return there


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame and where the column stood: ``knobs`` is (working distance, stig_x, stig_y), read back, shape (3,)."""

    image: Image
    knobs: Vector
    pixel_um: float
    exposure_ms: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Two frames of the same place, ``under`` at the lower working distance."""

    under: Shot
    over: Shot

    @property
    def middle(self) -> Vector:
        """Knobs that an estimate from this pair is about, shape (3,)."""
        return (self.under.knobs + self.over.knobs) / 2.0

    @property
    def step_um(self) -> float:
        """Working distance of ``over`` minus that of ``under``."""
        return float(self.over.knobs[0] - self.under.knobs[0])


class ColumnKnobs:
    """What one run may turn: the request's knob for focus, and the stigmators where the request has both.

    A knob that comes to rest short of where it was sent (clamped by the instrument) narrows ``low`` and ``high``, so
    that a best value beyond is recognised as one.

    Parameters
    ----------
    request
        What is asked.
    range_um, stig_range
        Whole length of the search around the start, in µm of working distance and in a.u.
    stigmate
        False to leave the stigmators alone.
    camera, exposure_ms
        What to image with; None for the microscope's own.
    pixel_um
        Pixel size to believe in place of the microscope's; None for the microscope's.

    Raises
    ------
    StrategyError
        When only one stigmator is a knob, or the limits leave nothing to search.
    """

    def __init__(
        self,
        request: FocusRequest,
        *,
        range_um: float,
        stig_range: float = 20.0,
        stigmate: bool = True,
        camera: str | None = None,
        exposure_ms: float | None = None,
        pixel_um: float | None = None,
    ) -> None:
        self._request, self._camera, self._exposure, self._pixel = request, camera, exposure_ms, pixel_um
        turned = stigmators_of(request) if stigmate else ()
        self.names: tuple[str, ...] = (request.knob, *turned)
        self.start: Vector = np.array([request.start[request.knob], *(request.start.get(n, 0.0) for n in STIGMATORS)])
        self.depths: Vector = np.array([request.depth(request.knob), *(request.depth(n) for n in STIGMATORS)])
        window = request.search_window(range_um)
        limits = [request.limits[name] for name in self.names]
        self.low: Vector = self.start.copy()
        self.high: Vector = self.start.copy()
        n = self.size
        self.low[:n] = [limit.low for limit in limits]
        self.high[:n] = [limit.high for limit in limits]
        self._hard_low, self._hard_high = self.low.copy(), self.high.copy()
        self.low[0], self.high[0] = max(self.low[0], window.low), min(self.high[0], window.high)
        for i in range(1, n):
            self.low[i] = max(self.low[i], self.start[i] - stig_range / 2)
            self.high[i] = min(self.high[i], self.start[i] + stig_range / 2)
        if not np.all(np.isfinite(self.start)) or not np.all(self.low <= self.high):
            raise StrategyError(
                f"there is nothing to search: {self.names} start at {self.start.tolist()}, allowed from "
                f"{self.low.tolist()} to {self.high.tolist()}; move the window or the limits"
            )
        self.clamped: dict[str, str] = {}
        """By knob, where it was sent and where it came to rest, for those that were stopped on the way."""
        self._shape: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """How many knobs are turned: 1 or 3."""
        return len(self.names)

    @property
    def stigmates(self) -> bool:
        """True when the stigmators are turned too."""
        return self.size == 3

    def inside(self, knobs: Vector) -> Vector:
        """Return the nearest allowed knobs; what is not turned stays at its start."""
        inner = np.clip(np.where(np.isfinite(knobs), knobs, self.start), self.low, self.high)
        return np.asarray(np.where(np.arange(3) < self.size, inner, self.start))

    def beyond(self, knobs: Vector) -> Vector:
        """Return how far each knob lies outside what is allowed, in depths in focus, shape (3,)."""
        return np.asarray(np.abs(knobs - self.inside(knobs)) / self.depths * (np.arange(3) < self.size))

    def target(self, knobs: Vector) -> dict[str, float]:
        """Return allowed targets by name."""
        return dict(zip(self.names, (float(v) for v in self.inside(knobs)), strict=False))

    def take(self, knobs: Vector) -> Generator[Look, Frame, Shot]:
        """Image at ``knobs`` (inside the hard limits) and check what comes back.

        Raises
        ------
        HardwareError
            When the frame is not a two-dimensional image of finite numbers, or changed its size during the run.
        StrategyError
            When the frame says neither where the knobs are nor how large a pixel is.
        """
        asked = np.clip(knobs, self._hard_low, self._hard_high)
        targets = {name: float(asked[i]) for i, name in enumerate(self.names)}
        frame = yield Look(targets, camera=self._camera, exposure_ms=self._exposure)
        at = self._where(frame)
        self._note_clamped(asked, at)
        return Shot(self._image(frame), at, self._pixel_size(frame), frame.exposure_ms)

    def pair(self, middle: Vector, step_um: float) -> Generator[Look, Frame, Pair]:
        """Take two frames ``step_um`` on either side of ``middle``, moved inwards where a limit is near."""
        low, high = self._hard_low[0] + step_um, self._hard_high[0] - step_um
        centre = middle.copy()
        centre[0] = (low + high) / 2 if low > high else min(max(centre[0], low), high)
        half = np.array([min(step_um, (self._hard_high[0] - self._hard_low[0]) / 2), 0.0, 0.0])
        under = yield from self.take(centre - half)
        over = yield from self.take(centre + half)
        return self.checked(under, over, 2 * float(half[0]))

    def first_pair(self, step_um: float) -> Generator[Look, Frame, Pair]:
        """Take the start and a frame ``2 * step_um`` beside it: the start's frame then serves the verification too."""
        here = yield from self.take(self.start)
        way = 2.0 * step_um if self.start[0] + 2.0 * step_um <= self._hard_high[0] else -2.0 * step_um
        there = yield from self.take(self.start + np.array([way, 0.0, 0.0]))
        return self.checked(here, there, abs(way))

    def checked(self, one: Shot, other: Shot, step_um: float) -> Pair:
        """Return the two as a pair.

        Raises
        ------
        HardwareError
            When the working distance did not make at least half the step, or both frames are one and the same.
        """
        under, over = (one, other) if one.knobs[0] <= other.knobs[0] else (other, one)
        made = float(over.knobs[0] - under.knobs[0])
        if made < max(0.5 * step_um, 1e-6):
            raise HardwareError(
                f"{self.names[0]!r} made {made:.3g} of the {step_um:.3g} µm between two frames (it stands at "
                f"{over.knobs[0]:.6g}); the instrument clamps or ignores it: widen its range, or the limits"
            )
        if not flat(one.image) and np.array_equal(one.image, other.image):  # no two frames have the same noise
            raise HardwareError(
                f"the same frame came twice, from working distances {made:.3g} µm apart: the camera delivers old "
                "images. Check that it scans"
            )
        if abs(one.pixel_um - other.pixel_um) > 0.01 * one.pixel_um:
            raise HardwareError(
                f"the pixel size changed from {one.pixel_um:g} to {other.pixel_um:g} µm between two frames; keep the "
                "magnification while focusing"
            )
        return Pair(under, over)

    # ------------------------------------------------------------------ what a frame must be
    def _where(self, frame: Frame) -> Vector:
        at = self.start.copy()
        for i, name in enumerate(self.names):
            at[i] = frame.knobs.get(name, math.nan)
        if not np.all(np.isfinite(at)):
            raise StrategyError(f"a frame came back without the positions of {self.names}: {dict(frame.knobs)}")
        return at

    def _note_clamped(self, asked: Vector, at: Vector) -> None:
        for i, name in enumerate(self.names):
            if abs(asked[i] - at[i]) <= 0.5 * self.depths[i]:
                continue
            self.clamped[name] = f"{name} was sent to {asked[i]:.6g} and stands at {at[i]:.6g}"
            if at[i] < asked[i]:
                self.high[i] = max(min(self.high[i], at[i]), self.low[i])
            else:
                self.low[i] = min(max(self.low[i], at[i]), self.high[i])

    def _image(self, frame: Frame) -> Image:
        image = np.asarray(frame.image)
        if image.ndim != 2 or min(image.shape) < MIN_SIDE_PX or image.dtype.kind not in "uif":
            raise HardwareError(
                f"the camera sent an image of shape {image.shape} and type {image.dtype}; focusing needs grey images "
                f"of at least {MIN_SIDE_PX} x {MIN_SIDE_PX} pixels"
            )
        if self._shape is not None and image.shape != self._shape:
            raise HardwareError(
                f"the image size changed from {self._shape[1]} x {self._shape[0]} to {image.shape[1]} x "
                f"{image.shape[0]} during the run; keep the camera's settings while focusing"
            )
        if image.dtype.kind == "f" and not np.all(np.isfinite(image)):
            raise HardwareError("the camera sent an image with NaN or infinite values")
        self._shape = image.shape
        return image

    def _pixel_size(self, frame: Frame) -> float:
        size = self._pixel or frame.pixel_um or self._request.pixel_um
        if size is None or not (math.isfinite(size) and size > 0):
            raise StrategyError(
                f"the pixel size is {size}; blur is measured in pixels: calibrate it in Micro-Manager, or set pixel_um"
            )
        return float(size)


def flat(image: Image) -> bool:
    """Return True for an image of one grey value (a blanked beam without noise, a detector that is off)."""
    return bool(image.min() == image.max())


def refuse_nonsense(estimate: PairEstimate) -> None:
    """Check what a model answered.

    Raises
    ------
    StrategyError
        When an aberration is NaN or infinite, or a standard deviation is NaN or negative.
    """
    value, sigma = estimate.aberration.vector(), estimate.sigma.vector()
    if not np.all(np.isfinite(value)) or np.any(np.isnan(sigma)) or np.any(sigma < 0):
        raise StrategyError(
            f"the estimator answered {value.tolist()} ± {sigma.tolist()}; the column is put back. Its model does not "
            "fit these images (pixel size, dose), or its file is damaged"
        )


def patch_records(estimate: PairEstimate) -> list[Mapping[str, float]]:
    """Return the patches of an estimate as plain numbers, for the report."""
    return [
        {
            "x": p.x, "y": p.y, "size": p.size, "weight": round(p.weight, 4),
            "defocus_um": round(p.aberration.defocus_um, 3),
            "stig_x": round(p.aberration.stig_x, 3), "stig_y": round(p.aberration.stig_y, 3),
        }
        for p in estimate.patches
    ]  # fmt: skip
