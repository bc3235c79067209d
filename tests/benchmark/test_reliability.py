from __future__ import annotations

import numpy as np
import pytest

from mm_autofocus.benchmark.reliability import MUST, reliability, reliability_section
from mm_autofocus.benchmark.runner import Record


def record(number: int, confidence: float, error: float | None, **changes: object) -> Record:
    values = {
        "key": str(number), "case": f"case {number}", "group": "g", "method": "ours", "status": "converged",
        "success": error is not None and abs(error) <= 0.5, "error": error, "depth": 1.0, "confidence": confidence,
    }  # fmt: skip
    return Record.model_validate(values | changes)


def drawn(count: int, sharpen: float, seed: int = 1) -> list[Record]:
    """Results that are right with probability ``confidence ** sharpen``: 1 is honest, above 1 overconfident."""
    rng = np.random.default_rng(seed)
    stated = rng.uniform(0.3, 1.0, count)
    return [record(i, float(c), 0.1 if rng.random() < c**sharpen else 3.0) for i, c in enumerate(stated)]


def test_honest_confidence_is_found_honest() -> None:
    (found,) = reliability(drawn(4000, 1.0))
    assert found.met
    assert found.expected_error < 0.03
    for each in found.bins:
        low, high = each.interval
        assert low - 0.02 <= each.stated <= high + 0.02


def test_overconfidence_is_found_out() -> None:
    (found,) = reliability(drawn(4000, 4.0))
    assert found.met is False
    assert found.sure_right < MUST * found.sure
    assert found.expected_error > 0.15


def test_bins_hold_every_result_once_at_their_edges_too() -> None:
    edges = [0.0, 0.2, 0.4, 0.9, 0.95, 1.0]
    (found,) = reliability([record(i, c, 0.0) for i, c in enumerate(edges)])
    assert sum(b.runs for b in found.bins) == len(edges)
    assert all(b.low <= b.stated <= b.high for b in found.bins)
    assert found.sure == 2


def test_a_focus_given_where_there_is_none_is_wrong_and_an_honest_no_is_left_out() -> None:
    records = [record(0, 0.99, None), record(1, 0.0, None, status="no_signal", success=True), record(2, 0.99, 0.2)]
    (found,) = reliability(records)
    assert (found.sure, found.sure_right) == (2, 1)


def test_a_method_that_is_never_sure_has_nothing_to_meet() -> None:
    (found,) = reliability([record(0, 0.5, 0.0)])
    assert found.met is None
    assert reliability_section([found]).rows[0][2] == "-"


@pytest.mark.parametrize("sharpen", [0.5, 12.0])
def test_the_section_has_a_diagram_for_each_method(sharpen: float) -> None:
    records = drawn(200, sharpen)
    records += [r.model_copy(update={"method": "peer", "peer": True, "confidence": 1.0}) for r in records]
    section = reliability_section(reliability(records))
    assert [chart.title for chart in section.charts] == ["ours", "peer"]
    assert section.rows[0][2] == ("met" if sharpen == 0.5 else "MISSED")
    bars = section.charts[0].figure["data"][1]["error_y"]
    assert all(value >= 0 for value in bars["array"] + bars["arrayminus"])
