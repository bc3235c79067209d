"""The focus map on simulated plates: calibrated, better than the last good z, safe against outliers, flat in cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mm_autofocus.request import Event, FocusRequest, Limits
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.settings import Settings
from mm_autofocus_hooks.focus_map import FocusMap, site_of
from mm_autofocus_hooks.plate_model import PlateModel, PlatePriors, Site

PITCH_UM = 9000.0
NOISE_UM = 0.15
HOUR = 3600.0


@dataclass
class Plate:
    """A plate of tilt, bow, wells, fields and drift; truth is only used to make results and to score."""

    seed: int
    wells: int = 96
    fields: int = 1
    well_sd: float = 3.0
    field_sd: float = 0.3
    drift_um_per_hour: float = 0.0
    sites: list[tuple[Site, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        tilt, bow = self.rng.normal(0, 0.4, 2), self.rng.normal(0, 1.0, 3)
        columns = round(math.sqrt(self.wells * 1.5))
        for well in range(self.wells):
            row, column = divmod(well, columns)
            column = column if row % 2 == 0 else columns - 1 - column
            height = 5000.0 + self.rng.normal(0, self.well_sd)
            for index in range(self.fields):
                x, y = column * PITCH_UM + 1000.0 * (index % 2), row * PITCH_UM + 1000.0 * (index // 2)
                u, v = x / 1e4 - 5, y / 1e4 - 3.5
                shape = tilt @ [x, y] / 1000 + bow @ [u * u, v * v, u * v]
                self.sites.append(
                    (Site(x, y, f"w{well}", (well, index)), height + shape + self.rng.normal(0, self.field_sd))
                )

    def visits(
        self, passes: int = 1, every_s: float = HOUR, step_s: float = 3.0
    ) -> Iterator[tuple[Site, float, float]]:
        """Yield site, time and true focal plane."""
        for index in range(passes):
            for step, (site, z) in enumerate(self.sites):
                time = index * every_s + step * step_s
                yield site, time, z + self.drift_um_per_hour * time / HOUR

    def measure(self, z: float) -> float:
        return z + self.rng.normal(0, NOISE_UM)


def make_map(**chosen: Any) -> FocusMap:
    return FocusMap(Settings.parse({"map": {"measurement_sd_um": 0.2, **chosen}}), clock=lambda: 0.0)


def expect(made: FocusMap, site: Site, time: float) -> tuple[float, float]:
    """Return mean and SD of the focal plane, without the noise of a measurement."""
    error, sd = made.innovation(site, time, 0.0)
    return -error, math.sqrt(max(sd**2 - 0.2**2, 1e-6))


# ---------------------------------------------------------------------- the filter
@pytest.mark.parametrize("capacity", [11, 16, 40])
def test_dropping_old_knots_keeps_the_variances_honest(capacity: int) -> None:
    ratios = []
    for seed in range(4):
        plate = Plate(seed, wells=24, fields=2, drift_um_per_hour=2.0)
        model = PlateModel(PlatePriors(measurement_um=NOISE_UM), capacity)
        for site, time, z in plate.visits(passes=10, step_s=20.0):
            if not model.empty:
                estimate = model.estimate(site, time)
                if time > HOUR:
                    ratios.append((z - estimate.mean) / math.sqrt(estimate.variance))
            if plate.rng.random() < 0.5:
                model.update(site, time, plate.measure(z))
        assert model.shared <= capacity
    assert 0.3 < np.sqrt(np.mean(np.square(ratios))) < 1.1
    assert np.mean(np.abs(ratios) < 2.2) > 0.95


def test_the_drift_is_followed_and_its_uncertainty_grows() -> None:
    made = make_map()
    here = Site(0.0, 0.0, "A1", 0)
    for step in range(20):
        made.learn(here, step * 300.0, 100.0 + step * 0.25)  # 3 µm an hour
    now = 19 * 300.0
    ahead = [expect(made, here, now + wait) for wait in (0.0, 600.0, HOUR, 10 * HOUR)]
    assert [sd for _, sd in ahead] == sorted(sd for _, sd in ahead)
    assert ahead[1][0] == pytest.approx(100 + 0.25 * 21, abs=0.3)
    assert ahead[3][1] > 3.0


# ---------------------------------------------------------------------- on a plate
def test_calibrated_after_twenty_wells() -> None:
    ratios, map_errors, last_errors = [], [], []
    for seed in range(12):
        plate, made, last = Plate(seed, drift_um_per_hour=1.0), make_map(), math.nan
        for count, (site, time, z) in enumerate(plate.visits()):
            if count > 20:
                mean, sd = expect(made, site, time)
                ratios.append((z - mean) / sd)
                map_errors.append(z - mean)
                last_errors.append(z - last)
            last = plate.measure(z)
            made.learn(site, time, last)
    assert 0.8 < np.sqrt(np.mean(np.square(ratios))) < 1.15
    assert np.mean(np.abs(ratios) < 2.2) > 0.95
    assert np.std(map_errors) < 0.7 * np.std(last_errors)
    assert np.std(map_errors) < 1.25 * 3.0  # the wells' own scatter is the floor


def test_a_second_pass_is_predicted_far_better_than_by_the_last_good() -> None:
    plate, made = Plate(3, wells=24, drift_um_per_hour=3.0), make_map()
    errors, last_errors, last = [], [], math.nan
    for site, time, z in plate.visits(passes=2):
        if time > HOUR + 60.0:  # the first wells of the pass tell the drift
            errors.append(expect(made, site, time)[0] - z)
            last_errors.append(last - z)
        last = plate.measure(z)
        made.learn(site, time, last)
    assert np.std(errors) < 0.1 * np.std(last_errors)


@pytest.mark.parametrize(("fields", "drift"), [(1, 3.0), (4, 1.0)])
def test_focusing_only_where_unsure_saves_most_runs(fields: int, drift: float) -> None:
    plate, made = Plate(1, wells=48, fields=fields, drift_um_per_hour=drift), make_map()
    runs = good = total = 0
    for site, time, z in plate.visits(passes=8):
        end, sd = expect(made, site, time)
        if sd > 1.0 / 2.58:
            end, runs = plate.measure(z), runs + 1
            made.learn(site, time, end)
        good += abs(end - z) < 1.0
        total += 1
    assert runs < total / 6
    assert good > 0.99 * total


def test_flat_wells_are_found_to_be_flat() -> None:
    plate, made = Plate(2, fields=9, field_sd=0.05), make_map(field_sd_um=2.0)
    for site, time, z in plate.visits():
        made.learn(site, time, plate.measure(z))
    assert made.model.priors.field_um < 0.6
    assert 2.0 < made.model.priors.well_um < 5.0


def test_repeats() -> None:
    def answers() -> list[tuple[float, float]]:
        plate, made = Plate(7, fields=2, drift_um_per_hour=1.0), make_map()
        for site, time, z in plate.visits(passes=2):
            made.learn(site, time, plate.measure(z))
        return [expect(made, site, 2 * HOUR) for site, _ in plate.sites]

    assert answers() == answers()


def test_left_out_predictions_are_those_of_a_map_without_the_result() -> None:
    plate, made = Plate(4, wells=12, fields=2), make_map()
    learnt = []
    for site, time, z in plate.visits():
        learnt.append((site, time, plate.measure(z)))
        made.learn(*learnt[-1])
    left_out = {each.site.field: each for each in made.leave_one_out()}
    assert len(left_out) == 24
    for site, time, z in learnt[1:]:  # the first is the origin of the plate's coordinates
        model = PlateModel(made.model.priors, 256)
        for other in learnt:
            if other[0] != site:
                model.update(*other)
        estimate = model.estimate(site, time)
        assert left_out[site.field].error == pytest.approx(z - estimate.mean, abs=1e-3)
        assert left_out[site.field].sd == pytest.approx(math.sqrt(estimate.variance + 0.2**2), rel=1e-3)


# ---------------------------------------------------------------------- the gate
def trained(seed: int = 5) -> tuple[FocusMap, Plate, float]:
    plate, made, time = Plate(seed, wells=24), make_map(), 0.0
    for site, time, z in plate.visits(passes=3, every_s=200.0):
        assert made.learn(site, time, plate.measure(z))
    return made, plate, time


@pytest.mark.parametrize(("size", "believed"), [(4.4, True), (-4.4, True), (4.6, False), (-4.6, False)])
def test_the_gate_is_at_four_and_a_half_sd(size: float, believed: bool) -> None:
    made, plate, time = trained()
    site = plate.sites[3][0]
    error, sd = made.innovation(site, time, 0.0)
    assert made.learn(site, time, -error + size * sd) is believed


def test_the_sd_follows_the_innovations() -> None:
    def sd_after(noise_um: float) -> float:
        made, here, rng = make_map(), Site(0.0, 0.0, "A1", 0), np.random.default_rng(0)
        for step in range(60):
            made.learn(here, step * 10.0, 100.0 + rng.normal(0, noise_um))
        return made.innovation(here, 600.0, 0.0)[1]

    assert sd_after(0.6) == pytest.approx(0.6, rel=0.25)  # three times what the settings say
    assert 0.15 < sd_after(0.01) < 0.2  # never much smaller than the settings say


def test_one_outlier_is_set_aside_and_forgotten() -> None:
    made, plate, time = trained()
    (first, z), (second, z2) = plate.sites[3], plate.sites[4]
    before = expect(made, second, time)
    assert not made.learn(first, time, z + 20.0)
    assert expect(made, second, time) == before
    assert made.learn(second, time, z2)
    assert not made.learn(first, time, z + 20.0)
    assert (made.rejected, made.bumps) == (2, 0)


@pytest.mark.parametrize("jump", [20.0, -80.0])
def test_two_that_agree_mean_the_plate_was_bumped(jump: float) -> None:
    made, plate, time = trained()
    (first, z), (second, z2) = plate.sites[3], plate.sites[4]
    sd = expect(made, plate.sites[20][0], time)[1]
    assert not made.learn(first, time, z + jump)
    assert made.learn(second, time, z2 + jump)
    assert made.bumps == 1
    mean, after = expect(made, plate.sites[5][0], time)
    assert mean == pytest.approx(plate.sites[5][1] + jump, abs=2.2 * after)
    assert expect(made, plate.sites[20][0], time)[1] > 2 * sd  # the tilt is open again
    for site, z in plate.sites[6:12]:
        made.learn(site, time, z + jump)
    mean, after = expect(made, plate.sites[20][0], time)
    assert mean == pytest.approx(plate.sites[20][1] + jump, abs=2.2 * after)
    assert after < 1.0


def test_at_a_single_position_a_bump_takes_three() -> None:
    made, here = make_map(), Site(0.0, 0.0, "A1", 0)
    for step in range(20):
        made.learn(here, step * 60.0, 100.0)
    outcomes = [made.learn(here, 1200.0 + step, 130.0) for step in range(4)]
    assert outcomes == [False, False, True, True]
    assert made.bumps == 1
    assert expect(made, here, 1204.0)[0] == pytest.approx(130.0, abs=0.3)


def test_two_outliers_that_disagree_are_no_bump() -> None:
    made, plate, time = trained()
    assert not made.learn(plate.sites[3][0], time, plate.sites[3][1] + 20.0)
    assert not made.learn(plate.sites[4][0], time, plate.sites[4][1] - 25.0)
    assert made.bumps == 0


def test_three_rejections_in_a_row_open_a_map_that_is_too_sure() -> None:
    plate = Plate(6, wells=96, well_sd=20.0)
    made = make_map(well_sd_um=0.2, field_sd_um=0.2, tilt_sd_um_per_mm=0.5, bow_sd_um_per_cm2=1.0)
    outcomes, ratios = [], []
    for site, time, z in plate.visits():
        mean, sd = expect(made, site, time)
        ratios.append((z - mean) / sd)
        outcomes.append(made.learn(site, time, plate.measure(z)))
    assert sum(outcomes[40:]) > 50
    assert np.sqrt(np.mean(np.square(ratios[40:]))) < 2.0


# ---------------------------------------------------------------------- the hooks
def focused(made: FocusMap, event: Event, z: float, time: float = 0.0, **changes: Any) -> None:
    result = FocusResult(
        **{"status": Status.CONVERGED, "strategy": "s", "start": {"z": 0.0}, "end": {"z": z}, "time": time, **changes}
    )
    made.mmaf_focused(request=FocusRequest(event, {"z": 0.0}, {"z": Limits(-1e4, 1e4)}), result=result)


HERE = Event(axes={"position": 2, "grid": 1}, label="B7_0001", x=10.0, y=20.0)


@pytest.mark.parametrize(
    ("changes", "learnt"),
    [
        ({}, 1),
        ({"action": ("widen",)}, 1),
        ({"action": ("pause", "widen")}, 1),
        ({"action": ("use_map",)}, 0),
        ({"final": 3.0}, 0),
        ({"status": Status.LOW_CONFIDENCE}, 0),
        ({"status": Status.LOW_CONFIDENCE, "action": ("accept",)}, 0),
        ({"status": Status.NO_SIGNAL, "action": ("use_last_good",)}, 0),
        ({"end": {"z": math.nan}}, 0),
        ({"end": {}}, 0),
    ],
)
def test_only_measurements_are_learnt(changes: dict[str, Any], learnt: int) -> None:
    made = make_map()
    focused(made, HERE, 3.0, **changes)
    assert made.learnt == learnt
    assert (made.mmaf_predict(event=HERE) is not None) == bool(learnt)


@pytest.mark.parametrize("coordinates", [{"x": None, "y": 0.0}, {"x": 0.0, "y": None}, {"x": math.nan, "y": 0.0}])
def test_no_coordinates_no_prediction(coordinates: dict[str, Any]) -> None:
    made = make_map()
    focused(made, HERE, 3.0)
    assert made.mmaf_predict(event=Event(**coordinates)) is None
    focused(made, Event(**coordinates), 3.0)
    assert made.learnt == 1


def test_disabled_and_started_again() -> None:
    made = make_map(enabled=False)
    focused(made, HERE, 3.0)
    assert made.mmaf_predict(event=HERE) is None
    made = make_map()
    focused(made, HERE, 3.0)
    made.mmaf_start(autofocus=SimpleNamespace(depth_of_field_um=2.0, microscope=SimpleNamespace(clock=lambda: 0.0)))
    assert made.mmaf_predict(event=HERE) is None


def test_time_runs_on_after_the_last_result_in_whatever_clock() -> None:
    now = [1000.0]
    made = FocusMap(Settings(), clock=lambda: now[0])
    focused(made, HERE, 3.0, time=7.0)
    sds = []
    for wait in (0.0, HOUR, 5 * HOUR):
        now[0] = 1000.0 + wait
        prior = made.mmaf_predict(event=HERE)
        assert prior is not None
        sds.append(prior.sd)
    assert sds[0] < 0.2
    assert sds[0] < 2.0 < sds[1] < sds[2]


@pytest.mark.parametrize(
    ("event", "well", "field_key"),
    [
        (HERE, "B7", (2, 1)),
        (Event(axes={"position": 4, "grid": 3}, x=0.0, y=0.0), ("position", 4), (4, 3)),
        (Event(axes={"position": "C3"}, x=0.0, y=0.0), "C3", ("C3", 0)),
    ],
)
def test_sites(event: Event, well: Any, field_key: Any) -> None:
    site = site_of(event)
    assert site is not None
    assert (site.well, site.field) == (well, field_key)
