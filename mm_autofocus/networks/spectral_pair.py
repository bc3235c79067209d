"""Our spectral pair network: log-polar spectra of two frames in, aberration over perturbation out.

Built on what the spectra obey (`mm_autofocus.estimators.pair_spectra`): turning the specimen's directions turns the
astigmatism, so that layers are circular in angle and (a, b) are read out as the second harmonic; swapping the frames
negates the aberration and leaves the perturbation, so that the outputs are made odd and even under the swap.
"""

from __future__ import annotations

import math

import torch
from torch import nn

OUTPUTS = 6
"""z, a, b over half the perturbation; logarithms of Laplace scales of z and of (a, b), of the step ratio."""

_SCALE = 4.0
_SWAP = (1, 0, 2, 3, 4)


class SpectralPair(nn.Module):
    """Circular convolutions over (radius, angle), then one small network for each angle with the mean over angles.

    Parameters
    ----------
    angles
        Angular bins.
    rows
        Radial bins.
    channels
        Features of each bin; the fourth (log ratio) changes its sign under the swap, first and second change places.
    extras
        Numbers beside the spectra.
    width
        Channels of the first convolution; the later ones have 4/3 of them.
    """

    def __init__(self, angles: int = 16, rows: int = 30, channels: int = 5, extras: int = 2, width: int = 24) -> None:
        super().__init__()
        wide = width * 4 // 3
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(channels, width, (5, 3), (2, 1), (2, 0)),
                nn.Conv2d(width, wide, 3, (2, 1), (1, 0)),
                nn.Conv2d(wide, wide, 3, 1, (1, 0)),
            ]
        )
        left = math.ceil(math.ceil(rows / 2) / 2)
        self.each = nn.Linear(wide * left + extras, 192)
        self.joint = nn.Linear(192, 160)
        self.around = nn.Linear(2 * 192, 160, bias=False)
        self.beside = nn.Linear(3 * 160, 128)
        self.out = nn.Linear(128, 6)
        self.drop = nn.Dropout(0.05)
        angle = 2.0 * math.pi * (torch.arange(angles) + 0.5) / angles
        self.register_buffer("cosine", torch.cos(angle), persistent=False)
        self.register_buffer("sine", torch.sin(angle), persistent=False)

    def one_way(self, x: torch.Tensor, extras: torch.Tensor) -> torch.Tensor:
        """Return the outputs for one order of the frames, not yet made odd and even."""
        for layer in self.convolutions:
            x = torch.relu(layer(torch.cat([x[..., -1:], x, x[..., :1]], -1)))
        y = x.flatten(1, 2).transpose(1, 2)  # (batch, angle, features)
        y = torch.cat([y, extras[:, None].expand(-1, y.shape[1], -1)], -1)
        y = self.drop(torch.relu(self.each(y)))
        around = self.around(torch.cat([y.mean(1), y.amax(1)], -1))
        y = torch.relu(self.joint(y) + around[:, None])
        y = torch.relu(self.beside(torch.cat([y.roll(1, 1), y, y.roll(-1, 1)], -1)))
        y = self.out(y)
        cosine, sine = self.get_buffer("cosine"), self.get_buffer("sine")
        a = 2.0 * (y[..., 1] * cosine).mean(1)
        b = 2.0 * (y[..., 1] * sine).mean(1)
        mean = y.mean(1)
        return torch.stack([mean[:, 0], a, b, mean[:, 2], mean[:, 3], mean[:, 4]], 1)

    def forward(self, x: torch.Tensor, extras: torch.Tensor) -> torch.Tensor:
        """Return the outputs, shape (batch, 6), odd (the first three) and even (the others) under a swap.

        Parameters
        ----------
        x
            `mm_autofocus.estimators.pair_spectra.features`, shape (batch, channels, rows, angles).
        extras
            Shape (batch, extras).
        """
        swapped = x[:, _SWAP, :, :].clone()
        swapped[:, 3] = -swapped[:, 3]
        one, two = self.one_way(x, extras), self.one_way(swapped, extras)
        odd = 0.5 * _SCALE * (one[:, :3] - two[:, :3])
        return torch.cat([odd, 0.5 * (one[:, 3:] + two[:, 3:])], 1)


def turned(x: torch.Tensor, target: torch.Tensor, steps: int, mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return spectra and (z, a, b) of a specimen turned by ``steps`` angular bins, then mirrored: exact, and free.

    Parameters
    ----------
    x
        Shape (batch, channels, rows, angles).
    target
        Shape (batch, 3).
    steps
        Bins to turn by.
    mirrored
        Mirror the vertical axis after turning: b changes its sign.
    """
    angles = x.shape[-1]
    turn = 2.0 * math.pi * steps / angles
    z, a, b = target.unbind(1)
    a, b = math.cos(turn) * a - math.sin(turn) * b, math.sin(turn) * a + math.cos(turn) * b
    x = x.roll(steps, -1)
    if mirrored:
        x, b = x.flip(-1), -b
    return x, torch.stack([z, a, b], 1)
