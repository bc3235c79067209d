"""Networks that score one image: ours on its blur features, and ResNet-18 with the magnification (Yang et al.)."""

from __future__ import annotations

import torch
from torch import nn

from mm_autofocus.networks.resnet import ResNet

MAGNIFICATION_RANGE = (500.0, 10_000.0)
"""Brought to 0 and 1 (Deep Neural Network Design)."""


class ResNet18Score(nn.Module):
    """ResNet-18 features joined with the magnification, three fully connected layers.

    The paper does not say how wide they are: 256, 64 and 1 here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNet(18, channels=1)
        self.head = nn.Sequential(
            nn.Linear(self.encoder.features + 1, 256), nn.ReLU(inplace=True),
            nn.Linear(256, 64), nn.ReLU(inplace=True), nn.Linear(64, 1),
        )  # fmt: skip

    def forward(self, images: torch.Tensor, magnification: torch.Tensor) -> torch.Tensor:
        """Return scores, about 0 to 10, shape (batch,); parameters as of `mm_autofocus.networks.aenet.AENet`."""
        low, high = MAGNIFICATION_RANGE
        features = self.encoder(images)
        told = ((magnification - low) / (high - low)).to(features.dtype)[:, None]
        y: torch.Tensor = self.head(torch.cat([features, told], 1))
        return y[:, 0]


class BlurScoreNet(nn.Module):
    """Ours: three fully connected layers on `blur_features`, giving a score and how far off it may be.

    Parameters
    ----------
    features
        Numbers of an image.
    hidden
        Width of the layers.
    """

    def __init__(self, features: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, hidden // 2), nn.SiLU(), nn.Linear(hidden // 2, 2),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (score, logarithm of its Laplace scale), shape (batch, 2), of standardised features."""
        y: torch.Tensor = self.layers(x)
        return y
