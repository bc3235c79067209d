"""How others search, as strategies: what ours is measured against.

Written anew from the peers' descriptions. They know one peak and no confidence: they always report convergence.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import ClassVar

from pydantic import Field, field_validator

from mm_autofocus.measures.registry import get_measure
from mm_autofocus.request import FocusRequest
from mm_autofocus.result import Status
from mm_autofocus.strategies.scoring import ImageScorer, Scorer
from mm_autofocus.strategies.sweep import searchable
from mm_autofocus.strategy import FocusGenerator, Frame, Look, StrategySettings, Verdict

GOLDEN = (3.0 - math.sqrt(5.0)) / 2.0

Search = Generator[float, float, float]
"""Yields a position, receives its log score, returns the position of the best."""


class PeerSettings(StrategySettings):
    """Settings of the peers; the defaults are those of Micro-Manager's OughtaFocus.

    Attributes
    ----------
    measure
        A key of `mm_autofocus.measures.MEASURES`; the default stands for OughtaFocus's Edges.
    range_um
        Whole length of the search, µm.
    tolerance_um
        Absolute tolerance, µm.
    exposure_ms, crop
        As in `mm_autofocus.strategies.sweep.SweepSettings`.
    """

    measure: str = "tenengrad"
    range_um: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    tolerance_um: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    exposure_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    crop: float = Field(default=1.0, gt=0, le=1)

    @field_validator("measure")
    @classmethod
    def _known(cls, name: str) -> str:
        return get_measure(name).name


class _OnePeak:
    """What the peers share: score, ask, answer without doubt."""

    name: ClassVar[str]
    Settings: ClassVar[type[StrategySettings]] = PeerSettings

    def __init__(self, settings: PeerSettings | None = None, scorer: Scorer | None = None) -> None:
        self._settings = s = settings or PeerSettings()
        self.settings: StrategySettings = s
        self._scorer: Scorer = scorer or ImageScorer([s.measure], s.crop)

    def score(self, frame: Frame) -> float:
        """Sharpness of one frame; higher is sharper."""
        return self._scorer(frame).fine

    def focus(self, request: FocusRequest) -> FocusGenerator:
        """Search the request's window; see `mm_autofocus.strategy.Strategy`."""
        knob = request.knob
        limits = request.limits[knob]
        window = searchable(request, self._settings.range_um)
        search = self._search(window.low, window.high)
        most = math.inf if request.budget.images is None else request.budget.images - 1
        scores: list[float] = []
        best = (-math.inf, request.start[knob])
        z = next(search)
        try:
            while len(scores) < most:
                frame = yield Look({knob: limits.clip(z)}, exposure_ms=self._settings.exposure_ms)
                measured = self._scorer(frame)
                scores.append(measured.fine)
                best = max(best, (measured.logs[0], z))
                z = search.send(measured.fine)
            answer = best[1]
        except StopIteration as stop:
            answer = float(stop.value)
        return Verdict({knob: limits.clip(answer)}, 1.0, Status.CONVERGED, self.name, tuple(scores))

    def _search(self, low: float, high: float) -> Search:
        raise NotImplementedError


class OughtaFocusBrent(_OnePeak):
    """Micro-Manager's OughtaFocus: Brent's minimiser on one measure, then go to its optimum."""

    name: ClassVar[str] = "oughtafocus-brent"

    def _search(self, low: float, high: float) -> Search:
        return brent_maximum(low, high, self._settings.tolerance_um)


class GoldenSection(_OnePeak):
    """Golden-section search: reliable to its tolerance, for a single peak."""

    name: ClassVar[str] = "golden-section"

    def _search(self, low: float, high: float) -> Search:
        return golden_maximum(low, high, self._settings.tolerance_um)


class HillClimb(_OnePeak):
    """Hill climbing: walk uphill from the middle, halve the step and turn round where sharpness falls.

    Geusebroek et al., Cytometry 39, 1 (2000) and the autofocus of many stage controllers work like this: it finds the
    peak on whose slope it starts.
    """

    name: ClassVar[str] = "hill-climb"

    def _search(self, low: float, high: float) -> Search:
        return climb(low, high, self._settings.tolerance_um)


def brent_maximum(low: float, high: float, tolerance: float, most: int = 100) -> Search:
    """Search a maximum by parabolic steps safeguarded by golden sections.

    Brent, Algorithms for Minimization without Derivatives (1973), procedure localmin, started in the middle of the
    interval as Apache Commons Math's BrentOptimizer is, with a relative tolerance of 1e-9.
    """
    a, b = low, high
    x = w = v = (a + b) / 2
    fx = fw = fv = -(yield x)
    last = step = 0.0
    for _ in range(most):
        middle = (a + b) / 2
        least = 1e-9 * abs(x) + tolerance
        if abs(x - middle) <= 2 * least - (b - a) / 2:
            break
        parabolic = False
        if abs(last) > least:
            r, q = (x - w) * (fx - fv), (x - v) * (fx - fw)
            p, q = (x - v) * q - (x - w) * r, 2 * (q - r)
            p, q = (-p, q) if q > 0 else (p, -q)
            before, last = last, step
            if q != 0 and abs(p) < abs(q * before / 2) and q * (a - x) < p < q * (b - x):
                parabolic, step = True, p / q
                if x + step - a < 2 * least or b - x - step < 2 * least:
                    step = least if x <= middle else -least
        if not parabolic:
            last = (b if x < middle else a) - x
            step = GOLDEN * last
        u = x + (step if abs(step) >= least else math.copysign(least, step))
        fu = -(yield u)
        if fu <= fx:
            a, b = (a, x) if u < x else (x, b)
            v, fv, w, fw, x, fx = w, fw, x, fx, u, fu
        else:
            a, b = (u, b) if u < x else (a, u)
            if fu <= fw or w == x:
                v, fv, w, fw = w, fw, u, fu
            elif fu <= fv or v in (x, w):
                v, fv = u, fu
    return x


def golden_maximum(low: float, high: float, tolerance: float) -> Search:
    """Search a maximum by golden sections until the interval is twice the tolerance.

    Kiefer, Proc. Am. Math. Soc. 4, 502 (1953).
    """
    a, b = low, high
    c, d = a + GOLDEN * (b - a), b - GOLDEN * (b - a)
    fc = yield c
    fd = yield d
    while b - a > 2 * tolerance:
        if fc > fd:
            b, d, fd = d, c, fc
            c = a + GOLDEN * (b - a)
            fc = yield c
        else:
            a, c, fc = c, d, fd
            d = b - GOLDEN * (b - a)
            fd = yield d
    return c if fc > fd else d


def climb(low: float, high: float, tolerance: float) -> Search:
    """Walk uphill from the middle in steps of an eighth of the interval, and turn round with half the step at a fall.

    It ends when the step is below the tolerance, or after 200 steps.
    """
    x = (low + high) / 2
    fx = yield x
    step = (high - low) / 8
    turned = False
    for _ in range(200):
        u = min(max(x + step, low), high)
        fu = -math.inf if u == x else (yield u)
        if fu > fx:
            x, fx, turned = u, fu, False
            continue
        # one turn to look at the other side, then half the step
        step, turned = (-step, True) if not turned else (-step / 2, False)
        if abs(step) < tolerance:
            break
    return x
