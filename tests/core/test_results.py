from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_autofocus.result import FocusResult, Sample, Status
from mm_autofocus.results import RECENT, ResultLog


def result(number: int, **changes: object) -> FocusResult:
    samples = tuple(Sample(knobs={"z": number + 0.1 * i}, score=1 / (i + 1), seconds=0.3 * i) for i in range(10))
    values = {
        "status": Status.CONVERGED, "strategy": "sweep", "start": {"z": 0.1 * number}, "end": {"z": 1 / (number + 3)},
        "samples": samples, "axes": {"position": f"A{number}"}, "details": {"window": [0.1, 2.0], "n": number},
    }  # fmt: skip
    return FocusResult.model_validate(values | changes)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 3 * RECENT))
def test_what_is_read_back_is_what_was_appended(count: int) -> None:
    made = [result(i) for i in range(count)]
    log = ResultLog()
    for each in made:
        log.append(each)
    assert len(log) == count
    assert log == made
    assert list(log) == made
    assert log[: count // 2] == made[: count // 2]
    assert [log[-i] for i in range(1, count + 1)] == made[::-1]


def test_the_early_ones_take_a_fraction_of_the_memory() -> None:
    log = ResultLog()
    for i in range(RECENT + 50):
        log.append(result(i))
    packed = [kept for kept in log._packed if isinstance(kept, bytes)]
    assert len(packed) == 50
    assert max(map(len, packed)) < 1000


def test_details_that_json_would_change_stay_as_they_are() -> None:
    log = ResultLog()
    made = [result(i, details={"pair": (1, 2)} if i % 2 else {"odd": object()}) for i in range(RECENT + 4)]
    for each in made:
        log.append(each)
    assert all(kept is was for kept, was in zip(log, made, strict=True))


def test_an_index_beyond_the_end_is_an_error_and_clear_forgets() -> None:
    log = ResultLog()
    log.append(result(1))
    with pytest.raises(IndexError, match="there are 1 results, none at 1"):
        log[1]
    log.clear()
    assert log == []
    assert not log
