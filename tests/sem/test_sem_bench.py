"""The cases, the closed loops and the tables of `bench sem`, with estimators whose answers are known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mm_autofocus.benchmark import sem_units
from mm_autofocus.benchmark.page import write_page
from mm_autofocus.benchmark.runner import Record, key_of
from mm_autofocus.benchmark.sem_cases import (
    FAMILIES,
    FIRST_SEED,
    UNSEEN,
    Case,
    Conditions,
    cases,
    location_cases,
    open_column,
    take_pair,
    vessel_column,
)
from mm_autofocus.benchmark.sem_methods import Trajectory, methods, pair_loop, steps_of, strategy_loop
from mm_autofocus.benchmark.sem_scoring import duel, interval, loop_row, settled, share, within
from mm_autofocus.estimators import Aberration, ColumnCalibration, PairEstimate
from mm_autofocus.report.outcomes import outcome_tables
from mm_autofocus.report.sem_table import headline, markdown, sections
from mm_autofocus.result import Status
from mm_autofocus.simulation.electron_probe import ProbeFamily
from mm_autofocus.simulation.sem_column import Column
from mm_autofocus.simulation.sem_specimen import SpecimenKind
from mm_autofocus.strategies.phase_diversity import PhaseDiversity
from mm_autofocus.strategy import Image
from mm_autofocus.training import sem_pairs
from sem.sem_bench_units import TRACE, bench, installed


@dataclass
class Oracle:
    """Knows the column, as no real estimator can: answers the truth of a pair's midpoint times a factor."""

    column: Column
    factor: float = 1.0
    stands_over: bool = False
    """The column stands at the pair's upper frame when it is asked, not at its midpoint."""

    def estimate(
        self, under: Image, over: Image, step_um: float, pixel_um: float, calibration: ColumnCalibration
    ) -> PairEstimate:
        truth = self.column.truth().vector()
        truth[0] -= step_um / 2 if self.stands_over else 0.0
        return PairEstimate(Aberration(*(float(v) * self.factor for v in truth)), Aberration(0.05, 0.02, 0.02))


@pytest.fixture(scope="module")
def column() -> Column:
    """A small, cheap column at a known start."""
    case = Case(SpecimenKind.TIN, FIRST_SEED, Aberration(8.0, -1.0, 2.0), ProbeFamily.SOFT)
    made = open_column(case, Conditions(84.0))
    made.frame = (320, 240)
    return made


def test_cases_use_what_no_training_uses_and_repeat() -> None:
    made = cases(12, 2, (20.0, 5.0))
    assert made == cases(20, 2, (20.0, 5.0))[:12]
    assert {case.kind for case in made} == set(UNSEEN)
    assert {case.family for case in made} == set(FAMILIES)
    assert not {ProbeFamily.SOFT, ProbeFamily.DISC} & set(FAMILIES)  # the training's
    assert not set(UNSEEN) & set(sem_pairs.TRAINING_KINDS) - {SpecimenKind.TISSUE}
    seeds = {case.seed for series in range(1, 9) for case in cases(40, series, (1.0, 1.0))}
    assert len(seeds) == 8 * 40
    trained = max(sem_pairs.TRAINING_SEED, sem_pairs.VALIDATION_SEED, sem_pairs.TEST_SEED)
    assert min(seeds) >= FIRST_SEED > trained + 5000
    assert all(abs(c.start.defocus_um) <= 20 and abs(c.start.stig_x) <= 5 for c in made)


def test_a_column_stands_at_its_case_with_the_belief_wrong_by_the_angle_only() -> None:
    case = cases(3, 2, (20.0, 5.0))[2]
    conditions = Conditions(5.0, angle=1.25)
    made = open_column(case, conditions)
    assert made.truth().vector() == pytest.approx(case.start.vector(), abs=1e-9)
    assert made.setup.electrons_per_pixel == 5.0
    believed, true = conditions.calibration(), made.calibration()
    assert true.convergence_mrad == pytest.approx(1.25 * believed.convergence_mrad)
    assert (true.stigmator_um, true.stigmator_rotation_deg) == (believed.stigmator_um, believed.stigmator_rotation_deg)


def test_a_pair_is_taken_around_the_present_working_distance(column: Column) -> None:
    before = column.working_distance_um
    under, over, step = take_pair(column)
    assert column.working_distance_um == before
    assert step == 10.0
    assert under.shape == over.shape == (240, 320)


