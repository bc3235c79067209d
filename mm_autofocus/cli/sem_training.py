"""What ``train sem``, ``recalibrate sem`` and ``models`` do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm_autofocus.errors import FocusError, SettingsError

Say = Callable[[str], None]

WEIGHTS = Path(__file__).parents[1] / "weights"
_CARD_KEYS = ("trained_on", "command")


def train(
    model: str, out: Path, *, minutes: float = 0.0, seed: int = 0, measure: bool = True, say: Say = print
) -> dict[str, Any]:
    """Train an electron-image model on simulated specimens, measure it on unseen ones, and write card and weights.

    Parameters
    ----------
    model
        "spectral", "convolutional", "deepfocus" or "deepscore".
    out
        The card (.json).
    minutes
        Nominal, on one thread; 0 for those of the model that comes along.
    seed
        Same model, minutes and seed: same weights.
    measure
        Whether the card says how good the model is on unseen specimens.
    say
        Told about progress.

    Raises
    ------
    SettingsError
        For an unknown model, a card that is no .json, or without torch.
    """
    from mm_autofocus.training.sem_training import MINUTES, train_model

    if model not in MINUTES:
        raise SettingsError(f"train sem: no model {model!r}; there are {', '.join(MINUTES)}")
    if out.suffix != ".json":
        raise SettingsError(f"train sem: the card {out} must end in .json; the weights go beside it")
    _need_torch("train sem")
    card = train_model(model, out, minutes=minutes, seed=seed, measure=measure, say=say)
    return {"card": str(out), "weights": str(out.parent / card.weights), "measured": card.measured}


def recalibrate(
    core: Any,
    settings: Any,
    out: Path,
    *,
    method: str = "calibration",
    base: str = "",
    locations: int = 10,
    aberrations: int = 10,
    spacing_um: float = 100.0,
    steps: int = 3000,
    seed: int = 0,
    plugins: Iterable[object] = (),
    say: Say = print,
) -> dict[str, Any]:
    """Adapt to the column that the core drives; every knob goes back.

    "calibration" (ours) takes five pairs here, stigmators moved by ±2 units between them, and fits convergence angle,
    stigmators' scale and rotation, and image shift. "deepfocus" (the paper) focuses at each of ``locations`` with
    DeepScore and the downhill simplex, takes pairs at random aberrations there, and fine-tunes the network's last three
    layers.

    Parameters
    ----------
    core
        With the configuration loaded, at a place with specimen.
    settings
        autofocus.toml, with the knobs z, stig_x and stig_y.
    out
        Where the outcome goes: a .toml with ``[strategies.phase_diversity]``, or the new card (.json).
    method
        "calibration" or "deepfocus".
    base
        Card of the model to begin with; empty for the one that comes along.
    locations, aberrations, spacing_um
        Of the paper's way: places on a square grid, aberrations at each, and the grid's spacing.
    steps
        Of the fine-tuning.
    seed
        Of aberrations, patches and order.
    plugins
        Beside those of the entry points.
    say
        Told about progress.

    Raises
    ------
    FocusError
        When no specimen shows, a location can't be focused, or an offset leaves the limits.
    """
    if method not in ("calibration", "deepfocus"):
        raise SettingsError(f"recalibrate sem: no method {method!r}; there are calibration and deepfocus")
    if method == "calibration":
        return _calibrate(core, settings, out, base, plugins, say)
    _need_torch("recalibrate sem --method deepfocus")
    from mm_autofocus.training.sem_recalibration import recalibrate_deepfocus

    pairs = _labelled(core, settings, locations, aberrations, spacing_um, seed, plugins, say)
    card = recalibrate_deepfocus(pairs, out, base=base, steps=steps, seed=seed, say=say)
    return {"card": str(out), "pairs": len(pairs), "measured": card.measured}


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
    return ", ".join(f"{k} {v}" for k, v in measured.items() if not isinstance(v, dict))


def _need_torch(what: str) -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise SettingsError(f"{what}: torch is not installed; install mm-autofocus[train]")


def _calibrate(core: Any, settings: Any, out: Path, base: str, plugins: Iterable[object], say: Say) -> dict[str, Any]:
    from mm_autofocus.autofocus import Autofocus
    from mm_autofocus.estimators.spectral import SpectralEstimator
    from mm_autofocus.strategies.phase_diversity import PhaseDiversitySettings
    from mm_autofocus.training.sem_recalibration import STEPS, fit_calibration, take_pairs

    known = PhaseDiversitySettings.model_validate(dict(settings.strategies.get("phase_diversity", {})))
    microscope = Autofocus(core, settings, plugins=plugins).microscope
    pairs = take_pairs(
        microscope, STEPS, half_step_um=known.step_um, camera=known.camera, exposure_ms=known.exposure_ms
    )
    say(f"{len(pairs)} pairs taken")
    found = fit_calibration(pairs, SpectralEstimator.load(base or known.model), known.calibration())
    values = asdict(found)
    lines = ["# Calibration of the electron column; copy into autofocus.toml.", "[strategies.phase_diversity]"]
    lines += [f"{name} = {_toml(value)}" for name, value in values.items()]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"settings": str(out), "frames": 2 * len(pairs), "calibration": values}


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{v:.6g}" for v in value) + "]"
    text = f"{value:.6g}"
    return text if any(c in text for c in ".en") else f"{text}.0"


def _labelled(
    core: Any, settings: Any, locations: int, aberrations: int, spacing_um: float, seed: int,
    plugins: Iterable[object], say: Say,
) -> list[Any]:  # fmt: skip
    """Return pairs labelled by DeepScore and the simplex, on a grid around the present place; the stage goes back."""
    from mm_autofocus.autofocus import Autofocus
    from mm_autofocus.settings import Settings
    from mm_autofocus.training.sem_recalibration import random_aberrations, take_pairs

    data = settings.model_dump(exclude_unset=True) | {
        "strategy": ("deepscore",), "map": {"enabled": False}, "recorder": {},
    }  # fmt: skip
    autofocus = Autofocus(core, Settings.parse(data), plugins=plugins)
    microscope = autofocus.microscope
    knobs = [microscope.knob(name) for name in ("z", "stig_x", "stig_y")]
    before = [knob.get() for knob in knobs]
    x, y = core.getXPosition(), core.getYPosition()
    across = max(1, round(locations**0.5))
    pairs = []
    try:
        for i in range(locations):
            core.setXYPosition(x + spacing_um * (i % across), y + spacing_um * (i // across))
            core.waitForDevice(core.getXYStageDevice())
            result = autofocus.focus().result
            if result is None or not result.ok:
                say(f"location {i + 1} of {locations}: {result.reason if result else 'no result'}; left out")
                continue
            for knob, name in zip(knobs, ("z", "stig_x", "stig_y"), strict=True):
                knob.set(float(result.end.get(name, knob.get())))
            pairs += take_pairs(microscope, random_aberrations(aberrations, 1000 * seed + i))
            say(f"location {i + 1} of {locations}: {len(pairs)} pairs")
    finally:
        core.setXYPosition(x, y)
        for knob, value in zip(knobs, before, strict=True):
            knob.set(float(value))
        autofocus.finish()
    if not pairs:
        raise FocusError("recalibrate sem: no location could be focused by DeepScore; go to a place with specimen")
    return pairs
