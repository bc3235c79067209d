"""EfficientNet-B0 (Tan and Le 2019), as a classifier, as an encoder, and on pairs of images."""

from __future__ import annotations

import torch
from torch import nn

from mm_autofocus.networks.resnet import PairOf

_STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)  # fmt: skip
"""Expansion, kernel, stride, channels, repeats (Table 1 of the EfficientNet paper)."""

FEATURES = 1280
_DROP_PATH = 0.2


def _convolution(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out)]


class SqueezeExcite(nn.Module):
    """Weigh the channels by what the whole image holds (squeeze to a quarter of the block's input channels)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1), nn.SiLU(inplace=True), nn.Conv2d(squeezed, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` weighted; same shape."""
        y: torch.Tensor = x * self.layers(x.mean((2, 3), keepdim=True))
        return y


class MBConv(nn.Module):
    """Expand, filter each channel, weigh, project; with a shortcut that is dropped at random while training."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int, drop: float) -> None:
        super().__init__()
        wide = channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_convolution(channels, wide, 1), nn.SiLU(inplace=True)]
        layers += [*_convolution(wide, wide, kernel, stride, wide), nn.SiLU(inplace=True)]
        layers += [SqueezeExcite(wide, max(1, channels // 4)), *_convolution(wide, out, 1)]
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and channels == out
        self.drop = drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features, shape (batch, out, height / stride, width / stride)."""
        y: torch.Tensor = self.layers(x)
        if not self.shortcut:
            return y
        if self.training and self.drop > 0:
            keep = (torch.rand(len(y), 1, 1, 1, device=y.device) >= self.drop).to(y.dtype)
            y = y * keep / (1.0 - self.drop)
        return x + y


class EfficientNetB0(nn.Module):
    """Stem, seven stages, 1280 channels, global average pooling.

    Parameters
    ----------
    channels
        Of the images: 3 for colour, 1 for grey.
    classes
        Outputs of a final fully connected layer; 0 for the pooled features themselves.
    """

    def __init__(self, channels: int = 3, classes: int = 0) -> None:
        super().__init__()
        blocks: list[nn.Module] = [*_convolution(channels, 32, 3, 2), nn.SiLU(inplace=True)]
        width, done, total = 32, 0, sum(stage[4] for stage in _STAGES)
        for expansion, kernel, stride, out, repeats in _STAGES:
            for i in range(repeats):
                drop = _DROP_PATH * done / total
                blocks.append(MBConv(width, out, kernel, stride if i == 0 else 1, expansion, drop))
                width, done = out, done + 1
        blocks += [*_convolution(width, FEATURES, 1), nn.SiLU(inplace=True)]
        self.layers = nn.Sequential(*blocks)
        self.head: nn.Module = nn.Identity()
        if classes:
            self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(FEATURES, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, classes), or (batch, 1280) without classes; ``x`` (batch, channels, height, width)."""
        y: torch.Tensor = self.head(self.layers(x).mean((2, 3)))
        return y


def pair_efficientnet_b0() -> PairOf:
    """Return the paper's EfficientNet-B0 on pairs."""
    return PairOf(EfficientNetB0(), FEATURES, 320)
