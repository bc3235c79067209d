"""An electron-image model on disk: a card (JSON: what, trained on what, how, how good) and its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from mm_autofocus.errors import SettingsError

WEIGHTS = Path(__file__).parents[1] / "weights"
_SCALE = "|scale"
"""Ends the name of the scales of an array of whole numbers."""

Arrays = dict[str, NDArray[np.generic]]
Model = Literal["spectral", "convolutional", "deepfocus", "deepscore", "score", "aenet", "resnet18", "acnet"]

Variant = Literal["stacked", "patch-scores", "pixel-scores", "efficientnet-b0", "resnet-50"]
"""Of DeepFocus: Table 2; the same with a score for each patch (Fig. 3a-f); the U-Net with a score for each pixel
(Fig. 3g, h); the two common architectures that the paper compares with."""


class SemCard(BaseModel):
    """What a model is, and what it was trained on.

    Attributes
    ----------
    model
        Which estimator reads it.
    what
        One line for people.
    weights
        File of the arrays, beside the card.
    precision
        How they are stored; widened when they are read. int8: matrices and kernels as whole numbers with a scale for
        each output, a quarter of float32; the rest as float16.
    parameters
        What the estimator needs beside the arrays: patch size, scales of its uncertainty, the column that it was
        trained for.
    trained_on, command, measured
        For people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Model
    what: str
    weights: str
    precision: Literal["float32", "float16", "int8"] = "float32"
    parameters: dict[str, Any] = {}
    trained_on: str = ""
    command: str = ""
    measured: dict[str, Any] = {}


def load_card(path: str | Path, model: Model) -> tuple[SemCard, Arrays]:
    """Return a card and its arrays, as float32.

    Parameters
    ----------
    path
        The card, or the name of one that comes along as ``mm-autofocus models`` lists it; empty for the default.
    model
        What it must be.

    Raises
    ------
    SettingsError
        When a file is missing, or is not such a model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    where = Path(path) if str(path) else WEIGHTS / f"sem_{model}.json"
    if str(where) == where.name and not where.suffix and not where.exists():  # a name
        where = WEIGHTS / f"{where.name}.json"
    try:
        card = SemCard.model_validate_json(where.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{model} model: the card {where} can't be read ({error}); name another") from None
    except (ValidationError, ValueError) as error:
        raise SettingsError(f"{model} model: {where} is not a card of an electron-image model: {error}") from None
    if card.model != model:
        raise SettingsError(f"{model} model: {where} is a card of a {card.model} model; name another")
    file = where.parent / card.weights
    if file.parent != where.parent:
        raise SettingsError(f"{model} model: {where} names weights elsewhere ({card.weights}); they must lie beside it")
    try:
        arrays = load_file(file)
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"{model} model: the weights {file} can't be read ({error}); train anew") from None
    return card, {
        name: _wide(value, arrays.get(name + _SCALE)) for name, value in arrays.items() if not name.endswith(_SCALE)
    }


def save_card(path: Path, card: SemCard, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write a card and its arrays; the weights' file is named by the card and lies beside it."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    narrow = np.float32 if card.precision == "float32" else np.float16
    stored: Arrays = {}
    for name, value in arrays.items():
        if not np.issubdtype(value.dtype, np.floating):
            stored[name] = np.ascontiguousarray(value)
        elif card.precision == "int8" and value.ndim > 1:
            stored[name], stored[name + _SCALE] = _whole(value)
        else:
            stored[name] = np.ascontiguousarray(value.astype(narrow))
    save_file(stored, path.parent / card.weights)
    (path.parent / card.weights).chmod(0o644)  # safetensors lets nobody else read it
    path.write_text(json.dumps(card.model_dump(), indent=2) + "\n", encoding="utf-8")


def _wide(value: NDArray[np.generic], scale: NDArray[np.generic] | None = None) -> NDArray[np.generic]:
    if scale is not None:
        outputs = scale.astype(np.float32).reshape(-1, *(1,) * (value.ndim - 1))
        return np.asarray(value.astype(np.float32) * outputs)
    return value.astype(np.float32) if np.issubdtype(value.dtype, np.floating) else value


def _whole(value: NDArray[np.generic]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return whole numbers from -127 to 127 and the scale of each output, the first axis."""
    real = np.asarray(value, dtype=np.float32)
    scale = np.maximum(np.abs(real).reshape(len(real), -1).max(1), 1e-12) / 127.0
    whole = np.rint(real / scale.reshape(-1, *(1,) * (real.ndim - 1)))
    return np.ascontiguousarray(whole, dtype=np.int8), scale.astype(np.float32)
