"""A laser model on disk: a card (JSON) and the arrays of a long-range and a short-range readout (safetensors)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mm_autofocus.errors import SettingsError
from mm_autofocus.readouts.reading import (
    Image,
    Reading,
    Readout,
    Signal,
    SignalLimits,
    check_shape,
    inspect,
)

SHIPPED = Path(__file__).parents[1] / "weights" / "laser.json"
Arrays = dict[str, NDArray[np.generic]]


class Card(BaseModel):
    """What a model is, and what it was trained on.

    Attributes
    ----------
    readout
        "profile" (ours), "paper" (MobileNetV2) or "lookup".
    objective
        Name of the objective; a model serves no other one.
    shape, bits, exposure_ms
        Of the laser camera's images.
    long_um, short_um
        Half ranges; None when there is no such readout.
    trained_on, command, measured
        For people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    readout: Literal["profile", "paper", "lookup"] = "profile"
    objective: str
    shape: tuple[int, int]
    bits: int = Field(default=12, ge=8, le=16)
    exposure_ms: float = Field(default=1.0, gt=0)
    long_um: float | None = Field(default=None, gt=0)
    short_um: float | None = Field(default=None, gt=0)
    trained_on: str = ""
    command: str = ""
    measured: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class LaserModel:
    """A long-range and a short-range readout that belong together; one of them may be missing.

    Attributes
    ----------
    card
        What it is.
    long, short
        The readouts.
    """

    card: Card
    long: Readout | None
    short: Readout | None

    @property
    def coarse(self) -> Readout:
        """The readout with the longest range."""
        readout = self.long or self.short
        assert readout is not None
        return readout

    @property
    def fine(self) -> Readout:
        """The most precise readout."""
        readout = self.short or self.long
        assert readout is not None
        return readout

    def read(self, image: Image, limits: SignalLimits | None = None) -> Reading:
        """Read one image with the most precise readout that reaches.

        Raises
        ------
        HardwareError
            When the image is not of the size that the model was trained on.
        """
        check_shape(image, self.card.shape)
        signal = inspect(image, limits or SignalLimits(bits=self.card.bits))
        if signal is not Signal.GOOD:
            return Reading(float("nan"), float("inf"), signal)
        examine = _examiner(image)
        reading = examine(self.coarse)
        if self.fine is not self.coarse and abs(reading.defocus_um) < self.fine.range_um:
            near = examine(self.fine)
            if near.good and abs(near.defocus_um) <= self.fine.range_um:
                return near
        return reading

    def recalibrated(self, images: NDArray[np.generic], defocus_um: NDArray[np.float64]) -> LaserModel:
        """Return the model with today's correction from a few frames of known defocus; no training run.

        Parameters
        ----------
        images
            Shape (frames, height, width); ten frames at ±1.5, ±5, ±10, ±30 and ±75 µm serve both ranges.
        defocus_um
            Their defocus.

        Raises
        ------
        SettingsError
            When the model has another readout than "profile", or too few frames lie within a range.
        """
        from mm_autofocus.readouts.profile import ProfileReadout

        for readout in (self.long, self.short):
            if readout is not None and not isinstance(readout, ProfileReadout):
                raise SettingsError(
                    f"a {self.card.readout!r} model cannot be recalibrated from a few frames; train it on, or use a "
                    "'profile' model"
                )
        long, short = (
            r.recalibrated(images, defocus_um) if isinstance(r, ProfileReadout) else None
            for r in (self.long, self.short)
        )
        return LaserModel(self.card, long, short)

    def save(self, path: Path) -> Path:
        """Write the card to ``path`` (.json) and the arrays beside it; return the path.

        Raises
        ------
        SettingsError
            When the readouts cannot be written.
        """
        from safetensors.numpy import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        for kind, readout in (("long", self.long), ("short", self.short)):
            if readout is not None:
                arrays = {k: np.ascontiguousarray(v, dtype=np.float32) for k, v in _arrays(readout).items()}
                save_file(arrays, _beside(path, kind))
        path.write_text(self.card.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return path


def load_model(path: str | Path = "", *, objective: str = "") -> LaserModel:
    """Load a model; the one that comes with mm-autofocus when ``path`` is empty.

    Parameters
    ----------
    path
        The model's card (.json).
    objective
        Name of the objective in use; empty to accept any.

    Raises
    ------
    SettingsError
        When a file is missing or cannot be used, or the model belongs to another objective.
    """
    path = Path(path).expanduser() if str(path) else SHIPPED
    card = read_card(path)
    if objective and objective != card.objective:
        raise SettingsError(
            f"the laser model {path} was trained for objective {card.objective!r}, but {objective!r} is in use; "
            "calibrate and train a model for it, or correct [strategies.laser] objective"
        )
    return _load(path, path.stat().st_mtime_ns)


def read_card(path: Path) -> Card:
    """Read a model's card; see `load_model` for the errors."""
    try:
        return Card.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise SettingsError(
            f"there is no laser model {path}; train one with `mm-autofocus train laser`, or leave [strategies.laser] "
            "model empty for the one that comes with mm-autofocus"
        ) from None
    except (OSError, ValueError, ValidationError) as error:
        raise SettingsError(f"the laser model {path} cannot be read: {' '.join(str(error).split())}") from error


@lru_cache(maxsize=8)
def _load(path: Path, changed: int) -> LaserModel:  # noqa: ARG001
    card = read_card(path)
    long = _readout(path, card, "long", card.long_um)
    short = _readout(path, card, "short", card.short_um)
    if long is None and short is None:
        raise SettingsError(f"the laser model {path} has neither a long_um nor a short_um readout; train it again")
    return LaserModel(card, long, short)


def _readout(path: Path, card: Card, kind: str, range_um: float | None) -> Readout | None:
    if range_um is None:
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = _beside(path, kind)
    try:
        return _makers()[card.readout](load_file(file), range_um, card.shape)
    except FileNotFoundError:
        raise SettingsError(f"the laser model {path} lacks its file {file.name}; copy it there") from None
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise SettingsError(f"the laser model's file {file} cannot be used: {error}; train it again") from error


def _makers() -> Mapping[str, Callable[[Arrays, float, tuple[int, int]], Readout]]:
    def profile(arrays: Arrays, range_um: float, shape: tuple[int, int]) -> Readout:
        from mm_autofocus.readouts.profile import Curve, ProfileReadout

        curve = None
        if "today_z" in arrays:
            curve = Curve(arrays.pop("today_z").astype(float), arrays.pop("today_error").astype(float))
        return ProfileReadout(arrays, range_um, shape, curve)

    def lookup(arrays: Arrays, range_um: float, shape: tuple[int, int]) -> Readout:
        from mm_autofocus.readouts.lookup import LookupReadout

        return LookupReadout(arrays, range_um, shape)

    def paper(arrays: Arrays, range_um: float, shape: tuple[int, int]) -> Readout:
        from mm_autofocus.readouts.paper import PaperReadout

        return PaperReadout(arrays, range_um, shape)

    return {"profile": profile, "lookup": lookup, "paper": paper}


def _arrays(readout: Readout) -> Arrays:
    arrays: Arrays = dict(getattr(readout, "weights", {}))
    curve = getattr(readout, "curve", None)
    if curve is not None:
        arrays |= {"today_z": curve.z, "today_error": curve.error}
    return arrays


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.stem}_{kind}.safetensors")


def _examiner(image: Image) -> Callable[[Readout], Reading]:
    """Read one image with several readouts; ours share its features."""
    from mm_autofocus.readouts.features import Features, of_images
    from mm_autofocus.readouts.profile import ProfileReadout

    seen: list[Features] = []

    def examine(readout: Readout) -> Reading:
        if isinstance(readout, ProfileReadout):
            if not seen:
                seen.append(of_images(image[None]))
            values = readout.examine_features(seen[0])
        else:
            values = readout.examine(image[None])
        defocus, sigma, strange = (float(value[0]) for value in values)
        signal = Signal.FOREIGN if strange > 1 or not np.isfinite(defocus) else Signal.GOOD
        return Reading(defocus, sigma, signal, strange)

    return examine
