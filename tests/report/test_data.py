from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from mm_autofocus.report import FieldRecord, MethodSummary, ReportData, summarise, wilson
from mm_autofocus.report.html import render
from mm_autofocus.report.plate import Plate, row_and_column, row_name
from mm_autofocus.report.plots import figures
from mm_autofocus.result import FocusResult, Status


def run(label: str = "A1", status: Status = Status.CONVERGED, **more: object) -> FocusResult:
    values = {"status": status, "strategy": "sweep", "start": {"z": 0.0}, "end": {"z": 1.0}, "label": label, **more}
    return FocusResult.model_validate(values)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),  # Brown, Cai and DasGupta, Statistical Science 16 (2001) 101: n = 10
        (5, 10, 0.23659, 0.76341),
        (10, 10, 0.72247, 1.0),
        (190, 192, 0.96278, 0.99714),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_summary_of_a_hand_computed_table() -> None:
    # errors: 0.1, -0.5 (the limit itself is in focus), 2.0 although converged, not acquired, no truth
    fields = [
        FieldRecord(label="A1", z=10.1, truth_z=10.0, result_index=0),
        FieldRecord(label="A2", z=9.5, truth_z=10.0, result_index=1),
        FieldRecord(label="A3", z=12.0, truth_z=10.0, result_index=2),
        FieldRecord(label="A4", z=None, truth_z=10.0, result_index=3),
        FieldRecord(label="A5", z=10.0, result_index=None),
        FieldRecord(label="A6", z=10.2, truth_z=10.0, blank=True),  # counted apart
    ]
    runs = [run(images=5, dose=50, seconds=2.0, compute_seconds=0.5) for _ in range(3)]
    runs.append(run(status=Status.NO_SIGNAL, images=9, dose=90, seconds=4.0))
    got = summarise("ours", fields, runs, depth_of_field_um=1.0)
    assert (got.fields, got.scored, got.in_focus, got.blank_fields, got.blank_in_focus) == (6, 4, 2, 1, 1)
    assert (got.median_um, got.p95_um, got.worst_um) == pytest.approx((0.5, 1.85, 2.0))
    assert (got.images, got.dose, got.runs, got.converged, got.false_confident) == (24, 240, 4, 3, 1)
    assert (got.instrument_seconds, got.compute_seconds) == pytest.approx((10.0, 1.5))
    assert got.interval == wilson(2, 4)


def test_summary_without_truth_and_without_anything() -> None:
    got = summarise("ours", [FieldRecord(label="A1", z=1.0, result_index=0)], [run()], 1.0)
    assert (got.in_focus, got.median_um, got.false_confident, got.compute_seconds) == (None, None, None, None)
    assert summarise("ours", [], [], 1.0).fields == 0


def test_headlines() -> None:
    methods = [
        MethodSummary(name=name, fields=192, in_focus=n)
        for name, n in (("autofocus", 190), ("without", 31), ("OughtaFocus", 120))
    ]
    assert ReportData(title="t", depth_of_field_um=1.4, methods=methods).headline == (
        "190 of 192 fields in focus (|error| ≤ 0.7 µm) with autofocus, 31 without, 120 with OughtaFocus"
    )
    runs = [run(), run(status=Status.FAILED)]
    assert ReportData(title="t", depth_of_field_um=1, results=runs).headline == (
        "1 of 2 focus runs converged; the failure policy handled the other 1"
    )
    assert "No focus run" in ReportData(title="t", depth_of_field_um=1).headline


def test_incidents_name_failures_rescues_and_the_confidently_wrong() -> None:
    runs = [
        run("A1"),
        run("A2", Status.NO_SIGNAL, action=("use_map",), final=7.0, reason="empty"),
        run("A3", action=("widen",)),
        run("A4"),
    ]
    fields = [FieldRecord(label=f"A{i + 1}", z=1.0, truth_z=1.0 if i < 3 else 5.0, result_index=i) for i in range(4)]
    found = ReportData(title="t", depth_of_field_um=1, results=runs, fields=fields).incidents()
    assert [(i.label, i.final_z) for i in found] == [("A2", 7.0), ("A3", 1.0), ("A4", 1.0)]
    assert "wrong" in found[2].reason


def test_a_shared_run_is_scored_at_its_own_field() -> None:
    fields = [
        FieldRecord(label="A1_1", z=1.0, truth_z=9.0, result_index=0),
        FieldRecord(label="A1_2", z=1.0, truth_z=0.5, result_index=0),
    ]
    data = ReportData(title="t", depth_of_field_um=1, results=[run("A1_2")], fields=fields)
    assert [error for _, error in data.scored_runs()] == [0.5]


def test_what_is_not_finite_is_unknown_and_a_wrong_index_is_refused() -> None:
    field = FieldRecord(label="A1", z=math.nan, truth_z=math.inf, result_index=3)
    assert (field.z, field.truth_z, field.error_um) == (None, None, None)
    with pytest.raises(ValidationError, match="result_index 3 is not one of 0 results"):
        ReportData(title="t", depth_of_field_um=1, fields=[field])


@pytest.mark.parametrize(
    ("well", "place"), [("A1", (0, 0)), ("P24", (15, 23)), ("AF48", (31, 47)), ("A0", None), ("Pos1", None), ("", None)]
)
def test_well_names(well: str, place: tuple[int, int] | None) -> None:
    assert row_and_column(well) == place
    if place is not None:
        assert well == f"{row_name(place[0])}{place[1] + 1}"


@pytest.mark.parametrize(
    ("last", "size"), [((1, 2), (2, 3)), ((7, 11), (8, 12)), ((8, 0), (16, 24)), ((40, 60), (41, 61))]
)
def test_the_smallest_plate_that_fits(last: tuple[int, int], size: tuple[int, int]) -> None:
    plate = Plate([(0, 0), last])
    assert (plate.rows, plate.columns) == size


def test_cells_and_boxes_of_a_plate_agree() -> None:
    plate = Plate([(1, 2)] * 3 + [(0, 0)])
    assert plate.cells == (2, 2)
    x, y = plate.edges(0), plate.edges(1)
    for place, box in zip(plate.places, plate.boxes, strict=True):
        row, column = plate.cell(place)
        assert [x[column], x[column + 1], y[row], y[row + 1]] == pytest.approx(box, abs=2e-4)


def test_headline_counts_blank_fields_apart() -> None:
    methods = [MethodSummary(name="autofocus", fields=48, scored=44, in_focus=44, blank_fields=4, blank_in_focus=0)]
    text = ReportData(title="t", depth_of_field_um=1.0, methods=methods).headline
    assert text.startswith("44 of 44 fields with a specimen in focus")
    assert text.endswith("of the blank fields, 0 of 4")


def test_the_costs_of_another_method_are_drawn_beside_ours() -> None:
    fields = [FieldRecord(label="A1", well="A1", result_index=0)]
    other = [run(images=12, label="A1_0000"), run(images=3, label="B1_0000")]
    data = ReportData(
        title="t", depth_of_field_um=1.0, results=[run(images=5)], fields=fields, reference="the image sweep",
        reference_results=other,
    )  # fmt: skip
    marks = [trace for trace in figures(data)["cost"]["data"] if trace["type"] == "scatter"]
    assert marks[0]["y"] == [12]
    assert "Dashes: the image sweep." in render(data)