def test_the_vessel_fills_half_to_three_quarters_of_the_frame() -> None:
    case = cases(1, 4, (20.0, 5.0), at=(30.0, 6.0, -6.0), tissue=True)[0]
    made = vessel_column(case, Conditions(84.0))
    empty = made.specimen.blank_map(made.x_um, made.y_um, 0.08, (96, 128)).mean()
    assert 0.5 <= empty <= 0.75
    assert made.truth().vector() == pytest.approx([30.0, 6.0, -6.0])


def test_locations_lie_on_a_grid_of_80_um() -> None:
    made = location_cases(9)
    places = np.array([case.place_um for case in made])
    assert np.ptp(places, axis=0).tolist() == [80.0, 80.0]
    assert len({case.seed for case in made}) == 1
    starts = np.array([case.start.vector() for case in made])
    assert np.all((starts >= [8, -4, 2]) & (starts <= [12, -2, 4]))


@pytest.mark.parametrize(("factor", "after_three"), [(1.0, 0.0), (0.5, 1.0), (1.5, -1.0)])
def test_a_pair_loop_corrects_by_the_whole_estimate(column: Column, factor: float, after_three: float) -> None:
    column.detune(Aberration(8.0, -1.0, 2.0))
    run = pair_loop(column, Oracle(column, factor), ColumnCalibration(), 3)
    assert run.residuals[0] == pytest.approx([8.0, -1.0, 2.0])
    assert run.residuals[-1, 0] == pytest.approx(after_three, abs=1e-6)
    assert run.frames.tolist() == [0, 2, 4, 6]
    assert run.after(99) == pytest.approx(run.residuals[-1])


def test_a_strategy_runs_on_a_column_and_its_iterations_are_scored(column: Column) -> None:
    column.detune(Aberration(6.0, -1.0, 1.0))
    frames = column.frames
    run = strategy_loop(column, PhaseDiversity(estimator=Oracle(column, stands_over=True)))
    assert run.status is Status.CONVERGED
    assert run.residuals[0] == pytest.approx([6.0, -1.0, 1.0])
    assert np.abs(run.residuals[-1]).max() < 0.3
    assert run.confidence > 0.9
    assert column.frames - frames == run.frames[-1]
    assert column.truth().vector() == pytest.approx(run.residuals[-1], abs=1e-6)  # it stands where it said


def test_a_loop_of_deepfocus_tells_where_it_stood_after_each_pair(column: Column) -> None:
    from mm_autofocus.strategies.deepfocus import DeepFocus, DeepFocusSettings

    column.detune(Aberration(8.0, -1.0, 2.0))
    oracle = Oracle(column, factor=0.5, stands_over=True)
    run = strategy_loop(column, DeepFocus(DeepFocusSettings(iterations=3), oracle))
    assert run.residuals == pytest.approx(np.array([8.0, -1.0, 2.0]) * 0.5 ** np.arange(4)[:, None], abs=0.01)
    assert run.frames.tolist() == [0, 2, 4, 6]


def test_steps_of_a_score_search_are_its_best_places_so_far() -> None:
    details = {"deep_scores": [3.0, 1.0, 2.0], "trajectory": [[0, 0, 0], [1, 0, 0], [2, 0, 0]]}
    steps, frames = steps_of(details, 3)
    assert [float(step[0]) for step in steps] == [0.0, 1.0, 1.0]
    assert frames == [1, 2, 3]
    assert steps_of({}, 4) == ([], [])


def test_only_staying_within_the_depth_counts_as_settled() -> None:
    path = np.array([[9.0, 0, 0], [0.5, 0, 0], [1.2, 0, 0], [0.9, 0.2, 0.2], [0.1, 0, 0]])
    assert within(path).tolist() == [False, True, False, True, True]
    assert settled(path) == 3
    assert settled(path[:3]) is None
    assert settled(path[3:]) == 0
    assert not within(np.array([[0.0, 0.0, 0.26]]))[0]


def test_intervals_hold_the_value_and_repeat() -> None:
    values = np.random.default_rng(1).exponential(size=40)
    mean, low, high = interval(values)
    assert low < mean < high
    assert interval(values) == [mean, low, high]
    assert share(np.array([True] * 24)) == [1.0, pytest.approx(0.862, abs=1e-3), 1.0, 24]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Record]]:
    """A whole outcome with small frames of one specimen, no training and no timing."""
    with installed():
        return bench(tmp_path_factory.mktemp("sem") / "sem.jsonl").measure()


