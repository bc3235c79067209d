"""What is done about a run that did not converge."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_autofocus.ledger import Ledger
from mm_autofocus.request import Event, FocusRequest, Limits, Prior
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.settings import Settings
from mm_autofocus_hooks.failure import FailurePolicy

HERE = Event(axes={"position": 1}, x=100.0, y=0.0)
LIMITS = Limits(0.0, 100.0)
ACTIONS = ("accept", "widen", "use_map", "use_last_good", "stay", "skip", "pause", "abort")


def policy(prior: Prior | None = None, **failure: Any) -> FailurePolicy:
    made = FailurePolicy(Settings.parse({"failure": failure}))
    made.mmaf_start(autofocus=SimpleNamespace(predict=lambda event: prior))
    return made


def request(window: Limits | None = None, prior: Prior | None = None) -> FocusRequest:
    return FocusRequest(HERE, {"z": 50.0}, {"z": LIMITS}, window=window, prior=prior)


def result(status: Status = Status.NO_SIGNAL, *action: str) -> FocusResult:
    return FocusResult(status=status, strategy="s", start={"z": 50.0}, end={"z": 50.0}, action=action)


def ledger(good: float | None = None) -> Ledger:
    made = Ledger()
    if good is not None:
        made.record(Event(axes={"position": 0}, x=0.0, y=0.0), good)
    return made


MAP = Prior(60.0, 0.5)


@pytest.mark.parametrize(
    ("chain", "prior", "good", "taken", "expected"),
    [
        (("use_map", "use_last_good", "stay"), MAP, 40.0, (), ("use_map", 60.0)),
        (("use_map", "use_last_good", "stay"), MAP, 40.0, ("use_map",), ("use_last_good", 40.0)),
        (("use_map", "use_last_good", "stay"), MAP, 40.0, ("use_map", "use_last_good"), ("stay", None)),
        (("use_map", "use_last_good", "stay"), None, 40.0, (), ("use_last_good", 40.0)),
        (("use_map", "use_last_good", "skip"), None, None, (), ("skip", None)),
        (("use_map", "stay"), Prior(100.1, 0.5), None, (), ("stay", None)),
        (("use_map", "stay"), Prior(float("nan"), 0.5), None, (), ("stay", None)),
        (("use_map", "stay"), Prior(60.0, 2.1), None, (), ("stay", None)),
        (("use_map", "stay"), Prior(60.0, float("nan")), None, (), ("stay", None)),
        (("use_last_good", "skip"), None, -3.0, (), ("skip", None)),
        (("use_map",), None, None, (), ("stay", None)),
        (("widen", "widen", "pause"), None, None, ("widen",), ("widen", None)),
        (("widen", "widen", "pause"), None, None, ("widen", "widen"), ("pause", None)),
        (("abort",), MAP, 40.0, (), ("abort", None)),
    ],
)
def test_chain(
    chain: tuple[str, ...], prior: Prior | None, good: float | None, taken: tuple[str, ...], expected: tuple[str, Any]
) -> None:
    made = policy(prior, no_signal=chain, map_sd_um=2.0)
    action = made.mmaf_focus_failed(request=request(), result=result(Status.NO_SIGNAL, *taken), ledger=ledger(good))
    assert action is not None
    assert (action.name, action.z) == expected


@pytest.mark.parametrize("status", [s for s in Status if s not in (Status.CONVERGED, Status.CANCELLED)])
def test_each_status_has_its_own_chain(status: Status) -> None:
    made = policy(**{status.value: ("skip",)})
    action = made.mmaf_focus_failed(request=request(), result=result(status), ledger=ledger())
    assert action is not None
    assert action.name == "skip"


def test_converged_is_left_alone_and_cancelled_aborts() -> None:
    made = policy()
    assert made.mmaf_focus_failed(request=request(), result=result(Status.CONVERGED), ledger=ledger()) is None
    action = made.mmaf_focus_failed(request=request(), result=result(Status.CANCELLED), ledger=ledger())
    assert action is not None
    assert action.name == "abort"


@pytest.mark.parametrize(
    ("window", "expected"), [(None, "widen"), (Limits(40, 60), "widen"), (LIMITS, "skip"), (Limits(-5, 120), "skip")]
)
def test_widen_has_its_factor_and_is_left_out_when_all_was_searched(window: Limits | None, expected: str) -> None:
    made = policy(at_limit=("widen", "skip"), widen_factor=4.0)
    action = made.mmaf_focus_failed(request=request(window), result=result(Status.AT_LIMIT), ledger=ledger())
    assert action is not None
    assert action.name == expected
    assert expected != "widen" or action.factor == 4.0


def test_without_an_autofocus_the_prior_of_the_request_stands_for_the_map() -> None:
    made = FailurePolicy(Settings())
    action = made.mmaf_focus_failed(request=request(prior=MAP), result=result(), ledger=ledger())
    assert action is not None
    assert (action.name, action.z) == ("use_map", 60.0)


@given(
    chains=st.lists(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=4), min_size=2, max_size=2),
    statuses=st.lists(st.sampled_from([Status.NO_SIGNAL, Status.AT_LIMIT]), min_size=12, max_size=12),
)
def test_an_event_always_comes_to_an_end(chains: list[list[str]], statuses: list[Status]) -> None:
    made = policy(MAP, no_signal=chains[0], at_limit=chains[1])
    taken: list[str] = []
    for status in statuses:
        action = made.mmaf_focus_failed(request=request(), result=result(status, *taken), ledger=ledger(40.0))
        assert action is not None
        if action.name not in ("widen", "pause"):
            return
        taken.append(action.name)
    pytest.fail(f"still going on after {taken}")


@pytest.mark.parametrize(
    ("history", "name"),
    [
        ((), "stay"),
        ((Status.NO_SIGNAL,), "stay"),
        ((Status.NO_SIGNAL, Status.FAILED), "abort"),
        ((Status.NO_SIGNAL, Status.CONVERGED, Status.FAILED), "stay"),
        ((Status.NO_SIGNAL, Status.CANCELLED, Status.FAILED), "abort"),
    ],
)
def test_abort_after_three_failures_in_a_row(history: tuple[Status, ...], name: str) -> None:
    made = policy(abort_after=3, no_signal=("stay",))
    for status in history:
        made.mmaf_focused(result=result(status))
    action = made.mmaf_focus_failed(request=request(), result=result(), ledger=ledger())
    assert action is not None
    assert action.name == name


def test_a_retry_comes_before_the_abort_and_accepting_is_no_failure() -> None:
    made = policy(abort_after=1, low_confidence=("widen", "accept"), at_limit=("widen", "stay"))
    names = [
        made.mmaf_focus_failed(request=request(), result=result(status, *taken), ledger=ledger()).name  # type: ignore[union-attr]
        for status, taken in [
            (Status.AT_LIMIT, ()),
            (Status.AT_LIMIT, ("widen",)),
            (Status.LOW_CONFIDENCE, ("widen",)),
        ]
    ]
    assert names == ["widen", "abort", "accept"]
    made = policy(abort_after=2, no_signal=("stay",))
    accepted = result(Status.LOW_CONFIDENCE, "widen", "accept")
    made.mmaf_focused(result=accepted.model_copy(update={"end": {"z": accepted.start["z"] + 1.0}}))
    action = made.mmaf_focus_failed(request=request(), result=result(), ledger=ledger())
    assert action is not None
    assert action.name == "stay"


def test_a_blank_field_is_not_searched_twice_until_the_map_must_be_wrong() -> None:
    made = policy(prior=Prior(5.0, 1.0), no_signal=("widen", "use_map"))
    known, unknown = request(prior=Prior(5.0, 1.0)), request()

    def ask(of: FocusRequest) -> str:
        action = made.mmaf_focus_failed(request=of, result=result(Status.NO_SIGNAL), ledger=ledger())
        assert action is not None
        return action.name

    assert (ask(known), ask(unknown)) == ("use_map", "widen")
    for _ in range(3):
        made.mmaf_focused(result=result(Status.NO_SIGNAL, "use_map"))
    assert ask(known) == "widen"
    made.mmaf_focused(result=result(Status.CONVERGED))
    assert ask(known) == "use_map"
