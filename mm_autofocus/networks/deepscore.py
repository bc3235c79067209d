"""DeepScore: how far one image is from focus and stigmation, without the direction (Schubert et al. 2024, Table 3)."""

from __future__ import annotations

import torch
from torch import nn

CONVOLUTIONS = (20, 30, 40, 50, 60, 70)
"""Output channels of the six convolutional layers, kernel 3, pooling 2 (Table 3)."""

EDGE = 512
LINEAR = (2520, 250, 50)
"""Inputs of the fully connected layers. 2520 = 70 x 6 x 6 is what one image of 512 x 512 leaves over: the caption's
"2 x 512 x 512" can't be meant, since the text scores single images."""

DROPOUT = 0.1


class DeepScore(nn.Module):
    """Table 3: one image in, two scores out (working distance, stigmation); larger is further from focus."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for out in CONVOLUTIONS:
            layers += [
                nn.Conv2d(channels, out, 3), nn.BatchNorm2d(out), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                nn.Dropout(DROPOUT),
            ]  # fmt: skip
            channels = out
        self.convolutions = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        flat, wide, narrow = LINEAR
        self.linear = nn.Sequential(
            nn.Linear(flat, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU(), nn.Linear(narrow, 2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (s_wd, s_stig), shape (batch, 2); ``x`` of shape (batch, 1, 512, 512), grey values from -1 to 1."""
        y: torch.Tensor = self.linear(self.convolutions(x.to(memory_format=torch.channels_last)).flatten(1))
        return y


def score_target(aberration: torch.Tensor) -> torch.Tensor:
    """Return what DeepScore is trained on: |wd| and |stig x| + |stig y|; (batch, 3) in, (batch, 2) out."""
    size = aberration.abs()
    return torch.stack([size[:, 0], size[:, 1] + size[:, 2]], 1)


def image_score(patches: torch.Tensor) -> torch.Tensor:
    """Return one score of an image from its patches: the minimum of each kind, summed; (patches, 2) in, scalar out."""
    return patches.amin(0).sum()
