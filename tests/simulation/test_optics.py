"""The blur: sharpest at focus, unlike above and below it, conserving light, and haze far away."""

import numpy as np
import pytest
from scipy.special import j1

from mm_autofocus.simulation.optics import (
    BrightfieldTransfer,
    FrequencyGrid,
    Optics,
    best_focus_shift_um,
    fluorescence_transfer,
)

DAPI, FITC, GREEN = 0.46, 0.52, 0.55


def band(transfer, z, low=0.2, high=1.5):
    """Mean squared transfer between two frequencies, over directions."""
    inside = (transfer.frequency > low) & (transfer.frequency < high)
    return float((transfer.profile(z)[:, inside] ** 2).mean())


@pytest.mark.parametrize(
    ("optics", "wavelength", "expected"),
    [
        (Optics(), DAPI, 0.46 / 0.5625 + 0.325 / 0.75),
        (Optics(), FITC, 0.52 / 0.5625 + 0.325 / 0.75),
        (Optics(na=0.3, condenser_na=0.2), 0.5, 0.5 / 0.09 + 0.325 / 0.3),
        (Optics(na=1.2, immersion_index=1.33, pixel_um=0.1), 0.5, 1.33 * 0.5 / 1.44 + 1.33 * 0.1 / 1.2),
    ],
)
def test_depth_of_field_is_the_published_formula(optics, wavelength, expected):
    assert optics.depth_of_field_um(wavelength) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("family", ["scalar", "gaussian", "astigmatic"])
def test_sharpest_in_focus_and_duller_away_from_it(family):
    transfer = fluorescence_transfer(Optics(family=family), DAPI)
    z = np.arange(-8, 8.01, 0.1)
    sharpness = np.array([band(transfer, d) for d in z])
    assert abs(z[sharpness.argmax()]) <= 0.2
    assert sharpness[np.abs(z).argmin()] > 4 * max(sharpness[np.abs(z - 3).argmin()], sharpness[np.abs(z + 3).argmin()])


def test_blur_differs_above_and_below_focus_unless_the_optics_are_perfect():
    def asymmetry(optics):
        transfer = fluorescence_transfer(optics, DAPI)
        return max(float(np.abs(transfer.profile(z) - transfer.profile(-z)).max()) for z in (1.0, 2.0, 4.0))

    perfect = Optics(coverslip_error_um=0.0, sample_depth_um=0.0)
    assert asymmetry(Optics()) > 0.1
    assert asymmetry(perfect) < 1e-6
    assert asymmetry(Optics(family="gaussian")) < 1e-6


def test_more_mismatch_means_more_aberration():
    rho = np.linspace(0, 1, 101)
    small, large = (np.ptp(Optics(sample_depth_um=d, coverslip_error_um=0).aberration_um(rho)) for d in (5, 50))
    assert large == pytest.approx(10 * small)
    assert large > 0.05


def test_in_focus_without_aberration_the_otf_is_that_of_a_round_pupil():
    optics = Optics(na=0.2, condenser_na=0.1, coverslip_error_um=0.0, sample_depth_um=0.0)  # paraxial
    transfer = fluorescence_transfer(optics, DAPI)
    s = np.clip(transfer.frequency / (2 * optics.na / DAPI), 0, 1)
    theory = 2 / np.pi * (np.arccos(s) - s * np.sqrt(1 - s**2))
    assert np.abs(transfer.profile(0.0)[0] - theory).max() < 0.01


def test_far_from_focus_the_otf_is_that_of_a_disc():
    optics = Optics(na=0.2, condenser_na=0.1, coverslip_error_um=0.0, sample_depth_um=0.0)
    transfer = fluorescence_transfer(optics, DAPI)
    z = 120.0
    x = 2 * np.pi * transfer.frequency[1:80] * z * np.tan(np.arcsin(0.2))  # Stokseth (1969), geometric limit
    assert np.abs(transfer.profile(z)[0, 1:80] - 2 * j1(x) / x).max() < 0.05


@pytest.mark.parametrize("family", ["scalar", "vectorial", "gaussian", "astigmatic"])
def test_defocus_conserves_light_and_ends_in_haze(family):
    transfer = fluorescence_transfer(Optics(family=family), DAPI)
    for z in (-1000.0, -30.0, 0.0, 2.0, 150.0, 1000.0):
        profile = transfer.profile(z)
        assert profile[:, 0] == pytest.approx(1.0, abs=1e-4)
        assert np.abs(profile).max() <= 1.001
    assert np.abs(transfer.profile(150.0)[:, transfer.frequency > 0.05]).max() < 0.02


def test_the_families_are_different_physics():
    profiles = {f: fluorescence_transfer(Optics(family=f), DAPI).profile(1.0).mean(axis=0) for f in
                ("scalar", "vectorial", "gaussian", "astigmatic")}  # fmt: skip
    for a in profiles:
        for b in profiles:
            assert a == b or np.abs(profiles[a] - profiles[b]).max() > 0.01


def test_astigmatism_blurs_x_and_y_on_opposite_sides_of_focus():
    optics = Optics(family="astigmatic", coverslip_error_um=0.0, sample_depth_um=0.0)
    grid, transfer = FrequencyGrid(64, optics), fluorescence_transfer(optics, DAPI)
    below, above = grid.expand(transfer.profile(-1.0)), grid.expand(transfer.profile(1.0))
    assert below[0, 10] > above[0, 10] + 0.05
    assert above[10, 0] > below[10, 0] + 0.05


def test_brightfield_inverts_the_contrast_of_a_phase_object_but_not_of_an_absorbing_one():
    optics = Optics(coverslip_error_um=0.0, sample_depth_um=0.0)
    at = round(0.25 / 0.00125)
    phase = BrightfieldTransfer(optics, GREEN, 0.0, 0.1)
    above, below = phase.profile(3.0)[0, at], phase.profile(-3.0)[0, at]
    assert above * below < 0
    assert abs(above) > 0.03
    assert abs(phase.profile(0.0)[0, at]) < 0.005
    absorbing = BrightfieldTransfer(optics, GREEN, 0.1, 0.0)
    assert absorbing.profile(0.0)[0, at] == pytest.approx(-0.2, abs=0.01)
    assert absorbing.profile(3.0)[0, at] < 0 > absorbing.profile(-3.0)[0, at]


def test_brightfield_passes_nothing_beyond_the_two_apertures():
    optics = Optics(na=0.3, condenser_na=0.1)
    transfer = BrightfieldTransfer(optics, GREEN, 0.1, 0.1)
    assert not transfer.profile(2.0)[0, transfer.frequency > 0.4 / GREEN + 0.01].any()


def test_best_focus_moves_with_the_aberration():
    assert abs(best_focus_shift_um(Optics(coverslip_error_um=0.0, sample_depth_um=0.0), DAPI)) < 0.03
    assert abs(best_focus_shift_um(Optics(coverslip_error_um=30.0), DAPI)) > 0.03


@pytest.mark.parametrize(
    "wrong",
    [{"na": 1.2}, {"na": 0.0}, {"na": float("nan")}, {"pixel_um": 0.0}, {"condenser_na": 0.9}, {"family": "ray"}],
)
def test_impossible_optics_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Optics(**wrong)
