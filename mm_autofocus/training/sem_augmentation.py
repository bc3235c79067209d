"""What the trainings of convolutional networks share: augmentation, symmetries, what setup A shows, learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.training.sem_pairs import Ranges, TrainingPair

if TYPE_CHECKING:
    import torch
    from torch import nn

Array = NDArray[np.float32]

SETUP_A_PX_PER_UM = 0.87
"""Blur pixels of 1 µm at 8.7 mrad and 10 nm: what DeepFocus, which knows no calibration, is trained for."""

SETUP_A_STIGMATOR_UM = 6.0
SETUP_A_ROTATION_DEG = 3.0


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The paper's (Methods): additive noise, gamma, brightness and contrast, each with its probability.

    Attributes
    ----------
    probability
        Of each of the three, applied on its own.
    noise, gamma, contrast, brightness
        Standard deviations, for grey values from -1 to 1; gamma and contrast around 1.
    """

    probability: float = 0.75
    noise: float = 0.2
    gamma: float = 0.25
    contrast: float = 0.25
    brightness: float = 0.25

    def __call__(self, pair: Array, rng: np.random.Generator) -> Array:
        """Return the pair augmented, both images alike but for their noise; shape (2, height, width), from -1 to 1."""
        if rng.random() < self.probability:
            gamma = max(0.2, 1.0 + self.gamma * rng.standard_normal())
            pair = 2.0 * np.power(np.clip(0.5 * pair + 0.5, 0.0, 1.0), np.float32(gamma)) - 1.0
        if rng.random() < self.probability:
            contrast = 1.0 + self.contrast * rng.standard_normal()
            mean = float(pair.mean())
            pair = contrast * (pair - mean) + mean + self.brightness * rng.standard_normal()
        if rng.random() < self.probability:
            pair = pair + self.noise * rng.standard_normal(pair.shape, dtype=np.float32)
        return np.asarray(pair, dtype=np.float32)


def turn_pair(pair: Array, aberration: NDArray[np.float64], quarter_turns: int, mirrored: bool) -> tuple[Array, Array]:
    """Return images and (z, a, b) turned by quarter turns, then mirrored left to right: exact symmetries.

    Parameters
    ----------
    pair
        Shape (..., height, width), square.
    aberration
        Shape (3,), in the image's axes.
    quarter_turns
        Counter-clockwise.
    mirrored
        After turning.
    """
    z, a, b = aberration
    if quarter_turns % 2:
        a, b = -a, -b
    pair = np.rot90(pair, quarter_turns, (-2, -1))
    if mirrored:
        pair, b = pair[..., ::-1], -b
    return pair, np.array([z, a, b], dtype=np.float32)


def schedule(optimiser: torch.optim.Optimizer, top: float, spent: float, warm: float) -> None:
    """Set the learning rate: a short rise, then a half cosine to a fiftieth."""
    rate = top * min(1.0, warm + 0.02) * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(spent, 1.0))))
    for group in optimiser.param_groups:
        group["lr"] = rate


def drop_nothing(net: nn.Module) -> None:
    """Switch off dropout and dropped blocks: a tenth at every layer keeps a run this short from learning at all."""
    from torch import nn

    from mm_autofocus.networks.efficientnet_b0 import MBConv

    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, MBConv):
            module.drop = 0.0


def setup_a_ranges(small: bool, binning: int = 1) -> Ranges:
    """Return the draw of setup A, which never changes: ±5 µm at 8.7 mrad and 10 nm; or one of small blur.

    Parameters
    ----------
    small
        Small blur only, for the beginning.
    binning
        Pixels of the frame that are averaged along each axis: what is drawn are pairs as they are after that.
    """
    delta = 5.0 * SETUP_A_PX_PER_UM / binning
    stig = 5.0 * SETUP_A_STIGMATOR_UM / 5.0
    fixed = Ranges(
        delta_px=(delta, delta), defocus=4.0, astigmatism=stig, wide_share=0.0, small_share=0.2, miscalibration=0.0,
        electrons=(10.0 * binning**2, 150.0 * binning**2), residual_px=8.0, softness=0.4, blank_share=0.1,
        empty_share=0.0,
    )  # fmt: skip
    if binning > 1:  # a mean over n pixels has a standard deviation of n / sqrt(12) of them; 15 px of displacement
        fixed = replace(fixed, core_px=(0.3, 0.3 + 0.6 / binning), residual_px=16.0 / binning)
    return replace(fixed, defocus=2.4, astigmatism=1.5, residual_px=2.0, blank_share=0.0) if small else fixed


def knobs_of(pair: TrainingPair, aberration: NDArray[np.floating]) -> Array:
    """Return (working distance µm, stig x, stig y) of setup A for (z, a, b) over half the perturbation (±5 µm)."""
    from mm_autofocus.estimators.aberration import ColumnCalibration

    calibration = ColumnCalibration(1000.0, SETUP_A_STIGMATOR_UM, SETUP_A_ROTATION_DEG)
    found = calibration.from_blur(5.0 * np.asarray(aberration, dtype=float) * pair.step_ratio, 1.0)
    return found.vector().astype(np.float32)


BLUR_SCALE = 3.0
"""Half perturbations: about the mean of the blur that is taught."""


def blur_of(z: float, a: float, b: float) -> list[float]:
    """Return (r, 2 z a / r, 2 z b / r) over `BLUR_SCALE` of (z, a, b) over half a perturbation: what a blur shows."""
    r = math.sqrt(z * z + a * a + b * b) + 0.3
    return [value / BLUR_SCALE for value in (r, 2 * z * a / r, 2 * z * b / r)]
