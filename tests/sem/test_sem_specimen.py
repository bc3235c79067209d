import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_autofocus.simulation.sem_specimen import Specimen, SpecimenKind

KINDS = list(SpecimenKind)
SIDE = 96


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_picture_with_detail_at_the_pixel(kind):
    view = Specimen(kind, 1).view(11.52, -6.4, 0.01, (SIDE, 2 * SIDE))
    assert view.shape == (SIDE, 2 * SIDE)
    assert view.dtype == np.float32
    assert view.min() >= 0
    assert view.max() <= 1
    assert view.std() > 0.03
    # In focus neighbouring pixels differ: what makes a difference of focus visible.
    assert np.abs(np.diff(view, axis=1)).mean() > 0.004


@pytest.mark.parametrize("kind", KINDS)
def test_the_stage_moves_the_picture(kind):
    specimen = Specimen(kind, 2)
    before = specimen.view(3.84, 6.4, 0.01, (SIDE, SIDE))
    after = specimen.view(4.04, 6.3, 0.01, (SIDE, SIDE))
    np.testing.assert_allclose(after[10:, :-20], before[:-10, 20:], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pixel_um", [0.01, 0.08])
def test_tiles_join_without_a_seam(kind, pixel_um):
    middle = 256 * pixel_um  # a corner of four tiles
    view = Specimen(kind, 6).view(middle, middle, pixel_um, (256, 256))
    for axis in (0, 1):
        steps = np.abs(np.diff(view, axis=axis)).mean(axis=1 - axis)
        assert steps[126:129].max() < 1.6 * np.sort(steps)[-20:].mean()
        assert steps[127] < np.median(steps) + 4 * np.std(steps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quarter_turn_of_the_scan_turns_the_picture_back(kind):
    specimen = Specimen(kind, 3)
    straight = specimen.view(3.84, 6.4, 0.01, (95, 95))
    turned = specimen.view(3.84, 6.4, 0.01, (95, 95), rotation_deg=90.0)
    np.testing.assert_allclose(turned, np.rot90(straight), atol=1e-3)


def test_turning_by_an_angle_keeps_the_centre_and_points_x_along_the_angle():
    specimen = Specimen("tin", 4)
    straight = specimen.view(3.84, 6.4, 0.01, (201, 201))
    turned = specimen.view(3.84, 6.4, 0.01, (201, 201), rotation_deg=30.0)
    along = np.arange(-80, 81, 20)
    rows = np.round(100 + along * np.sin(np.radians(30))).astype(int)
    columns = np.round(100 + along * np.cos(np.radians(30))).astype(int)
    assert correlation(turned[100, 100 + along], straight[rows, columns]) > 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pixel_um", [0.02, 0.16])
def test_a_coarser_pixel_shows_the_mean_of_finer_ones(kind, pixel_um):
    specimen = Specimen(kind, 5)
    coarse = specimen.view(9.0, 1.0, pixel_um, (64, 64))
    fine = specimen.view(9.0 - pixel_um / 4, 1.0 - pixel_um / 4, pixel_um / 2, (128, 128))
    mean = fine.reshape(64, 2, 64, 2).mean(axis=(1, 3))
    assert correlation(coarse, mean) > 0.75
    assert coarse.mean() == pytest.approx(mean.mean(), abs=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_make_other_specimens_and_kinds_differ(kind):
    one, two = (Specimen(kind, seed).view(1.28, 1.28, 0.01, (SIDE, SIDE)) for seed in (1, 2))
    assert abs(correlation(one, two)) < 0.5
    np.testing.assert_array_equal(one, Specimen(kind, 1).view(1.28, 1.28, 0.01, (SIDE, SIDE)))


@settings(max_examples=10, deadline=None)
@given(st.floats(-2e4, 2e4), st.floats(-2e4, 2e4), st.floats(0.001, 1.0), st.floats(-400, 400))
def test_any_place_pixel_and_angle_can_be_viewed(x, y, pixel, angle):
    view = Specimen("grid", 1).view(x, y, pixel, (24, 32), angle)
    assert view.shape == (24, 32)
    assert np.isfinite(view).all()


@pytest.mark.parametrize("pixel", [0.0, 1e-4, 9.0, float("nan")])
def test_pixels_beyond_the_specimen_are_refused(pixel):
    with pytest.raises(ValueError, match="pixel_um"):
        Specimen("tin", 1).view(0, 0, pixel, (8, 8))


@pytest.mark.parametrize(("seed", "blank", "name"), [(-1, 0.0, "seed"), (1, 0.9, "blank_fraction")])
def test_impossible_specimens_are_refused(seed, blank, name):
    with pytest.raises(ValueError, match=name):
        Specimen("tissue", seed, blank)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_blood_vessels_cover_the_share_that_was_asked_for(share):
    covered = [Specimen("tissue", seed, share).blank_map(0, 0, 2.0, (150, 150)).mean() for seed in range(3)]
    assert np.mean(covered) == pytest.approx(share, rel=0.25)


def test_blank_places_are_empty_and_others_are_tissue():
    specimen = Specimen("tissue", 1, 0.4)
    blank = specimen.blank_map(0, 0, 0.2, (256, 256))
    inside = np.argwhere(blank & np.roll(blank, 12, 0) & np.roll(blank, -12, 0) & np.roll(blank, 12, 1))[0]
    outside = np.argwhere(~(blank | np.roll(blank, 15, 0) | np.roll(blank, -15, 0) | np.roll(blank, 15, 1)))[0]
    (y_in, x_in), (y_out, x_out) = (0.2 * (place - 128) for place in (inside, outside))
    assert specimen.blank(x_in, y_in)
    assert not specimen.blank(x_out, y_out)
    empty, full = (specimen.view(x, y, 0.01, (SIDE, SIDE)) for x, y in ((x_in, y_in), (x_out, y_out)))
    assert np.median(np.abs(np.diff(empty))) < 0.2 * np.median(np.abs(np.diff(full)))


def test_height_is_smooth_tilted_and_zero_at_the_origin():
    specimen = Specimen("tissue", 1, tilt_deg=1.0, bumps_um=0.0)
    assert specimen.height_um(0, 0) == pytest.approx(0)
    rise = np.hypot(specimen.height_um(1000, 0), specimen.height_um(0, 1000))
    assert rise == pytest.approx(1000 * np.tan(np.radians(1.0)))
    bumpy = Specimen("tissue", 1, tilt_deg=0.0, bumps_um=2.0)
    heights = [bumpy.height_um(x, y) for x in range(0, 8000, 97) for y in range(0, 8000, 971)]
    assert np.std(heights) == pytest.approx(2.0, rel=0.25)


def test_unseen_kinds_differ_in_spectrum_from_those_for_training():
    def slope(kind: str) -> float:
        power = 0
        for seed in range(2):
            view = Specimen(kind, seed).view(41.28, 1.28, 0.01, (240, 240))
            window = np.hanning(240)[:, None] * np.hanning(240)
            power = power + np.abs(np.fft.fft2((view - view.mean()) * window)) ** 2
        k = np.hypot(np.fft.fftfreq(240)[:, None], np.fft.fftfreq(240))
        bands = [power[(k > low) & (k < 2 * low)].mean() for low in (0.02, 0.04, 0.08, 0.16)]
        return float(np.polyfit(np.arange(4), np.log2(bands), 1)[0])

    slopes = {kind: slope(kind) for kind in SpecimenKind}
    seen = [slopes[kind] for kind in ("tissue", "tin", "grid", "particles")]
    assert slopes["wing"] < min(seen)
    assert slopes["fibres"] < min(seen)
