"""Trains the paper's DeepScore for setup A."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mm_autofocus.estimators.deepfocus_estimator import standardised
from mm_autofocus.training.distributed import ALONE, Rank
from mm_autofocus.training.sem_augmentation import (
    Array,
    Augmentation,
    blur_of,
    drop_nothing,
    knobs_of,
    schedule,
    setup_a_ranges,
)
from mm_autofocus.training.sem_pairs import PairSampler

if TYPE_CHECKING:
    import torch

    from mm_autofocus.networks.deepscore import DeepScore

Say = Callable[[str], None]

SCORE_SCALES = (5.0, 3.0)
"""What DeepScore's outputs are multiplied with."""


CROP = 192
"""Edge of the crops with which DeepScore's convolutions begin: of so many pixels they leave one value a channel."""


def fit_deepscore(
    sampler: PairSampler,
    *,
    images: int,
    crops: int = 0,
    batch: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    process: Rank = ALONE,
    say: Say | None = None,
) -> DeepScore:
    """Train the paper's score network for setup A on single frames: L1 distance to |wd| and |stig x| + |stig y|.

    A frame of 512 x 512 is seven times as costly as a crop, and convolutions learn as much from one as from the other:
    they are first taught how blurred crops are, then all layers what the paper asks for.

    Parameters
    ----------
    sampler
        Of pairs; its ranges are replaced by those of setup A.
    images, crops
        How many frames to simulate, and crops before that; both of a pair serve, each at its own working distance.
    batch
        Frames of a step; of crops there are four times as many.
    learning_rate, seed, process, say
        As for `fit_pair_net`.
    """
    import torch

    from mm_autofocus.networks.deepscore import CONVOLUTIONS, EDGE, DeepScore, score_target

    torch.manual_seed(seed)
    rng = np.random.default_rng([0xD5, process.seed(seed)])
    net = DeepScore()
    drop_nothing(net)

    class Taught(torch.nn.Module):
        """The network, and at every place that its convolutions leave the blur and both scores."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.each = net, torch.nn.Conv2d(CONVOLUTIONS[-1], 5, 1)

        def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = self.net.convolutions(frames.to(memory_format=torch.channels_last))
            whole = self.net.linear(features.flatten(1)) if frames.shape[-1] == EDGE else features.new_zeros(0, 2)
            return whole, self.each(features)

    taught = Taught()
    model = process.wrap(taught)
    augment = Augmentation(noise=0.1)
    sampler.ranges = replace(setup_a_ranges(small=False), small_share=0.35, residual_px=0.0)
    scales = torch.tensor(SCORE_SCALES, device=process.device)
    for edge, count, size in ((CROP, crops, 4 * batch), (EDGE, images, batch)):
        optimiser = torch.optim.AdamW(taught.parameters(), learning_rate, weight_decay=1e-2)
        seen, log, begin, each = 0, [], time.monotonic(), process.part(size)
        while seen < count:
            schedule(optimiser, learning_rate, seen / count, seen / (size * 100.0))
            frames, knobs, blur = (tensor.to(process.device) for tensor in _frames(sampler, each, edge, augment, rng))
            target = score_target(knobs)
            whole, places = model(frames)
            both = torch.cat([blur, target / scales], 1)
            loss = (places - both[:, :, None, None]).abs().mean()
            if edge == EDGE:
                loss = loss + (whole - target / scales).abs().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(taught.parameters(), 2.0)
            optimiser.step()
            seen += len(frames) * process.size
            told = whole if edge == EDGE else places[:, 3:].mean((2, 3))
            log.append(((told.detach() * scales) - target).abs().mean(0).tolist())
            if say is not None and len(log) == 50:
                say(f"{seen} images of {edge}, {time.monotonic() - begin:.0f} s, errors {np.mean(log, 0).round(3)}")
                log = []
    return net.cpu().eval()


def _frames(
    sampler: PairSampler, count: int, edge: int, augment: Augmentation, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return standardised frames (count, 1, edge, edge), where the knobs stand (count, 3), and the blur (count, 3)."""
    import torch

    frames: list[Array] = []
    knobs: list[Array] = []
    blur: list[list[float]] = []
    while len(frames) < count:
        for pair in sampler.draw((edge, edge), 2):
            both = augment(np.stack([pair.under, pair.over]) * np.float32(2 / 255) - np.float32(1), rng)
            truth = knobs_of(pair, pair.aberration)
            z, a, b = (float(value) for value in pair.aberration)
            for image, side in zip(both, (-1.0, 1.0), strict=True):
                frames.append(standardised(image[None]))
                knobs.append(truth + np.array([5.0 * side, 0, 0], dtype=np.float32))
                blur.append(blur_of(z + side, a, b))
    return torch.from_numpy(np.stack(frames)), torch.from_numpy(np.stack(knobs)), torch.tensor(blur)
