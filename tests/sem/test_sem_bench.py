"""The cases, the closed loops and the tables of `bench sem`, with estimators whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mm_autofocus.benchmark import sem_table
from mm_autofocus.benchmark.page import write_page
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
from mm_autofocus.benchmark.sem_methods import Method, methods, pair_loop, steps_of, strategy_loop
from mm_autofocus.benchmark.sem_scoring import interval, loop_row, settled, share, within
from mm_autofocus.estimators import Aberration, ColumnCalibration, PairEstimate
from mm_autofocus.report.sem_table import headline, markdown, sections
from mm_autofocus.result import Status
from mm_autofocus.simulation.electron_probe import ProbeFamily
from mm_autofocus.simulation.sem_column import Column
from mm_autofocus.simulation.sem_specimen import SpecimenKind
from mm_autofocus.strategies.phase_diversity import PhaseDiversity
from mm_autofocus.strategy import Image
from mm_autofocus.training import sem_pairs


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


class _Bench(sem_table.Bench):
    """The bench with one method whose answers are known: the truth, and with one that doubles it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.methods = {
            key: Method(key, name, _Cheat(factor)) for key, name, factor in
            (("spectral", "ours", 1.0), ("mapfost", "a peer", 0.5))
        }  # fmt: skip


@dataclass
class _Cheat:
    factor: float

    def estimate(self, *args: object) -> PairEstimate:
        column = _CURRENT[-1]
        return PairEstimate(
            Aberration(*(float(v) * self.factor for v in column.truth().vector())), Aberration(0.1, 0.1, 0.1)
        )


_CURRENT: list[Column] = []


@pytest.fixture(scope="module")
def outcome() -> Iterator[dict[str, Any]]:
    """A whole outcome with small frames of one specimen, no training and no timing."""

    def opened(case: Case, conditions: Conditions, **options: float) -> Column:
        made = open_column(replace(case, kind=SpecimenKind.TIN, seed=FIRST_SEED), conditions, **options)
        made.frame = (320, 240)
        _CURRENT.append(made)
        return made

    size = sem_table.Size(
        pairs=3, loops=2, peer_loops=2, iterations=3, repeats=1, locations=2, score_loops=0, labelled_pairs=0, timings=1
    )
    speed = {"name": "ours", "seconds_512": 0.01, "seconds_frame": None, "mpx_per_s": 52.4, "ratio": None}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("open_column", "vessel_column"):
            patch.setattr(sem_table, name, opened)
        bench = _Bench(size, say=lambda text: None, keys=())
        patch.setattr(bench, "recalibration", dict)
        patch.setattr(bench, "speed", lambda: [speed])
        yield bench.measure()


def test_the_tables_say_what_was_measured(outcome: dict[str, Any], tmp_path: Path) -> None:
    json.dumps(outcome, allow_nan=False)
    assert outcome["pairs"]["20 e-/px"]["spectral"]["wd"][0] == 0.0
    peer = outcome["pairs"]["20 e-/px"]["mapfost"]
    assert peer["wd"][0] == pytest.approx(np.mean([abs(e[0]) for e in peer["errors"]]), abs=2e-3)
    assert peer["wd"][0] > 0
    loop = outcome["loops"]["20 e-/px"]["spectral"]
    assert [step["within"][0] for step in loop["after"][1:]] == [1.0, 1.0, 1.0]
    assert loop["iterations"][0] == 1.0
    text = markdown(outcome)
    assert "| ours | 0.00 (0.00–0.00); 0.00 | 0.00 (0.00–0.00) |" in text
    assert "100% of 2 (34%–100%)" in text
    assert "At 20 e-/px ours is off by 0.00 µm" in headline(outcome)
    path = write_page(tmp_path / "table.html", "SEM", headline(outcome), {}, sections(outcome))
    page = path.read_text(encoding="utf-8")
    assert page.count("<table>") == sum(bool(section.rows) for section in sections(outcome)) > 8
    assert "plot-pairs" in page


def test_the_same_frames_are_read_by_every_method(outcome: dict[str, Any]) -> None:
    ours, peer = (outcome["pairs"]["84 e-/px"][key]["errors"] for key in ("spectral", "mapfost"))
    assert np.allclose(ours, 0)
    # half of the truth is missing in the peer's answer, at every dose the same truth
    assert peer == outcome["pairs"]["5 e-/px"]["mapfost"]["errors"]


def test_a_method_that_cannot_be_used_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mapfost", None)
    monkeypatch.setitem(sys.modules, "mapfost.mapfost", None)
    found, missing = methods(("mapfost",))
    assert found == []
    assert "mm-autofocus[bench]" in missing["MAPFoSt"]


def test_a_row_of_loops_counts_iterations_only_of_those_that_arrive() -> None:
    from mm_autofocus.benchmark.sem_methods import Trajectory

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
