"""Trains the spectral pair network: a feature set from simulated pairs, then epochs over it with exact symmetries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.pair_spectra import ANGULAR, extras, features, pair_spectra, pooled
from mm_autofocus.training.distributed import ALONE, Rank
from mm_autofocus.training.sem_pairs import MARGIN, PairSampler, Ranges

if TYPE_CHECKING:
    import torch

    from mm_autofocus.networks.spectral_pair import SpectralPair

Say = Callable[[str], None]

DIRECTED = Ranges(directed_share=0.5)
"""Half of the specimens have a direction: without, fibres 2 µm off with 2 µm of astigmatism read 0.5 µm wrong."""

_SHAPES = ((512, 512), (256, 256), (768, 1024))
_SHARES = (0.62, 0.3, 0.08)
_BATCH = 96
_WARM = 0.08
"""Share of the training over which the learning rate rises."""


@dataclass(slots=True)
class SpectralSet:
    """Features of pairs and their truth.

    Attributes
    ----------
    stats
        Binned powers, shape (n, RADIAL, ANGULAR, 3), float32.
    covered
        Shape (n, RADIAL, ANGULAR).
    extras
        Shape (n, 2).
    target
        (z, a, b) over half the true perturbation, and the logarithm of the step ratio, shape (n, 4).
    """

    stats: NDArray[np.float32]
    covered: NDArray[np.bool_]
    extras: NDArray[np.float32]
    target: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.target)


def spectral_set(
    sampler: PairSampler, *, pairs: int = 0, seconds: float = math.inf, say: Say | None = None
) -> SpectralSet:
    """Simulate pairs and return their features: of all tiles together, and of a few of them.

    Parameters
    ----------
    sampler
        Of pairs.
    pairs, seconds
        Stop after so many (0: no limit), or after so long.
    say
        Told about progress.

    Raises
    ------
    ValueError
        Without any limit.
    """
    if not pairs and math.isinf(seconds):
        raise ValueError("spectral_set: neither a number of pairs nor a time to stop at was given")
    rng = sampler.rng
    room = min(min(view.shape) for view in sampler.views) - 2 * MARGIN
    shares = np.array(_SHARES) * [max(shape) <= room for shape in _SHAPES]
    shares = shares / shares.sum()
    stats, covered, beside, target = [], [], [], []
    begin, drawn = time.monotonic(), 0
    while (not pairs or drawn < pairs) and time.monotonic() - begin < seconds:
        shape = _SHAPES[int(rng.choice(3, p=shares))]
        for pair in sampler.draw(shape):
            spectra = pair_spectra(pair.under, pair.over, pair.delta_px)
            n = len(spectra.corners)
            weights = spectra.weights()
            groups = [np.arange(n)] if n == 1 else [np.arange(n), rng.choice(n, int(rng.integers(1, min(n, 9))), False)]
            for group in groups:
                part = np.zeros(n, dtype=np.float32)
                part[group] = weights[group]
                if part.sum() <= 0.0:
                    part[group] = 1.0
                stats.append(pooled(spectra.stats, part))
                covered.append(spectra.covered)
                beside.append(extras(spectra.delta_px, part))
                target.append([*pair.aberration, math.log(pair.step_ratio)])
            drawn += 1
            if say is not None and drawn % 1000 == 0:
                say(f"{drawn} pairs, {len(target)} samples, {time.monotonic() - begin:.0f} s")
    return SpectralSet(np.stack(stats), np.stack(covered), np.stack(beside), np.array(target, dtype=np.float32))


def spectral_part(views: Sequence[NDArray[np.uint8]], part: tuple[int, int, Ranges]) -> SpectralSet:
    """Return the set of one sampler: a part of a large set, of (seed, pairs, ranges)."""
    seed, pairs, ranges = part
    return spectral_set(PairSampler(views, seed, ranges), pairs=pairs)


def join_sets(sets: list[SpectralSet]) -> SpectralSet:
    """Return all samples of several sets."""
    return SpectralSet(*(np.concatenate([getattr(s, name) for s in sets]) for name in SpectralSet.__slots__))


def laplace_loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the negative log likelihood under Laplace scales, weighted by the scale's root so that hard pairs count.

    Parameters
    ----------
    out
        Shape (batch, 6), see `mm_autofocus.networks.spectral_pair`.
    target
        Shape (batch, 4).
    """
    import torch

    scales = out[:, [3, 4, 4]].clamp(-4.5, 2.5)
    error = (out[:, :3] - target[:, :3]).abs()
    likelihood = error * torch.exp(-scales) + scales
    ratio = (out[:, 5] - target[:, 3]).abs()
    return (likelihood * torch.exp(0.5 * scales.detach())).mean() + 2.0 * ratio.mean()


