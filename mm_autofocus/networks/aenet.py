"""AENet: a focus score from an image and its magnification, 17 convolutions and 4 max-poolings (Lee et al. 2021).

The paper's Supplementary Table S2 is not at hand. What the text and Fig. 2b leave open is filled in so: five stages of
three 3 x 3 convolutions each, 64 to 1024 channels, doubling where the size halves; in each the second and third
convolution are bridged by the residual connection; a convolution over all that is left of a 320 x 240 image to 64
channels, and one to the score. That makes 17 convolutions, 4 poolings, 5 residual connections, one number for 320 x 240
and a map for more, and 51.1 M parameters (51.6 M are reported of the original) at its reported time of computation.
"""

from __future__ import annotations

import torch
from torch import nn

LARGEST = 9.0
"""The output is cut off here."""

FRAME = (240, 320)
LARGEST_MAGNIFICATION = 30_000.0
_STAGES, _REDUCTION = 5, 16


def _block(channels: int, out: int, size: int | tuple[int, int] = 3, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, size, padding=padding), nn.BatchNorm2d(out), nn.LeakyReLU(inplace=True)
    )


class ResidualStage(nn.Module):
    """Three convolution blocks; what enters the second is added to what leaves the third."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.first = _block(channels, out)
        self.rest = nn.Sequential(_block(out, out), _block(out, out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features, shape (batch, out, height, width)."""
        y: torch.Tensor = self.first(x)
        z: torch.Tensor = y + self.rest(y)
        return z


class AENet(nn.Module):
    """The score network of the paper.

    Parameters
    ----------
    width
        Channels of the first stage: 64 is the paper's; less makes a smaller sister that can be trained in minutes.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        channels = [2, *(width * 2**stage for stage in range(_STAGES))]
        stages: list[nn.Module] = []
        for stage in range(_STAGES):
            if stage:
                stages.append(nn.MaxPool2d(2))
            stages.append(ResidualStage(channels[stage], channels[stage + 1]))
        self.stages = nn.Sequential(*stages)
        whole = FRAME[0] // _REDUCTION, FRAME[1] // _REDUCTION
        self.gather = _block(channels[-1], width, whole, padding=0)
        self.score = nn.Conv2d(width, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.01, nonlinearity="leaky_relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        # A cut-off at 0 and 9 passes no gradient beyond: begin in between.
        nn.init.normal_(self.score.weight, std=width**-0.5)
        nn.init.constant_(self.score.bias, LARGEST / 2)  # type: ignore[arg-type]

    def score_map(self, images: torch.Tensor, magnification: torch.Tensor) -> torch.Tensor:
        """Return scores 0 to 9 of every place of a 320 x 240 window, shape (batch, rows, columns).

        Parameters
        ----------
        images
            Median-filtered and normalised each by itself, shape (batch, 1, height, width), at least 240 x 320.
        magnification
            Shape (batch,), a number such as 10,000.

        Raises
        ------
        ValueError
            For smaller images.
        """
        if images.shape[-2] < FRAME[0] or images.shape[-1] < FRAME[1]:
            raise ValueError(
                f"AENet needs images of at least {FRAME[1]} x {FRAME[0]} pixels, got {images.shape[-1]} x "
                f"{images.shape[-2]}"
            )
        plane = (magnification / LARGEST_MAGNIFICATION).to(images.dtype).reshape(-1, 1, 1, 1).expand_as(images)
        y: torch.Tensor = self.score(self.gather(self.stages(torch.cat([images, plane], 1))))
        return y[:, 0].clamp(0.0, LARGEST)

    def forward(self, images: torch.Tensor, magnification: torch.Tensor) -> torch.Tensor:
        """Return one score to an image, shape (batch,): the median of `score_map`."""
        return self.score_map(images, magnification).flatten(1).median(1).values
