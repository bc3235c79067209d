"""DeepFocus: stacked convolutions with shared weights over a perturbed pair (Schubert et al. 2024, Table 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

CONVOLUTIONS = ((20, 5, 2), (30, 5, 2), (40, 4, 2), (50, 4, 2), (60, 2, 2), (70, 1, 2), (70, 1, 1))
"""Output channels, kernel and pooling of the seven convolutional layers (Table 2)."""

LINEAR = {128: (140, 100, 50), 256: (1260, 250, 50), 384: (3500, 250, 50), 512: (6860, 250, 50)}
"""Inputs of the three fully connected layers, by the edge of the patch (Methods, Model architectures and training)."""

DROPOUT = 0.1
CORRECTIONS = 3
SCORE_SHARE = 0.25
"""α of equation 3: the share of the loss of the single predictions."""


class DeepFocus(nn.Module):
    """Table 2: seven convolutional layers, shared by both images, and three fully connected ones.

    A three-dimensional convolution whose kernel is 1 deep is the same planar convolution of either image; that is how
    it is computed here unless ``volumetric``, which holds to the letter of the table and is slower on a CPU. Both forms
    have the same parameters and the same output.

    Parameters
    ----------
    edge
        Edge of the patch in pixels: 128, 256, 384 or 512.
    scores
        True for the patch-score variant: a fourth output, the weight of this patch before the softmax.
    volumetric
        Use ``Conv3d`` as the table says.

    Raises
    ------
    ValueError
        For an edge that the paper does not name.
    """

    def __init__(self, edge: int = 512, scores: bool = False, volumetric: bool = False) -> None:
        super().__init__()
        if edge not in LINEAR:
            raise ValueError(f"DeepFocus: a patch edge of {edge} px; the paper has {sorted(LINEAR)}")
        self.edge, self.scores, self.volumetric = edge, scores, volumetric
        layers: list[nn.Module] = []
        channels = 1
        for out, kernel, pool in CONVOLUTIONS:
            layers += _volumetric(channels, out, kernel, pool) if volumetric else _planar(channels, out, kernel, pool)
            channels = out
        self.convolutions = nn.Sequential(*layers)
        if not volumetric:
            self.convolutions = self.convolutions.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        flat, wide, narrow = LINEAR[edge]
        self.linear = nn.Sequential(
            nn.Linear(flat, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU(),
            nn.Linear(narrow, CORRECTIONS + int(scores)),
        )  # fmt: skip

    def encoded(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the fully connected layers receive, shape (batch, LINEAR[edge][0]); ``x`` as in `forward`."""
        if self.volumetric:
            y: torch.Tensor = self.convolutions(x.unsqueeze(1))
            return y.flatten(1)
        batch, images, height, width = x.shape
        # Channels last: its backward pass takes half the time.
        y = self.convolutions(x.reshape(batch * images, 1, height, width).to(memory_format=torch.channels_last))
        return y.reshape(batch, images, y.shape[1], -1).transpose(1, 2).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the correction (working distance µm, stig x, stig y in a.u.) and, if asked for, the score.

        Parameters
        ----------
        x
            Pairs, grey values from -1 to 1, shape (batch, 2, edge, edge).

        Returns
        -------
        torch.Tensor
            Shape (batch, 3), or (batch, 4) with scores.
        """
        return self.decoded(self.encoded(x))

    def decoded(self, features: torch.Tensor) -> torch.Tensor:
        """Return what `forward` does, of the features of `encoded`."""
        y: torch.Tensor = self.linear(features)
        return y

    def last_layers(self) -> list[nn.Module]:
        """Return the three fully connected layers, those that a recalibration trains."""
        return [layer for layer in self.linear if isinstance(layer, nn.Linear)]


def _volumetric(channels: int, out: int, kernel: int, pool: int) -> Sequence[nn.Module]:
    return (
        nn.Conv3d(channels, out, (1, kernel, kernel)), nn.BatchNorm3d(out), nn.ReLU(inplace=True),
        nn.MaxPool3d((1, pool, pool)), nn.Dropout(DROPOUT),
    )  # fmt: skip


def _planar(channels: int, out: int, kernel: int, pool: int) -> Sequence[nn.Module]:
    return (
        nn.Conv2d(channels, out, kernel), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
        nn.MaxPool2d(pool), nn.Dropout(DROPOUT),
    )  # fmt: skip


def to_volumetric(net: DeepFocus) -> DeepFocus:
    """Return the same network with the convolutions of Table 2 to the letter."""
    other = DeepFocus(net.edge, net.scores, volumetric=True)
    state = other.state_dict()
    other.load_state_dict({name: value.reshape(state[name].shape) for name, value in net.state_dict().items()})
    return other.train(net.training)


def weighted_mean(outputs: torch.Tensor) -> torch.Tensor:
    """Return the corrections of several patches, weighted by the softmax of their scores (Fig. 3c).

    Parameters
    ----------
    outputs
        Shape (batch, patches, 4): three corrections and the score.

    Returns
    -------
    torch.Tensor
        Shape (batch, 3).
    """
    weights = torch.softmax(outputs[..., 3], dim=1)
    return (weights[..., None] * outputs[..., :3]).sum(1)


def score_loss(outputs: torch.Tensor, target: torch.Tensor, share: float = SCORE_SHARE) -> torch.Tensor:
    """Return (1 - α) L1(weighted mean) + α L1(single predictions), equation 3.

    Parameters
    ----------
    outputs
        Shape (batch, patches, 4).
    target
        Shape (batch, 3).
    share
        α.
    """
    final = (weighted_mean(outputs) - target).abs().mean()
    individual = (outputs[..., :3] - target[:, None]).abs().mean()
    return (1.0 - share) * final + share * individual
