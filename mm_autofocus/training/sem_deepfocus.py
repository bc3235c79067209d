"""Trains the paper's DeepFocus and its variants for setup A."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mm_autofocus.estimators.cards import Variant
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
    turn_pair,
)
from mm_autofocus.training.sem_pairs import PairSampler

if TYPE_CHECKING:
    import torch

    from mm_autofocus.networks.deepfocus_variants import Net

Say = Callable[[str], None]

SCALES = (5.0, 1.5, 1.5)
"""What DeepFocus' outputs are multiplied with; the paper trains on µm and a.u. as they are, for days."""

PATCHES = 5
"""Patches of a pair that are weighed together (Fig. 3c)."""

_BATCH: dict[Variant, int] = {"patch-scores": 40, "pixel-scores": 8}
"""Patches of a step, where it is not 32."""


def fit_deepfocus(
    sampler: PairSampler,
    *,
    pairs: int,
    edge: int = 128,
    binning: int = 4,
    variant: Variant = "stacked",
    batch: int = 0,
    curriculum: float = 0.0,
    noise: float = 0.05,
    learning_rate: float = 1e-3,
    seed: int = 0,
    process: Rank = ALONE,
    say: Say | None = None,
) -> Net:
    """Train the paper's network for setup A: L1 loss, AdamW, its augmentations; a cosine in place of its slow decay.

    So that it learns in minutes: patches are standardised, and the convolutions are also taught how blurred either
    image of the pair is (`mm_autofocus.networks.deepfocus_variants.Taught`).

    Parameters
    ----------
    sampler
        Of pairs; its ranges are replaced by those of setup A.
    pairs
        How many to simulate; each is seen once.
    edge
        Of the patches that the network sees.
    binning
        Pixels averaged along each axis before the network sees them: a patch of 128 at 4 shows what one of 512 does.
    variant
        Of the network. With patch scores, five patches of one pair are weighed together, with pixel scores all pixels
        of one patch (equation 3); the others learn from one patch of each pair.
    batch
        Patches of a step; 0 for as many as suit the variant.
    noise
        Standard deviation of the augmentation's noise; the paper's is larger than most of a binned image's contrast.
    curriculum, learning_rate, seed, process, say
        As for `mm_autofocus.training.sem_convolutional.fit_pair_net`.
    """
    import torch

    from mm_autofocus.networks.deepfocus import score_loss
    from mm_autofocus.networks.deepfocus_variants import SCORED, Taught, make_variant, predictions

    torch.manual_seed(seed)
    rng = np.random.default_rng([0xDF, process.seed(seed)])
    net = make_variant(variant, edge)
    drop_nothing(net)
    taught = Taught(net)
    batch = batch or _BATCH.get(variant, 32)
    model, each = process.wrap(taught), process.part(batch)
    optimiser = torch.optim.AdamW(taught.parameters(), learning_rate, weight_decay=1e-2)
    patches, augment = PATCHES if variant == "patch-scores" else 1, Augmentation(noise=noise)
    seen, log, begin = 0, [], time.monotonic()
    while seen < pairs:
        spent = seen / pairs
        sampler.ranges = setup_a_ranges(spent < curriculum, binning)
        schedule(optimiser, learning_rate, spent, seen / (max(1, batch // patches) * 100.0))
        drawn = _deepfocus_batch(sampler, each, edge, patches, augment, rng)
        images, target, blur = (tensor.to(process.device) for tensor in drawn)
        outputs, seen_blur = model(images)
        told = predictions(net, outputs)
        if variant == "patch-scores":
            told = told.reshape(-1, patches, 4)
        target = target[::patches]
        error = (told[..., :3] - target[:, None]).abs()
        loss = score_loss(told, target) if variant in SCORED else error.mean()
        loss = loss + (seen_blur - blur[..., None]).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimiser.step()
        seen += len(images) // patches * process.size
        log.append(error.mean((0, 1)).tolist())
        if say is not None and len(log) == 50:
            say(f"{seen} pairs, {time.monotonic() - begin:.0f} s, errors {(np.mean(log, 0) * SCALES).round(3)}")
            log = []
    return net.cpu().eval()


def _deepfocus_batch(
    sampler: PairSampler, batch: int, edge: int, patches: int, augment: Augmentation, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return standardised images, negative aberrations over `SCALES`, and blur; patches of a pair in a row."""
    import torch

    images: list[Array] = []
    target: list[Array] = []
    blur: list[list[list[float]]] = []
    while len(images) < batch:
        size = edge if patches == 1 else 2 * edge
        for pair in sampler.draw((size, size), 2):
            both, truth = turn_pair(
                np.stack([pair.under, pair.over]), pair.aberration, int(rng.integers(4)), bool(rng.random() < 0.5)
            )
            both = augment(both * np.float32(2 / 255) - np.float32(1), rng)
            correction = np.asarray(-knobs_of(pair, truth) / np.array(SCALES), dtype=np.float32)
            z, a, b = (float(value) for value in truth)
            for _ in range(patches):
                y, x = rng.integers(0, size - edge + 1, 2)
                images.append(standardised(both[:, y : y + edge, x : x + edge]))
                target.append(correction)
                blur.append([blur_of(z - 1.0, a, b), blur_of(z + 1.0, a, b)])
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(target)), torch.tensor(blur)
