"""Trains the paper's networks on wobble series: one training, repeated ones with their median, and a model to keep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.networks.aperture_model import ApertureModel, prepared
from mm_autofocus.training.distributed import ALONE, Rank

Array = NDArray[np.float64]
Small = NDArray[np.float32]
OnEpoch = Callable[[int, float], None]
"""Called after each epoch with (epoch, training loss)."""

BATCH = 32
RANGE = 1000.0
"""What an RMSE in per cent counts from: the aperture's range (section 3.4)."""


@dataclass(frozen=True, slots=True)
class Training:
    """One training and its test.

    Attributes
    ----------
    rmse
        On the test set, per cent of the range: root mean square over both axes.
    training_rmse
        The same on the training set.
    curve
        Test RMSE after each tenth of the epochs.
    seconds, epochs
        What it took.
    model
        The network.
    errors
        Predicted minus true shift of each test series, steps, shape (series, 2).
    """

    rmse: float
    training_rmse: float
    curve: tuple[float, ...]
    seconds: float
    epochs: int
    model: ApertureModel
    errors: Array


def split(count: int, seed: int, share: float = 0.8) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return indices to train and to test with: 80 and 20 per cent, drawn at random (section 3.4)."""
    order = np.random.default_rng(seed).permutation(count)
    cut = max(int(share * count), 1)
    return order[:cut], order[cut:]


def rmse_percent(errors: Array) -> float:
    """Root mean square of both axes, per cent of the range; NaN without errors."""
    return float(np.sqrt(np.mean(np.square(errors)))) / RANGE * 100 if len(errors) else math.nan


def train(
    small: Small,
    shifts: Array,
    variant: str,
    *,
    test: tuple[Small, Array] | None = None,
    epochs: int = 200,
    seed: int = 0,
    threads: int = 1,
    process: Rank = ALONE,
    on_epoch: OnEpoch | None = None,
) -> Training:
    """Train one network from scratch: mean squared error, batches of 32, the variant's optimiser.

    Parameters
    ----------
    small
        Images in [0, 1], shape (series, frames, px, px); see `prepared`.
    shifts
        Labels, steps, shape (series, 2).
    variant
        A key of `mm_autofocus.networks.aperture_cnn.VARIANTS`.
    test
        Images and labels to test with.
    epochs
        200 in the paper.
    seed
        Fixes initial weights and order; with one thread the result repeats.
    process
        Which of the processes of ``torchrun`` this is; they share every batch.
    """
    import torch

    from mm_autofocus.networks.aperture_cnn import ApertureCNN, make_optimiser

    torch.manual_seed(process.seed(seed))  # dropout; the weights to begin with are the first process's
    torch.set_num_threads(threads)
    px = small.shape[-1]
    net = ApertureCNN(variant, px, small.shape[1]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parallel = process.wrap(net)
    optimiser = make_optimiser(net.variant, net)
    images = torch.from_numpy(small).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy((shifts / RANGE + ApertureModel.OFFSET).astype(np.float32))
    rng = np.random.default_rng(seed)
    model = ApertureModel(net, variant, px, small.shape[1])
    curve = []
    began = time.perf_counter()
    for epoch in range(epochs):
        net.train()
        total = 0.0
        order = rng.permutation(len(shifts))
        for at in range(0, len(order), BATCH):
            whole = order[at : at + BATCH]
            if at and len(whole) < process.size:
                break  # the rest of a pass is too small to share
            batch = process.share(whole)
            out = parallel(images[batch].to(process.device))
            loss = ((out - labels[batch].to(process.device)) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(whole)
        if on_epoch is not None:
            on_epoch(epoch + 1, total / len(order))
        if test is not None and (epoch + 1) % max(epochs // 10, 1) == 0:
            curve.append(rmse_percent(model.shifts(test[0]) - test[1]))
    seconds = time.perf_counter() - began
    net.cpu()
    errors = model.shifts(test[0]) - test[1] if test is not None else np.empty((0, 2))
    inside = rmse_percent(model.shifts(small) - shifts)
    rmse = rmse_percent(errors)
    model.sigma = (rmse if math.isfinite(rmse) else inside) / 100 * RANGE
    return Training(rmse, inside, tuple(curve), seconds, epochs, model, errors)


def repeated(
    images: Small, shifts: Array, variant: str, *, repeats: int, epochs: int, seed: int = 0, threads: int = 1,
    process: Rank = ALONE, on_training: Callable[[int, Training], None] | None = None,
) -> list[Training]:  # fmt: skip
    """Train several times, each with another split and other initial weights (20 to 30 times in the paper)."""
    outcomes = []
    for repeat in range(repeats):
        inside, outside = split(len(shifts), seed + repeat)
        outcome = train(
            images[inside], shifts[inside], variant, test=(images[outside], shifts[outside]), epochs=epochs,
            seed=seed + repeat, threads=threads, process=process,
        )  # fmt: skip
        outcomes.append(outcome)
        if on_training is not None:
            on_training(repeat, outcome)
    return outcomes


def median(outcomes: Sequence[Training]) -> Training:
    """Return the training with the median test error."""
    return sorted(outcomes, key=lambda each: each.rmse)[(len(outcomes) - 1) // 2]


def small_images(images: NDArray[np.generic], px: int) -> Small:
    """Return the images of many series at the network's size, in [0, 1], shape (series, frames, px, px)."""
    return np.stack([prepared(list(series), px) for series in images])


def card_of(training: Training, **about: Any) -> dict[str, Any]:
    """Return what a model's card says of how it was trained."""
    return {
        "test_rmse_percent": round(training.rmse, 3), "training_rmse_percent": round(training.training_rmse, 3),
        "epochs": training.epochs, "seconds": round(training.seconds, 1), **about,
    }  # fmt: skip
