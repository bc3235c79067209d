from __future__ import annotations

import numpy as np
import pytest

from focus_curves import noisy, peaks, replayed, request
from mm_autofocus.errors import StrategyError
from mm_autofocus.measures.curve import FINE, GUIDE
from mm_autofocus.result import Status
from mm_autofocus.strategies.full_stack import FullStack, FullStackSettings, parabola_peak
from mm_autofocus.strategies.scoring import RecordedScorer

SCORER = RecordedScorer((FINE, GUIDE))

CASES = [
    ("peak", peaks((6.3, 20.0)), Status.CONVERGED, 6.3),
    ("two peaks", peaks((-8.0, 10.0), (8.0, 12.0)), Status.CONVERGED, 8.0),
    ("edge", peaks((20.0, 20.0)), Status.AT_LIMIT, 20.0),
    ("flat", peaks(), Status.NO_SIGNAL, None),
]


@pytest.mark.parametrize(("name", "scores", "status", "at"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("points", [3, 5])
def test_a_stack_answers(name: str, scores: object, status: Status, at: float | None, points: int) -> None:
    strategy = FullStack(FullStackSettings(fit_points=points), SCORER)
    verdict, looks = replayed(strategy, request(), noisy(scores, 1))  # type: ignore[arg-type]
    assert verdict.status is status
    assert len(looks) == 41
    assert looks == sorted(looks)
    if at is None:
        assert verdict.target == {}
    else:
        assert verdict.target["z"] == pytest.approx(at, abs=0.4)


def test_a_small_budget_widens_the_step_or_is_refused() -> None:
    strategy = FullStack(None, SCORER)
    assert len(replayed(strategy, request(images=11), peaks((6.3, 20.0)))[1]) == 10
    with pytest.raises(StrategyError, match="budget"):
        replayed(strategy, request(images=3), peaks())


PARABOLAS = [
    ("exact", [-1.0, 0.0, 1.0], 0.2, 0.2),
    ("stays between the neighbours", [-1.0, 0.0, 1.0], 5.0, 1.0),
    ("uneven steps", [-2.0, 0.0, 0.5], 0.1, 0.1),
    ("the same place twice", [0.0, 0.0, 1.0], 0.3, 0.0),
]


@pytest.mark.parametrize(("name", "z", "at", "expected"), PARABOLAS, ids=[case[0] for case in PARABOLAS])
def test_the_parabola(name: str, z: list[float], at: float, expected: float) -> None:
    places = np.array(z)
    assert parabola_peak(places, -((places - at) ** 2), 1, 3) == pytest.approx(expected)
