"""The laser spot obeys optics, and its drift families are reproducible and different."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mm_autofocus.readouts.features import projections
from mm_autofocus.simulation.laser_day import Family, instrument, make_day
from mm_autofocus.simulation.laser_spot import LaserOptics, LaserSpot, LaserState, Shot

STEADY = Shot(power_noise=0.0, z_noise_um=0.0, coverslip_tilt_mrad=0.0)
IDEAL = LaserState(
    axis_offset_um=0.0, tilt_short=0.0, tilt_long=0.0, decentre_short=0.0, decentre_long=0.0, rotation_deg=0.0,
    spherical=0.0, coma_short=0.0, coma_long=0.0, ghost=0.0, stray=0.0, speckle=0.0,
)  # fmt: skip


def profiles(state: LaserState, z: np.ndarray, peak: float = 0.5) -> np.ndarray:
    """Projections without background, of unit sum."""
    spot = LaserSpot(LaserOptics(peak=peak, full_well=4e7, bits=16, read_noise=0.0), seed=1)
    p = projections(spot.images(z, state, np.random.default_rng(0), STEADY))
    p = p - p.min(axis=-1, keepdims=True)
    return p / p.sum(-1, keepdims=True)


def test_the_slit_has_two_confocal_parameters_about_one_to_nine():
    z = np.linspace(-60, 60, 121)
    peaks = profiles(IDEAL, z).max(-1)
    lengths = []
    for axis in (0, 1):
        high = z[peaks[:, axis] >= peaks[:, axis].max() / np.sqrt(2)]
        lengths.append(np.ptp(high))
    short, long = lengths
    assert 4 <= short <= 9
    assert 45 <= long <= 65
    assert 6 <= long / short <= 12


def test_an_odd_pupil_phase_alone_cannot_tell_above_from_below():
    coma = replace(IDEAL, coma_short=0.2, coma_long=0.1)
    above, below = profiles(coma, np.array([4.0, -4.0]))
    assert np.abs(above - below).max() < 0.02 * above.max()


@pytest.mark.parametrize(
    ("broken", "z"),
    [({"axis_offset_um": 3.0}, 40.0), ({"spherical": 0.12}, 4.0), ({"decentre_short": 0.06, "tilt_short": 0.03}, 4.0)],
    ids=["astigmatism", "spherical", "decentred and tilted"],
)
def test_what_does_tell_above_from_below(broken, z):
    above, below = profiles(replace(IDEAL, **broken), np.array([z, -z]))
    assert (np.abs(above - below).max(-1) / above.max(-1)).max() > 0.05


def test_the_camera_saturates_at_focus_and_is_dark_without_laser(spot):
    rng = np.random.default_rng(0)
    bright = spot.images(0.0, LaserState(power=3.0), rng)[0]
    dark = spot.images(0.0, LaserState(), rng, Shot(laser_on=False))[0]
    gone = spot.images(0.0, LaserState(), rng, Shot(reflection=0.0))[0]
    assert bright.max() == 4095
    assert bright.dtype == np.uint16
    assert bright.shape == (192, 192)
    assert max(dark.max(), gone.max()) < 80


def test_same_seed_same_images(spot):
    first, second = (spot.images([1.0, -1.0], LaserState(), np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("family", list(Family))
def test_a_day_begins_in_the_morning_drifts_and_repeats(family):
    day = make_day(instrument(3), 12, family)
    assert day.state(0.0) == day.morning
    assert day.state(2.0) == make_day(instrument(3), 12, family).state(2.0)
    assert 0.01 < abs(day.state(2.0).shift_short_um - day.morning.shift_short_um) < 2.0
    with pytest.raises(ValueError, match="hours"):
        day.state(-1.0)


def test_the_families_differ_and_have_the_same_size():
    for name in ("axis_offset_um", "shift_long_um", "spherical"):
        spread = {
            family: np.std([getattr(make_day(instrument(3), i, family).morning, name) for i in range(200)])
            for family in Family
        }
        assert 0.6 < spread[Family.HELD_OUT] / spread[Family.TRAINING] < 1.6
    days = [make_day(instrument(3), i, Family.HELD_OUT).morning for i in range(200)]
    shifts = np.array([[d.shift_short_um, d.axis_offset_um] for d in days])
    assert abs(np.corrcoef(shifts.T)[0, 1]) > 0.1  # a common temperature; independent in the training family
