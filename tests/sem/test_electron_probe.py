import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration
from mm_autofocus.simulation.electron_probe import Probe, ProbeFamily, blurred, otf

SHARP = Probe(convergence_mrad=10.0, core_nm=0.0, family=ProbeFamily.DISC)
PIXEL = 0.01


def spot(z: float, a: float, b: float, probe: Probe = SHARP, side: int = 128, shift=(0.0, 0.0)) -> np.ndarray:
    point = np.zeros((side, side), np.float32)
    point[side // 2, side // 2] = 1.0
    return blurred(point, PIXEL, z, a, b, probe, shift)


def moments(image: np.ndarray) -> tuple[float, float, float]:
    """Variance along x, along y, and covariance, px²."""
    h, w = image.shape
    y, x = np.mgrid[:h, :w] - np.array([h // 2, w // 2])[:, None, None]
    return tuple(float((image * m).sum() / image.sum()) for m in (x * x, y * y, x * y))


def test_defocus_makes_the_geometric_disc():
    image = spot(12.0, 0.0, 0.0)
    radius = 12.0  # α z / pixel = 0.01 * 12 / 0.01
    y, x = np.mgrid[:128, :128] - 64
    r = np.hypot(x, y)
    level = 1.0 / (math.pi * radius**2)
    assert image[r < radius - 3].mean() == pytest.approx(level, rel=0.03)
    assert abs(image[(r > radius + 3) & (r < 40)].mean()) < 0.03 * level
    assert image[r < radius].sum() == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize(
    ("z", "a", "b", "along_x", "along_y", "across"),
    [
        (10, 4, 0, 14, 6, 0),  # over focus: +a widens along x
        (-10, 4, 0, 6, 14, 0),  # under focus: the ellipse turns by 90 degrees
        (10, -4, 0, 6, 14, 0),
        (10, 0, 0, 10, 10, 0),
    ],
)
def test_axes_of_the_ellipse(z, a, b, along_x, along_y, across):
    xx, yy, xy = moments(spot(z, a, b))
    assert 2 * math.sqrt(xx) == pytest.approx(along_x, rel=0.03)
    assert 2 * math.sqrt(yy) == pytest.approx(along_y, rel=0.03)
    assert xy == pytest.approx(across, abs=0.5)


@pytest.mark.parametrize(("z", "sign"), [(10.0, 1), (-10.0, -1)])
def test_diagonal_astigmatism_tilts_the_ellipse_towards_x_and_y_growing_together(z, sign):
    xx, yy, xy = moments(spot(z, 0.0, 4.0))
    assert xx == pytest.approx(yy, rel=0.02)
    assert math.copysign(1, xy) == sign
    assert abs(xy) == pytest.approx(2 * 10 * 4 / 4, rel=0.05)  # covariance of the disc's image is M Mᵀ / 4


def test_core_is_the_width_in_focus():
    xx, yy, _ = moments(spot(0, 0, 0, Probe(core_nm=30.0, family=ProbeFamily.DISC)))
    assert math.sqrt(xx) == pytest.approx(3.0, rel=0.02)
    assert math.sqrt(yy) == pytest.approx(3.0, rel=0.02)


def test_soft_aperture_keeps_the_width_of_the_disc():
    widths = [moments(spot(10, 0, 0, Probe(10.0, 5.0, softness=s)))[0] for s in (0.0, 0.5, 1.0)]
    assert widths == pytest.approx([widths[0]] * 3, rel=0.02)


def test_shift_moves_right_and_down_by_fractions():
    image = spot(4, 0, 0, shift=(5.5, -3.25))
    y, x = np.mgrid[:128, :128] - 64
    assert (image * x).sum() == pytest.approx(5.5, abs=0.05)
    assert (image * y).sum() == pytest.approx(-3.25, abs=0.05)


def test_axes_are_those_of_the_calibration():
    calibration = ColumnCalibration(10.0, 6.0, 20.0)
    z, a, b = calibration.to_blur(Aberration(10.0, 0.5, 0.3), PIXEL)
    xx, yy, xy = moments(spot(10.0, a, b))  # at 10 mrad and 10 nm, µm equal blur pixels
    matrix = np.array([[z + a, b], [b, z - a]])
    expected = matrix @ matrix.T / 4
    assert [xx, yy, xy] == pytest.approx([expected[0, 0], expected[1, 1], expected[0, 1]], rel=0.05)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(list(ProbeFamily)), st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20), st.integers(0, 5)
)
def test_every_family_conserves_current_and_never_amplifies(family, z, a, b, seed):
    transfer = otf((48, 65), PIXEL, z, a, b, Probe(softness=0.4, family=family, seed=seed))
    assert transfer.shape == (48, 33)
    assert transfer.dtype in (np.float32, np.complex64)
    assert transfer[0, 0] == pytest.approx(1.0, abs=1e-4)
    assert np.abs(transfer).max() < 1.03


def test_traced_rays_agree_with_the_formula_where_lens_errors_vanish():
    probe = Probe(8.7, 6.0, family=ProbeFamily.WAVE, voltage_kv=1e6, cs_mm=0.0)
    exact = otf((128, 128), PIXEL, 8.0, 3.0, -2.0, Probe(8.7, 6.0, family=ProbeFamily.DISC))
    assert np.abs(otf((128, 128), PIXEL, 8.0, 3.0, -2.0, probe) - exact).max() < 0.03


def test_polygons_differ_by_seed_stay_centred_and_have_the_width_of_the_disc():
    images = [spot(12, 0, 0, Probe(10.0, 0.0, family=ProbeFamily.POLYGON, seed=s)) for s in (1, 2)]
    assert np.abs(images[0] - images[1]).max() > 0.2 * images[0].max()
    y, x = np.mgrid[:128, :128] - 64
    for image in images:
        assert [(image * x).sum(), (image * y).sum()] == pytest.approx([0, 0], abs=0.1)
        xx, yy, _ = moments(image)
        assert xx + yy == pytest.approx(2 * 12**2 / 4, rel=0.05)


def test_polygon_turns_over_through_focus():
    probe = Probe(10.0, 0.0, family=ProbeFamily.POLYGON, seed=1)
    over, under = spot(12, 0, 0, probe), spot(-12, 0, 0, probe)
    assert np.abs(over[1:, 1:] - under[:0:-1, :0:-1]).max() < 1e-3 * over.max()


def test_spherical_aberration_tells_over_from_under_focus_and_diffraction_limits_resolution():
    probe = Probe(8.7, 1.0, family=ProbeFamily.WAVE, cs_mm=60.0)
    over, under = (otf((128, 128), PIXEL, z, 0, 0, probe) for z in (5.0, -5.0))
    assert np.abs(np.abs(over) - np.abs(under)).max() > 0.1
    fine = otf((128, 128), 0.0005, 0, 0, 0, Probe(8.7, 0.0, family=ProbeFamily.WAVE, cs_mm=0.0))
    assert np.abs(fine[0, -1]) < 1e-3  # 1 nm period lies beyond 2 α / λ = 1 / 1.8 nm


@pytest.mark.parametrize(
    "wrong", [{"convergence_mrad": 0.0}, {"core_nm": -1.0}, {"softness": 1.5}, {"voltage_kv": -1.0}]
)
def test_impossible_probes_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Probe(**wrong)
