"""Our default estimator: the spectral pair network, in numpy, with tiles that hold no specimen left out.

Its answer is in units of the perturbation, which is known in µm, so that a convergence angle that is wrong by a fifth
hardly matters; the perturbation as the pair shows it is reported as `PairEstimate.step_ratio`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        Its weights.
    """

    card: SemCard
    arrays: Arrays

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
        out = self._read(spectra, weights)
        um = 0.5 * step_um
        estimates = [to_knobs(row[:3] * um, calibration) for row in out]
        if usable:
            sigma = self._sigma(out[0], um, calibration)
        else:
            sigma = Aberration(math.inf, math.inf, math.inf)
            signal = signal if shows else 0.0
        total = max(float(weights.sum()), 1e-9)
        patches = tuple(
            PatchEstimate(int(x), int(y), spectra.edge, estimates[i + 1], float(weights[i]) / total)
            for i, (x, y) in enumerate(spectra.corners)
        )
        return PairEstimate(
            estimates[0], sigma, patches, signal, pair.shift_px, math.exp(out[0, 5]) if usable else math.nan, details
        )

    def _read(self, spectra: PairSpectra, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the network's outputs for all tiles together (first row) and for each of them."""
        together = pooled(spectra.stats, weights)
        stats = np.concatenate([together[None], spectra.stats])
        beside = np.stack(
            [extras(spectra.delta_px, weights)] + [extras(spectra.delta_px, np.ones(1, np.float32))] * len(weights)
        )
        return forward(self.arrays, features(stats, np.broadcast_to(spectra.covered, stats.shape[:-1])), beside)

    def _sigma(self, row: NDArray[np.float32], um: float, calibration: ColumnCalibration) -> Aberration:
        z = math.exp(float(np.clip(row[3], -4.5, 2.5))) * self.card.parameters.get("scale_z", 1.0)
        ab = math.exp(float(np.clip(row[4], -4.5, 2.5))) * self.card.parameters.get("scale_ab", 1.0)
        if abs(row[0]) > _REACH[0] or math.hypot(row[1], row[2]) > _REACH[1]:
            z, ab = 2.0 * z, 2.0 * ab
        stig = _SQRT2 * ab * um / abs(calibration.stigmator_um)
        return Aberration(_SQRT2 * z * um, stig, stig)


def to_knobs(um: NDArray[np.floating], calibration: ColumnCalibration) -> Aberration:
    """Return (z, a, b) in µm as an aberration."""
    return calibration.from_blur(np.asarray(um, dtype=float) * calibration.blur_per_um(1.0), 1.0)
