"""The linear answer of an instrument to its alignment knobs, fitted from a few known moves and inverted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import SettingsError

Array = NDArray[np.float64]

MIN_SAMPLES = 3
ROBUST_SAMPLES = 8
"""With fewer, one knob's answer may rest on a sample or two, and an outlier cannot be told from it."""


@dataclass(frozen=True, slots=True)
class ResponseMap:
    """From a measured vector (two numbers that are zero when aligned) to the offset of two knobs.

    Attributes
    ----------
    knobs
        The two knobs.
    matrix
        Offset = matrix @ measured: knob units per unit of the measurement, shape (2, 2).
    zero
        Measured vector where the calibration's operator called it aligned; (0, 0) for what the physics says.
    scale_sd
        Relative standard deviation of the matrix.
    samples
        Number of measurements it was fitted from.
    about
        Anything to remember: day, aperture, magnification.
    """

    knobs: tuple[str, str]
    matrix: tuple[tuple[float, float], tuple[float, float]]
    zero: tuple[float, float] = (0.0, 0.0)
    scale_sd: float = 0.03
    samples: int = 0
    about: Mapping[str, Any] | None = None

    @property
    def m(self) -> Array:
        """The matrix, shape (2, 2)."""
        return np.array(self.matrix)

    def offset(self, measured: Array) -> Array:
        """Return how far the knobs are from aligned, in their units; the correction is the negative."""
        return np.asarray(self.m @ (np.asarray(measured, float) - np.array(self.zero)))

    def covariance(self, measured: Array, covariance: Array) -> Array:
        """Return the covariance of `offset`, shape (2, 2), from that of the measurement and the map's own error."""
        offset = self.offset(measured)
        m = self.m
        return np.asarray(m @ covariance @ m.T + (self.scale_sd**2) * float(offset @ offset) * np.eye(2))

    def scaled(self, factor: float) -> ResponseMap:
        """Return the map for an aperture larger by this factor."""
        return replace(self, matrix=_pairs(self.m * factor))

    def updated(self, moved: Array, change: Array, weight: float = 1.0) -> ResponseMap:
        """Learn from a move whose effect was measured (Broyden's update of the matrix).

        Parameters
        ----------
        moved
            What the knobs moved by.
        change
            What the measured vector changed by.
        weight
            1: the new map explains the move exactly; less is more cautious.
        """
        moved, change = np.asarray(moved, float), np.asarray(change, float)
        length = float(change @ change)
        if length <= 0:
            return self
        m = self.m
        # a wrong scale or rotation is commoner than a wrong single entry: look for the similarity first
        expected = m @ change
        power = float(expected @ expected)
        if power > 0:
            ratio = complex(*moved) / complex(*expected)
            turn = 1.0 + weight * (ratio - 1.0)
            m = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]]) @ m
        m = m + weight * np.outer(moved - m @ change, change) / length
        return replace(self, matrix=_pairs(m))

    # ------------------------------------------------------------------ files
    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2, default=str) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ResponseMap:
        """Read what `save` wrote.

        Raises
        ------
        SettingsError
            When the file is absent or is not such a map.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            matrix = np.array(data["matrix"], float)
            zero = np.array(data.get("zero", (0.0, 0.0)), float)
            names = tuple(str(name) for name in data["knobs"])
            if matrix.shape != (2, 2) or zero.shape != (2,) or len(names) != 2:
                raise ValueError("the matrix is not 2 x 2, or there are not two knobs")
            if not (np.isfinite(matrix).all() and np.isfinite(zero).all()) or abs(np.linalg.det(matrix)) < 1e-12:
                raise ValueError("the matrix is singular or not finite")
            return cls(
                (names[0], names[1]), _pairs(matrix), (float(zero[0]), float(zero[1])),
                float(data.get("scale_sd", 0.03)), int(data.get("samples", 0)), data.get("about"),
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"calibration {path} cannot be used: {error}; make one with `mm-autofocus calibrate tem`"
            ) from error


def fit_response(
    knobs: tuple[str, str],
    positions: Sequence[Array] | Array,
    measured: Sequence[Array] | Array,
    *,
    zero: bool = False,
    covariances: Sequence[Array] | None = None,
    about: Mapping[str, Any] | None = None,
) -> ResponseMap:
    """Fit the map from known positions of the knobs and what was measured there.

    The measurement is modelled as ``matrix^-1 (position - aligned)``; where "aligned" lies need not be known.

    Parameters
    ----------
    positions, measured
        Shape (samples, 2) each; three or more samples that do not lie on a line.
    zero
        True: the positions are offsets from where an operator called it aligned, so the measured vector there becomes
        the map's zero. False: zero is where the measurement vanishes.
    covariances
        Of each measurement, to weigh them; None to weigh them alike.

    Raises
    ------
    SettingsError
        With fewer than three samples, or when they cannot tell both knobs apart.
    """
    a, v = np.asarray(positions, float), np.asarray(measured, float)
    good = np.isfinite(v).all(1) & np.isfinite(a).all(1)
    a, v = a[good], v[good]
    if len(a) < MIN_SAMPLES:
        raise SettingsError(f"a calibration of {knobs} needs {MIN_SAMPLES} usable measurements, not {len(a)}")
    base = np.ones(len(a))
    if covariances is not None:
        spread = np.array([float(np.trace(np.asarray(c))) for c, ok in zip(covariances, good, strict=True) if ok])
        base = 1.0 / (np.median(spread) + spread)
        base /= base.mean()
    design = np.c_[a, np.ones(len(a))]
    weights = base.copy()
    solution = np.zeros((3, 2))
    for _ in range(8):
        root = np.sqrt(weights)[:, None]
        solution = np.linalg.lstsq(design * root, v * root, rcond=None)[0]
        rest = np.hypot(*(v - design @ solution).T)
        scale = 1.4826 * float(np.median(rest)) + 1e-9
        if len(a) >= ROBUST_SAMPLES:
            weights = base / (1.0 + (rest / (3.0 * scale)) ** 2)
    response = solution[:2].T  # measured = response @ position + constant
    singular = np.linalg.svd(response, compute_uv=False)
    if not np.isfinite(singular).all() or singular[1] < 0.05 * singular[0] or singular[1] == 0:
        raise SettingsError(
            f"the measurements do not tell {knobs[0]} and {knobs[1]} apart (singular values {singular[0]:.3g}, "
            f"{singular[1]:.3g}): does the drive move, and is the beam in view?"
        )
    matrix: Array = np.linalg.inv(response).astype(np.float64)
    rms = float(np.sqrt(np.average(rest**2, weights=weights) / 2)) if len(a) > MIN_SAMPLES else 0.0
    free = max(2 * len(a) - 6, 1)
    error = rms * math.sqrt(2 * len(a) / free)
    spread_a = float(np.sqrt(((a - a.mean(0)) ** 2).sum(0).mean()))
    scale_sd = float(np.hypot(error / max(float(singular[1]) * spread_a, 1e-12), 0.01))
    return ResponseMap(
        knobs, _pairs(matrix), (float(solution[2, 0]), float(solution[2, 1])) if zero else (0.0, 0.0),
        min(scale_sd, 0.5), len(a), about,
    )  # fmt: skip


def _pairs(matrix: Array) -> tuple[tuple[float, float], tuple[float, float]]:
    return (float(matrix[0, 0]), float(matrix[0, 1])), (float(matrix[1, 0]), float(matrix[1, 1]))
