"""DeepFocus as its paper has it: patches at seeded places, one correction each, their mean (or their weighted mean).

The network answers in µm and stigmator units of the column that it was trained on: it knows neither pixel size nor
convergence angle nor calibration, so that another instrument makes it fail until it is recalibrated (Fig. 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import HardwareError
from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate, PatchEstimate
from mm_autofocus.estimators.cards import SemCard, load_card
from mm_autofocus.estimators.frames import check_frame, saturated_share
from mm_autofocus.estimators.patches import random_corners
from mm_autofocus.estimators.registration import block_mean
from mm_autofocus.strategy import Image

if TYPE_CHECKING:
    from mm_autofocus.networks.deepfocus import DeepFocus

PATCHES = 5
_WIDEN = 1.5
"""Patches err alike, so that their spread says too little; by this and the training error it is widened."""


@dataclass(frozen=True, slots=True)
class DeepFocusEstimator:
    """A `mm_autofocus.estimators.PairEstimator`; needs torch.

    Attributes
    ----------
    card
        What the network is; ``parameters`` holds ``edge``, ``scores``, ``scales`` (what the outputs are multiplied
        with, µm and a.u.), ``errors`` (mean absolute ones on held-out pairs), ``binning`` (pixels of the frame averaged
        along each axis first) and ``standardised`` (see `standardised`).
    net
        The network, in evaluation mode.
    patches
        How many.
    seed
        Of their places.
    """

    card: SemCard
    net: DeepFocus
    patches: int = PATCHES
    seed: int = 0

    @classmethod
    def load(cls, card_path: str | Path = "", *, patches: int = PATCHES, seed: int = 0) -> DeepFocusEstimator:
        """Return the estimator of a card; the one that comes along when empty.

        Raises
        ------
        SettingsError
            When there is no such model.
        """
        import torch

        from mm_autofocus.networks.deepfocus import DeepFocus

        card, arrays = load_card(card_path, "deepfocus")
        net = DeepFocus(card.parameters["edge"], card.parameters.get("scores", False))
        net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
        return cls(card, net.eval(), patches, seed)

    def estimate(
        self,
        under: Image,
        over: Image,
        step_um: float,  # noqa: ARG002
        pixel_um: float,  # noqa: ARG002
        calibration: ColumnCalibration,  # noqa: ARG002
    ) -> PairEstimate:
        """Estimate from a pair; see `mm_autofocus.estimators.PairEstimator`.

        Step, pixel size and calibration are those of the training (the card says which), whatever is given.
        """
        edge = self.net.edge * self.binning
        if under.shape != over.shape:
            raise HardwareError(f"pair of frames: shapes {under.shape} and {over.shape} differ; take both alike")
        for frame in (under, over):
            check_frame(frame, edge)
        corners = random_corners(under.shape, edge, self.patches, self.seed)
        corrections, weights = self._read(under, over, corners, edge)
        mean = weights @ corrections
        signal = _contrast(under, over)
        if signal > 0.0:
            spread = np.sqrt(weights @ (corrections - mean) ** 2)
            errors = np.array(self.card.parameters.get("errors", (2.6, 0.45, 0.45)))
            sigma = Aberration(*(float(s) for s in np.hypot(_WIDEN * spread, 1.25 * errors)))
        else:
            sigma = Aberration(float("inf"), float("inf"), float("inf"))
        patches = tuple(
            PatchEstimate(int(x), int(y), edge, -Aberration(*(float(v) for v in c)), float(w))
            for (x, y), c, w in zip(corners, corrections, weights, strict=True)
        )
        details = {"saturated": round(max(saturated_share(under), saturated_share(over)), 4)}
        return PairEstimate(-Aberration(*(float(v) for v in mean)), sigma, patches, signal, details=details)

    @property
    def binning(self) -> int:
        """Pixels of the frame that are averaged along each axis before the network sees them."""
        return int(self.card.parameters.get("binning", 1))

    def _read(
        self, under: Image, over: Image, corners: NDArray[np.intp], edge: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return corrections (patches, 3) in µm and a.u., and their weights (patches,)."""
        import torch

        as_trained = self.card.parameters.get("standardised", False)
        cut = [patch_pair(under, over, (int(x), int(y)), edge, self.binning) for x, y in corners]
        pairs = np.stack([standardised(pair) if as_trained else pair for pair in cut])
        with torch.inference_mode():
            out = self.net(torch.from_numpy(pairs)).double().numpy()
        weights = np.full(len(corners), 1.0 / len(corners))
        if self.net.scores:
            weights = np.exp(out[:, 3] - out[:, 3].max())
            weights /= weights.sum()
        return out[:, :3] * np.array(self.card.parameters.get("scales", (1.0, 1.0, 1.0))), weights


def rescaled(patch: Image) -> NDArray[np.float32]:
    """Return grey values from -1 to 1 (Methods): 8 bits as they are, other integers by their range, floats by 255."""
    top = float(np.iinfo(str(patch.dtype)).max) if np.issubdtype(patch.dtype, np.integer) else 255.0
    return (patch.astype(np.float32) * np.float32(2.0 / top) - np.float32(1.0)).astype(np.float32)


def patch_pair(
    under: Image, over: Image, corner: tuple[int, int], edge: int, binning: int = 1
) -> NDArray[np.float32]:
    """Return a patch of both frames as the network gets it, grey values from -1 to 1, shape (2, edge / binning, same).

    Parameters
    ----------
    under, over
        Frames, shape (height, width).
    corner
        (x, y) of the patch.
    edge
        Of the patch in the frame, a multiple of ``binning``.
    binning
        Pixels averaged along each axis.
    """
    x, y = corner
    return np.stack([block_mean(rescaled(frame[y : y + edge, x : x + edge]), binning) for frame in (under, over)])


def standardised(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return images with a mean of 0 each and a mean square of 1 together, shape as given (images, height, width).

    The paper leaves brightness and contrast to augmentation and 44 hours of training; without this a short one learns
    nothing in its first ten thousand pairs.
    """
    centred = images - images.mean((1, 2), keepdims=True)
    return np.asarray(centred / (np.sqrt((centred * centred).mean()) + 1e-3), dtype=np.float32)


def _contrast(under: Image, over: Image) -> float:
    """Return 1, or 0 for frames that hold a single value: the paper has no measure of its own for blank frames."""
    return 0.0 if under.min() == under.max() or over.min() == over.max() else 1.0
