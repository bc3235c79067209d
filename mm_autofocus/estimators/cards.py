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
Arrays = dict[str, NDArray[np.generic]]
Model = Literal["spectral", "convolutional", "deepfocus", "deepscore", "score", "aenet", "resnet18", "acnet"]


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
        How they are stored; float16 is widened when it is read.
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
    precision: Literal["float32", "float16"] = "float32"
    parameters: dict[str, Any] = {}
    trained_on: str = ""
    command: str = ""
    measured: dict[str, Any] = {}


def load_card(path: str | Path, model: Model) -> tuple[SemCard, Arrays]:
    """Return a card and its arrays, as float32.

    Parameters
    ----------
    path
        The card; empty for the one that comes along.
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
    return card, {name: _wide(value) for name, value in arrays.items()}


def save_card(path: Path, card: SemCard, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write a card and its arrays; the weights' file is named by the card and lies beside it."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    narrow = np.float16 if card.precision == "float16" else np.float32
    stored = {
        name: np.ascontiguousarray(value.astype(narrow) if np.issubdtype(value.dtype, np.floating) else value)
        for name, value in arrays.items()
    }
    save_file(stored, path.parent / card.weights)
    (path.parent / card.weights).chmod(0o644)  # safetensors lets nobody else read it
    path.write_text(json.dumps(card.model_dump(), indent=2) + "\n", encoding="utf-8")


def _wide(value: NDArray[np.generic]) -> NDArray[np.generic]:
    return value.astype(np.float32) if np.issubdtype(value.dtype, np.floating) else value
