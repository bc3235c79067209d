"""The pixel-score variant of DeepFocus: a planar U-Net that corrects and weighs at every pixel (Fig. 3g, h)."""

from __future__ import annotations

import torch
from torch import nn

START_FILTERS = 32
BLOCKS = 3
_GROUPS = 8


def _double(channels: int, out: int) -> nn.Sequential:
    """Two "same" convolutions, each normalised in groups and rectified."""
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(_GROUPS, out), nn.ReLU(inplace=True),
        nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(_GROUPS, out), nn.ReLU(inplace=True),
    )  # fmt: skip


class _Up(nn.Module):
    """Resize convolution (Odena et al. 2016: nearest neighbour, then convolve), joined with the encoder's features."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.resize = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, out, 3, padding=1),
            nn.GroupNorm(_GROUPS, out), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.merge = _double(2 * out, out)

    def forward(self, below: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.merge(torch.cat([self.resize(below), beside], 1))
        return y


class PixelScoreUNet(nn.Module):
    """Three planar blocks with shared weights over both images, then 64 -> 20 -> 4 channels per pixel.

    The paper's 3D U-Net with planar blocks is a planar one for each image; both are computed at once, folded into the
    batch.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = [START_FILTERS * 2**level for level in range(BLOCKS)]
        self.down = nn.ModuleList(_double(1 if i == 0 else widths[i - 1], w) for i, w in enumerate(widths))
        self.up = nn.ModuleList(_Up(widths[i + 1], widths[i]) for i in reversed(range(BLOCKS - 1)))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Conv2d(2 * START_FILTERS, 20, 1), nn.ReLU(inplace=True), nn.Conv2d(20, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return corrections and score of every pixel.

        Parameters
        ----------
        x
            Shape (batch, 2, height, width), height and width multiples of 4, grey values from -1 to 1.

        Returns
        -------
        torch.Tensor
            Shape (batch, 4, height, width).
        """
        return self.decoded(self.encoded(x))

    def encoded(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of every pixel of either image, shape (batch * 2, 32, height, width)."""
        batch, images, height, width = x.shape
        y = x.reshape(batch * images, 1, height, width)
        beside: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            y = block(y if level == 0 else self.pool(y))
            beside.append(y)
        beside.pop()
        for block in self.up:
            y = block(y, beside.pop())
        return y

    def decoded(self, features: torch.Tensor) -> torch.Tensor:
        """Return what `forward` does, of the features of `encoded`."""
        count, channels, height, width = features.shape
        out: torch.Tensor = self.head(features.reshape(count // 2, 2 * channels, height, width))
        return out


def as_predictions(dense: torch.Tensor) -> torch.Tensor:
    """Return the pixels as so many predictions, for `mm_autofocus.networks.deepfocus.weighted_mean` and `score_loss`.

    Shape (batch, 4, height, width) in, (batch, height * width, 4) out: the softmax then runs over the score map.
    """
    return dense.flatten(2).transpose(1, 2)
