"""The cascade: which strategies run, which result wins, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_autofocus.errors import SettingsError
from mm_autofocus.request import Budget, Event, FocusRequest, Limits
from mm_autofocus.result import FocusResult, Sample, Status
from mm_autofocus.settings import Settings
from mm_autofocus.strategies.cascade import Cascade
from mm_autofocus.strategy import Frame, StrategySettings

ONE_MINUTE = Budget(60, 60.0)
OK, LOW, NONE = Status.CONVERGED, Status.LOW_CONFIDENCE, Status.NO_SIGNAL


@dataclass
class Fake:
    """A strategy of which only the name matters: the runs are scripted."""

    label: str
    name: ClassVar[str] = "fake"
    Settings: ClassVar[type[StrategySettings]] = StrategySettings
    settings: StrategySettings = field(default_factory=StrategySettings)

    def focus(self, request: FocusRequest) -> Any:
        raise NotImplementedError

    def score(self, frame: Frame) -> float:
        raise NotImplementedError


def cascade(script: list[tuple[Status, float]], budget: Budget = ONE_MINUTE) -> tuple[FocusResult, list[Budget]]:
    names = [f"s{index}" for index in range(len(script))]
    budgets: list[Budget] = []

    def run(strategy: Any, request: FocusRequest) -> FocusResult:
        index = len(budgets)
        assert strategy.label == names[index]
        budgets.append(request.budget)
        status, confidence = script[index]
        return FocusResult(
            status=status, strategy=strategy.label, start={"z": float(index)}, end={"z": index + 1.0},
            confidence=confidence, images=10, dose=100.0, seconds=2.0, moves=3,
            samples=(Sample(knobs={"z": float(index)}),),
        )  # fmt: skip

    request = FocusRequest(Event(), {"z": 0.0}, {"z": Limits(-10, 10)}, budget=budget)
    settings = Settings.parse({"strategy": names, "min_confidence": 0.5})
    made = Cascade(settings, {name: Fake(name) for name in names})
    return made.mmaf_focus(request=request, run=run), budgets


@pytest.mark.parametrize(
    ("script", "winner", "tries"),
    [
        ([(OK, 0.9), (OK, 1.0)], "s0", 1),
        ([(OK, 0.5), (OK, 1.0)], "s0", 1),
        ([(OK, 0.4), (OK, 0.8), (OK, 1.0)], "s1", 2),
        ([(OK, 0.4), (OK, 0.3)], "s0", 2),
        ([(LOW, 0.9), (OK, 0.1)], "s1", 2),
        ([(OK, 0.1), (LOW, 0.9)], "s0", 2),
        ([(NONE, 0.0), (LOW, 0.3), (NONE, 0.0)], "s1", 3),
        ([(NONE, 0.0), (NONE, 0.0)], "s1", 2),
        ([(NONE, float("nan")), (LOW, 0.2), (OK, float("nan"))], "s2", 3),
        ([(LOW, 0.4), (Status.CANCELLED, 0.0), (OK, 1.0)], "s1", 2),
    ],
)
def test_which_result_wins(script: list[tuple[Status, float]], winner: str, tries: int) -> None:
    result, budgets = cascade(script)
    assert (result.strategy, len(budgets)) == (winner, tries)


@given(st.lists(st.tuples(st.sampled_from([OK, LOW, NONE]), st.floats(0, 1)), min_size=1, max_size=5))
def test_costs_add_up_and_a_converged_result_is_never_lost(script: list[tuple[Status, float]]) -> None:
    result, budgets = cascade(script)
    n = len(budgets)
    assert (result.images, result.dose, result.seconds, result.moves) == (10 * n, 100.0 * n, 2.0 * n, 3 * n)
    assert [sample.knobs["z"] for sample in result.samples] == [float(index) for index in range(n)]
    assert result.start == {"z": 0.0}
    assert result.ok == any(status is OK for status, _ in script[:n])
    assert result.confidence == max(c for s, c in script[:n] if s.ok == result.ok)
    assert [budget.images for budget in budgets] == [60 - 10 * index for index in range(n)]


@pytest.mark.parametrize(
    ("budget", "tries"),
    [
        (Budget(20, None), 2),
        (Budget(None, 5.0), 3),
        (Budget(None, None, 100.0), 1),
        (Budget(None, None), 4),
    ],
)
def test_the_cascade_ends_with_its_budget(budget: Budget, tries: int) -> None:
    _, budgets = cascade([(NONE, 0.0)] * 4, budget)
    assert len(budgets) == tries


def test_every_try_is_told_in_the_details() -> None:
    result, _ = cascade([(NONE, 0.0), (OK, 0.8)])
    assert [each["strategy"] for each in result.details["cascade"]] == ["s0", "s1"]


def test_an_unknown_strategy_is_refused_with_what_there_is() -> None:
    with pytest.raises(SettingsError, match=r'"nosuch" is unknown. Available: laser, sweep'):
        Cascade(Settings.parse({"strategy": "nosuch"}), {"sweep": Fake("sweep"), "laser": Fake("laser")})
