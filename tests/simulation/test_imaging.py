"""Specimen and optics together: what focusing relies on, and what may mislead it."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_laplace

from mm_autofocus.simulation.imaging import CHANNELS, Imager
from mm_autofocus.simulation.optics import Optics
from mm_autofocus.simulation.plate import Plate
from mm_autofocus.simulation.specimen import Specimen, SpecimenSettings

OPTICS = Optics()


def imager(kind="fluorescence", seed=3, blank_wells=(), optics=OPTICS, field_px=256, **more):
    settings = SpecimenSettings(kind=kind, seed=seed, **{"debris_well_fraction": 0.0, **more})
    return Imager(optics, Specimen(settings, Plate(blank_wells=blank_wells), optics.pixel_um), field_px)


def sharpness(image):
    return float(gaussian_laplace(image, 1.0).var() / image.mean() ** 2)


def through_focus(scope, channel, x, y, z):
    return np.array([sharpness(scope.light(CHANNELS[channel], x, y, d)) for d in z])


@pytest.mark.parametrize(
    ("kind", "channel"),
    [("fluorescence", "DAPI"), ("fluorescence", "FITC"), ("beads", "DAPI"), ("stained", "Brightfield")],
)
@pytest.mark.parametrize("place", [(0.0, 0.0), (9800.0, -17_300.0), (700.0, 1000.0)])
def test_sharpest_within_the_depth_of_field_of_the_truth(kind, channel, place):
    z = np.arange(-6, 6.01, 0.2)
    curve = through_focus(imager(kind, field_px=512), channel, *place, z)
    assert abs(z[curve.argmax()]) <= OPTICS.depth_of_field_um(CHANNELS[channel].wavelength_um) / 2
    assert curve.max() > 10 * max(curve[0], curve[-1])


def test_unstained_cells_vanish_in_focus_and_invert_contrast():
    scope = imager()
    z = np.arange(-3, 3.1, 0.25)
    curve = through_focus(scope, "Brightfield", 0, 0, z)
    assert curve[np.abs(z) < 0.7].min() < 0.4 * min(curve[z < -0.7].max(), curve[z > 0.7].max())
    images = [scope.light(CHANNELS["Brightfield"], 0, 0, d) for d in (-1.5, 1.5)]
    smooth = [gaussian_laplace(i, 1.5).ravel() for i in images]
    assert np.corrcoef(*smooth)[0, 1] < -0.3


@pytest.mark.parametrize("channel", ["DAPI", "Brightfield"])
def test_images_at_equal_distance_above_and_below_differ(channel):
    scope = imager("stained")
    above, below = (scope.light(CHANNELS[channel], 0, 0, d) for d in (3.0, -3.0))
    assert np.abs(above - below).max() > 0.1 * np.ptp(above)


def test_haze_far_from_focus():
    scope = imager()
    channel = CHANNELS["DAPI"]
    near, far = scope.light(channel, 0, 0, 0.0), scope.light(channel, 0, 0, 120.0)
    assert np.ptp(far) < 0.25 * far.mean()
    assert np.ptp(near) > 2 * near.mean()
    assert far.min() > channel.background_per_s  # the light is spread out, not lost


def test_the_same_place_shows_the_same_cells():
    x, y = 9000.0, -9000.0
    first = imager().light(CHANNELS["FITC"], x, y, 0.0)
    scope = imager()
    for elsewhere in range(12):  # more fields than are kept
        scope.light(CHANNELS["DAPI"], 300.0 * elsewhere, 0.0, 0.0)
    assert np.array_equal(first, scope.light(CHANNELS["FITC"], x, y, 0.0))
    assert not np.allclose(first, imager(seed=4).light(CHANNELS["FITC"], x, y, 0.0), rtol=0.05)


def test_a_shift_of_the_stage_shifts_the_image():
    scope = imager()
    flat = Imager(OPTICS, scope.specimen, 256, vignetting=0.0)
    dx = 20 * OPTICS.pixel_um
    here, there = (flat.light(CHANNELS["DAPI"], x, 100.0, 0.0) for x in (50.0, 50.0 + dx))
    assert np.allclose(here[:, 20:], there[:, :-20], rtol=1e-3, atol=here.max() * 1e-3)
    half = flat.light(CHANNELS["DAPI"], 50.0 + OPTICS.pixel_um / 2, 100.0, 0.0)
    between = (here[:, 1:] + here[:, :-1]) / 2
    assert np.abs(half[:, :-1] - between).mean() < 0.02 * np.ptp(here)


def test_channels_show_the_same_cells():
    scope = imager(field_px=512)
    nuclei, body = (scope.light(CHANNELS[c], 0, 0, 4.0) for c in ("DAPI", "FITC"))
    assert np.corrcoef(nuclei.ravel(), body.ravel())[0, 1] > 0.4


def test_blank_wells_are_flat_at_every_defocus():
    scope = imager(blank_wells=("A1",))
    assert scope.is_blank(0.0, 0.0)
    assert not scope.is_blank(9000.0, 0.0)
    for channel in CHANNELS.values():
        images = [scope.light(channel, 0.0, 0.0, d) for d in (-5.0, 0.0, 5.0)]
        assert np.ptp(np.array(images), axis=0).max() < 1e-3 * images[0].mean()


def test_empty_squares_are_as_common_as_asked():
    scope = imager(empty_field_fraction=0.3)
    centres = [(150.0 + 300 * i, 150.0 + 300 * j) for i in range(-8, 8) for j in range(-8, 8)]
    share = np.mean([scope.is_blank(x, y) for x, y in centres])
    assert 0.2 < share < 0.4


def test_debris_makes_a_second_false_focus():
    scope = imager(field_px=512, debris_well_fraction=1.0, debris_height_um=(10.0, 12.0))
    height = scope.specimen.debris_height_um(0.0, 0.0)
    z = np.arange(-4, 18.01, 0.5)
    best = 0.0
    for place in ((0.0, 0.0), (300.0, 500.0), (-800.0, 200.0)):
        curve = through_focus(scope, "DAPI", *place, z)
        near = curve[np.abs(z - height) < 1].max()
        best = max(best, near / curve[np.abs(z - height / 2) < 1].min())
        assert curve[np.abs(z) < 1].max() > 1.5 * curve[np.abs(z - height / 2) < 1].min()
    assert best > 1.5


def test_bleached_stain_is_dimmer_but_the_background_stays():
    scope, channel = imager(), CHANNELS["DAPI"]
    full, half, none = (scope.light(channel, 0, 0, 0.0, left) for left in (1.0, 0.5, 0.0))
    assert half == pytest.approx((full + none) / 2, rel=1e-4)
    assert none.max() == pytest.approx(channel.background_per_s, rel=1e-3)


def test_another_family_of_optics_gives_other_images():
    images = {
        f: imager(optics=Optics(family=f)).light(CHANNELS["DAPI"], 0, 0, 2.0)
        for f in ("scalar", "gaussian", "astigmatic")
    }
    assert np.abs(images["scalar"] - images["gaussian"]).max() > 0.05 * np.ptp(images["scalar"])
    assert np.abs(images["scalar"] - images["astigmatic"]).max() > 0.05 * np.ptp(images["scalar"])


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "worms"}, {"empty_field_fraction": 1.5}, {"debris_well_fraction": -0.1}, {"cell_spacing_um": 1.0}],
)
def test_impossible_specimens_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SpecimenSettings(**wrong)
