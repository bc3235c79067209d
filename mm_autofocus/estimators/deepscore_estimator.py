"""DeepScore as its paper has it: scores of random patches of one frame, the least of each kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mm_autofocus.errors import HardwareError
from mm_autofocus.estimators.aberration import ColumnCalibration
from mm_autofocus.estimators.cards import SemCard, load_card
from mm_autofocus.estimators.deepfocus_estimator import as_trained, rescaled
from mm_autofocus.estimators.frames import check_frame
from mm_autofocus.estimators.patches import random_corners
from mm_autofocus.strategy import Image

if TYPE_CHECKING:
    from mm_autofocus.networks.deepscore import DeepScore

PATCHES = 10


@dataclass(frozen=True, slots=True)
class DeepScoreEstimator:
    """Scores single frames; needs torch.

    Attributes
    ----------
    card
        What the network is; ``parameters`` holds ``scales``, what the outputs are multiplied with (µm, a.u.), and
        ``standardised`` (see `mm_autofocus.estimators.deepfocus_estimator.standardised`).
    net
        The network, in evaluation mode.
    patches, seed
        How many patches, and the seed of their places: the same in every frame.
    """

    card: SemCard
    net: DeepScore
    patches: int = PATCHES
    seed: int = 0

    @classmethod
    def load(cls, card_path: str | Path = "", *, patches: int = PATCHES, seed: int = 0) -> DeepScoreEstimator:
        """Return the estimator of a card; the one that comes along when empty.

        Raises
        ------
        SettingsError
            When there is no such model.
        """
        import torch

        from mm_autofocus.networks.deepscore import DeepScore

        card, arrays = load_card(card_path, "deepscore")
        net = DeepScore()
        net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})
        return cls(card, net.eval(), patches, seed)

    def score(
        self,
        image: Image,
        pixel_um: float = 0.01,  # noqa: ARG002
        calibration: ColumnCalibration | None = None,  # noqa: ARG002
    ) -> tuple[float, float]:
        """Return (s_wd, s_stig): how far from focus and stigmation, about µm and a.u. of the training's column.

        Parameters
        ----------
        image
            Shape (height, width), at least 512 x 512.
        pixel_um, calibration
            Accepted and not used: the paper's score knows neither.

        Raises
        ------
        HardwareError
            When the frame is no grey image, holds a NaN, is too small, or shows a single grey value.
        """
        import torch

        from mm_autofocus.networks.deepscore import EDGE

        check_frame(image, EDGE)
        if image.min() == image.max():
            raise HardwareError(f"frame shows nothing but the value {image.min()}; is the beam blanked?")
        corners = np.unique(random_corners(image.shape, EDGE, self.patches, self.seed), axis=0)  # 512 x 512: one
        cut = [rescaled(image[y : y + EDGE, x : x + EDGE])[None] for x, y in corners]
        patches = np.stack([as_trained(self.card, patch) for patch in cut])
        with torch.inference_mode():
            out = self.net(torch.from_numpy(patches)).double().numpy()
        wd, stig = out.min(0) * np.array(self.card.parameters.get("scales", (1.0, 1.0)))
        return float(wd), float(stig)

    def total(self, image: Image, pixel_um: float = 0.01, calibration: ColumnCalibration | None = None) -> float:
        """Return the sum of both scores, what the paper minimises; parameters as in `score`."""
        return sum(self.score(image, pixel_um, calibration))
