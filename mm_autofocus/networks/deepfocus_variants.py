"""DeepFocus' network and its variants under one roof: what each makes of a patch, and of which features."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from torch import nn

from mm_autofocus.estimators.cards import Variant
from mm_autofocus.networks.deepfocus import CONVOLUTIONS, LINEAR, DeepFocus
from mm_autofocus.networks.efficientnet_b0 import pair_efficientnet_b0
from mm_autofocus.networks.resnet import PairOf, pair_resnet50
from mm_autofocus.networks.unet import START_FILTERS, PixelScoreUNet, as_predictions

VARIANTS: tuple[Variant, ...] = get_args(Variant)

SCORED: tuple[Variant, ...] = ("patch-scores", "pixel-scores")
"""Variants that say how much each prediction counts; the two common architectures have a fourth output, left alone."""

Net = DeepFocus | PixelScoreUNet | PairOf


def make_variant(variant: Variant, edge: int) -> Net:
    """Return a network with random weights (Methods: model architectures, comparison against common architectures).

    Parameters
    ----------
    variant
        Which.
    edge
        Edge of the patch, pixels; only "stacked" and "patch-scores" are made for one.

    Raises
    ------
    ValueError
        For another variant, or an edge that the paper does not name.
    """
    if variant in ("stacked", "patch-scores"):
        return DeepFocus(edge, scores=variant == "patch-scores")
    makers: dict[str, Callable[[], Net]] = {
        "pixel-scores": PixelScoreUNet, "efficientnet-b0": pair_efficientnet_b0, "resnet-50": pair_resnet50,
    }  # fmt: skip
    if variant not in makers:
        raise ValueError(f"DeepFocus: no variant {variant!r}; there are {', '.join(VARIANTS)}")
    return makers[variant]()


def predictions(net: Net, outputs: torch.Tensor) -> torch.Tensor:
    """Return what a network says of each patch, place by place: (batch, places, 3), or 4 where there are scores.

    A patch is one place, but for the U-Net, whose every pixel is.
    """
    return as_predictions(outputs) if isinstance(net, PixelScoreUNet) else outputs[:, None]


class Taught(nn.Module):
    """A network with a head that says of either image of the pair alone how blurred it is; only for the training.

    What `blur` is taught with is (r, 2 z a / r, 2 z b / r) of an image (z, a, b) off: what its own blurred disc shows.
    The head is thrown away. The U-Net says it at every pixel.

    Parameters
    ----------
    net
        The network that is trained.
    """

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        if isinstance(net, DeepFocus):
            self.blur: nn.Module = nn.Linear(LINEAR[net.edge][0] // 2, 3)
        elif isinstance(net, PixelScoreUNet):
            self.blur = nn.Conv2d(START_FILTERS, 3, 1)
        else:
            self.blur = nn.Linear(net.features, 3)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return outputs and blur of pairs (batch, 2, height, width).

        Returns
        -------
        outputs
            Shape (batch, 3 or 4), or (batch, 4, height, width) of the U-Net.
        blur
            Shape (batch, 2, 3, places).
        """
        features = self.net.encoded(images)
        outputs = self.net.decoded(features)
        if isinstance(self.net, DeepFocus):
            each = features.reshape(len(features), CONVOLUTIONS[-1][0], 2, -1).transpose(1, 2).flatten(2)
            return outputs, self.blur(each)[..., None]
        batch = len(images)
        if isinstance(self.net, PixelScoreUNet):
            return outputs, self.blur(features).reshape(batch, 2, 3, -1)
        return outputs, self.blur(features).reshape(batch, 2, 3, 1)
