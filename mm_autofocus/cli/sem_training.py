"""What ``train sem`` and ``models`` do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.cards import Variant
from mm_autofocus.training.machines import HERE, Machines

Say = Callable[[str], None]

WEIGHTS = Path(__file__).parents[1] / "weights"
_CARD_KEYS = ("trained_on", "command")


def train(
    model: str,
    out: Path,
    *,
    variant: Variant = "stacked",
    minutes: float = 0.0,
    seed: int = 0,
    measure: bool = True,
    machines: Machines = HERE,
    say: Say = print,
) -> dict[str, Any]:
    """Train an electron-image model on simulated specimens, measure it on unseen ones, and write card and weights.

    Parameters
    ----------
    model
        "spectral", "convolutional", "deepfocus" or "deepscore".
    out
        The card (.json).
    variant
        Of DeepFocus: "stacked", "patch-scores", "pixel-scores", "efficientnet-b0" or "resnet-50".
    minutes
        Nominal, on one thread; 0 for those of the model that comes along.
    seed
        Same model, minutes and seed: same weights.
    measure
        Whether the card says how good the model is on unseen specimens.
    machines
        To simulate and to train on.
    say
        Told about progress.

    Raises
    ------
    SettingsError
        For an unknown model or variant, a card that is no .json, or without torch.
    """
    from mm_autofocus.training.sem_training import MINUTES, train_model

    if model not in MINUTES:
        raise SettingsError(f"train sem: no model {model!r}; there are {', '.join(MINUTES)}")
    if variant != "stacked" and model != "deepfocus":
        raise SettingsError(f"train sem: --variant {variant} is one of DeepFocus; add --model deepfocus")
    if out.suffix != ".json":
        raise SettingsError(f"train sem: the card {out} must end in .json; the weights go beside it")
    _need_torch("train sem")
    card = train_model(
        model, out, variant=variant, minutes=minutes, seed=seed, measure=measure, machines=machines, say=say
    )
    return {"card": str(out), "weights": str(out.parent / card.weights), "measured": card.measured}


def models(given: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """Return every model that comes along, and those whose cards are given: name, what, trained on, command, measured.

    Needs no torch: cards are read, weights are not.

    Raises
    ------
    SettingsError
        When a given card can't be read.
    """
    return [_described(path) for path in (*sorted(WEIGHTS.glob("*.json")), *given)]


def _described(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        measured = dict(card.get("measured", {}))
    except (OSError, ValueError, AttributeError) as error:
        raise SettingsError(f"models: {path} is not a model's card ({error})") from None
    files = sorted(p for p in path.parent.glob("*.safetensors") if _belongs(card, path, p))
    what = card.get("what") or f"laser readout {card.get('readout', '')}, objective {card.get('objective', '?')}"
    return {
        "name": path.stem, "card": str(path), "what": what, **{key: card.get(key, "") for key in _CARD_KEYS},
        "measured": measured, "bytes": sum(p.stat().st_size for p in files), "weights": [p.name for p in files],
    }  # fmt: skip


def _belongs(card: dict[str, Any], path: Path, weights: Path) -> bool:
    """Whether a file of weights is this card's: the one it names, or, of a laser model, those called after it."""
    return weights.name == card["weights"] if "weights" in card else weights.stem.startswith(f"{path.stem}_")


def headline(entry: dict[str, Any]) -> str:
    """Return one line of what was measured, for people."""
    measured = entry["measured"]
    for name in ("unseen, 20 e-/px", "unseen"):
        if isinstance(measured.get(name), dict):
            numbers = ", ".join(f"{k} {v}" for k, v in list(measured[name].items())[:3])
            return f"{name}: {numbers}"
    return ", ".join(f"{k} {v}" for k, v in measured.items() if not isinstance(v, dict | list))


def _need_torch(what: str) -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise SettingsError(f"{what}: torch is not installed; install mm-autofocus[train]")
