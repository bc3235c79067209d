"""Focus measures that filter the image in the plane: gradients and Laplacians.

Each takes a float32 image of shape (height, width) and returns the mean energy per pixel, in squared grey values. All
are of the form mean(|h * I|^2), so white noise of variance s^2 adds s^2 times the sum of the squares of h.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]


def _mean_square_difference(a: FloatImage, b: FloatImage) -> float:
    difference = cv2.subtract(a, b)
    return float(cv2.norm(difference, cv2.NORM_L2SQR)) / difference.size


def _energy(image: cv2.typing.MatLike) -> float:
    return float(cv2.norm(image, cv2.NORM_L2SQR)) / image.size


def brenner(image: FloatImage) -> float:
    """Mean of (I[x + 2] - I[x])^2 + (I[y + 2] - I[y])^2.

    Brenner et al., J. Histochem. Cytochem. 24, 100 (1976), taken along both axes.
    """
    return _mean_square_difference(image[:, 2:], image[:, :-2]) + _mean_square_difference(image[2:], image[:-2])


def squared_gradient(image: FloatImage) -> float:
    """Mean of (I[x + 1] - I[x])^2 + (I[y + 1] - I[y])^2.

    Santos et al., J. Microsc. 188, 264 (1997), without the threshold.
    """
    return _mean_square_difference(image[:, 1:], image[:, :-1]) + _mean_square_difference(image[1:], image[:-1])


def tenengrad(image: FloatImage) -> float:
    """Mean of the squared Sobel gradient, without a threshold.

    Tenenbaum, PhD thesis, Stanford (1970); Krotkov, Int. J. Comput. Vis. 1, 223 (1988).
    """
    return _energy(cv2.Sobel(image, cv2.CV_32F, 1, 0)) + _energy(cv2.Sobel(image, cv2.CV_32F, 0, 1))


def gaussian_tenengrad(image: FloatImage) -> float:
    """Squared gradient of the image smoothed by a Gaussian of SD 1.5 pixels.

    Geusebroek et al., Cytometry 39, 1 (2000): a Gaussian derivative, here with differences of neighbours.
    """
    return squared_gradient(np.asarray(cv2.GaussianBlur(image, (0, 0), 1.5), dtype=np.float32))


def energy_of_laplacian(image: FloatImage) -> float:
    """Mean of the squared Laplacian of the four neighbours.

    Subbarao, Choi, Nikzad, Opt. Eng. 32, 2824 (1993). Chases noise where light is scarce.
    """
    return _energy(cv2.Laplacian(image, cv2.CV_32F))


def laplacian_of_gaussian(image: FloatImage) -> float:
    """Mean of the squared Laplacian of the image smoothed by a Gaussian of SD 1.5 pixels.

    Marr and Hildreth, Proc. R. Soc. B 207, 187 (1980), its energy as a focus measure.
    """
    return energy_of_laplacian(np.asarray(cv2.GaussianBlur(image, (0, 0), 1.5), dtype=np.float32))


def coarse_gradient(image: FloatImage) -> float:
    """Squared gradient of the image binned 4 x 4: a wide curve to be guided by.

    Formula of `squared_gradient` on means of 4 x 4 pixels; a remainder of up to three rows and columns is dropped.
    """
    height, width = image.shape[0] // 4 * 4, image.shape[1] // 4 * 4
    binned = cv2.resize(image[:height, :width], (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    return squared_gradient(np.asarray(binned, dtype=np.float32))
