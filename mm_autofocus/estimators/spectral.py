"""Our default estimator: the spectral pair network, in numpy, with tiles that hold no specimen left out.

Its answer is in units of the perturbation, which is known in µm, so that a convergence angle that is wrong by a fifth
hardly matters; the perturbation as the pair shows it is reported as `PairEstimate.step_ratio`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate, PatchEstimate
from mm_autofocus.estimators.cards import Arrays, SemCard, load_card
from mm_autofocus.estimators.frames import prepare
from mm_autofocus.estimators.pair_spectra import PairSpectra, extras, features, pair_spectra, pooled
from mm_autofocus.networks.spectral_arrays import forward
from mm_autofocus.strategy import Image

_SQRT2 = math.sqrt(2.0)
_SATURATED = 0.5
_REACH = (7.5, 12.0)
"""|z| and |(a, b)| over half the perturbation beyond which the network has seen nothing."""


@dataclass(frozen=True, slots=True)
class SpectralEstimator:
    """A `mm_autofocus.estimators.PairEstimator` on spectra; needs no torch.

    Attributes
    ----------
    card
        What the network is; ``parameters`` holds ``scale_z`` and ``scale_ab``, by which its own Laplace scales were
        found too small or too large on held-out pairs.
    arrays
        Its weights; of several networks, whose answers are averaged, each name begins with "0.", "1." and so on.
    members
        The weights of each network.
    """

    card: SemCard
    arrays: Arrays
    members: tuple[Arrays, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", _members(self.arrays))

    @classmethod
    def load(cls, card_path: str | Path = "") -> SpectralEstimator:
        """Return the estimator of a card; the one that comes along when empty.

        Raises
        ------
        SettingsError
            When there is no such model.
        """
        return cls(*load_card(card_path, "spectral"))

    def estimate(
        self, under: Image, over: Image, step_um: float, pixel_um: float, calibration: ColumnCalibration
    ) -> PairEstimate:
        """Estimate from a pair; see `mm_autofocus.estimators.PairEstimator`.

        ``details`` holds ``saturated`` (share of clipped pixels) and ``coherence`` (of all tiles).
        """
        pair = prepare(under, over, step_um, pixel_um, calibration)
        spectra = pair_spectra(pair.under, pair.over, pair.delta_px, pair.left_px)
        weights = spectra.weights()
        level = float(spectra.coherence.mean())
        details: dict[str, Any] = {"saturated": round(pair.saturated, 4), "coherence": round(level, 4)}
        best = float(np.sort(spectra.coherence)[-3:].mean())
        signal = max(0.0, best) / max(1.0 - best, 0.01)
        shows = spectra.shows_specimen()
        usable = shows and pair.saturated < _SATURATED
        groups = _groups(spectra.corners, spectra.edge)
        out = self._read(spectra, weights, groups)
        um = 0.5 * step_um
        estimates = [to_knobs(row[:3] * um, calibration) for row in out]
        of_group = estimates[1:] or estimates
        if usable:
            sigma = self._sigma(out[0], um, calibration)
        else:
            sigma = Aberration(math.inf, math.inf, math.inf)
            signal = signal if shows else 0.0
        total = max(float(weights.sum()), 1e-9)
        patches = tuple(
            PatchEstimate(int(x), int(y), spectra.edge, of_group[groups[i]], float(weights[i]) / total)
            for i, (x, y) in enumerate(spectra.corners)
        )
        return PairEstimate(
            estimates[0], sigma, patches, signal, pair.shift_px, math.exp(out[0, 5]) if usable else math.nan, details
        )

    def _read(
        self, spectra: PairSpectra, weights: NDArray[np.float32], groups: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Return the network's outputs for all tiles together (first row) and for each group, where there are several.

        A tile alone says little and costs as much as the frame, so the tiles of a region are read together.
        """
        parts = [weights]
        if groups.max() > 0:
            for group in range(groups.max() + 1):
                inside = np.asarray(weights * (groups == group), dtype=np.float32)
                parts.append(inside if inside.any() else (groups == group).astype(np.float32))
        stats = np.stack([pooled(spectra.stats, part) for part in parts])
        beside = np.stack([extras(spectra.delta_px, part) for part in parts])
        told = features(stats, np.broadcast_to(spectra.covered, stats.shape[:-1]))
        each = [forward(member, told, beside) for member in self.members]
        return np.asarray(sum(each) / len(each), dtype=np.float32)

    def _sigma(self, row: NDArray[np.float32], um: float, calibration: ColumnCalibration) -> Aberration:
        z = math.exp(float(np.clip(row[3], -4.5, 2.5))) * self.card.parameters.get("scale_z", 1.0)
        ab = math.exp(float(np.clip(row[4], -4.5, 2.5))) * self.card.parameters.get("scale_ab", 1.0)
        if abs(row[0]) > _REACH[0] or math.hypot(row[1], row[2]) > _REACH[1]:
            z, ab = 2.0 * z, 2.0 * ab
        stig = _SQRT2 * ab * um / abs(calibration.stigmator_um)
        return Aberration(_SQRT2 * z * um, stig, stig)


def _members(arrays: Arrays) -> tuple[Arrays, ...]:
    """Return the weights of each network; of arrays without numbers, of the one that they are."""
    numbers = sorted({name.split(".")[0] for name in arrays if name.split(".")[0].isdigit()}, key=int)
    if not numbers:
        return (arrays,)
    return tuple(
        {name.removeprefix(f"{k}."): value for name, value in arrays.items() if name.startswith(f"{k}.")}
        for k in numbers
    )


def _groups(corners: NDArray[np.intp], edge: int) -> NDArray[np.intp]:
    """Return which region of the frame each tile is read with, shape (tiles,): 2 x 2 regions of a large frame."""
    index = np.zeros(len(corners), dtype=np.intp)
    for axis, place in ((0, 1), (1, 2)):
        middle = corners[:, axis] + edge / 2
        if corners[:, axis].max() > edge:  # frame longer than two tiles
            index += place * (middle > (corners[:, axis].max() + edge) / 2)
    return np.unique(index, return_inverse=True)[1].astype(np.intp)


def to_knobs(um: NDArray[np.floating], calibration: ColumnCalibration) -> Aberration:
    """Return (z, a, b) in µm as an aberration."""
    return calibration.from_blur(np.asarray(um, dtype=float) * calibration.blur_per_um(1.0), 1.0)
