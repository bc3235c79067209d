"""The settings of the alignment by wobble."""

from __future__ import annotations

from pydantic import Field, model_validator

from mm_autofocus.strategy import StrategySettings


class ApertureSettings(StrategySettings):
    """Settings of `Aperture`.

    Attributes
    ----------
    camera, exposure_ms
        What to image with; None for the core's.
    wobble_knob
        Name of the knob to wobble.
    wobble
        Amplitude, as a fraction of the knob's value; with ``wobble_absolute`` in the knob's unit.
    wobble_absolute
        True for a knob whose value may be zero (a defocus).
    count
        Images of one wobble.
    target_knobs
        The two knobs that align.
    calibration
        Path of a `ResponseMap` (``mm-autofocus calibrate tem``); empty: it calibrates itself by small moves.
    aperture_ratio
        Radius of the hole in use over that of the calibration.
    model
        Path of the card of a trained network that reads the wobble instead; empty: disc geometry.
    calibration_step
        Length of its own calibration's moves, in the target knobs' unit.
    calibration_points
        Wobbles of its own calibration, the first one included.
    tolerance
        Aligned means within this of the best position, in the target knobs' unit. None: half the knob's depth.
    rounds
        Corrections before it gives up.
    min_confidence
        Below it the verdict is `Status.LOW_CONFIDENCE`.
    retakes
        Late frames that are taken again, at most, in each wobble.
    search_knobs
        Knobs to search with when the beam is off the detector; empty: the target knobs.
    search_step, search_radius
        Spacing and reach of the search's spiral, in those knobs' unit; step 0: no search.
    """

    camera: str | None = None
    exposure_ms: float | None = Field(default=None, gt=0)
    wobble_knob: str = "c1"
    wobble: float = Field(default=0.03, gt=0)
    wobble_absolute: bool = False
    count: int = Field(default=7, ge=3, le=31)
    target_knobs: tuple[str, str] = ("aperture_x", "aperture_y")
    calibration: str = ""
    aperture_ratio: float = Field(default=1.0, gt=0.01, lt=100)
    model: str = ""
    calibration_step: float = Field(default=120.0, gt=0)
    calibration_points: int = Field(default=3, ge=3, le=5)
    tolerance: float | None = Field(default=None, gt=0)
    rounds: int = Field(default=5, ge=1, le=20)
    min_confidence: float = Field(default=0.7, ge=0, le=1)
    retakes: int = Field(default=2, ge=0, le=10)
    search_knobs: tuple[str, str] | tuple[()] = ()
    search_step: float = Field(default=260.0, ge=0)
    search_radius: float = Field(default=1000.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> ApertureSettings:
        if not self.wobble_absolute and self.wobble > 0.5:
            raise ValueError("wobble is a fraction of the lens value and must be at most 0.5")
        if self.wobble_knob in self.target_knobs or len(set(self.target_knobs)) != 2:
            raise ValueError("target_knobs must be two different knobs, neither of them the wobble_knob")
        if self.model and self.calibration:
            raise ValueError("calibration and model exclude each other: the disc geometry or a network")
        return self
