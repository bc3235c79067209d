from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from mm_autofocus.benchmark.baseline import Baseline, regressions
from mm_autofocus.benchmark.light_cases import SHIPPED, PlateCase, StackCase, absent_groups, light_methods, read_cases
from mm_autofocus.benchmark.peers import Search, climb, golden_maximum
from mm_autofocus.benchmark.runner import BenchRun, Failure, Record
from mm_autofocus.benchmark.tables import ALL, markdown, summarise
from mm_autofocus.cli.bench_light import bench_light, measure_light
from mm_autofocus.cli.bench_tables import Tables
from mm_autofocus.errors import SettingsError

METHODS = {method.name: method for method in light_methods()}


def stack_of_a_bar(path: Path, focus: float = 6.0, step: float = 0.5, planes: int = 25) -> Path:
    """A bar pattern that blurs with the distance from ``focus``, as a z-stack."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(1)
    sharp = (rng.random((64, 64)) > 0.9) * 3000.0
    images = [gaussian_filter(sharp, 0.6 + 0.9 * abs(i * step - focus)) + 200 for i in range(planes)]
    tifffile.imwrite(path, np.asarray(images, dtype=np.uint16))
    return path


# ---------------------------------------------------------------------- cases
def test_shipped_cases_are_the_same_every_time_and_quick_is_a_part_of_them() -> None:
    whole, quick = read_cases(SHIPPED), read_cases(SHIPPED, quick=True)
    assert read_cases(SHIPPED) == whole
    assert {case.name: case for case in quick}.items() <= {case.name: case for case in whole}.items()
    assert len(quick) < len(whole) / 4
    assert read_cases(SHIPPED, seed=1) != whole


def test_starts_lie_where_the_group_says() -> None:
    cases = [case for case in read_cases(SHIPPED) if isinstance(case, PlateCase)]
    for case in cases:
        missed = abs(case.start_um) > case.range_um / 2
        assert missed == (case.group == "focus outside the window")
        assert case.expected == ("nothing" if missed or case.blank else "focus")
    assert len({case.seed for case in cases}) == len(cases)


def test_recordings_that_are_absent_are_named_and_left_out(tmp_path: Path) -> None:
    assert all(isinstance(case, PlateCase) for case in read_cases(SHIPPED, data=tmp_path))
    assert "metal, easy" in absent_groups(SHIPPED, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[plate]]\nname = "x"\nfamliy = "gaussian"\n', 'unknown key "plate.0.famliy"'),
        ('[[stack]]\nname = "x"\nfile = "nowhere.tif"\n', "nowhere.tif does not exist"),
        ("[[plate]\n", "neither TOML nor JSON"),
    ],
)
def test_wrong_case_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_cases(path)


# ---------------------------------------------------------------------- measuring
def test_a_z_stack_of_ones_own_is_a_bench(tmp_path: Path) -> None:
    stack_of_a_bar(tmp_path / "bars.tif")
    (tmp_path / "mine.toml").write_text(
        '[[stack]]\nname = "bars"\nfile = "bars.tif"\nstep_um = 0.5\nfocus_um = 6.0\ndepth_of_field_um = 1.0\n'
        "cases = 3\n"
    )
    outcome = bench_light(case=tmp_path / "mine.toml", out=tmp_path / "out", quick=False, quiet=True)
    rows = {row["method"]: row for row in outcome["rows"] if row["group"] == "bars"}
    assert set(rows) == set(METHODS)
    for name in ("sweep, fast", "full stack", "golden section"):
        assert rows[name]["success"] == 3, rows[name]
    assert rows["full stack"]["images"] > rows["sweep, fast"]["images"]
    assert (tmp_path / "out" / "light.html").read_text().count("plot-") >= 3
    assert "| sweep, fast | 3 of 3 |" in (tmp_path / "out" / "light.md").read_text()


def test_a_tiff_alone_is_enough_and_a_second_run_only_reads_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "bars.tif"
    stack_of_a_bar(path)
    planes = tifffile.imread(path)
    tifffile.imwrite(path, planes, imagej=True, metadata={"spacing": 0.5, "unit": "um", "axes": "ZYX"})
    first = bench_light(case=path, out=tmp_path / "out", quick=True, quiet=True)
    lines = (tmp_path / "out" / "light.jsonl").read_bytes()
    again = bench_light(case=path, out=tmp_path / "out", quick=True, quiet=True)
    assert (tmp_path / "out" / "light.jsonl").read_bytes() == lines
    assert again["rows"] == first["rows"]
    bench_light(case=path, out=tmp_path / "out", quick=True, fresh=True, quiet=True)
    assert (tmp_path / "out" / "light-previous.jsonl").read_bytes() == lines


def plate(**changes: object) -> PlateCase:
    values = {"name": "one", "group": "g", "seed": 7_400_001, "start_um": 6.0, "range_um": 30.0}
    return PlateCase.model_validate(values | changes)


def test_the_same_case_gives_the_same_outcome_and_methods_share_its_truth() -> None:
    first, again = (measure_light(plate(), METHODS["sweep, fast"]) for _ in range(2))
    steady = {"compute_seconds"}
    assert first.model_dump(exclude=steady) == again.model_dump(exclude=steady)
    assert first.success
    other = measure_light(plate(), METHODS["OughtaFocus, tuned"])
    assert other.images < first.images + 20
    assert other.depth == first.depth


def test_a_blank_field_asks_for_an_honest_no() -> None:
    blank = plate(blank=True, expected="nothing", seed=7_400_002)
    ours, peer = (measure_light(blank, METHODS[name]) for name in ("sweep, fast", "OughtaFocus, tuned"))
    assert (ours.status, ours.success, ours.error) == ("no_signal", True, None)
    assert (peer.status, peer.success) == ("converged", False)


def test_a_focus_outside_the_window_is_no_success_unless_it_is_said() -> None:
    outside = plate(start_um=21.0, expected="nothing", seed=7_400_003)
    ours, peer = (measure_light(outside, METHODS[name]) for name in ("full stack", "OughtaFocus, tuned"))
    assert ours.success
    assert ours.status != "converged"
    assert not peer.success


def test_the_window_of_a_stack_holds_the_focus(tmp_path: Path) -> None:
    path = stack_of_a_bar(tmp_path / "bars.tif")
    for low in (0.0, 0.5):
        case = StackCase(
            name="x", group="g", seed=1, file=str(path), low=low, high=low + 0.5, step_um=0.5, focus_um=6.0,
            depth_of_field_um=1.0,
        )  # fmt: skip
        assert measure_light(case, METHODS["full stack"]).success


# ---------------------------------------------------------------------- tables and baseline
def record(number: int, method: str = "ours", group: str = "a", **changes: object) -> Record:
    values = {
        "key": f"{method}{group}{number}", "case": str(number), "group": group, "method": method,
        "status": "converged", "success": True, "error": 0.1 * number, "confidence": 0.99, "images": 10,
    }  # fmt: skip
    return Record.model_validate(values | changes)


def test_a_row_counts_what_it_says() -> None:
    records = [record(i) for i in range(9)] + [record(9, success=False, error=-7.0)]
    records += [record(10, status="no_signal", success=True, error=None, confidence=0.0)]
    (row,) = summarise(records, {})
    assert (row.runs, row.success, row.sure, row.sure_wrong, row.wrong) == (11, 10, 10, 1, 1)
    assert row.worst == 7.0
    assert row.error_median == pytest.approx(0.45)
    assert row.low < row.rate < row.high


def test_totals_come_first_and_mixed_units_become_depths_of_field() -> None:
    records = [record(1, depth=2.0, error=1.0), record(2, group="b", unit="planes", depth=4.0, error=3.0)]
    rows = summarise(records)
    assert [row.group for row in rows] == [ALL, "a", "b"]
    assert (rows[0].unit, rows[0].worst) == ("depths of field", 0.75)
    assert (rows[2].unit, rows[2].worst) == ("planes", 3.0)
    assert "### all cases" in markdown(rows)


def tables() -> Tables:
    return Tables("light", "command", {"all": {"a"}})


def run_with(successes: int, cases: int = 44) -> BenchRun:
    return BenchRun(records=[record(i, success=i < successes) for i in range(cases)])


@pytest.mark.parametrize(("now", "falls"), [(43, False), (40, False), (36, True), (20, True)])
def test_a_baseline_tells_a_fall_from_noise(tmp_path: Path, now: int, falls: bool) -> None:
    path = tmp_path / "baseline.json"
    tables().baseline(run_with(43)).save(path)
    outcome = tables().write(run_with(now), tmp_path, baseline=path)
    assert bool(outcome["regressions"]) == falls
    assert json.loads((tmp_path / "light.json").read_text())["regressions"] == outcome["regressions"]


def test_a_row_that_was_not_run_is_a_regression() -> None:
    baseline = tables().baseline(run_with(44))
    assert "was not run" in regressions([], baseline)[0]


def test_what_is_no_baseline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SettingsError, match="is not a baseline"):
        Baseline.load(tmp_path / "x.json")


def test_failures_are_in_the_notes(tmp_path: Path) -> None:
    run = BenchRun(records=[record(1)], failures=[Failure(case="c", method="m", message="boom")])
    outcome = tables().write(run, tmp_path)
    assert outcome["notes"] == ["c, m was not measured: boom"]
    assert "c, m was not measured: boom" in (tmp_path / "light.md").read_text()


# ---------------------------------------------------------------------- the hill climb
def answered(search: Search, height: Callable[[float], float]) -> tuple[float, list[float]]:
    """Answer a search until it ends; return what it says, and where it looked."""
    looks = [next(search)]
    while True:
        try:
            looks.append(search.send(height(looks[-1])))
        except StopIteration as stop:
            return float(stop.value), looks


@pytest.mark.parametrize("peak", [-7.0, -0.3, 0.0, 2.2, 9.9])
def test_the_hill_climb_finds_a_single_peak(peak: float) -> None:
    for search in (climb(-10.0, 10.0, 0.05), golden_maximum(-10.0, 10.0, 0.05)):
        answer, looks = answered(search, lambda z: -((z - peak) ** 2))
        assert answer == pytest.approx(peak, abs=0.15)
        assert len(looks) < 45


def test_the_hill_climb_stays_inside_and_ends_on_a_plateau() -> None:
    answer, looks = answered(climb(0.0, 1.0, 0.01), lambda z: 1.0)
    assert answer == 0.5
    assert all(0.0 <= z <= 1.0 for z in looks)
    assert len(looks) < 50