def fit_spectral(
    samples: SpectralSet,
    *,
    seconds: float = math.inf,
    epochs: int = 0,
    seed: int = 0,
    width: int = 24,
    learning_rate: float = 2e-3,
    validation: SpectralSet | None = None,
    process: Rank = ALONE,
    say: Say | None = None,
) -> SpectralPair:
    """Train a spectral pair network.

    Parameters
    ----------
    samples
        From `spectral_set`.
    seconds, epochs
        How long, or how many passes (0: by the time).
    seed
        Of initial weights, order and augmentation.
    width
        Of the network.
    learning_rate
        At the top of the cosine.
    validation
        Measured now and then, for the log.
    process
        Which of the processes of ``torchrun`` this is; they share every batch.
    say
        Told about progress.
    """
    import torch

    from mm_autofocus.networks.spectral_pair import SpectralPair, turned

    torch.manual_seed(process.seed(seed))  # noise and dropout; the weights to begin with are the first process's
    x = torch.from_numpy(features(samples.stats, samples.covered))
    beside, target = torch.from_numpy(samples.extras), torch.from_numpy(samples.target)
    net = SpectralPair(width=width)
    model = process.wrap(net)
    optimiser = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=2e-2)
    rng = np.random.default_rng(seed)
    begin, epoch = time.monotonic(), 0
    while (not epochs or epoch < epochs) and process.elapsed(begin) < seconds:
        order = rng.permutation(len(samples))
        total, count = 0.0, 0
        for i in range(0, len(order) - _BATCH + 1, _BATCH):
            spent = process.elapsed(begin) / seconds if not epochs else (epoch + i / len(order)) / epochs
            if spent >= 1.0:
                break
            warm = min(1.0, spent / _WARM + 0.01)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * (0.02 + 0.98 * warm * 0.5 * (1 + math.cos(math.pi * spent)))
            at = torch.from_numpy(order[i : i + _BATCH])
            inputs, truth = turned(x[at], target[at, :3], int(rng.integers(ANGULAR)), bool(rng.random() < 0.5))
            inputs = inputs + 0.02 * torch.randn_like(inputs) * inputs[:, 4:5]
            batch = inputs, beside[at], torch.cat([truth, target[at, 3:]], 1)
            inputs, told, truth = (process.share(part).to(process.device) for part in batch)
            loss = laplace_loss(model(inputs, told), truth)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
            optimiser.step()
            total, count = total + loss.item(), count + 1
        epoch += 1
        if say is not None:
            text = f"epoch {epoch}, {time.monotonic() - begin:.0f} s, loss {total / max(count, 1):.4f}"
            if validation is not None and process.writes and (epoch % 3 == 0 or count == 0):
                text += f", validation {spectral_error(net, validation)}"
            say(text)
    return net.cpu().eval()


def spectral_error(net: SpectralPair, samples: SpectralSet) -> dict[str, float]:
    """Return mean absolute errors in units of half the perturbation, over samples within ±4 (z) and ±6 (a, b)."""
    import torch

    net.eval()
    device = next(net.parameters()).device
    inside = (np.abs(samples.target[:, 0]) <= 4) & (np.abs(samples.target[:, 1:3]).max(1) <= 6)
    with torch.inference_mode():
        x = torch.from_numpy(features(samples.stats[inside], samples.covered[inside]))
        out = net(x.to(device), torch.from_numpy(samples.extras[inside]).to(device)).cpu().numpy()
    net.train()
    truth = samples.target[inside]
    error = np.abs(out[:, :3] - truth[:, :3])
    return {
        "z": round(float(error[:, 0].mean()), 3),
        "ab": round(float(error[:, 1:].mean()), 3),
        "z_median": round(float(np.median(error[:, 0])), 3),
        "log_ratio": round(float(np.abs(out[:, 5] - truth[:, 3]).mean()), 3),
    }
