"""Our convolutional pair network: a strided stem, plain 3 x 3 convolutions, pooled energies, an antisymmetric head."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

OUTPUTS = 7
"""z, a, b over half the perturbation; logarithms of their Laplace scales; logarithm of the step ratio."""

_SCALE = 4.0
_FLOOR = 1e-3


def _layer(channels: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
    ]  # fmt: skip


class PairNet(nn.Module):
    """Both images through one encoder; 280 thousand parameters, 1.2 thousand multiplications per pixel.

    Of the stem's and of the last layer's features the mean and the logarithm of the energy are kept, so that a patch
    may have any size. Swapping the images negates the aberration exactly, and leaves scales and step ratio.

    Parameters
    ----------
    widths
        Channels of the stem, of the middle and of the last layers.
    """

    def __init__(self, widths: Sequence[int] = (32, 48, 96)) -> None:
        super().__init__()
        stem, middle, last = widths
        self.stem = nn.Sequential(*_layer(1, stem, 9, 4))
        self.body = nn.Sequential(
            *_layer(stem, middle, 3, 2), *_layer(middle, middle, 3), *_layer(middle, last, 3, 2), *_layer(last, last, 3)
        )
        self.head = nn.Sequential(
            nn.Linear(4 * (stem + last) + 1, 192), nn.ReLU(), nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, OUTPUTS)
        )

    def forward(self, x: torch.Tensor, log_delta: torch.Tensor) -> torch.Tensor:
        """Return the outputs, shape (batch, 7).

        Parameters
        ----------
        x
            Grey values of pairs on any scale, shape (batch, 2, height, width), at least 64 x 64.
        log_delta
            Logarithm of half the perturbation in blur pixels, shape (batch, 1).
        """
        batch, _, height, width = x.shape
        x = x - x.mean((2, 3), keepdim=True)
        x = x / (x.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-3)
        stem = self.stem(x.reshape(2 * batch, 1, height, width))
        pooled = torch.cat([_pooled(stem), _pooled(self.body(stem))], 1).reshape(batch, 2, -1)
        one, two = pooled[:, 0], pooled[:, 1]
        forth = self.head(torch.cat([one, two, log_delta], 1))
        back = self.head(torch.cat([two, one, log_delta], 1))
        odd = 0.5 * _SCALE * (forth[:, :3] - back[:, :3])
        return torch.cat([odd, 0.5 * (forth[:, 3:] + back[:, 3:])], 1)

    def optimised(self) -> PairNet:
        """Return a copy for inference: batch normalisation folded into the convolutions, channels last."""
        net = copy.deepcopy(self).eval()
        net.stem, net.body = _folded(net.stem), _folded(net.body)
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _pooled(features: torch.Tensor) -> torch.Tensor:
    """Return mean and half the logarithm of the mean square of each channel."""
    energy = features.square().mean((2, 3))
    return torch.cat([features.mean((2, 3)), 0.5 * torch.log(energy + _FLOOR)], 1)


def _folded(layers: nn.Sequential) -> nn.Sequential:
    kept: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            convolution = kept.pop()
            assert isinstance(convolution, nn.Conv2d)
            kept.append(fuse_conv_bn_eval(convolution, layer))
        else:
            kept.append(layer)
    return nn.Sequential(*kept)
