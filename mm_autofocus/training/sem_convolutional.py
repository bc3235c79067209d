"""Trains our network that sees pixels, PairNet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mm_autofocus.estimators.pair_spectra import REFERENCE_PX
from mm_autofocus.training.distributed import ALONE, Rank
from mm_autofocus.training.sem_augmentation import Array, schedule, turn_pair
from mm_autofocus.training.sem_pairs import PairSampler, Ranges

if TYPE_CHECKING:
    import torch

    from mm_autofocus.networks.pair_net import PairNet

Say = Callable[[str], None]

CURRICULUM = Ranges(
    delta_px=(2.0, 5.5), defocus=1.8, astigmatism=1.4, wide_share=0.0, electrons=(15.0, 300.0), blank_share=0.0,
    empty_share=0.0, residual_px=0.5, softness=0.3, miscalibration=0.1,
)  # fmt: skip
"""Small blur first: without it a convolutional network learns nothing in its first thousands of pairs."""


def fit_pair_net(
    sampler: PairSampler,
    *,
    pairs: int,
    edge: int = 256,
    batch: int = 24,
    curriculum: float = 0.15,
    learning_rate: float = 3e-3,
    seed: int = 0,
    process: Rank = ALONE,
    say: Say | None = None,
) -> PairNet:
    """Train a `PairNet` on pairs as they are simulated.

    Parameters
    ----------
    sampler
        Of pairs.
    pairs
        How many to simulate; each is seen once.
    edge, batch
        Of the patches.
    curriculum
        Share of the pairs with small blur, at the beginning.
    learning_rate
        At the top of the cosine.
    seed
        Of initial weights and symmetries.
    process
        Which of the processes of ``torchrun`` this is: each simulates its share of every batch, from a sampler whose
        seed is its own.
    say
        Told about progress.
    """
    import torch

    from mm_autofocus.networks.pair_net import PairNet

    torch.manual_seed(seed)
    rng = np.random.default_rng([0xC0, process.seed(seed)])
    net = PairNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model, each = process.wrap(net), process.part(batch)
    optimiser = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=1e-2)
    whole, seen, log, begin = sampler.ranges, 0, [], time.monotonic()
    while seen < pairs:
        spent = seen / pairs
        sampler.ranges = CURRICULUM if spent < curriculum else whole
        schedule(optimiser, learning_rate, spent, seen / (batch * 100.0))
        images, target, beside = (t.to(process.device) for t in _pair_batch(sampler, each, edge, rng))
        out = model(images, beside)
        loss = _laplace(out, target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimiser.step()
        seen += each * process.size
        log.append((out[:, :3] - target[:, :3]).abs().mean(0).tolist())
        if say is not None and len(log) == 100:
            say(f"{seen} pairs, {time.monotonic() - begin:.0f} s, errors {np.mean(log, 0).round(3)} of half the step")
            log = []
    sampler.ranges = whole
    return net.cpu().eval()  # type: ignore[no-any-return]


def _pair_batch(
    sampler: PairSampler, batch: int, edge: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    images: list[Array] = []
    target: list[list[float]] = []
    beside: list[list[float]] = []
    while len(images) < batch:
        for pair in sampler.draw((edge, edge), 3):
            both, truth = turn_pair(
                np.stack([pair.under, pair.over]), pair.aberration, int(rng.integers(4)), bool(rng.random() < 0.5)
            )
            images.append(both)
            target.append([*truth, math.log(pair.step_ratio)])
            beside.append([math.log(pair.delta_px / REFERENCE_PX)])
    return (
        torch.from_numpy(np.stack(images[:batch])),
        torch.tensor(target[:batch], dtype=torch.float32),
        torch.tensor(beside[:batch], dtype=torch.float32),
    )


def _laplace(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the likelihood's loss, weighted by the scales' roots, and that of the step ratio."""
    import torch

    scales = out[:, 3:6].clamp(-4.5, 2.5)
    likelihood = (out[:, :3] - target[:, :3]).abs() * torch.exp(-scales) + scales
    return (likelihood * torch.exp(0.5 * scales.detach())).mean() + (out[:, 6] - target[:, 3]).abs().mean()
