"""The paper's readout: MobileNetV2 on the spot's image at 96 x 96 pixels (Lightley et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import SettingsError
from mm_autofocus.readouts.reading import Array, Images

SIDE = 96
_BATCH = 128


def prepare(images: Images) -> NDArray[np.float32]:
    """Rescale images to 96 x 96 by area, and divide each by its Euclidean norm.

    The norm is then multiplied by 96, so that a pixel is about 1 whatever the size; the paper's text leaves that open.

    Parameters
    ----------
    images
        Shape (images, height, width).

    Returns
    -------
    ndarray
        Shape (images, 96, 96).
    """
    return normalise(np.stack([rescale(image) for image in images]))


def rescale(image: Images) -> NDArray[np.float32]:
    """Return one image at 96 x 96 pixels."""
    small = cv2.resize(image.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.float32)


def normalise(small: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide 96 x 96 images by their norm; see `prepare`."""
    norms = np.linalg.norm(small.reshape(len(small), -1), axis=1)
    scaled: NDArray[np.float32] = (small * (SIDE / np.maximum(norms, 1e-6))[:, None, None]).astype(np.float32)
    return scaled


class PaperReadout:
    """Reads defocus with MobileNetV2. It needs torch.

    Parameters
    ----------
    weights
        The network's state by name, ``centre`` and ``half_range`` (µm) of the training targets, ``sigma`` (µm).
    range_um
        Half of the range.
    shape
        (height, width) of the images.
    """

    def __init__(self, weights: Mapping[str, NDArray[np.generic]], range_um: float, shape: tuple[int, int]) -> None:
        self.weights = dict(weights)
        self.range_um = float(range_um)
        self.shape = shape
        self._centre = float(np.ravel(weights["centre"])[0])
        self._half = float(np.ravel(weights["half_range"])[0])
        self._sigma = float(np.ravel(weights["sigma"])[0])

    @cached_property
    def _net(self) -> Any:
        try:
            import torch

            from mm_autofocus.networks.mobilenet_v2 import MobileNetV2
        except ImportError:
            raise SettingsError(
                "the paper's readout needs torch; install mm-autofocus[train], or use a 'profile' model"
            ) from None
        net = MobileNetV2()
        own = net.state_dict()
        state = {}
        for name, tensor in own.items():
            array = torch.from_numpy(np.ascontiguousarray(self.weights[name]))
            state[name] = array.to(tensor.dtype).reshape(tensor.shape)
        net.load_state_dict(state)
        return net.eval()

    def predict(self, images: Images) -> tuple[Array, Array]:
        """Return defocus, and the validation error for all alike, µm, each of shape (images,)."""
        return self.predict_prepared(prepare(images))

    def predict_prepared(self, small: NDArray[np.float32]) -> tuple[Array, Array]:
        """Like `predict`, from what `prepare` returned."""
        import torch

        starts = range(0, len(small), _BATCH)
        with torch.inference_mode():
            parts = [self._net(torch.from_numpy(small[i : i + _BATCH])[:, None]).numpy() for i in starts]
        defocus = np.concatenate(parts).astype(np.float64) * self._half + self._centre
        return defocus, np.full(len(defocus), self._sigma)

    def examine(self, images: Images) -> tuple[Array, Array, Array]:
        """Return defocus, expected error, and zeros: the paper's readout cannot tell a foreign reflection."""
        return *self.predict(images), np.zeros(len(images))
