"""Every bench's units are told apart by their keys, and what cannot be measured is said, whichever bench it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm_autofocus.benchmark.laser_models import readout
from mm_autofocus.benchmark.runner import MEASURED, Case, Method, Outcome, Record, key_of, run_units
from mm_autofocus.benchmark.score_table import ScoreBench
from mm_autofocus.benchmark.score_table import Size as ScoreSize
from mm_autofocus.benchmark.sem_table import Bench as SemBench
from mm_autofocus.benchmark.sem_table import Size as SemSize
from mm_autofocus.benchmark.tem_table import TemBench
from mm_autofocus.cli.laser_table import Bench as LaserBench
from mm_autofocus.errors import SettingsError
from mm_autofocus.report.outcomes import outcome_sections, read_overview, write_overview

Units = list[tuple[Any, Any]]


def units_of(name: str, folder: Path) -> tuple[Units, ...]:
    """Return the units of the quick form of a bench, and of the whole one."""
    if name == "sem":
        pytest.importorskip("torch")
        made = [SemBench(folder / "j", size, say=lambda _: None) for size in (SemSize.quick(), SemSize())]
        return tuple([*one.units(), one.speed()] for one in made)
    if name == "sem-scores":
        scores = [ScoreBench(folder / "j", size) for size in (ScoreSize.quick(), ScoreSize())]
        return tuple([*one.units(), one.speed()] for one in scores)
    if name == "tem":
        tems = [TemBench(folder, quick=quick) for quick in (True, False)]
        return tuple([*one.geometry(), one.speed(), *one.trainings().values()] for one in tems)
    lasers = [LaserBench(folder, quick=quick) for quick in (True, False)]
    return tuple([*one.trainings(), *one.units()] for one in lasers)


@pytest.mark.parametrize("name", ["sem", "sem-scores", "tem", "laser"])
def test_no_two_units_share_a_key_and_the_quick_form_is_smaller(name: str, tmp_path: Path) -> None:
    quick, whole = units_of(name, tmp_path)
    for units in (quick, whole):
        keys = [key_of(*unit) for unit in units]
        assert len(set(keys)) == len(keys)
    assert 10 < len(quick) < len(whole) / 2
    assert [key_of(*unit) for unit in units_of(name, tmp_path)[0]] == [key_of(*unit) for unit in quick]


def test_every_part_has_a_method_twice_or_more_where_it_compares(tmp_path: Path) -> None:
    _, whole = units_of("laser", tmp_path)
    starts = [(case.index, method.strategy) for case, method in whole if case.part == "starts"]
    assert len(starts) == 120 * 3
    assert {method for _, method in starts} == {"paper", "lookup", "ours"}


def test_the_same_unit_twice_is_refused(tmp_path: Path) -> None:
    unit = Case(name="a", group="g"), Method(name="ours", strategy="sweep")
    with pytest.raises(SettingsError, match="a with ours is there twice"):
        run_units([unit, unit], _measured, tmp_path / "j.jsonl")


def _measured(case: Case, method: Method) -> Outcome:
    return Outcome(status=MEASURED, success=True, details={"pair": (1.0, float(case.seed)), "none": None})


def test_a_run_and_the_run_that_goes_on_say_the_same(tmp_path: Path) -> None:
    unit = Case(name="a", group="g", seed=3), Method(name="ours", strategy="sweep")
    first = run_units([unit], _measured, tmp_path / "j.jsonl")
    again = run_units([unit], _measured, tmp_path / "j.jsonl")
    assert first.records == again.records
    assert first.records[0].details == {"pair": [1.0, 3.0], "none": None}
    assert not first.records[0].judged


def test_a_bench_without_its_datasets_says_so(tmp_path: Path) -> None:
    def broken(case: Case, method: Method) -> Outcome:
        if case.name == "datasets":
            raise ValueError("the film is torn")
        return _measured(case, method)

    with pytest.raises(SettingsError, match="no table without the datasets: ValueError: the film is torn"):
        TemBench(tmp_path, quick=True, networks=False, measured=broken).measure()


# ---------------------------------------------------------------------- what runs came to
def records() -> list[Record]:
    made = []
    for i, (method, off, confidence) in enumerate([("ours", 0.2, 0.99), ("ours", 1.5, 0.97), ("peer", 0.4, None)]):
        made.append(
            Record(
                key=str(i), case=str(i), group="20 e-/px", method=method, peer=method == "peer", status="converged",
                success=off <= 1, error=off, depth=2.0, unit="half depths", confidence=confidence,
                errors={"wd µm": off, "stig a.u.": -off / 4},
            )
        )  # fmt: skip
    return made


def test_several_knobs_are_shown_each_in_its_unit_and_a_silent_method_has_no_diagram() -> None:
    outcomes, believed = outcome_sections(records(), "Success: near.")
    assert "Errors in wd µm; stig a.u." in outcomes.lead
    ours, peer = outcomes.rows
    assert ours[:3] == ["20 e-/px", "ours", "1 of 2"]
    assert ours[6] == "1.50; 0.38"
    assert ours[-2:] == ["1 of 2", "1"]
    assert peer[-2:] == ["-", "0"]
    assert [row[0] for row in believed.rows] == ["ours"]
    assert len(believed.charts) == 1
    assert outcome_sections([], "") == []


def test_the_overview_holds_the_totals_where_there_are_any(tmp_path: Path) -> None:
    write_overview(tmp_path, records(), {"all": {"20 e-/px"}, "none": {"5 e-/px"}})
    assert [(row.group, row.method) for row in read_overview(tmp_path)] == [("all", "ours"), ("all", "peer")]
    write_overview(tmp_path, records())
    assert {row.group for row in read_overview(tmp_path)} == {"20 e-/px"}
    assert read_overview(tmp_path / "absent") == []


def test_a_readout_is_kept_and_read_again(tmp_path: Path) -> None:
    from mm_autofocus.benchmark import laser_models

    effort = laser_models.Effort(quick=True)
    made = readout(tmp_path, "lookup", "1 day", "short", effort)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["lookup_1day_short_quick.json", "lookup_1day_short_quick_short.safetensors"]
    assert json.loads((tmp_path / names[0]).read_text())["short_um"] == made.range_um
    laser_models._kept.cache_clear()
    day = laser_models.days()[9].state(0.0)
    images = laser_models.spot().images(np.array([1.0, -2.0]), day, laser_models.rng_of("a"))
    again = readout(tmp_path, "lookup", "1 day", "short", effort)
    assert np.array_equal(again.predict(images)[0], made.predict(images)[0])
