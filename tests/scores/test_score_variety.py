"""Variety of training pictures: it leaves the blur alone, repeats by its seed, and keeps within what images can be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mm_autofocus.estimators.focus_score import DISPLAY_UM, LARGEST_PIXEL_UM, SMALLEST_PIXEL_UM
from mm_autofocus.training.abstract_textures import abstract_picture, abstract_views
from mm_autofocus.training.score_data import VIEW, ScoreSampler
from mm_autofocus.training.score_variety import PLAIN, Variety

LIMITS = (SMALLEST_PIXEL_UM, LARGEST_PIXEL_UM)
ALWAYS = Variety(any=1.0, mixed=1.0, retold=1.0, toned=1.0, inverted=1.0, masked=1.0, tinted=1.0)


@pytest.fixture(scope="module")
def views():
    return abstract_views(3, 7)


def edge(picture):
    """Return the share of the sharpest step of a picture in its whole range: falls with blur, not with contrast."""
    return float(np.abs(np.diff(picture, axis=1)).max() / np.ptp(picture))


@pytest.mark.parametrize("seed", range(4))
def test_abstract_pictures_are_sharp_full_and_repeat(seed):
    picture = abstract_picture(np.random.default_rng(seed), (240, 320))
    assert picture.shape == (240, 320)
    assert picture.dtype == np.float32
    assert 0.0 <= picture.min() < picture.max() <= 1.0
    assert picture.std() > 0.03
    assert edge(picture) > 0.2
    assert np.array_equal(picture, abstract_picture(np.random.default_rng(seed), (240, 320)))
    assert not np.array_equal(picture, abstract_picture(np.random.default_rng(seed + 100), (240, 320)))


def test_abstract_views_cover_the_magnifications(views):
    told = [view.magnification for view in abstract_views(6, 0)]
    assert told == sorted(told)
    assert told[0] < 1200
    assert told[-1] > 12_000
    assert all(view.image.shape == VIEW and LIMITS[0] / 2 < view.pixel_um < LIMITS[1] for view in views)


@pytest.mark.parametrize("seed", range(6))
def test_a_varied_picture_is_still_one_and_as_sharp(seed):
    rng = np.random.default_rng(seed)
    one, other = (abstract_picture(rng, (120, 160)) for _ in range(2))
    made = ALWAYS.varied(rng, one, other)
    assert made.shape == one.shape
    assert made.dtype == np.float32
    assert made.min() >= 0.0
    assert made.max() <= 1.0
    assert edge(made) > 0.4 * min(edge(one), edge(other))


def test_a_pixel_that_is_told_stays_within_what_scores_are_for():
    rng = np.random.default_rng(0)
    told = np.array([ALWAYS.pixel_um(rng, 0.1, LIMITS) for _ in range(300)])
    assert told.min() > 0.1 * ALWAYS.finer * 0.999
    assert told.max() < 0.1 * ALWAYS.coarser * 1.001
    assert np.std(np.log(told)) > 0.2
    assert ALWAYS.pixel_um(rng, LIMITS[0], LIMITS) >= LIMITS[0]
    assert Variety(retold=0.0).pixel_um(rng, 0.1, LIMITS) == 0.1


def test_plain_specimens_are_what_they_were(views):
    plain = [image.image for image in ScoreSampler(views, 3).samples(4)]
    same = [image.image for image in ScoreSampler(views, 3, variety=PLAIN).samples(4)]
    varied = [image.image for image in ScoreSampler(views, 3, variety=ALWAYS).samples(4)]
    assert all(np.array_equal(a, b) for a, b in zip(plain, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(plain, varied, strict=True))


def test_the_label_is_that_of_the_pixel_that_was_told(views):
    for image in ScoreSampler(views, 5, empty=0.0, variety=ALWAYS).samples(10):
        assert LIMITS[0] <= image.pixel_um <= LIMITS[1]
        assert 0.0 <= image.score <= 10.0
        assert math.isfinite(image.defocus_um)
        width_um = 320 * image.magnification * image.pixel_um
        assert width_um in (pytest.approx(DISPLAY_UM), pytest.approx(DISPLAY_UM / 2))
