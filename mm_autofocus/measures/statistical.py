"""Focus measures from the grey values' variance and autocorrelation.

Each takes a float32 image of shape (height, width).
"""

from __future__ import annotations

import cv2
import numpy as np

from mm_autofocus.measures.spatial import FloatImage


def normalized_variance(image: FloatImage) -> float:
    """Variance over mean, in grey values; 0 when the mean is not positive.

    Groen, Young, Ligthart, Cytometry 6, 81 (1985), F_11.
    """
    mean, sd = cv2.meanStdDev(image)
    return float(sd[0, 0]) ** 2 / float(mean[0, 0]) if mean[0, 0] > 0 else 0.0


def _correlation(a: FloatImage, b: FloatImage) -> float:
    """Mean of the product, summed in double precision a row at a time."""
    return float(np.einsum("ij,ij->i", a, b).sum(dtype=np.float64)) / a.size


def vollath_f4(image: FloatImage) -> float:
    """Autocorrelation at a shift of one pixel minus that of two, along x and y; insensitive to white noise.

    Vollath, J. Microsc. 147, 279 (1987), F_4: mean(I[x] I[x + 1]) - mean(I[x] I[x + 2]), of the image less its mean
    (which cancels but for the rim, and keeps the digits).
    """
    a = _centred(image)
    x = _correlation(a[:, :-1], a[:, 1:]) - _correlation(a[:, :-2], a[:, 2:])
    y = _correlation(a[:-1], a[1:]) - _correlation(a[:-2], a[2:])
    return x + y


def vollath_f5(image: FloatImage) -> float:
    """Autocovariance at a shift of one pixel, mean of x and y; a variance without white noise.

    Vollath, J. Microsc. 151, 133 (1988), F_5: mean(I[x] I[x + 1]) - mean(I)^2.
    """
    a = _centred(image)
    return (_correlation(a[:, :-1], a[:, 1:]) + _correlation(a[:-1], a[1:])) / 2


def _centred(image: FloatImage) -> FloatImage:
    return image - np.float32(cv2.mean(image)[0])
