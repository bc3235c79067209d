"""MobileNetV2 for one number from one grey image (Sandler et al. 2018; regression head of Lightley et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, repeats, stride (table 2 of the MobileNetV2 paper)."""

_EPSILON = 1e-3  # Keras


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project to a thin bottleneck; with a shortcut where shapes allow."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(channels_in, wide, 1, bias=False), _norm(wide), nn.ReLU6(inplace=True)]
        layers += [
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), _norm(wide), nn.ReLU6(inplace=True),
            nn.Conv2d(wide, channels_out, 1, bias=False), _norm(channels_out),
        ]  # fmt: skip
        self.layers = nn.Sequential(*layers)
        self.stride = stride
        self.shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features, shape (batch, channels_out, height / stride, width / stride)."""
        y: torch.Tensor = self.layers(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """The network: 1 x 96 x 96 in, global average pooling, one number out. 2.2 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1, bias=False), _norm(32), nn.ReLU6(inplace=True))
        blocks, channels = [], 32
        for expansion, out, repeats, stride in _BLOCKS:
            for i in range(repeats):
                blocks.append(InvertedResidual(channels, out, stride if i == 0 else 1, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.top = nn.Sequential(nn.Conv2d(channels, 1280, 1, bias=False), _norm(1280), nn.ReLU6(inplace=True))
        self.head = nn.Linear(1280, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one number per image, shape (batch,); ``x`` of shape (batch, 1, height, width)."""
        features = self.top(self.blocks(self.stem(x)))
        y: torch.Tensor = self.head(features.mean((2, 3)))[:, 0]
        return y


def keras_layers(net: MobileNetV2) -> Iterator[nn.Module | None]:
    """Yield the network's layers in the order and number in which Keras counts them; None for those without weights.

    Keras (TensorFlow 2.1) counts the input, the padding before each stride of 2, the activations and the additions: 157
    layers in all, as the paper says.
    """
    yield from (None, None)  # input, padding
    yield from (net.stem[0], net.stem[1], None)
    for block in net.blocks:
        assert isinstance(block, InvertedResidual)
        layers = list(block.layers)
        expands = len(layers) > 5
        for i, layer in enumerate(layers):
            if expands and block.stride == 2 and i == 3:
                yield None  # padding
            yield None if isinstance(layer, nn.ReLU6) else layer
        if block.shortcut:
            yield None  # addition
    yield from (net.top[0], net.top[1], None)
    yield from (None, net.head)  # pooling, dense


def freeze(net: MobileNetV2, layers: int = 100) -> list[nn.Module]:
    """Freeze the first ``layers`` layers, as Keras counts them, and return those that hold weights.

    Their batch normalisations must stay in evaluation mode while the rest trains.
    """
    frozen = [layer for layer, _ in zip(keras_layers(net), range(layers), strict=False) if layer is not None]
    for layer in frozen:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
    return frozen
