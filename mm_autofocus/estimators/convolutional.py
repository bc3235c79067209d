"""The convolutional pair network as an estimator: patches of a registered pair, weighted by how sure each one is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate, PatchEstimate
from mm_autofocus.estimators.cards import SemCard, load_card
from mm_autofocus.estimators.frames import prepare
from mm_autofocus.estimators.pair_spectra import REFERENCE_PX, pair_spectra
from mm_autofocus.estimators.patches import grid_corners
from mm_autofocus.estimators.registration import Frame, block_mean
from mm_autofocus.estimators.spectral import to_knobs
from mm_autofocus.strategy import Image

if TYPE_CHECKING:
    from mm_autofocus.networks.pair_net import PairNet

_SQRT2 = math.sqrt(2.0)
_PATCH = 384
_SATURATED = 0.5
_SCALES = (-4.5, 2.5)


@dataclass(frozen=True, slots=True)
class ConvolutionalEstimator:
    """A `mm_autofocus.estimators.PairEstimator` on pixels; needs torch.

    Attributes
    ----------
    card
        What the network is; ``parameters`` holds ``scale_z`` and ``scale_ab`` as for the spectral network.
    net
        Optimised for inference.
    """

    card: SemCard
    net: PairNet

    @classmethod
    def load(cls, card_path: str | Path = "") -> ConvolutionalEstimator:
        """Return the estimator of a card; the one that comes along when empty.

        Raises
        ------
        SettingsError
            When there is no such model.
        """
        import torch

        from mm_autofocus.networks.pair_net import PairNet

        card, arrays = load_card(card_path, "convolutional")
        net = PairNet(card.parameters.get("widths", (32, 48, 96)))
        net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
        return cls(card, net.optimised())

    def estimate(
        self, under: Image, over: Image, step_um: float, pixel_um: float, calibration: ColumnCalibration
    ) -> PairEstimate:
        """Estimate from a pair; see `mm_autofocus.estimators.PairEstimator`."""
        pair = prepare(under, over, step_um, pixel_um, calibration)
        block = max(1, min(round(pair.delta_px / REFERENCE_PX), min(pair.under.shape) // 128))
        first, second = block_mean(pair.under, block), block_mean(pair.over, block)
        edge = min(_PATCH, *first.shape) // 4 * 4
        corners = grid_corners(first.shape, edge)
        out = self._read(first, second, corners, edge, pair.delta_px / block)
        spectra = pair_spectra(first, second, pair.delta_px / block, _part(pair.left_px, block))
        shows = spectra.weights()
        middles = spectra.corners + spectra.edge / 2
        inside = [((middles >= c) & (middles <= c + edge)).all(1) for c in corners]
        specimen = np.array([shows[at].mean() if at.any() else shows.mean() for at in inside])
        scales = np.exp(np.clip(out[:, 3:6], *_SCALES)) * self._factors()
        confidence = 1.0 / np.mean(scales, axis=1) ** 2
        confidence *= specimen
        usable = spectra.shows_specimen() and pair.saturated < _SATURATED
        weights = confidence / confidence.sum() if confidence.sum() > 0 else np.full(len(corners), 1 / len(corners))
        um = 0.5 * step_um
        mean = weights @ out[:, :3]
        details: dict[str, Any] = {
            "saturated": round(pair.saturated, 4), "coherence": round(float(spectra.coherence.mean()), 4),
        }  # fmt: skip
        # Patches err alike (same column, same specimen), so that more of them do not make the mean surer than the best.
        laplace = np.sqrt(weights @ scales**2)
        best = float(np.sort(spectra.coherence)[-3:].mean())
        if usable:
            stig = _SQRT2 * float(laplace[1:].max()) * um / abs(calibration.stigmator_um)
            sigma = Aberration(_SQRT2 * float(laplace[0]) * um, stig, stig)
        else:
            sigma = Aberration(math.inf, math.inf, math.inf)
        patches = tuple(
            PatchEstimate(int(x) * block, int(y) * block, edge * block, to_knobs(row[:3] * um, calibration), float(w))
            for (x, y), row, w in zip(corners, out, weights, strict=True)
        )
        return PairEstimate(
            to_knobs(mean * um, calibration), sigma, patches, max(0.0, best) / max(1.0 - best, 0.01) if usable else 0.0,
            pair.shift_px, math.exp(float(weights @ out[:, 6])) if usable else math.nan, details,
        )  # fmt: skip

    def _read(
        self, first: Frame, second: Frame, corners: NDArray[np.intp], edge: int, delta: float
    ) -> NDArray[np.float64]:
        """Return the network's outputs for each patch, shape (patches, 7)."""
        import torch

        pairs = np.stack(
            [np.stack([frame[y : y + edge, x : x + edge] for frame in (first, second)]) for x, y in corners]
        )
        with torch.inference_mode():
            beside = torch.full((len(corners), 1), math.log(delta / REFERENCE_PX))
            out = self.net(torch.from_numpy(pairs), beside)
        return np.asarray(out.numpy(), dtype=float)

    def _factors(self) -> NDArray[np.float64]:
        z, ab = self.card.parameters.get("scale_z", 1.0), self.card.parameters.get("scale_ab", 1.0)
        return np.array([z, ab, ab])


def _part(left_px: tuple[float, float], block: int) -> tuple[float, float]:
    return left_px[0] / block, left_px[1] / block
