"""The focus score of one image at any magnification: what its points mean, and what reads it.

Scores run from 0 (not to be recognised) to 10 (perfect), as in the ResNet18 paper; AENet's labels are the same cut off
at 9, its "perfect", so the numbers of all three can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import HardwareError, SettingsError
from mm_autofocus.strategy import Image

if TYPE_CHECKING:
    from torch import nn

    from mm_autofocus.estimators.cards import SemCard

FRAME = (240, 320)
"""(height, width) of the images that every score network takes; of larger ones it takes the median of such windows."""

LARGEST_SCORE = 10.0
DISPLAY_UM = 114_300.0
"""Width of the picture that magnification refers to (a Polaroid), µm."""

RESOLUTION_UM = 0.012
"""What the instrument resolves at best, µm: at high magnifications not the pixel sets what is sharp."""

SMALLEST_PIXEL_UM, LARGEST_PIXEL_UM = 0.004, 0.9
"""Pixel sizes at which a score means something: 500 to 30,000x, frames up to three times 320 pixels, and a little."""

MOST_WINDOWS = 9
"""Windows of a large image that are scored, at most."""

BEND, _FLOOR = 1.5, 25.0
"""Rms blur, in resolvable lengths, below which more sharpness is hardly seen, and at which a specimen is lost."""

STEPS = math.log1p((_FLOOR / BEND) ** 2)
"""Scores 10 to 0 in steps of the logarithm of 1 + (blur / BEND)²."""

ScoreNetwork = Literal["ours", "aenet", "resnet18"]


def pixel_um_of(magnification: float, width_px: int = FRAME[1]) -> float:
    """Return the pixel size, µm, of a frame of this width at a magnification."""
    return DISPLAY_UM / (magnification * width_px)


def magnification_of(pixel_um: float, width_px: int = FRAME[1]) -> float:
    """Return the magnification of a frame of this width, a number such as 10,000."""
    return DISPLAY_UM / (pixel_um * width_px)


def resolvable_um(pixel_um: float) -> float:
    """Return the length that a frame can resolve, µm: its pixel, or what the instrument resolves at best."""
    return math.hypot(pixel_um, RESOLUTION_UM)


def score_of_blur(rms_um: float, pixel_um: float) -> float:
    """Return the score, 0 to 10, of a frame whose blur has this rms radius, µm.

    10 (1 - log(1 + (r / 1.5)²) / log(1 + (25 / 1.5)²)), r in resolvable lengths: even steps of the logarithm of blur as
    people judge it, level where no eye sees a difference, 9 at 1.3 and 0 at 25 resolvable lengths.
    """
    r = rms_um / resolvable_um(pixel_um)
    return LARGEST_SCORE * max(0.0, 1.0 - math.log1p((r / BEND) ** 2) / STEPS)


def blur_of_score(score: float, pixel_um: float) -> float:
    """Return the rms blur radius, µm, of a frame with this score: the inverse of `score_of_blur`, beyond 0 as well."""
    steps = (1.0 - score / LARGEST_SCORE) * STEPS
    return resolvable_um(pixel_um) * BEND * math.sqrt(max(0.0, math.expm1(steps)))


@dataclass(frozen=True, slots=True)
class ScoreReading:
    """What a network says of one image: the score, and its standard deviation as it knows it (NaN: it does not)."""

    score: float
    sigma: float = math.nan


class FocusScorer(Protocol):
    """What scores single images."""

    def read(self, image: Image, pixel_um: float) -> ScoreReading:
        """Score one image; see `checked_image` for what it must be."""
        ...


def checked_image(image: Image, pixel_um: float) -> Image:
    """Return an image that can be scored.

    Parameters
    ----------
    image
        Shape (height, width), grey, at least 240 x 320.
    pixel_um
        Pixel size in the specimen, µm.

    Raises
    ------
    HardwareError
        When the image has colours or is too small, holds NaN or infinity; when the magnification is out of range.
    """
    image = np.asarray(image)
    if image.ndim != 2:
        raise HardwareError(f"image of shape {image.shape} is not a grey image; set the camera to one channel")
    if image.shape[0] < FRAME[0] or image.shape[1] < FRAME[1]:
        raise HardwareError(
            f"image of {image.shape[1]} x {image.shape[0]} px is below the {FRAME[1]} x {FRAME[0]} that a score is "
            "read from; scan a larger frame, or take the whole of it"
        )
    if image.dtype.kind not in "uif":
        raise HardwareError(f"image of type {image.dtype} is not an image of numbers")
    if image.dtype.kind == "f" and not np.all(np.isfinite(image)):
        raise HardwareError(f"image of {image.shape[1]} x {image.shape[0]} px holds NaN or infinity; scan it again")
    if not (math.isfinite(pixel_um) and SMALLEST_PIXEL_UM <= pixel_um <= LARGEST_PIXEL_UM):
        told = (
            f"{magnification_of(pixel_um, image.shape[1]):,.0f}x" if math.isfinite(pixel_um) and pixel_um > 0 else "?"
        )
        raise HardwareError(
            f"magnification {told} (a pixel of {pixel_um:.4g} µm) is beyond what focus scores are for, pixels of "
            f"{SMALLEST_PIXEL_UM:g} to {LARGEST_PIXEL_UM:g} µm; change the magnification, or calibrate the pixel size"
        )
    return image


def windows(image: Image) -> Iterator[Image]:
    """Yield windows of 320 x 240 that cover an image evenly, at most `MOST_WINDOWS`, the whole where it is one."""
    most = math.isqrt(MOST_WINDOWS)
    spans = []
    for size, part in zip(image.shape, FRAME, strict=True):
        count = min(most, -(-size // part))
        spans.append(np.linspace(0, size - part, count).astype(int) if count > 1 else [(size - part) // 2])
    for y in spans[0]:
        for x in spans[1]:
            yield image[y : y + FRAME[0], x : x + FRAME[1]]


@dataclass(frozen=True, slots=True)
class BlurScorer:
    """Ours: a small network on blur features, in numpy; an image of one grey value scores 0.

    Attributes
    ----------
    card
        What it is; ``parameters`` hold ``sigma_scale``, by which its standard deviation was too small on validation
        specimens.
    arrays
        ``mean`` and ``scale`` of the features, ``layers.N.weight`` and ``layers.N.bias``.
    """

    card: SemCard
    arrays: Mapping[str, NDArray[Any]]

    def read(self, image: Image, pixel_um: float) -> ScoreReading:
        """Score one image: the median over its windows that show something.

        Raises
        ------
        HardwareError
            See `checked_image`.
        """
        from mm_autofocus.estimators.blur_features import blur_features

        image = checked_image(image, pixel_um)
        shown = [w for w in windows(image) if w.min() < w.max()]
        if not shown:
            return ScoreReading(0.0, 0.1)
        features = np.stack([blur_features(window, pixel_um) for window in shown])
        scores, scales = self.scores(features)
        middle = int(np.argsort(scores)[len(scores) // 2])
        value = float(np.median(scores))
        return ScoreReading(value, float(scales[middle]) * float(self.card.parameters.get("sigma_scale", 1.0)))

    def scores(self, features: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return scores 0 to 10 and standard deviations, shape (n,), of blur features, shape (n, features)."""
        a = self.arrays
        x = np.clip((features - a["mean"]) / a["scale"], -6.0, 6.0).astype(np.float32)
        out = np.mean([self._member(x, k) for k in range(int(self.card.parameters.get("members", 1)))], axis=0)
        score = np.clip(out[:, 0].astype(np.float64), 0.0, LARGEST_SCORE)
        return score, math.sqrt(2.0) * np.exp(np.clip(out[:, 1].astype(np.float64), -6.0, 2.0))

    def _member(self, x: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        names = sorted((n for n in self.arrays if n.startswith(f"{k}.") and n.endswith(".weight")), key=_layer)
        for name in names:
            x = np.asarray(x @ self.arrays[name].T + self.arrays[name.removesuffix("weight") + "bias"])
            if name != names[-1]:
                x = np.asarray(x / (1.0 + np.exp(-x)), dtype=np.float32)
        return np.asarray(x)


def _layer(name: str) -> int:
    return int(name.split(".")[2])


@dataclass(frozen=True, slots=True)
class NetworkScorer:
    """AENet or ResNet-18 of the papers; needs torch.

    Attributes
    ----------
    card
        What it is; ``parameters`` hold ``width`` of an AENet.
    net
        The network, in evaluation mode.
    """

    card: SemCard
    net: nn.Module

    def read(self, image: Image, pixel_um: float) -> ScoreReading:
        """Score one image: 3 x 3 median, normalisation, the median over a larger one.

        ResNet-18 has one number for an image and is given the middle 320 x 240, as in its paper.

        Raises
        ------
        HardwareError
            See `checked_image`.
        """
        import torch

        image = checked_image(image, pixel_um)
        if image.min() == image.max():
            return ScoreReading(0.0)
        magnification = magnification_of(pixel_um, image.shape[1])
        if self.card.model == "resnet18":
            y, x = ((size - part) // 2 for size, part in zip(image.shape, FRAME, strict=True))
            image = image[y : y + FRAME[0], x : x + FRAME[1]]
        with torch.inference_mode():
            planes = torch.from_numpy(normalised(image))[None, None]
            value = float(self.net(planes, torch.tensor([magnification], dtype=torch.float32))[0])
        return ScoreReading(min(max(value, 0.0), LARGEST_SCORE) if math.isfinite(value) else value)


def normalised(image: Image) -> NDArray[np.float32]:
    """Return an image after the 3 x 3 median filter, less its mean, over its standard deviation (equation 2)."""
    import cv2

    quiet = cv2.medianBlur(np.ascontiguousarray(image, dtype=np.float32), 3)
    return np.asarray((quiet - quiet.mean()) / max(float(quiet.std()), 1e-6), dtype=np.float32)


def load_scorer(network: ScoreNetwork | str = "ours", card: str | Path = "") -> FocusScorer:
    """Return what scores images.

    Parameters
    ----------
    network
        "ours", "aenet" or "resnet18".
    card
        Path of its card; empty for the one that comes along.

    Raises
    ------
    SettingsError
        When there is no such network, or its files cannot be used.
    """
    from mm_autofocus.estimators.cards import WEIGHTS, Model, load_card

    models: dict[str, tuple[Model, str]] = {
        "ours": ("score", "score_ours.json"), "aenet": ("aenet", "score_aenet.json"),
        "resnet18": ("resnet18", "score_resnet18.json"),
    }  # fmt: skip
    if network not in models:
        raise SettingsError(f"score network {network!r} is unknown; choose one of {', '.join(models)}")
    model, name = models[network]
    read, arrays = load_card(card or WEIGHTS / name, model)
    if network == "ours":
        return BlurScorer(read, arrays)
    return NetworkScorer(read, _network(read, arrays))


def _network(card: SemCard, arrays: Mapping[str, Any]) -> nn.Module:
    import torch

    from mm_autofocus.networks.aenet import AENet
    from mm_autofocus.networks.focus_score import ResNet18Score

    net = AENet(int(card.parameters.get("width", 64))) if card.model == "aenet" else ResNet18Score()
    try:
        net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
    except RuntimeError as error:
        raise SettingsError(f"{card.model} model: its weights do not fit the network ({error}); train anew") from None
    return net.eval()
