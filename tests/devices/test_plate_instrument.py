"""The simulated plate microscope as plain Python: mechanics, light, clock, faults, truth."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_autofocus.errors import HardwareError, LimitError
from mm_autofocus_devices.plate import PlateInstrument, PlateOptions, discard_instrument, open_instrument
from mm_autofocus_devices.plate.motion import Axis, AxisSettings

SMALL = {"field_px": 256, "seed": 2, "wells": "24", "debris_well_fraction": 0.0}


@pytest.fixture
def scope():
    return PlateInstrument(PlateOptions(**SMALL))


def go_to(scope, z):
    scope.move_z(max(z - 2.0, scope.z_limits_um[0]))
    scope.z_busy()
    scope.move_z(z)
    scope.z_busy()


# -- stages


@settings(deadline=None, max_examples=100)
@given(targets=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=6))
def test_no_target_takes_z_outside_its_travel(targets):
    scope = PlateInstrument(PlateOptions(**SMALL))
    low, high = scope.z_limits_um
    for target in targets:
        before = scope.z_um
        if low <= target <= high:
            scope.move_z(target)
            scope.z_busy()
            assert scope.z_um == target
        else:
            with pytest.raises(LimitError, match="nothing has moved"):
                scope.move_z(target)
            assert scope.z_um == before


@given(
    moves=st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 0.3)), min_size=1, max_size=8),
    backlash=st.floats(0, 1),
)
def test_the_load_stays_within_backlash_and_lag_of_the_drive(moves, backlash):
    settings = AxisSettings(-50.0, 50.0, speed_um_per_s=1000.0, settle_s=0.01, backlash_um=backlash)
    axis, clock = Axis("z", settings), 0.0
    for target, pause in moves:
        axis.move(target, clock)
        clock += pause
        assert -50.0 - 1e-9 <= axis.actual_um(clock) <= 50.0 + backlash + 1e-9
        settled = max(axis.settled_at(), clock)
        assert -0.021 <= axis.actual_um(settled) - target <= backlash + 0.021
        assert axis.readback_um(settled) == target


def test_xy_limits_cover_the_plate_and_hold_in_both_axes(scope):
    (low_x, high_x), (low_y, high_y) = scope.xy_limits_um
    for name in scope.plate.well_names():
        x, y = scope.plate.well_centre(name)
        assert low_x < x < high_x
        assert low_y < y < high_y
    for bad in ((high_x + 1, 0.0), (0.0, low_y - 1), (math.nan, 0.0), (0.0, math.inf)):
        with pytest.raises(LimitError):
            scope.move_xy(*bad)
        assert scope.xy_um == (0.0, 0.0)


def test_backlash_shows_when_the_direction_reverses(scope):
    scope.shutter_open = True
    go_to(scope, 10.0)
    scope.snap()
    scope.move_z(20.0)
    scope.z_busy()
    scope.move_z(10.0)
    scope.z_busy()
    scope.snap()
    from_below, from_above = scope.exposures
    assert from_below.nominal_z_um == from_above.nominal_z_um == 10.0
    assert from_below.actual_z_um == pytest.approx(10.0, abs=0.03)
    assert from_above.actual_z_um == pytest.approx(10.3, abs=0.03)


def test_an_image_without_waiting_is_taken_on_the_way(scope):
    scope.exposure_ms = 1.0
    scope.move_z(100.0)
    scope.snap()
    scope.move_z(100.0)
    scope.z_busy()
    scope.snap()
    early, late = scope.exposures
    assert early.actual_z_um < 50
    assert late.actual_z_um == pytest.approx(100.0, abs=0.03)


def test_settling_is_exponential():
    settings = AxisSettings(0.0, 100.0, speed_um_per_s=100.0, settle_s=0.5, lag=0.1, lag_max_um=1.0)
    axis = Axis("z", settings)
    axis.move(50.0, 0.0)
    assert axis.readback_um(0.5) == pytest.approx(49.5, abs=0.8)
    for since in (0.0, 0.5, 1.0):
        assert 50.0 - axis.actual_um(0.5 + since) == pytest.approx(math.exp(-since / 0.5), abs=1e-9)


# -- clock


def test_the_clock_advances_by_moves_and_exposures_only(scope):
    assert scope.clock_s == 0
    scope.exposure_ms = 80.0
    scope.snap()
    assert scope.clock_s == pytest.approx(0.08)
    scope.move_xy(10_000.0, 0.0)
    scope.xy_busy()
    assert scope.clock_s > 0.08 + 10_000 / 40_000
    before = scope.clock_s
    scope.advance(3600)
    assert scope.clock_s == pytest.approx(before + 3600)
    with pytest.raises(ValueError, match="Time cannot pass"):
        scope.advance(math.nan)


def test_with_speed_the_clock_follows_real_time():
    scope = PlateInstrument(PlateOptions(**SMALL, speed=1000.0))
    scope.move_z(1.0)
    while scope.z_busy():
        pass
    assert scope.clock_s > 0
    assert scope.z_um == 1.0


def test_focus_drifts_with_the_clock():
    scope = PlateInstrument(PlateOptions(**SMALL, drift_um_per_h=5.0))
    before = scope.true_focus_um(0, 0)
    scope.advance(3600)
    assert scope.true_focus_um(0, 0) - before == pytest.approx(5 + 5 * (1 - math.exp(-1 / 0.75)), abs=2.0)
    assert PlateInstrument(PlateOptions(**SMALL, drift_um_per_h=0.0)).plate.drift_at(1e5) == 0


# -- light


def test_dark_and_without_dose_until_the_shutter_opens(scope):
    go_to(scope, scope.true_focus_um())
    dark = scope.snap()
    scope.shutter_open = True
    lit = scope.snap()
    assert dark.mean() == pytest.approx(100, abs=0.5)
    assert lit.mean() > dark.mean() + 50
    assert [e.light_ms for e in scope.exposures] == [0.0, 50.0]


def test_bleaching_dims_a_field_that_is_seen_often_and_only_that(scope):
    scope.shutter_open = True
    scope.channel = "FITC"
    go_to(scope, scope.true_focus_um())
    first = scope.snap().std()
    scope.exposure_ms = 10_000.0
    for _ in range(4):
        scope.snap()
    scope.exposure_ms = 50.0
    last = scope.snap().std()
    assert last < 0.6 * first
    scope.move_xy(3000.0, 0.0)
    scope.xy_busy()
    scope.move_xy(0.0, 0.0)
    scope.xy_busy()
    assert scope.snap().std() == pytest.approx(last, rel=0.05)


def test_bleaching_needs_light(scope):
    scope.exposure_ms = 10_000.0
    for _ in range(10):
        scope.snap()
    scope.exposure_ms, scope.shutter_open = 50.0, True
    fresh = PlateInstrument(PlateOptions(**SMALL))
    fresh.shutter_open = True
    for each in (scope, fresh):
        go_to(each, each.true_focus_um())
    assert scope.snap().std() == pytest.approx(fresh.snap().std(), rel=0.05)


# -- camera


@pytest.mark.parametrize(("binning", "side"), [(1, 256), (2, 128), (4, 64)])
def test_binning_sums_the_light(scope, binning, side):
    scope.shutter_open = True
    scope.exposure_ms = 10.0  # nothing saturates when 16 pixels are summed
    go_to(scope, scope.true_focus_um())
    reference = scope.snap().mean() - 100
    scope.binning = binning
    image = scope.snap()
    assert image.shape == (side, side)
    assert image.mean() - 100 == pytest.approx(reference * binning**2, rel=0.02)


def test_roi_is_a_part_of_the_image(scope):
    scope.shutter_open = True
    go_to(scope, scope.true_focus_um())
    whole = scope.snap().astype(float)
    row, column = np.unravel_index(whole.argmax(), whole.shape)
    x, y = int(np.clip(column - 25, 0, 206)), int(np.clip(row - 30, 0, 196))  # around the brightest cell
    scope.roi = (x, y, 50, 60)
    part = scope.snap().astype(float)
    assert part.shape == (60, 50)
    assert np.corrcoef(part.ravel(), whole[y : y + 60, x : x + 50].ravel())[0, 1] > 0.9
    scope.binning = 2
    assert scope.roi == (0, 0, 128, 128)


@pytest.mark.parametrize(
    ("name", "value"),
    [("binning", 3), ("roi", (0, 0, 257, 10)), ("roi", (-1, 0, 5, 5)), ("exposure_ms", 0.0), ("exposure_ms", math.nan),
     ("channel", "Cy5"), ("speed", -1.0), ("speed", math.nan)],
)  # fmt: skip
def test_wrong_settings_are_refused_and_nothing_changes(scope, name, value):
    before = getattr(scope, name)
    with pytest.raises(ValueError, match=name if name in ("binning", "speed") else r"\d|channel"):
        setattr(scope, name, value)
    assert getattr(scope, name) == before


def test_runs_repeat_with_the_same_seed():
    def run(seed):
        scope = PlateInstrument(PlateOptions(**{**SMALL, "seed": seed}))
        scope.shutter_open = True
        scope.move_xy(*scope.plate.well_centre("B3"))
        scope.xy_busy()
        go_to(scope, scope.true_focus_um())
        return scope.snap()

    assert np.array_equal(run(7), run(7))
    assert not np.array_equal(run(7), run(8))


# -- truth


def test_the_exposure_log_holds_the_truth():
    scope = PlateInstrument(PlateOptions(**{**SMALL, "blank_wells": ("A2",)}))
    scope.shutter_open = True
    for well in ("A1", "A2"):
        scope.move_xy(*scope.plate.well_centre(well))
        scope.xy_busy()
        go_to(scope, scope.true_focus_um() + 3.0)
        scope.snap()
    assert [e.blank for e in scope.exposures] == [False, True]
    assert [e.defocus_um for e in scope.exposures] == pytest.approx([3.0, 3.0], abs=0.05)
    assert isinstance(scope.exposures, tuple)


def test_best_image_is_where_the_truth_says():
    scope = PlateInstrument(PlateOptions(**{**SMALL, "field_px": 256}))
    scope.shutter_open = True
    truth = scope.true_focus_um()
    scores = {}
    for offset in np.arange(-4, 4.1, 0.5):
        go_to(scope, truth + offset)
        image = scope.snap().astype(float)
        scores[offset] = np.var(image[2:] - image[:-2])
    assert abs(max(scores, key=scores.get)) <= scope.depth_of_field_um("DAPI") / 2


# -- faults


def test_camera_faults(scope):
    scope.fail_next_snaps(2)
    for _ in range(2):
        with pytest.raises(HardwareError, match="no image"):
            scope.snap()
    scope.snap()
    scope.fail_snaps_forever()
    for _ in range(5):
        with pytest.raises(HardwareError):
            scope.snap()
    scope.clear_faults()
    scope.snap()
    assert len(scope.exposures) == 2


def test_stage_faults(scope):
    scope.freeze_stage()
    scope.move_z(5.0)
    scope.move_xy(5.0, 5.0)
    assert (scope.z_um, scope.xy_um) == (0.0, (0.0, 0.0))
    scope.clear_faults()
    scope.stage_error()
    for move in (lambda: scope.move_z(5.0), lambda: scope.move_xy(5.0, 5.0)):
        with pytest.raises(HardwareError, match="clear_faults"):
            move()
    scope.clear_faults()
    scope.move_z(5.0)
    scope.z_busy()
    assert scope.z_um == 5.0


# -- registry


def test_instruments_are_found_by_name_and_configured_until_used():
    try:
        one = open_instrument("registry-test", seed=3, field_px=128)
        assert open_instrument("registry-test") is one
        assert open_instrument("registry-test", seed=4) is one
        assert one.options.seed == 4
        one.snap()
        assert open_instrument("registry-test", seed=4) is one
        with pytest.raises(ValueError, match="already in use with other values of seed"):
            open_instrument("registry-test", seed=5)
        with pytest.raises(ValueError, match="Unknown plate options"):
            open_instrument("registry-test", sede=5)
        discard_instrument("registry-test")
        assert open_instrument("registry-test") is not one
    finally:
        discard_instrument("registry-test")


def test_threads_share_the_instrument(scope):
    scope.shutter_open = True
    failures = []

    def work():
        try:
            for i in range(10):
                scope.move_z(float(i))
                scope.z_busy()
                scope.snap()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(scope.exposures) == 30
    assert np.all(np.diff([e.clock_s for e in scope.exposures]) > 0)
