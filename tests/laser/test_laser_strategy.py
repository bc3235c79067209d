"""The strategy alone, on a simulated stage and camera: it finds the surface, or it says why it does not move."""

from __future__ import annotations

import numpy as np
import pytest

from mm_autofocus.errors import HardwareError, SettingsError
from mm_autofocus.readouts.drift import DriftMonitor
from mm_autofocus.result import Status
from mm_autofocus.simulation.laser_spot import Shot
from mm_autofocus.strategies.laser import Laser, LaserSettings
from mm_autofocus.strategy import Frame


@pytest.mark.parametrize("start", [-98.0, -45.0, -12.0, -3.0, 0.0, 2.0, 9.0, 30.0, 97.0])
def test_it_finds_the_surface_from_anywhere(bench, laser, start):
    bench.surface = 21.0
    verdict = bench.focus(laser, 21.0 + start)
    assert verdict.status is Status.CONVERGED
    assert verdict.target["z"] == pytest.approx(21.0, abs=0.2)
    assert verdict.confidence > 0.7
    assert len(bench.visited) <= 8
    assert len(verdict.scores) == len(bench.visited)


def test_the_offset_is_added_once_and_the_score_is_best_there(bench):
    laser = Laser(LaserSettings(offset_um=3.0))
    verdict = bench.focus(laser, 40.0)
    assert verdict.target["z"] == pytest.approx(3.0, abs=0.2)
    scores = {z: laser.score(Frame(bench.image(z), {"z": z})) for z in (-60.0, 0.0, 3.0, 6.0)}
    assert max(scores, key=scores.__getitem__) == 3.0
    assert 0 < scores[-60.0] < 0.01


@pytest.mark.parametrize(
    ("shot", "word"),
    [
        (Shot(laser_on=False), "no reflection"),
        (Shot(reflection=0.0), "no reflection"),
        (Shot(exposure_ms=60.0), "saturated"),
    ],
    ids=["laser off", "no coverslip", "saturated"],
)
def test_without_a_usable_reflection_nothing_moves(bench, laser, shot, word):
    bench.shot = lambda frame: shot
    verdict = bench.focus(laser, 5.0)
    assert verdict.status is Status.NO_SIGNAL
    assert word in verdict.reason
    assert verdict.target == {}
    assert bench.visited == [5.0]
    assert laser.score(Frame(bench.image(5.0), {"z": 5.0})) == 0.0


def test_a_foreign_reflection_is_refused_where_it_stands(bench, laser):
    bench.change = lambda image: np.ascontiguousarray(image.T)
    verdict = bench.focus(laser, 6.0)
    assert verdict.status is Status.NO_SIGNAL
    assert verdict.target == {}


@pytest.mark.parametrize("lost_after", [1, 2, 3, 4])
def test_a_reflection_lost_on_the_way_ends_without_a_target(bench, laser, lost_after):
    bench.shot = lambda frame: Shot(reflection=0.0 if frame > lost_after else 1.0)
    verdict = bench.focus(laser, 50.0)
    assert verdict.status is Status.NO_SIGNAL
    assert verdict.target == {}


@pytest.mark.parametrize("start", [40.0, 6.0])
def test_a_reading_that_does_not_follow_the_stage_is_no_signal(bench, laser, start):
    bench.frozen = True  # a reflection that stays as it is wherever the stage goes
    verdict = bench.focus(laser, start)
    assert verdict.status is Status.NO_SIGNAL
    assert verdict.target == {}


def test_a_plane_beyond_the_limits_is_at_limit_and_never_left(bench):
    verdict = bench.focus(Laser(LaserSettings(offset_um=9.0)), 4.0, low=-20.0, high=6.0)
    assert verdict.status is Status.AT_LIMIT
    assert verdict.target["z"] <= 6.0


def test_a_surface_beyond_the_limits_is_not_approached(bench, laser):
    bench.surface = 60.0
    verdict = bench.focus(laser, 5.0, low=-20.0, high=20.0)
    assert verdict.status is Status.AT_LIMIT
    assert verdict.target == {}
    assert "beyond the limits" in verdict.reason


def test_long_range_alone_is_coarse_and_short_range_alone_is_lost_far_away(bench):
    coarse = bench.focus(Laser(LaserSettings(steps="long")), -80.0)
    assert coarse.target["z"] == pytest.approx(0.0, abs=2.0)
    near = bench.focus(Laser(LaserSettings(steps="short")), 4.0)
    assert near.target["z"] == pytest.approx(0.0, abs=0.2)


def test_an_image_of_another_size_is_an_error(bench, laser):
    bench.change = lambda image: image[:96, :96]
    with pytest.raises(HardwareError, match="96 x 96"):
        bench.focus(laser, 0.0)


def test_the_objective_must_be_the_models():
    Laser(LaserSettings(objective="simulated-100x"))
    with pytest.raises(SettingsError, match="objective"):
        Laser(LaserSettings(objective="60x"))
    with pytest.raises(SettingsError, match="there is no laser model"):
        Laser(LaserSettings(model="nowhere.json"))


def test_the_monitor_tells_a_model_that_fits_from_one_that_does_not(bench, laser):
    told: list[str] = []
    monitor = DriftMonitor(runs=4, on_drift=told.append)
    for start in (-3.0, 2.0, 5.0, -6.0):
        monitor.add(bench.focus(laser, start).details)
    assert monitor.reason == ""
    for _ in range(8):
        monitor.add({"readings": [{"signal": "good", "strangeness": 0.5}], "step_um": 8.0, "step_error_um": 0.9})
    assert "known steps" in monitor.reason
    assert len(told) == 1
    monitor.reset()
    for _ in range(4):
        monitor.add({"readings": [{"signal": "missing", "strangeness": 0.0}]})
    assert "without a usable reflection" in monitor.reason
    assert len(told) == 2
