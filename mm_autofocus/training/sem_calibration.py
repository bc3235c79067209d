"""Our way to adapt to another electron column: its calibration from a few frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import FocusError
from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate, PairEstimator
from mm_autofocus.strategies.column_fit import Belief, ColumnFit
from mm_autofocus.training.known_pairs import KnownPair


def calibration_steps(z_um: float = 6.0, stig: float = 2.0) -> tuple[tuple[float, float, float], ...]:
    """Return offsets (working distance µm, stig x, stig y) of the seven pairs that calibrate a column."""
    moves = ((0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
    return tuple((z_um * z, stig * x, stig * y) for z, x, y in moves)


STEPS = calibration_steps()
"""Offsets from where the column stands at which pairs are taken."""

_STIGMATOR_UM = (0.05, 500.0)

_ANGLE_SD = 0.15
"""An angle that is less certain than this (relative) is left as it was."""
_ANGLE_RANGE = (1 / 3, 3.0)
_SETTLED = 0.02
_PRIOR_SD, _PRIOR_ROTATION_DEG = 0.5, 20.0
_BEST_REACH = np.array([30.0, 10.0, 10.0])


@dataclass(frozen=True, slots=True)
class CalibrationFit:
    """What pairs at known knobs say about a column.

    Attributes
    ----------
    calibration
        The column's.
    convergence_sd, stigmator_sd, rotation_sd_deg
        Standard deviations: relative, relative, degrees.
    angle
        "measured", or why the convergence angle was left as it was.
    misfit
        Chi-squared per degree of freedom; well above 1 when the pairs contradict each other.
    """

    calibration: ColumnCalibration
    convergence_sd: float
    stigmator_sd: float
    rotation_sd_deg: float
    angle: str
    misfit: float


def fit_calibration(
    pairs: Sequence[KnownPair], estimator: PairEstimator, start: ColumnCalibration | None = None, *, rounds: int = 4
) -> ColumnCalibration:
    """Return the calibration alone; see `measure_calibration`."""
    return measure_calibration(pairs, estimator, start, rounds=rounds).calibration


def measure_calibration(
    pairs: Sequence[KnownPair], estimator: PairEstimator, start: ColumnCalibration | None = None, *, rounds: int = 4
) -> CalibrationFit:
    """Fit the calibration of a column to pairs between which its knobs were moved by known amounts.

    The astigmatism that is seen is ``s R(2θ) (knobs - best)``: as complex numbers a straight line, whose slope is scale
    and rotation, whatever they were believed to be. `ColumnFit` then refines them, weighting the pairs by what they can
    say. The convergence angle is the one with which the defocus that is seen follows the moves of the working distance
    one to one; it is looked for in a few rounds, and left as it was where the pairs do not tell it. The image shift
    comes from the registration.

    Parameters
    ----------
    pairs
        At least three, whose stigmator values do not coincide; `STEPS` serve. For the angle the working distance must
        differ, too.
    estimator
        `mm_autofocus.estimators.spectral.SpectralEstimator`, usually.
    start
        Calibration to begin with; only its convergence angle matters, and that may be wrong by half.
    rounds
        How often to look again with the angle that was found.

    Raises
    ------
    FocusError
        When too few pairs show a specimen, or what is seen follows neither stigmators nor working distance.
    """
    begin = calibration = start or ColumnCalibration()
    moved = float(np.ptp([pair.knobs.defocus_um for pair in pairs])) > 1e-6
    problem = "" if moved else "the working distance was not moved between the pairs"
    for _ in range(rounds if moved else 1):
        step = _fit(pairs, [_estimate(pair, estimator, calibration) for pair in pairs], calibration)
        if not moved or abs(math.log(step.factor)) < _SETTLED:
            break
        angle = calibration.convergence_mrad * step.factor
        if not _ANGLE_RANGE[0] < angle / begin.convergence_mrad < _ANGLE_RANGE[1]:
            problem = f"the pairs ask for {angle:.3g} mrad, too far from {begin.convergence_mrad:g} to be believed"
            break
        calibration = replace(calibration, convergence_mrad=angle)
    if moved and not problem and step.belief.change.convergence_sd > _ANGLE_SD:
        problem = f"the pairs tell it to no better than {step.belief.change.convergence_sd:.0%}"
    if problem and calibration != begin:
        step = _fit(pairs, [_estimate(pair, estimator, begin) for pair in pairs], begin)
    change, angle = step.belief.change, begin.convergence_mrad if problem else calibration.convergence_mrad
    found = replace(change.of(step.calibration), convergence_mrad=angle)
    if not moved:  # without it scale and angle can't be told apart
        found = replace(found, stigmator_um=found.stigmator_um * change.convergence)
    if moved and 0 in step.unfollowed:
        raise FocusError(
            f"calibration of the column: the frames do not follow the working distance over ±{_reach(pairs):.3g} µm "
            f"({change.convergence:.0%} of it is seen): it stands still whatever it says, or the model does not fit "
            "these images"
        )
    return CalibrationFit(
        found, _PRIOR_SD if problem else change.convergence_sd, change.stigmator_sd,
        change.rotation_sd_deg, f"left as it was: {problem}" if problem else "measured", step.belief.misfit,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Step:
    """One look at all pairs: the straight line's calibration, and how the fit of all knobs changes it."""

    calibration: ColumnCalibration
    belief: Belief
    unfollowed: tuple[int, ...]

    @property
    def factor(self) -> float:
        return self.belief.change.convergence


