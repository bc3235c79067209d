"""A trained network that reads a wobble, kept as a card (JSON) and weights (safetensors)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mm_autofocus.errors import HardwareError, SettingsError
from mm_autofocus.networks.aperture_cnn import VARIANTS, ApertureCNN
from mm_autofocus.strategy import Image

Array = NDArray[np.float64]

_RANGE = 1000.0


class ApertureModel:
    """A network with what is needed to use it.

    Parameters
    ----------
    net
        The network.
    variant
        Its name in the table of variants.
    px, frames
        Edge and number of the images that it takes.
    sigma
        Standard deviation of one axis of its answer, steps, as tested.
    about
        How it was trained: for people.
    """

    OFFSET: ClassVar[float] = 0.5
    """Positions are labelled shift / 1000 + 0.5, so that an output by ReLU or sigmoid can be any of them."""

    def __init__(
        self,
        net: ApertureCNN,
        variant: str,
        px: int,
        frames: int,
        sigma: float = 20.0,
        about: dict[str, Any] | None = None,
    ) -> None:
        self._net = net
        self.variant, self.px, self.frames = variant, px, frames
        self.sigma = sigma
        self.about = about or {}

    @property
    def covariance(self) -> Array:
        """Of one answer, shape (2, 2), steps squared."""
        return self.sigma**2 * np.eye(2)

    def offset(self, frames: Sequence[Image]) -> Array:
        """Return the aperture's shift from aligned, steps, shape (2,), from the images of one wobble.

        Raises
        ------
        HardwareError
            When their number is not that of the training.
        """
        if len(frames) != self.frames:
            raise HardwareError(f"the aperture network takes {self.frames} images of a wobble, not {len(frames)}")
        return np.asarray(self.shifts(prepared(frames, self.px)[None])[0])

    def shifts(self, small: NDArray[np.float32]) -> Array:
        """Return shifts in steps, shape (series, 2), for prepared images of shape (series, frames, px, px)."""
        self._net.eval()
        device = next(self._net.parameters()).device  # of a GPU while it trains there
        split = np.array_split(small, -(-len(small) // 64))
        with torch.inference_mode():
            parts = [self._net(torch.from_numpy(part).to(device)).cpu().numpy() for part in split]
        return np.asarray((np.concatenate(parts).astype(float) - self.OFFSET) * _RANGE)

    # ------------------------------------------------------------------ files
    def save(self, path: str | Path) -> Path:
        """Write the card (.json) and, beside it, the weights (.safetensors); return the card's path."""
        card = Path(path).with_suffix(".json")
        weights = card.with_suffix(".safetensors")
        save_file({name: value.contiguous() for name, value in self._net.state_dict().items()}, weights)
        content = {
            "readout": "aperture_cnn", "variant": self.variant, "px": self.px, "frames": self.frames,
            "sigma_steps": round(self.sigma, 3), "weights": weights.name, "about": self.about,
        }  # fmt: skip
        card.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return card

    @classmethod
    def load(cls, path: str | Path) -> ApertureModel:
        """Read what `save` wrote.

        Raises
        ------
        SettingsError
            When a file is absent, or does not fit.
        """
        card = Path(path)
        try:
            content = json.loads(card.read_text(encoding="utf-8"))
            if content["variant"] not in VARIANTS:
                raise ValueError(f"unknown variant {content['variant']!r}")
            net = ApertureCNN(content["variant"], int(content["px"]), int(content["frames"]))
            net.load_state_dict(load_file(card.with_name(content["weights"])))
            return cls(
                net, content["variant"], int(content["px"]), int(content["frames"]), float(content["sigma_steps"]),
                content.get("about"),
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise SettingsError(
                f"the aperture model {card} cannot be used: {error}; train one with `mm-autofocus train tem`"
            ) from error


def prepared(frames: Sequence[Image], px: int) -> NDArray[np.float32]:
    """Return the images of one wobble as a network takes them: shape (frames, px, px), in [0, 1].

    8-bit images are divided by 255, others by their series' 99.9th percentile.

    Raises
    ------
    HardwareError
        When they are no grey images of one size, or hold NaN.
    """
    import cv2

    shapes = {np.asarray(frame).shape for frame in frames}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise HardwareError(f"a wobble's images must be grey and of one size, not {sorted(shapes)}")
    stack = np.stack([np.asarray(frame) for frame in frames])
    top = 255.0 if stack.dtype == np.uint8 else max(float(np.percentile(stack.astype(np.float64), 99.9)), 1e-9)
    data = stack.astype(np.float32) / np.float32(top)
    if not np.isfinite(data).all():
        raise HardwareError("the frames hold NaN or infinite values; check the camera")
    small = [cv2.resize(image, (px, px), interpolation=cv2.INTER_AREA) for image in np.clip(data, 0.0, 1.0)]
    return np.stack(small).astype(np.float32)
