"""The plate: its height spans what was asked for, repeats, and drifts as the formula says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_autofocus.simulation.plate import PLATE_FORMATS, Drift, Plate


def heights(plate):
    half = plate.format.well_um * 0.35
    return np.array([
        plate.height_at(x + dx, y + dy)
        for x, y in map(plate.well_centre, plate.well_names())
        for dx, dy in ((0, 0), (half, half), (half, -half), (-half, half), (-half, -half))
    ])  # fmt: skip


@pytest.mark.parametrize("wells", ["6", "24", "96"])
@pytest.mark.parametrize("span", [0.0, 40.0, 250.0])
def test_height_span_and_middle(wells, span):
    z = heights(Plate(wells, span, height_um=12.0, seed=5))
    assert np.ptp(z) == pytest.approx(span, abs=1e-6)
    assert (z.max() + z.min()) / 2 == pytest.approx(12.0, abs=1e-6)


def test_a_seed_repeats_and_another_differs():
    a, b, c = (heights(Plate("24", 100.0, seed=s)) for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert np.abs(a - c).max() > 5


def test_wells_step_and_are_rough_inside():
    plate = Plate("96", 100.0, seed=3)
    x, y = plate.well_centre("D6")
    within = np.array([plate.height_at(x + d, y) for d in np.linspace(-2500, 2500, 101)])
    straight = np.polyval(np.polyfit(np.arange(101), within, 2), np.arange(101))
    assert 0.05 < np.abs(within - straight).max() < 3.0
    assert np.abs(np.diff(within)).max() < 0.5  # a step of 50 µm changes focus by less than the depth of field


@given(row=st.integers(0, 7), column=st.integers(0, 11))
def test_well_names_and_places_agree(row, column):
    plate = Plate("96")
    name = f"{'ABCDEFGH'[row]}{column + 1}"
    x, y = plate.well_centre(name)
    assert (x, y) == (column * 9000, -row * 9000)
    assert plate.well_at(x + 3000, y) == name
    assert plate.well_at(x + 4500, y) is None


def test_plate_matches_useq():
    useq = pytest.importorskip("useq")
    plate = Plate("96")
    for position in useq.WellPlatePlan(plate="96-well", a1_center_xy=(0, 0)).all_well_positions:
        assert plate.well_centre(position.name) == pytest.approx((position.x, position.y))


@pytest.mark.parametrize("name", ["I1", "A13", "A0", "", "7", "AA1", "A-1", "A²"])
def test_unknown_wells_are_named(name):
    with pytest.raises(ValueError, match="A1 to H12"):
        Plate("96", blank_wells=(name,))


def test_blank_wells_hold_nothing():
    plate = Plate("96", blank_wells=("b2",))
    assert not plate.holds_specimen(*plate.well_centre("B2"))
    assert plate.holds_specimen(*plate.well_centre("B3"))
    assert not plate.holds_specimen(4500.0, 0.0)


@pytest.mark.parametrize("wrong", [{"wells": "95"}, {"height_span_um": -1.0}, {"height_span_um": float("nan")}])
def test_impossible_plates_are_refused(wrong):
    with pytest.raises(ValueError, match=r"plate|height_span_um"):
        Plate(**wrong)


def test_drift_is_linear_plus_warm_up():
    plate = Plate(drift=Drift(rate_um_per_h=3.0, warmup_um=4.0, warmup_h=0.5))
    assert plate.drift_at(0) == 0
    assert plate.drift_at(3600) == pytest.approx(3 + 4 * (1 - np.exp(-2)))
    assert plate.focus_um(0, 0, 36_000) - plate.focus_um(0, 0) == pytest.approx(30 + 4, abs=1e-6)


def test_random_walk_grows_with_the_root_of_time():
    walks = [Plate("6", drift=Drift(walk_um_per_sqrt_h=2.0), seed=s) for s in range(150)]
    after = {h: np.std([w.drift_at(3600 * h) for w in walks]) for h in (1, 4)}
    assert after[1] == pytest.approx(2.0, rel=0.25)
    assert after[4] == pytest.approx(4.0, rel=0.25)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 86_400), min_size=2, max_size=6))
def test_drift_does_not_depend_on_when_it_is_asked(times):
    forth, back = (Plate("6", drift=Drift.of_rate(5.0), seed=9) for _ in range(2))
    expected = {t: forth.drift_at(t) for t in times}
    assert all(back.drift_at(t) == expected[t] for t in reversed(times))


@pytest.mark.parametrize("when", [-1.0, float("nan"), float("inf")])
def test_drift_refuses_impossible_times(when):
    with pytest.raises(ValueError, match="time 0"):
        Plate().drift_at(when)


def test_every_format_has_its_wells():
    wells = {name: f.rows * f.columns for name, f in PLATE_FORMATS.items()}
    assert wells == {"6": 6, "24": 24, "96": 96, "384": 384, "1536": 1536}
    assert Plate("1536").well_names()[-1] == "AF48"
    assert Plate("1536").well_centre("AB3") == (2 * 2250.0, -27 * 2250.0)