@pytest.fixture(scope="module")
def outcome(measured: tuple[dict[str, Any], list[Record]]) -> dict[str, Any]:
    return measured[0]


def test_the_tables_say_what_was_measured(
    measured: tuple[dict[str, Any], list[Record]], outcome: dict[str, Any], tmp_path: Path
) -> None:
    json.dumps(outcome, allow_nan=False)
    assert outcome["pairs"]["20 e-/px"]["spectral"]["wd"][0] == 0.0
    peer = outcome["pairs"]["20 e-/px"]["mapfost"]
    assert peer["wd"][0] == pytest.approx(np.mean([abs(e[0]) for e in peer["errors"]]), abs=2e-3)
    assert peer["wd"][0] > 0
    loop = outcome["loops"]["20 e-/px"]["spectral"]
    assert [step["within"][0] for step in loop["after"][1:]] == [1.0, 1.0, 1.0]
    assert loop["iterations"][0] == 1.0
    text = markdown(outcome, measured[1])
    assert "| ours, spectral | 3/3/3 | 0.00 (0.00–0.00); 0.00 | 0.00 (0.00–0.00) |" in text
    assert "100% of 2 (34%–100%)" in text
    assert "At 20 e-/px ours is off by 0.00 µm" in headline(outcome)
    made = sections(outcome, measured[1])
    path = write_page(tmp_path / "table.html", "SEM", headline(outcome), {}, made)
    page = path.read_text(encoding="utf-8")
    assert page.count("<table>") == sum(bool(section.rows) for section in made) > 8
    assert "plot-pairs" in page


def test_every_method_has_its_success_error_and_cost(measured: tuple[dict[str, Any], list[Record]]) -> None:
    rows = {(row[0], row[1]): row for row in outcome_tables(measured[1], "")[0][3]}
    ours, peer = rows["20 e-/px", "ours, spectral"], rows["20 e-/px", "MAPFoSt"]
    assert ours[2:5] == ["2 of 2", "34% to 100%", "0.00; 0.00"]
    # half of the truth is left after each of three pairs
    starts = [c.start.vector() for c in cases(2, 2, (20.0, 5.0))]
    left = np.abs(starts)[:, 0] / 8
    assert peer[4].startswith(f"{np.median(left):.2f};")
    assert peer[2] == f"{sum(left <= 1.0)} of 2"
    assert peer[7] == "6.0"
    assert peer[-2] == "-"  # it states no confidence, so it was never sure
    dose = {condition: float(row[8]) for (condition, method), row in rows.items() if method == "MAPFoSt"}
    assert dose["20 e-/px"] == pytest.approx(4 * dose["5 e-/px"], rel=0.01)


def test_ours_and_mapfost_are_compared_start_by_start(outcome: dict[str, Any]) -> None:
    both_off = "20 e-/px, starts within ±0.5 a.u., believed angle x0.8"
    rows = {row["condition"]: row for row in outcome["against"]}
    assert {"20 e-/px", "20 e-/px, starts within ±0.5 a.u.", both_off} <= set(rows)
    assert rows[both_off]["runs"] == rows[both_off]["fewer"] == 2


def test_a_duel_counts_who_never_arrives_as_later() -> None:
    def run(*wd: float) -> Trajectory:
        path = np.array([[v, 0.0, 0.0] for v in wd])
        return Trajectory(path, np.arange(len(wd), dtype=float), 1.0, Status.CONVERGED, 0.0)

    made = duel([(run(9, 0), run(9, 2, 0)), (run(9, 3, 0), run(9, 8, 8)), (run(9, 9), run(9, 0))])
    assert made == {"runs": 3, "reached": [2, 2], "iterations": [1.0, 2.0], "fewer": 2, "more": 1}


def test_the_same_frames_are_read_by_every_method(outcome: dict[str, Any]) -> None:
    ours, peer = (outcome["pairs"]["84 e-/px"][key]["errors"] for key in ("spectral", "mapfost"))
    assert np.allclose(ours, 0)
    # half of the truth is missing in the peer's answer, at every dose the same truth
    assert peer == outcome["pairs"]["5 e-/px"]["mapfost"]["errors"]


