"""Trains ACNet on focus series, as its paper does: spline-interpolated scores, fresh noise, a memory of states."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.cards import Arrays, SemCard, save_card
from mm_autofocus.estimators.focus_score import FocusScorer, ScoreNetwork, load_scorer
from mm_autofocus.networks.acnet import (
    HISTORY,
    acnet,
    image_entropy,
    image_variance,
    largest_action_um,
    states,
)
from mm_autofocus.strategies.dual_network import sensitive_action_um
from mm_autofocus.training.distributed import ALONE, Rank
from mm_autofocus.training.machines import HERE, Machines
from mm_autofocus.training.score_data import (
    SEEN,
    TRAINING_SEED,
    FocusSeries,
    Say,
    ScoreView,
    focus_series,
    render_views,
)

SERIES, FRAMES = 30, 250
"""Focus series (the paper has 91), and frames of each."""

EPOCHS, BATCH, LEARNING_RATE = 3000, 90, 1e-3
"""As the paper's but the rate, 0.01, at which it learns less here."""

MEMORY = 40_000
EPISODE = 20
"""Steps of an episode; it goes on at the best score, to learn to stay."""

SERIES_SEED = 5000
"""From `TRAINING_SEED`: places that the score network was not trained on."""

_FINE = 1500
_NOISE = (0.2, 0.01, 0.03)
"""Standard deviation of fresh noise: score, variance, entropy (bits)."""
_EXPLORE = 0.1
_NOMINAL_MRAD = 8.7
_ACCURATE = 0.05


@dataclass(frozen=True, slots=True)
class Curve:
    """What a focus series says at any working distance.

    Attributes
    ----------
    kind, magnification, action_um
        What was seen, and the largest action there.
    low_um, high_um
        Its ends, working distance less the best one.
    best_um
        Where the score is highest.
    values
        Score, variance and entropy at evenly spread places, shape (places, 3).
    """

    kind: str
    magnification: float
    action_um: float
    low_um: float
    high_um: float
    best_um: float
    values: NDArray[np.float64]


def measured_curve(series: FocusSeries, scorer: FocusScorer, action_limit: str = "sensitivity") -> Curve:
    """Return a series scored, with its variance and entropy, smoothed by splines (Data for ACNet)."""
    rows = [
        (scorer.read(image, series.pixel_um).score, image_variance(image), image_entropy(image))
        for image in series.images
    ]
    return smoothed(series, np.array(rows), action_limit)


def smoothed(series: FocusSeries, rows: NDArray[np.float64], action_limit: str) -> Curve:
    """Return a curve through (score, variance, entropy) of each frame, shape (frames, 3)."""
    from scipy.interpolate import make_smoothing_spline

    # In units of its own length, for the spline's smoothness to mean the same at every magnification.
    at = np.linspace(0.0, 1.0, len(rows))
    fine = np.linspace(0.0, 1.0, _FINE)
    values = np.stack([make_smoothing_spline(at, row, lam=1e-7)(fine) for row in rows.T], axis=1)
    low, high = float(series.defocus_um[0]), float(series.defocus_um[-1])
    best = low + (high - low) * float(fine[int(np.argmax(values[:, 0]))])
    if action_limit == "equation_5":
        action = largest_action_um(series.magnification)
    else:
        action = sensitive_action_um(series.pixel_um, _NOMINAL_MRAD)
    return Curve(series.kind, series.magnification, action, low, high, best, values)