def _reach(pairs: Sequence[KnownPair]) -> float:
    return float(np.ptp([pair.knobs.defocus_um for pair in pairs])) / 2


def _estimate(pair: KnownPair, estimator: PairEstimator, calibration: ColumnCalibration) -> PairEstimate:
    return estimator.estimate(pair.under, pair.over, pair.step_um, pair.pixel_um, calibration)


def _fit(pairs: Sequence[KnownPair], estimates: Sequence[PairEstimate], calibration: ColumnCalibration) -> _Step:
    used = [(p, e) for p, e in zip(pairs, estimates, strict=True) if np.isfinite(e.sigma.vector()).all()]
    knobs = np.array([complex(p.knobs.stig_x, p.knobs.stig_y) for p, _ in used])
    if len(used) < 3 or np.std(knobs) < 1e-6:
        raise FocusError(
            f"calibration of the column: {len(used)} of {len(pairs)} pairs show a specimen, at "
            f"{len(set(knobs.tolist()))} settings of the stigmators; it takes 3 or more at different settings. Go to a "
            "place with specimen, or expose longer"
        )
    seen, weights = [], []
    for pair, estimate in used:
        _, a, b = calibration.to_blur(estimate.aberration, pair.pixel_um) / calibration.blur_per_um(pair.pixel_um)
        seen.append(complex(a, b))
        weights.append(1.0 / max(estimate.sigma.stig_x, 1e-3) ** 2)
    w = np.array(weights) / np.sum(weights)
    slope, left = _line(knobs, np.array(seen), w)
    if not _STIGMATOR_UM[0] < abs(slope) < _STIGMATOR_UM[1] or left > 0.5:
        mirrored = _line(np.conj(knobs), np.array(seen), w)[1] < 0.25
        raise FocusError(
            f"calibration of the column: the astigmatism does not follow the stigmators ({left:.0%} of it unexplained, "
            f"{abs(slope):.3g} µm for each unit); "
            + ("x and y are swapped, or one of them is reversed: correct the knobs' axes" if mirrored
               else "move them further, or check their axes")
        )  # fmt: skip
    shifts = [np.array(e.shift_px) * p.pixel_um / p.step_um for p, e in used]
    shift = np.median(shifts, axis=0)
    line = ColumnCalibration(
        calibration.convergence_mrad,
        abs(slope),
        math.degrees(math.atan2(slope.imag, slope.real)) / 2.0,
        (float(shift[0]), float(shift[1])),
    )
    fit = ColumnFit(np.zeros(3), _BEST_REACH, abs(slope), _PRIOR_SD, _PRIOR_ROTATION_DEG)
    for pair, estimate in used:
        fit.add(pair.knobs.vector(), _in_units_of(line, calibration, pair, estimate))
    return _Step(line, fit.belief(), fit.unfollowed())


def _line(knobs: NDArray[Any], seen: NDArray[Any], weights: NDArray[Any]) -> tuple[complex, float]:
    """Return the slope of ``seen`` over ``knobs`` (complex), and the share that it leaves unexplained."""
    knobs, seen = knobs - weights @ knobs, seen - weights @ seen
    slope = complex((weights * np.conj(knobs)) @ seen / float(weights @ np.abs(knobs) ** 2))
    left = float(weights @ np.abs(seen - slope * knobs) ** 2)
    return slope, left / max(float(weights @ np.abs(seen) ** 2), 1e-12)


def _in_units_of(
    new: ColumnCalibration, old: ColumnCalibration, pair: KnownPair, estimate: PairEstimate
) -> PairEstimate:
    """Return what a pair says in the stigmators' units of another calibration with the same angle."""
    aberration = new.from_blur(old.to_blur(estimate.aberration, pair.pixel_um), pair.pixel_um)
    scale = abs(old.stigmator_um) / new.stigmator_um
    sigma = estimate.sigma
    return replace(
        estimate, aberration=aberration,
        sigma=Aberration(sigma.defocus_um, sigma.stig_x * scale, sigma.stig_y * scale),
    )  # fmt: skip
