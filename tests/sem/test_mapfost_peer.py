"""The peer MAPFoSt behind our call: signs, units, calibration, and clear errors."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from mm_autofocus.errors import HardwareError, SettingsError
from mm_autofocus.estimators import Aberration, ColumnCalibration

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]
PIXEL_UM, STEP_UM = 0.01, 10.0
CALIBRATION = ColumnCalibration(convergence_mrad=8.7, stigmator_um=6.0, stigmator_rotation_deg=7.0)


@pytest.fixture(scope="module")
def specimen() -> NDArray[np.float64]:
    """Blobs of many sizes, (512, 640), no noise."""
    shape = (512, 640)
    k = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    noise = np.fft.rfft2(np.random.default_rng(0).normal(size=shape))
    grey = np.fft.irfft2(noise / (k + 0.02), s=shape)
    return np.asarray(grey > 0.5 * grey.std(), dtype=float)


@pytest.fixture(scope="module")
def pair(specimen: NDArray[np.float64]) -> Callable[..., Pair]:
    """Make a noise-free pair of an aberration with the disc's transfer function, written from the formula here."""

    def make(truth: Aberration, shift: tuple[float, float] = (0.0, 0.0)) -> Pair:
        ky = 2 * np.pi * np.fft.fftfreq(specimen.shape[0])[:, None]
        kx = 2 * np.pi * np.fft.rfftfreq(specimen.shape[1])[None]
        scale = CALIBRATION.blur_per_um(PIXEL_UM)
        z, a, b = CALIBRATION.to_blur(truth, PIXEL_UM)
        images = []
        for step, (dx, dy) in ((-STEP_UM / 2, (0.0, 0.0)), (STEP_UM / 2, shift)):
            f = z + scale * step
            q = np.maximum(np.hypot((f + a) * kx + b * ky, b * kx + (f - a) * ky), 1e-9)
            transfer = 2 * special.j1(q) / q * np.exp(-1j * (kx * dx + ky * dy))
            images.append(60 + 120 * np.fft.irfft2(np.fft.rfft2(specimen) * transfer, s=specimen.shape))
        return images[0], images[1]

    return make


@pytest.mark.parametrize(
    "truth",
    [
        Aberration(3.0), Aberration(-3.0), Aberration(2.0, 0.3, 0.0), Aberration(-2.0, -0.3, 0.0),
        Aberration(2.0, 0.0, 0.3), Aberration(-2.0, 0.2, -0.3),
    ],
)  # fmt: skip
def test_a_pair_without_noise_gives_the_aberration_with_its_sign(pair: Callable[..., Pair], truth: Aberration) -> None:
    pytest.importorskip("mapfost")
    from mm_autofocus.benchmark.mapfost_peer import MapfostEstimator

    under, over = pair(truth, shift=(7.0, -3.0))
    found = MapfostEstimator(patches=(1, 1)).estimate(under, over, STEP_UM, PIXEL_UM, CALIBRATION)
    assert found.aberration.vector() == pytest.approx(truth.vector(), abs=0.25, rel=0.12)


def test_a_calibration_that_is_too_low_makes_the_answer_too_large(pair: Callable[..., Pair]) -> None:
    pytest.importorskip("mapfost")
    from mm_autofocus.benchmark.mapfost_peer import MapfostEstimator

    under, over = pair(Aberration(4.0))
    estimator = MapfostEstimator(patches=(1, 1))
    right, low = (
        estimator.estimate(under, over, STEP_UM, PIXEL_UM, CALIBRATION.scaled(convergence=f)).aberration.defocus_um
        for f in (1.0, 0.8)
    )
    assert low > 1.15 * right


def test_the_lent_bessel_function_changes_nothing_and_is_given_back(pair: Callable[..., Pair]) -> None:
    mapfost = pytest.importorskip("mapfost.mapfost")
    from mm_autofocus.benchmark.mapfost_peer import MapfostEstimator

    under, over = (image[:160, :160] for image in pair(Aberration(2.0, 0.1, 0.0)))
    lent, own = (
        MapfostEstimator(patches=(1, 1), fast_bessel=fast).estimate(under, over, STEP_UM, PIXEL_UM, CALIBRATION)
        for fast in (True, False)
    )
    assert lent.aberration.vector() == pytest.approx(own.aberration.vector(), abs=1e-3)
    assert mapfost.mtl.special is special


def test_patches_say_how_far_they_agree(pair: Callable[..., Pair]) -> None:
    pytest.importorskip("mapfost")
    from mm_autofocus.benchmark.mapfost_peer import MapfostEstimator

    under, over = pair(Aberration(2.0))
    found = MapfostEstimator(patch_px=256, patches=(2, 2)).estimate(under, over, STEP_UM, PIXEL_UM, CALIBRATION)
    assert len(found.patches) == 4
    assert sum(p.weight for p in found.patches) == pytest.approx(1.0)
    assert {(p.x, p.y) for p in found.patches} == {(0, 0), (384, 0), (0, 256), (384, 256)}
    assert 0 < found.sigma.defocus_um < 0.5


@pytest.mark.parametrize(
    ("under", "over", "word"),
    [
        (np.zeros((256, 256)), np.zeros((256, 200)), "alike"),
        (np.zeros((64, 256)), np.zeros((64, 256)), "too small"),
        (np.full((256, 256), np.nan), np.zeros((256, 256)), "NaN"),
    ],
)
def test_frames_that_cannot_be_used_are_refused(under: Pair, over: Pair, word: str) -> None:
    pytest.importorskip("mapfost")
    from mm_autofocus.benchmark.mapfost_peer import MapfostEstimator

    with pytest.raises(HardwareError, match=word):
        MapfostEstimator().estimate(np.asarray(under), np.asarray(over), STEP_UM, PIXEL_UM, CALIBRATION)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from mm_autofocus.benchmark.mapfost_peer import MapfostEstimator

    monkeypatch.setitem(sys.modules, "mapfost", None)
    monkeypatch.setitem(sys.modules, "mapfost.mapfost", None)
    with pytest.raises(SettingsError, match=r"mm-autofocus\[bench\]"):
        MapfostEstimator()