class Episodes:
    """Many focus runs side by side on curves; each begins where a specimen can just be recognised.

    Parameters
    ----------
    curves
        Curves.
    count
        Runs at a time.
    seed
        Of places and noise.
    """

    def __init__(self, curves: Sequence[Curve], count: int, seed: int) -> None:
        self._values = np.stack([curve.values for curve in curves])
        fields = ("low_um", "high_um", "best_um", "action_um", "magnification")
        self._each = {name: np.array([getattr(curve, name) for curve in curves]) for name in fields}
        self._starts = [np.flatnonzero(curve.values[:, 0] > 1.5) for curve in curves]
        self._rng = np.random.default_rng([0xAC0, seed])
        self.count = count
        self.reset()

    def reset(self) -> None:
        """Begin anew, on curves drawn anew."""
        self._curve = self._rng.integers(len(self._starts), size=self.count)
        part = {name: values[self._curve] for name, values in self._each.items()}
        self.low, self.high, self.best = part["low_um"], part["high_um"], part["best_um"]
        self.action, self.magnification = part["action_um"], part["magnification"]
        chosen = [self._starts[c] for c in self._curve]
        at = [c[int(self._rng.integers(len(c)))] if len(c) else _FINE // 2 for c in chosen]
        self.at = self.low + (self.high - self.low) * np.array(at) / (_FINE - 1)
        self.history = np.repeat(self._seen()[:, None], HISTORY, axis=1)

    def _seen(self) -> NDArray[np.float64]:
        """Return (working distance, score, variance, entropy) of each run, with fresh noise, shape (count, 4)."""
        place = np.clip((self.at - self.low) / (self.high - self.low), 0.0, 1.0) * (_FINE - 1)
        values = self._values[self._curve, np.round(place).astype(int)]
        values = values + self._rng.standard_normal(values.shape) * _NOISE
        values[:, 0] = np.clip(values[:, 0], 0.0, 10.0)
        return np.concatenate([self.at[:, None], values], axis=1)

    def states(self) -> NDArray[np.float32]:
        """Return what ACNet is told, shape (count, 80)."""
        return states(self.history, self.magnification, self.action)

    def targets(self) -> NDArray[np.float32]:
        """Return the way to the best score, cut off at the largest action, as a share of it, shape (count,)."""
        return np.asarray(np.clip((self.best - self.at) / self.action, -1.0, 1.0), dtype=np.float32)

    def move(self, actions: NDArray[np.float32]) -> None:
        """Turn each working distance by a share of the largest action, and look."""
        self.at = np.clip(self.at + np.clip(actions, -1.0, 1.0) * self.action, self.low, self.high)
        self.history = np.concatenate([self.history[:, 1:], self._seen()[:, None]], axis=1)


def train_control(
    out: Path,
    *,
    score_network: ScoreNetwork = "ours",
    score_model: str = "",
    action_limit: str = "sensitivity",
    series: int = SERIES,
    frames: int = FRAMES,
    epochs: int = EPOCHS,
    seed: int = 0,
    curves: Sequence[Curve] | None = None,
    machines: Machines = HERE,
    say: Say = print,
) -> SemCard:
    """Train ACNet and write its card and weights.

    Parameters
    ----------
    out
        The card (.json).
    score_network, score_model
        What scores the series.
    action_limit
        As in `mm_autofocus.strategies.dual_network.DualNetworkSettings`.
    series, frames
        How many series, of how many frames.
    epochs
        Updates of the network.
    seed
        Of everything drawn.
    curves
        Curves made before; None to simulate and score them.
    machines
        To simulate and to train on: workers render, blur and score the focus series, processes share the batches; the
        first writes.
    say
        Told about progress.

    Raises
    ------
    SettingsError
        For fewer than 3 series or 20 frames.
    """
    begin = time.monotonic()
    process = machines.process
    say = process.told(say)
    if series < len(SEEN) or frames < EPISODE:
        raise SettingsError(f"{series} series of {frames} frames are too few; take at least {len(SEEN)} of {EPISODE}")
    if curves is None:
        curves = simulated_curves(
            load_scorer(score_network, score_model), series=series, frames=frames, action_limit=action_limit, seed=seed,
            machines=machines, say=say,
        )  # fmt: skip
    arrays, measured = fit_acnet(curves, epochs=epochs, seed=seed, process=process, say=say)
    card = SemCard(
        model="acnet", what="ACNet: how far to turn the working distance, from the last 20 scores",
        weights=f"{out.stem}.safetensors", precision="float16",
        parameters={"action_limit": action_limit, "score_network": score_network},
        trained_on=f"{len(curves)} simulated series of {frames} frames of {', '.join(SEEN)}, scored by {score_network}",
        command=process.command(
            f"train sem-control --out {out.name} --score-network {score_network} --series {series} "
            f"--frames {frames} --epochs {epochs} --seed {seed}"
        ),
        measured=measured | {"training_seconds": round(time.monotonic() - begin), "threads": 1, **process.about()},
    )  # fmt: skip
    if process.writes:
        save_card(out, card, arrays)
    return card


def simulated_curves(
    scorer: FocusScorer, *, series: int = SERIES, frames: int = FRAMES, action_limit: str = "sensitivity",
    seed: int = 0, machines: Machines = HERE, say: Say = lambda _: None,
) -> list[Curve]:  # fmt: skip
    """Return curves of simulated focus series, as many of each training specimen."""
    views = render_views(
        SEEN, -(-series // len(SEEN)), TRAINING_SEED + SERIES_SEED, fine=0.0, machines=machines, say=say
    )
    places = [(1000 * seed + i, view) for i, view in enumerate(views)]
    return machines.make(_simulated, (scorer, frames, action_limit), places, lambda i, n: say(f"{i} of {n} series"))


def _simulated(common: tuple[FocusScorer, int, str], place: tuple[int, ScoreView]) -> Curve:
    """Return the curve of one place."""
    (scorer, frames, action_limit), (seed, view) = common, place
    return measured_curve(focus_series(view, seed, frames=frames), scorer, action_limit)


def fit_acnet(
    curves: Sequence[Curve], *, epochs: int = EPOCHS, seed: int = 0, process: Rank = ALONE, say: Say = lambda _: None
) -> tuple[Arrays, dict[str, Any]]:
    """Fit the network; return its arrays, and loss and accuracy over the training.

    The accuracy is the share of actions within 5 % of the largest one of their target. Each process of ``torchrun`` has
    episodes and a memory of its own, for its share of every batch.
    """
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng = np.random.default_rng([0xAC1, process.seed(seed)])
    net = acnet()
    model, each = process.wrap(net), process.part(BATCH)
    optimiser = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    usable = [curve for curve in curves if curve.values[:, 0].max() > 4.0]
    episodes = Episodes(usable or curves, each, process.seed(seed))
    memory_states = np.empty((MEMORY, episodes.states().shape[1]), np.float32)
    memory_targets = np.empty(MEMORY, np.float32)
    filled = 0
    losses: list[float] = []
    accuracies: list[float] = []
    recent: list[tuple[float, float]] = []
    for epoch in range(epochs):
        if epoch % EPISODE == 0:
            episodes.reset()
        told, wanted = episodes.states(), episodes.targets()
        place = (np.arange(each) + filled) % MEMORY
        memory_states[place], memory_targets[place] = told, wanted
        filled += each
        net.eval()
        with torch.inference_mode():
            actions = net(torch.from_numpy(told).to(process.device))[:, 0].cpu().numpy()
        episodes.move(actions + (_EXPLORE * rng.standard_normal(each)).astype(np.float32))
        net.train()
        chosen = rng.integers(min(filled, MEMORY), size=each)
        out = model(torch.from_numpy(memory_states[chosen]).to(process.device))[:, 0]
        away = out - torch.from_numpy(memory_targets[chosen]).to(process.device)
        loss = (away**2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        recent.append((float(loss.detach()), float((away.detach().abs() <= _ACCURATE).float().mean())))
        if len(recent) == max(1, epochs // 30):
            losses.append(round(float(np.mean([r[0] for r in recent])), 5))
            accuracies.append(round(float(np.mean([r[1] for r in recent])), 4))
            recent = []
            say(f"{epoch + 1} of {epochs}: loss {losses[-1]:.4f}, within 5 % {accuracies[-1]:.0%}")
    state = net.cpu().state_dict()
    arrays: Arrays = {n: v.detach().numpy().copy() for n, v in state.items() if "num_batches" not in n}
    return arrays, {"loss": losses, "accuracy": accuracies}
