"""ResNet-18 and ResNet-50 (He et al. 2016), as classifiers, as encoders, and on pairs of images."""

from __future__ import annotations

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut = _shortcut(channels, out, stride)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features, shape (batch, width * expansion, height / stride, width / stride)."""
        y: torch.Tensor = self.activation(self.layers(x) + self.shortcut(x))
        return y


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions and a shortcut (ResNet-50); the stride is in the 3 x 3 one."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut = _shortcut(channels, out, stride)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features, shape (batch, width * expansion, height / stride, width / stride)."""
        y: torch.Tensor = self.activation(self.layers(x) + self.shortcut(x))
        return y


def _shortcut(channels: int, out: int, stride: int) -> nn.Module:
    if channels == out and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


_DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """Stem, four stages and global average pooling; `features` is the number of channels that leave.

    Parameters
    ----------
    depth
        18 or 50.
    channels
        Of the images: 3 for colour, 1 for grey.
    classes
        Outputs of a final fully connected layer; 0 for the pooled features themselves.

    Raises
    ------
    ValueError
        For another depth.
    """

    def __init__(self, depth: int = 18, channels: int = 3, classes: int = 0) -> None:
        super().__init__()
        if depth not in _DEPTHS:
            raise ValueError(f"ResNet-{depth}; there are {sorted(_DEPTHS)}")
        block, repeats = _DEPTHS[depth]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        stages: list[nn.Module] = []
        width_in = 64
        for stage, count in enumerate(repeats):
            width = 64 * 2**stage
            for i in range(count):
                stages.append(block(width_in, width, 2 if stage > 0 and i == 0 else 1))
                width_in = width * block.expansion
        self.stages = nn.Sequential(*stages)
        self.features = width_in
        self.head: nn.Module = nn.Linear(width_in, classes) if classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, classes), or (batch, features) without classes; ``x`` (batch, channels, height, width)."""
        y: torch.Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return y


class PairOf(nn.Module):
    """Two images through one encoder, their features joined, two 1 x 1 convolutions (Methods, common architectures).

    Parameters
    ----------
    encoder
        Maps (batch, channels, height, width) to (batch, ``features``).
    features
        Channels that leave the encoder.
    hidden
        Output channels of the first of the two convolutions: 512 for ResNet-50, 320 for EfficientNet-B0.
    channels
        Channels that the encoder wants; grey images are repeated.
    """

    def __init__(self, encoder: nn.Module, features: int, hidden: int, channels: int = 3) -> None:
        super().__init__()
        self.encoder, self.features, self.channels = encoder, features, channels
        self.head = nn.Sequential(
            nn.Conv2d(2 * features, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, 4, 1), nn.Flatten(1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return three corrections and a score, shape (batch, 4); ``x`` of shape (batch, 2, height, width)."""
        return self.decoded(self.encoded(x))

    def encoded(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of either image, shape (batch * 2, features)."""
        batch, images, height, width = x.shape
        y: torch.Tensor = self.encoder(x.reshape(batch * images, 1, height, width).expand(-1, self.channels, -1, -1))
        return y

    def decoded(self, features: torch.Tensor) -> torch.Tensor:
        """Return what `forward` does, of the features of `encoded`."""
        y: torch.Tensor = self.head(features.reshape(len(features) // 2, -1, 1, 1))
        return y


def pair_resnet50() -> PairOf:
    """Return the paper's ResNet-50 on pairs."""
    encoder = ResNet(50)
    return PairOf(encoder, encoder.features, 512)
