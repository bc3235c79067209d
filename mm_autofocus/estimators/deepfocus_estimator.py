"""DeepFocus as its paper has it: patches at seeded places, one correction each, their mean (or their weighted mean).

The network answers in µm and stigmator units of the column that it was trained on: it knows neither pixel size nor
convergence angle nor calibration, so that another instrument makes it fail until it is recalibrated (Fig. 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import HardwareError, SettingsError
from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate, PatchEstimate
from mm_autofocus.estimators.cards import SemCard, Variant, load_card
from mm_autofocus.estimators.frames import check_frame, saturated_share
from mm_autofocus.estimators.patches import random_corners
from mm_autofocus.estimators.registration import block_mean
from mm_autofocus.strategy import Image

if TYPE_CHECKING:
    from mm_autofocus.networks.deepfocus_variants import Net

PATCHES = 5
_WIDEN = 1.5
"""Patches err alike, so that their spread says too little; by this and the training error it is widened."""


@dataclass(frozen=True, slots=True)
class DeepFocusEstimator:
    """A `mm_autofocus.estimators.PairEstimator`; needs torch.

    Attributes
    ----------
    card
        What the network is; ``parameters`` holds ``variant`` (see `mm_autofocus.estimators.cards.Variant`; Table 2
        where there is none), ``edge``, ``scales`` (what the outputs are multiplied with, µm and a.u.), ``errors`` (mean
        absolute ones on held-out pairs), ``binning`` (pixels of the frame averaged along each axis first) and
        ``standardised`` (see `standardised`).
    net
        The network, in evaluation mode.
    patches
        How many.
    seed
        Of their places.
    """

    card: SemCard
    net: Net
    patches: int = PATCHES
    seed: int = 0

    @classmethod
    def load(cls, card_path: str | Path = "", *, patches: int = PATCHES, seed: int = 0) -> DeepFocusEstimator:
        """Return the estimator of a card; the one that comes along when empty.

        Raises
        ------
        SettingsError
            When there is no such model, or its card and weights do not fit.
        """
        import torch

        from mm_autofocus.networks.deepfocus_variants import make_variant

        card, arrays = load_card(card_path, "deepfocus")
        try:
            net = make_variant(variant_of(card), card.parameters["edge"])
            net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
        except (KeyError, ValueError, RuntimeError) as error:
            raise SettingsError(
                f"deepfocus model: card and weights {card.weights} do not fit ({error}); name another, or train anew"
            ) from None
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
        ``details`` holds ``saturated`` (share of clipped pixels) and, where pixels are scored, ``cells``: so many
        entries of ``patches`` in a row are parts of one patch.
        """
        edge = self.card.parameters["edge"] * self.binning
        if under.shape != over.shape:
            raise HardwareError(f"pair of frames: shapes {under.shape} and {over.shape} differ; take both alike")
        for frame in (under, over):
            check_frame(frame, edge)
        corners = random_corners(under.shape, edge, self.patches, self.seed)
        corrections, weights = self._read(under, over, corners, edge)
        say = weights.sum(1)  # of the patches
        each = (weights[..., None] * corrections).sum(1) / np.maximum(say, 1e-300)[:, None]
        mean = say @ each
        signal = _contrast(under, over)
        if signal > 0.0:
            spread = np.sqrt(say @ (each - mean) ** 2)
            errors = np.array(self.card.parameters.get("errors", (2.6, 0.45, 0.45)))
            sigma = Aberration(*(float(s) for s in np.hypot(_WIDEN * spread, 1.25 * errors)))
        else:
            sigma = Aberration(float("inf"), float("inf"), float("inf"))
        details: dict[str, Any] = {"saturated": round(max(saturated_share(under), saturated_share(over)), 4)}
        if weights.shape[1] > 1:
            details["cells"] = weights.shape[1]
        patches = tuple(_patches(corners, edge, corrections, weights))
        return PairEstimate(-Aberration(*(float(v) for v in mean)), sigma, patches, signal, details=details)

    @property
    def binning(self) -> int:
        """Pixels of the frame that are averaged along each axis before the network sees them."""
        return int(self.card.parameters.get("binning", 1))

    @property
    def scales(self) -> NDArray[np.float64]:
        """What the network's outputs are multiplied with, µm and a.u., shape (3,)."""
        return np.array(self.card.parameters.get("scales", (1.0, 1.0, 1.0)))

    def _read(
        self, under: Image, over: Image, corners: NDArray[np.intp], edge: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return corrections (patches, places, 3) in µm and a.u., and their weights (patches, places), sum 1.

        A patch is one place, but for a network that scores pixels: its places are cells, `_CELLS` along each edge.
        """
        import torch

        from mm_autofocus.networks.deepfocus_variants import predictions

        cut = [patch_pair(under, over, (int(x), int(y)), edge, self.binning) for x, y in corners]
        pairs = np.stack([as_trained(self.card, pair) for pair in cut])
        with torch.inference_mode():
            told = predictions(self.net, self.net(torch.from_numpy(pairs))).double().numpy()
        weights = np.full(told.shape[:2], 1.0 / told[..., 0].size)
        variant = variant_of(self.card)
        if variant == "patch-scores":  # the softmax runs over the patches
            weights = np.exp(told[..., 3] - told[..., 3].max())
            weights /= weights.sum()
        elif variant == "pixel-scores":  # over the pixels of each patch; of the patches the mean is taken
            weights = np.exp(told[..., 3] - told[..., 3].max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True) * len(told)
            return _cells(told[..., :3] * self.scales, weights, pairs.shape[-1])
        return told[..., :3] * self.scales, weights


def variant_of(card: SemCard) -> Variant:
    """Return which of the paper's networks a card is of; Table 2 where it does not say."""
    named: Variant = card.parameters.get("variant", "patch-scores" if card.parameters.get("scores") else "stacked")
    return named


_CELLS = 4
"""Along each edge of a patch; a report that draws all pixels' scores would be of that many rectangles."""


def _cells(
    corrections: NDArray[np.float64], weights: NDArray[np.float64], edge: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return corrections (patches, pixels, 3) and weights (patches, pixels) summed up over cells of each patch."""
    n, size = len(weights), edge // _CELLS
    shape = (n, _CELLS, size, _CELLS, size)
    each = weights.reshape(shape).sum((2, 4)).reshape(n, -1)
    sums = (weights[..., None] * corrections).reshape(*shape, 3).sum((2, 4)).reshape(n, -1, 3)
    plain = corrections.reshape(*shape, 3).mean((2, 4)).reshape(n, -1, 3)
    counts = (each > 1e-12)[..., None]  # a cell that nothing is given for says what its pixels do on average
    return np.where(counts, sums / np.maximum(each, 1e-12)[..., None], plain), each


def _patches(
    corners: NDArray[np.intp], edge: int, corrections: NDArray[np.float64], weights: NDArray[np.float64]
) -> Iterator[PatchEstimate]:
    """Yield what each place says, for reports."""
    across = round(weights.shape[1] ** 0.5)
    size = edge // across
    for (x, y), of_patch, shares in zip(corners, corrections, weights, strict=True):
        for i, (correction, share) in enumerate(zip(of_patch, shares, strict=True)):
            row, column = divmod(i, across)
            at = int(x) + column * size, int(y) + row * size
            yield PatchEstimate(*at, size, -Aberration(*(float(v) for v in correction)), float(share))


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


def as_trained(card: SemCard, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return images as the network of a card was trained on them: `standardised` or as they are."""
    return standardised(images) if card.parameters.get("standardised", False) else images


def _contrast(under: Image, over: Image) -> float:
    """Return 1, or 0 for frames that hold a single value: the paper has no measure of its own for blank frames."""
    return 0.0 if under.min() == under.max() or over.min() == over.max() else 1.0
