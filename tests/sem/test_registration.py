"""Registration finds what was put in, below a pixel, and never more than it was allowed to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from mm_autofocus.estimators.registration import aligned, block_mean, register
from mm_autofocus.simulation.electron_probe import Probe, blurred

SHIFTS = st.floats(-12.0, 12.0)


def texture(shape: tuple[int, int], seed: int) -> np.ndarray:
    """A cloud with structure at every scale."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    f[0, 0] = 1.0
    cloud = fft.irfft2(fft.rfft2(rng.standard_normal(shape)) / f, shape)
    return (0.5 + 0.12 * cloud / cloud.std()).astype(np.float32)


def pair(shape: tuple[int, int], dx: float, dy: float, seed: int, z: float = 3.0, noise: float = 0.05):
    probe = Probe(8.7, 6.0)
    rng = np.random.default_rng(seed + 1)
    specimen = texture((shape[0] + 64, shape[1] + 64), seed)
    frames = []
    for um, shift in ((z - 5.0, (0.0, 0.0)), (z + 5.0, (dx, dy))):
        clean = blurred(specimen, 0.01, um, 2.0, -3.0, probe, shift)[32:-32, 32:-32]
        frames.append(clean + noise * rng.standard_normal(shape).astype(np.float32))
    return frames


@settings(max_examples=12, deadline=None)
@given(dx=SHIFTS, dy=SHIFTS, seed=st.integers(0, 50))
def test_finds_the_shift_of_frames_that_are_blurred_differently(dx: float, dy: float, seed: int) -> None:
    under, over = pair((300, 341), dx, dy, seed)
    found = register(under, over, 20)
    assert found == pytest.approx((dx, dy), abs=1.0)


@pytest.mark.parametrize("shape", [(256, 256), (257, 331), (768, 1024)])
def test_sharp_frames_are_registered_to_a_fraction_of_a_pixel(shape: tuple[int, int]) -> None:
    big = texture((shape[0] + 40, shape[1] + 40), 3)
    under, over = big[20:-20, 20:-20], big[15:-25, 27:-13]  # moved by +5 rows and -7 columns
    assert register(under, over, 16) == pytest.approx((-7.0, 5.0), abs=0.35)


def test_alignment_cuts_what_is_shared() -> None:
    big = texture((400, 420), 4)
    under, over = big[20:320, 20:340], big[15:315, 27:347]
    one, two, left = aligned(under, over, (-7.2, 5.3))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (295, 313)
    assert left == pytest.approx((-0.2, 0.3))
    assert one.dtype == np.float32


@pytest.mark.parametrize(("dx", "dy"), [(30.0, 0.0), (0.0, -40.0)])
def test_stays_within_the_reach(dx: float, dy: float) -> None:
    under, over = pair((300, 300), dx, dy, 1)
    x, y = register(under, over, 10)
    assert abs(x) <= 11
    assert abs(y) <= 11


def test_constant_frames_have_the_expected_shift() -> None:
    flat = np.full((256, 300), 17, np.uint8)
    assert register(flat, flat, 10) == (0.0, 0.0)
    assert register(flat, flat, 10, (3.0, -2.0)) == (3.0, -2.0)


def test_the_sign_is_that_of_the_probe() -> None:
    # electron_probe: a positive shift moves the picture to the right and down
    under, over = pair((320, 320), 9.0, -4.0, 7, noise=0.0)
    x, y = register(under, over, 16)
    assert x > 7
    assert y < -2


def test_blocks_are_means() -> None:
    image = np.arange(5 * 7, dtype=np.float32).reshape(5, 7)
    np.testing.assert_allclose(block_mean(image, 2), image[:4, :6].reshape(2, 2, 3, 2).mean((1, 3)))
    assert block_mean(image, 1) is image
