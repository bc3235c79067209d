"""Trains our laser readout: on synthetic days, then jointly with the days of one's own instrument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.readouts.features import Features
from mm_autofocus.readouts.profile import CLIP, LOG_SCALE, ProfileReadout, error_curves, with_arrays
from mm_autofocus.training.distributed import ALONE, Rank
from mm_autofocus.training.laser_synthetic import RANGES, DaysPlan, Frames, join
from mm_autofocus.training.machines import HERE, Machines

Array = NDArray[np.float64]
Progress = Callable[[int, int, float], None]
"""Called after each epoch with (epoch, epochs, loss)."""

HIDDEN = 256
_BATCH = 256
_FEATURE_NOISE = 0.08


def fit_profile(
    frames: Frames,
    range_um: float,
    shape: tuple[int, int] = (192, 192),
    *,
    start: ProfileReadout | None = None,
    epochs: int = 40,
    learning_rate: float = 2e-3,
    seed: int = 0,
    threads: int = 1,
    weights: Array | None = None,
    process: Rank = ALONE,
    progress: Progress | None = None,
) -> ProfileReadout:
    """Train the network and learn the gate.

    Parameters
    ----------
    frames
        Labelled frames, of as many days as possible.
    range_um
        Half of the range.
    shape
        (height, width) of the camera's images.
    start
        Begin with this readout's weights (its input statistics are computed anew); None for random ones.
    epochs, learning_rate
        Passes over the data, and the peak of the one-cycle schedule of AdamW.
    seed, threads
        Fix the result; same seed and threads, same weights.
    weights
        Chance of each frame to be drawn; None for even chances.
    process
        Which of the processes of ``torchrun`` this is; they share every batch.
    progress
        Told after each epoch.
    """
    import torch
    from torch import nn

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    x = frames.features
    p = None if weights is None else weights / weights.sum()
    mean = x.mean(0) if p is None else (p[:, None] * x).sum(0).astype(np.float32)
    spread = np.sqrt(((x - mean) ** 2).mean(0)) if p is None else np.sqrt((p[:, None] * (x - mean) ** 2).sum(0))
    scale = (spread + 1e-4).astype(np.float32)
    standard = torch.from_numpy(np.clip((x - mean) / scale, -CLIP, CLIP).astype(np.float32))
    target = torch.from_numpy((frames.defocus / range_um).astype(np.float32))
    net = nn.Sequential(
        nn.Linear(x.shape[1], HIDDEN), nn.GELU(approximate="tanh"), nn.LayerNorm(HIDDEN),
        nn.Linear(HIDDEN, HIDDEN), nn.GELU(approximate="tanh"), nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 2),
    )  # fmt: skip
    if start is not None:
        _load(net, start)
    model = process.wrap(net)
    optimiser = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=1e-2)
    per_epoch = max(len(x) // _BATCH, 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, epochs * per_epoch + 1)
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        drawn = rng.permutation(len(x)) if p is None else rng.choice(len(x), len(x), p=p)
        total = 0.0
        for i in range(per_epoch):
            at = torch.from_numpy(drawn[i * _BATCH : (i + 1) * _BATCH])
            noisy = standard[at] + _FEATURE_NOISE * torch.randn(len(at), x.shape[1])
            out = model(process.share(noisy).to(process.device))
            wanted = process.share(target[at]).to(process.device)
            log_scale = out[:, 1].clamp(*LOG_SCALE)
            loss = ((out[:, 0] - wanted).abs() * torch.exp(-log_scale) + log_scale).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        if progress is not None:
            progress(epoch + 1, epochs, total / per_epoch)
    arrays: dict[str, Any] = {"mean": mean.astype(np.float32), "scale": scale, **_arrays(net.cpu())}
    inside = np.abs(frames.defocus) <= range_um
    return ProfileReadout(arrays, range_um, shape).with_gate(x[inside])


def learn_curves(readout: ProfileReadout, unseen: Frames) -> ProfileReadout:
    """Return the readout with the components of its day-to-day error, from days that it was not trained on."""
    days = []
    for day in np.unique(unseen.day):
        part = unseen.of_day(int(day))
        days.append((part.defocus, readout.predict_features(part.features)[0]))
    return with_arrays(readout, error_curves(days, readout.range_um))


def adapt(
    start: ProfileReadout,
    own: Frames,
    synthetic: Frames,
    *,
    share: float = 0.5,
    epochs: int = 12,
    learning_rate: float = 1e-3,
    seed: int = 0,
    threads: int = 1,
    process: Rank = ALONE,
    progress: Progress | None = None,
) -> ProfileReadout:
    """Train on, jointly on one's own days and on synthetic ones (so that other days are not forgotten).

    Parameters
    ----------
    start
        A readout trained on synthetic days.
    own, synthetic
        Labelled frames.
    share
        Share of one's own frames among those drawn.
    epochs, learning_rate, seed, threads, process, progress
        See `fit_profile`.
    """
    both = join([own, synthetic])
    weights = np.concatenate(
        [
            np.full(len(own.defocus), share / len(own.defocus)),
            np.full(len(synthetic.defocus), (1 - share) / len(synthetic.defocus)),
        ]
    )
    trained = fit_profile(
        both, start.range_um, start.shape, start=start, epochs=epochs, learning_rate=learning_rate, seed=seed,
        threads=threads, weights=weights, process=process, progress=progress,
    )  # fmt: skip
    kept = {name: value for name, value in start.weights.items() if name.startswith("curve_")}
    return with_arrays(trained, kept)


def pretraining_days(
    kinds: Sequence[str], *, days: int = 700, frames: int = 40, seed: int = 0, machines: Machines = HERE
) -> dict[str, tuple[Frames, Frames]]:
    """Simulate days of as many instruments for each range, and a fifth as many others for the day-to-day error.

    Parameters
    ----------
    kinds
        Of "long" and "short".
    days, frames
        Synthetic days, and frames of each.
    seed
        Fixes everything.
    machines
        To simulate on.
    """
    plans = []
    for kind in kinds:
        plans.append(DaysPlan(kind, days, frames, seed + 1))
        plans.append(DaysPlan(kind, max(days // 5, 8), 60, seed + 2, (0.7, 1.5)))
    made = machines.make(DaysPlan.simulated, None, plans)
    return dict(zip(kinds, zip(made[::2], made[1::2], strict=True), strict=True))


def pretrain(
    kind: str, days: tuple[Frames, Frames], *, epochs: int = 40, seed: int = 0, threads: int = 1,
    process: Rank = ALONE, progress: Progress | None = None,
) -> ProfileReadout:  # fmt: skip
    """Train on synthetic days, and learn the day-to-day error from others.

    Parameters
    ----------
    kind
        "long" or "short".
    days
        Its two sets of `pretraining_days`.
    epochs, seed, threads, process, progress
        See `fit_profile`.
    """
    frames, unseen = days
    readout = fit_profile(
        frames, RANGES[kind], epochs=epochs, seed=seed, threads=threads, process=process, progress=progress
    )
    return learn_curves(readout, unseen)


_LAYERS = {"0": 0, "1": 3, "2": 6}
_NORMS = {"0": 2, "1": 5}


def _arrays(net: Any) -> dict[str, Features]:
    arrays = {}
    for name, at in _LAYERS.items():
        arrays[f"w{name}"] = net[at].weight.detach().numpy().copy()
        arrays[f"b{name}"] = net[at].bias.detach().numpy().copy()
    for name, at in _NORMS.items():
        arrays[f"g{name}"] = net[at].weight.detach().numpy().copy()
        arrays[f"h{name}"] = net[at].bias.detach().numpy().copy()
    return arrays


def _load(net: Any, readout: ProfileReadout) -> None:
    """Copy weights into the network."""
    import torch

    state = {}
    for name, at in _LAYERS.items():
        state[f"{at}.weight"], state[f"{at}.bias"] = readout.weights[f"w{name}"], readout.weights[f"b{name}"]
    for name, at in _NORMS.items():
        state[f"{at}.weight"], state[f"{at}.bias"] = readout.weights[f"g{name}"], readout.weights[f"h{name}"]
    net.load_state_dict({key: torch.from_numpy(np.array(value, dtype=np.float32)) for key, value in state.items()})