def _parts(made: dict[str, Any]) -> dict[str, Any]:
    """Return the tables without what is of the computer's speed."""
    kept = json.loads(json.dumps({k: v for k, v in made.items() if k not in ("total_seconds", "resumed")}))

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k != "seconds"}
        return [without(v) for v in value] if isinstance(value, list) else value

    return dict(without(kept))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_kill_9_loses_no_unit_and_does_none_twice(
    outcome: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, trace = tmp_path / "sem.jsonl", tmp_path / "trace.txt"
    command = [sys.executable, str(Path(__file__).with_name("sem_bench_units.py")), str(journal)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, TRACE: str(trace)}
    for _ in range(2):
        wanted = journal.read_bytes().count(b"\n") + 9 if journal.exists() else 9
        process = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 120
        while not journal.exists() or journal.read_bytes().count(b"\n") < wanted:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
    cut_off = journal.read_bytes().count(b"\n")
    monkeypatch.setenv(TRACE, str(trace))
    with installed():
        small = bench(journal)
        made, _ = small.measure()
        again, _ = small.measure()
    assert made["resumed"] == cut_off
    assert _parts(made) == _parts(outcome)
    keys = [json.loads(line)["key"] for line in journal.read_text().splitlines()]
    assert sorted(keys) == sorted(key_of(*unit) for unit in [*small.units(), small.speed()])
    # what was cut off between its measurement and its line is measured again, never more than one a kill
    assert len(trace.read_text().splitlines()) <= len(keys) + 2
    assert again["resumed"] == len(keys)


def test_two_workers_come_to_the_same_tables(
    outcome: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setenv(TRACE, str(tmp_path / "trace.txt"))
    with installed():
        made, _ = bench(tmp_path / "sem.jsonl", workers=2).measure()
    assert _parts(made) == _parts(outcome)
    lines = [line.split("|") for line in (tmp_path / "trace.txt").read_text().splitlines()]
    processes = {process for name, _, process in lines if name != "speed"}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes
    assert [process for name, _, process in lines if name == "speed"] == [str(os.getpid())]


def test_a_network_that_was_trained_again_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sem_units, "WEIGHTS", tmp_path)
    keys = set()
    for content in (b"one", b"another"):
        (tmp_path / "sem_spectral.safetensors").write_bytes(content)
        sem_units.weights_of.cache_clear()
        keys.add(sem_units.sem_method("spectral", "ours").weights)
    sem_units.weights_of.cache_clear()
    assert len(keys) == 2


def test_a_method_that_cannot_be_used_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mapfost", None)
    monkeypatch.setitem(sys.modules, "mapfost.mapfost", None)
    found, missing = methods(("mapfost",))
    assert found == []
    assert "mm-autofocus[bench]" in missing["MAPFoSt"]


def test_a_row_of_loops_counts_iterations_only_of_those_that_arrive() -> None:
    good = np.array([[9.0, 0, 0], [3.0, 0, 0], [0.1, 0, 0]])
    bad = np.array([[9.0, 0, 0], [8.0, 0, 0], [7.0, 0, 0]])
    runs = [Trajectory(p, np.array([0.0, 2.0, 4.0]), 0.9, Status.CONVERGED, 0.1) for p in (good, bad)]
    row = loop_row(runs, 2)
    assert row["iterations"][0] == 2.0
    assert row["reached"][0] == 0.5
    assert row["after"][2]["wd"][0] == pytest.approx(3.55)


# ---------------------------------------------------------------------- the command line
@pytest.fixture
def app() -> typer.Typer:
    from mm_autofocus.cli.app_sem import register
    from mm_autofocus.cli.groups import Groups

    made = typer.Typer()
    register(Groups.make(made))
    return made


def test_the_commands_say_what_they_do(app: typer.Typer) -> None:
    for command in (["demo", "sem"], ["bench", "sem"]):
        result = CliRunner().invoke(app, [*command, "--help"])
        assert result.exit_code == 0
        assert "--json" in result.output


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["bench", "sem", "--only", "nosuch"], "no method is called"),
        (["demo", "sem", "--specimen", "cheese"], "cheese"),
        (["demo", "sem", "--settings", "absent.toml"], "absent.toml"),
    ],
)
def test_what_cannot_be_run_is_one_clear_line(
    app: typer.Typer, arguments: list[str], word: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 2
    assert word in json.loads(result.stdout)["message"]
