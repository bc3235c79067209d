"""Made-up focus curves, and a driver that replays a strategy over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mm_autofocus.measures.curve import FINE, GUIDE
from mm_autofocus.request import Budget, Event, FocusRequest, Limits, Prior
from mm_autofocus.strategies.scoring import RecordedScorer
from mm_autofocus.strategies.sweep import Sweep, SweepSettings
from mm_autofocus.strategy import Frame, Strategy, Verdict

ScoresAt = Callable[[float], Sequence[float]]


def peaks(*places: tuple[float, float], fwhm: float = 1.8) -> ScoresAt:
    """Scores (fine, guide) with a peak of the given height at each place; heights over a background of 1."""

    def scores(z: float) -> Sequence[float]:
        fine = 1 + sum(h / (1 + (2 * (z - at) / fwhm) ** 2) for at, h in places)
        guide = 1 + sum(h / 4 / (1 + (2 * (z - at) / (2.5 * fwhm)) ** 2) ** 0.6 for at, h in places)
        return fine, guide

    return scores


def noisy(scores: ScoresAt, seed: int, sd: float = 0.01) -> ScoresAt:
    rng = np.random.default_rng(seed)
    return lambda z: tuple(np.asarray(scores(z)) * np.exp(rng.normal(0, sd, 2)))


def request(
    low: float = -20.0,
    high: float = 20.0,
    start: float = 0.0,
    prior: Prior | None = None,
    images: int | None = 60,
    limits: Limits | None = None,
) -> FocusRequest:
    return FocusRequest(
        Event(),
        {"z": start},
        {"z": limits or Limits(low, high)},
        prior=prior,
        window=Limits(low, high),
        budget=Budget(images),
    )


def replayed(strategy: Strategy, asked: FocusRequest, scores: ScoresAt) -> tuple[Verdict, list[float]]:
    """Drive a strategy over made-up scores; every Look must lie within the limits."""
    generator, looks = strategy.focus(asked), []
    look = next(generator)
    while True:
        z = look.targets["z"]
        assert z in asked.limits["z"]
        looks.append(z)
        try:
            look = generator.send(Frame(np.array([scores(z)], float), {"z": z}))
        except StopIteration as stop:
            return stop.value, looks


def sweep(**settings: object) -> Sweep:
    return Sweep(SweepSettings.model_validate(settings), RecordedScorer((FINE, GUIDE)))
