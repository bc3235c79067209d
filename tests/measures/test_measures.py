from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mm_autofocus.measures import MEASURES, get_measure, measure_focus, noise_sd, prepared

SCALING = {  # how the score of a * image depends on a
    "normalized_variance": 1,
    "dct_entropy": 0,
}


def texture(blur: float = 0.0, size: int = 96, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = 1000 + 4000 * rng.random((size, size)) ** 8
    return cv2.GaussianBlur(image, (0, 0), blur) if blur else image


def images(kinds: str = "B") -> st.SearchStrategy[np.ndarray]:
    sides = st.integers(32, 40)
    dtype = {"B": np.uint8, "H": np.uint16}[kinds]
    return st.tuples(sides, sides).flatmap(lambda shape: hnp.arrays(dtype, shape))


@pytest.mark.parametrize("name", MEASURES)
def test_the_sharpest_of_a_blurred_series_scores_highest(name: str) -> None:
    blurs = [8.0, 5.0, 3.0, 2.0, 1.0, 2.0, 3.0, 5.0, 8.0]
    scores = [MEASURES[name](texture(blur)) for blur in blurs]
    assert int(np.argmax(scores)) == 4
    assert scores[:5] == sorted(scores[:5])


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("value", [0, 1, 1000, 65535])
def test_a_flat_image_scores_zero(name: str, value: int) -> None:
    flat = np.full((64, 48), value, np.uint16)
    assert MEASURES[name](flat) == pytest.approx(0.0, abs=1e-4 + 1e-9 * value**2)
    log, sd = MEASURES[name].log_score(flat)
    assert np.isfinite([log, sd]).all()


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=12, deadline=None)
@given(image=images())
def test_the_type_of_the_pixels_does_not_matter(name: str, image: np.ndarray) -> None:
    measure = MEASURES[name]
    expected = measure(image)
    for dtype in (np.uint16, np.int32, np.float32, np.float64):
        assert measure(image.astype(dtype)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=12, deadline=None)
@given(image=images(), factor=st.sampled_from([0.5, 2.0, 10.0]))
def test_gain_scales_the_score_by_a_known_power(name: str, image: np.ndarray, factor: float) -> None:
    measure = MEASURES[name]
    expected = measure(image) * factor ** SCALING.get(name, 2)
    assert measure(image * factor) == pytest.approx(expected, rel=1e-3, abs=1e-2)


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in SCALING])
@settings(max_examples=12, deadline=None)
@given(image=images(), offset=st.sampled_from([10.0, 100.0]))
def test_an_offset_changes_nothing_but_rounding(name: str, image: np.ndarray, offset: float) -> None:
    measure = MEASURES[name]
    assert measure(image + offset) == pytest.approx(measure(image), rel=1e-3, abs=0.1)


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=12, deadline=None)
@given(image=images("H"))
def test_mirrored_images_score_alike(name: str, image: np.ndarray) -> None:
    if name == "dct_entropy":
        pytest.skip("even coefficients only")
    even = image[: image.shape[0] // 4 * 4, : image.shape[1] // 4 * 4]
    measure = MEASURES[name]
    assert measure(even[::-1, ::-1]) == pytest.approx(measure(even), rel=1e-3, abs=1e-2)


BAD = [
    ("colour", np.zeros((64, 64, 3), np.uint8), "grey image"),
    ("stack", np.zeros((5, 64, 64), np.uint8), "two dimensions"),
    ("row", np.zeros(64, np.uint8), "two dimensions"),
    ("tiny", np.zeros((1, 1), np.uint8), "at least"),
    ("NaN", np.full((64, 64), np.nan), "finite"),
    ("infinite", np.full((64, 64), np.inf), "finite"),
    ("complex", np.zeros((64, 64), complex), "integer or floating"),
]


@pytest.mark.parametrize(("case", "image", "message"), BAD, ids=[case for case, *_ in BAD])
@pytest.mark.parametrize("name", MEASURES)
def test_an_image_that_cannot_be_measured_says_why(name: str, case: str, image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MEASURES[name](image)


def test_an_unknown_measure_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="brenner"):
        get_measure("sharpness")


CROPS = [(1.0, 1, (100, 80)), (0.5, 1, (50, 40)), (1.0, 3, (33, 26)), (0.5, 4, (12, 10)), (0.001, 1, (1, 1))]


@pytest.mark.parametrize(("crop", "downsample", "shape"), CROPS)
def test_the_centre_is_cut_and_binned(crop: float, downsample: int, shape: tuple[int, int]) -> None:
    assert prepared(np.zeros((100, 80), np.uint16), crop, downsample).shape == shape


@pytest.mark.parametrize(("crop", "downsample"), [(0.0, 1), (1.5, 1), (1.0, 0), (0.1, 50), (float("nan"), 1)])
def test_options_out_of_range_are_refused(crop: float, downsample: int) -> None:
    with pytest.raises(ValueError, match=r"crop|downsample"):
        prepared(np.zeros((100, 80)), crop, downsample)


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.noise_gain is not None])
def test_the_noise_floor_and_its_scatter_are_as_predicted(name: str) -> None:
    rng = np.random.default_rng(1)
    measure = MEASURES[name]
    noise = [rng.normal(100, 3, (128, 128)) for _ in range(80)]
    scores = np.array([measure(image) for image in noise])
    assert scores.mean() == pytest.approx(measure.noise_floor(3.0), rel=0.03)
    assert scores.std() / scores.mean() == pytest.approx(measure.log_score(noise[0])[1], rel=0.3)
    assert measure_focus(noise[0], name, subtract_noise=True) < 0.2 * scores.mean()


def test_the_noise_is_estimated_beside_a_specimen() -> None:
    rng = np.random.default_rng(2)
    image = cv2.GaussianBlur(texture(size=256), (0, 0), 4) + rng.normal(0, 20, (256, 256))
    assert noise_sd(image) == pytest.approx(20, rel=0.1)
    assert noise_sd(np.zeros((64, 64), np.uint8)) == pytest.approx(12**-0.5)
