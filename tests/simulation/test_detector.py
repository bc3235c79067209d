"""Camera noise has the statistics of photons; bleaching counts light per place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_autofocus.simulation.detector import Bleaching, Detector


@pytest.mark.parametrize("photons", [0.0, 0.5, 5.0, 11.9, 12.1, 30.0, 80.0, 2000.0])
@pytest.mark.parametrize("summed", [1, 4])
def test_mean_and_variance_of_shot_and_read_noise(photons, summed):
    detector = Detector(offset_counts=1000, read_noise_electrons=1.6, gain_counts_per_electron=4.0)
    rng = np.random.default_rng(1)
    counts = detector.read(np.full((400, 400), photons, np.float32), rng, pixels_summed=summed).astype(float)
    variance = 16 * (photons + summed * 1.6**2) + 1 / 12
    assert counts.mean() == pytest.approx(1000 + 4 * photons, abs=5 * np.sqrt(variance / counts.size))
    assert counts.var() == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("photons", [5.0, 12.5, 40.0])
def test_noise_is_skewed_like_poisson(photons):
    detector = Detector(offset_counts=1000, read_noise_electrons=0.0, gain_counts_per_electron=10.0)
    counts = detector.read(np.full((600, 600), photons, np.float32), np.random.default_rng(2)).astype(float)
    third = np.mean((counts - counts.mean()) ** 3) / counts.std() ** 3
    assert third == pytest.approx(photons**-0.5, abs=0.03)


def test_saturation_and_no_negative_wrap():
    rng = np.random.default_rng(0)
    assert Detector().read(np.full((8, 8), 1e6, np.float32), rng).min() == 65535
    assert Detector(bits=12).read(np.full((8, 8), 1e6, np.float32), rng).max() == 4095
    dark = Detector(offset_counts=0.0, read_noise_electrons=5.0).read(np.zeros((64, 64), np.float32), rng)
    assert dark.dtype == np.uint16
    assert dark.max() < 200


def test_bleaching_stays_where_the_light_was():
    bleaching = Bleaching()
    bleaching.expose("DAPI", 0.0, 0.0, 166.4, 1000.0)
    here = bleaching.remaining("DAPI", 0.0, 0.0, 166.4, 1000.0)
    half = bleaching.remaining("DAPI", 83.2, 0.0, 166.4, 1000.0)
    assert here == pytest.approx(np.exp(-1))
    assert here < half < 1
    assert bleaching.remaining("DAPI", 400.0, 0.0, 166.4, 1000.0) == 1
    assert bleaching.remaining("FITC", 0.0, 0.0, 166.4, 1000.0) == 1


@given(st.lists(st.floats(0, 500), max_size=20))
def test_bleaching_depends_on_the_sum_of_the_light(doses):
    bleaching = Bleaching()
    for dose in doses:
        bleaching.expose("c", 10.0, -20.0, 100.0, dose)
    assert bleaching.remaining("c", 10.0, -20.0, 100.0, 700.0) == pytest.approx(np.exp(-sum(doses) / 700))
