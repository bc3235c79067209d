"""What ``recalibrate sem`` does: calibrates an electron column, or fine-tunes DeepFocus on it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mm_autofocus.errors import FocusError, HardwareError, LimitError, SettingsError

if TYPE_CHECKING:
    from mm_autofocus.microscope.microscope import Microscope
    from mm_autofocus.settings import Settings
    from mm_autofocus.strategies.phase_diversity import PhaseDiversitySettings
    from mm_autofocus.training.known_pairs import KnownPair
    from mm_autofocus.training.sem_calibration import CalibrationFit

Say = Callable[[str], None]
Tick = Callable[[int, int], None]
"""Told how much is done, and of how much."""

_FEWEST_LABELLED = 10

_BEST_KNOWN, _BEST_KNOWN_DEG = 0.05, 1.0
"""Errors that a calibration has at least, whatever its fit says: the column drifts, and specimens differ."""


def recalibrate(
    core: Any,
    settings: Settings,
    out: Path,
    *,
    method: str = "calibration",
    base: str = "",
    z_step_um: float = 6.0,
    stig_step: float = 2.0,
    locations: int = 10,
    aberrations: int = 10,
    spacing_um: float = 100.0,
    steps: int = 3000,
    seed: int = 0,
    plugins: Iterable[object] = (),
    say: Say = print,
    tick: Tick | None = None,
) -> dict[str, Any]:
    """Adapt to the column that the core drives; every knob and the stage go back, whatever happens.

    "calibration" (ours) takes seven pairs here, working distance and stigmators moved by known steps between them, and
    fits convergence angle, stigmators' scale and rotation, and image shift. "deepfocus" (the paper) focuses at each of
    ``locations`` with DeepScore and the downhill simplex, takes pairs at random aberrations there, and fine-tunes the
    network's last three layers.

    Parameters
    ----------
    core
        With the configuration loaded, at a place with specimen.
    settings
        autofocus.toml, with the knobs z, stig_x and stig_y.
    out
        Where the outcome goes: a .toml with ``[strategies.phase-diversity]``, or the new card (.json).
    method
        "calibration" or "deepfocus".
    base
        Card of the model to begin with; empty for the one that comes along.
    z_step_um, stig_step
        Known steps of the calibration, to either side.
    locations, aberrations, spacing_um
        Of the paper's way: places on a square grid, aberrations at each, and the grid's spacing.
    steps
        Of the fine-tuning.
    seed
        Of aberrations, patches and order.
    plugins
        Beside those of the entry points; for the paper's way.
    say, tick
        Told about progress, in words and in numbers.

    Raises
    ------
    SettingsError
        When something asked for can't be used, or ``out`` can't be written; nothing has moved.
    LimitError
        When the steps do not fit into the limits; nothing has moved.
    FocusError
        When no specimen shows, or the frames do not follow the knobs; nothing is written.
    """
    if method not in ("calibration", "deepfocus"):
        raise SettingsError(f"recalibrate sem: no method {method!r}; there are calibration and deepfocus")
    ours, tick = method == "calibration", tick or (lambda _done, _of: None)
    _check_out(out, ".toml" if ours else ".json")
    missing = [name for name in ("z", "stig_x", "stig_y") if name not in settings.knobs]
    if missing:
        sections = " and ".join(f"[knobs.{name}]" for name in missing)
        raise SettingsError(f"recalibrate sem: the settings lack {sections}; it turns z, stig_x and stig_y")
    if ours:
        return _calibrate(core, settings, out, base, (z_step_um, stig_step), say, tick)
    if locations * aberrations < _FEWEST_LABELLED:
        raise SettingsError(
            f"recalibrate sem: {locations} locations x {aberrations} aberrations make {locations * aberrations} pairs; "
            f"fine-tuning takes {_FEWEST_LABELLED} or more (the paper: 100)"
        )
    _need_torch()
    from mm_autofocus.estimators.cards import load_card
    from mm_autofocus.training.sem_recalibration import check_base, recalibrate_deepfocus

    check_base(load_card(base, "deepfocus")[0])  # before an hour is spent on the labels
    pairs, left_out = _labelled(core, settings, (locations, aberrations, spacing_um), seed, plugins, say, tick)
    card = recalibrate_deepfocus(pairs, out, base=base, steps=steps, seed=seed, say=say)
    return {"card": str(out), "pairs": len(pairs), "left_out": left_out, "measured": card.measured}


def summary(outcome: dict[str, Any]) -> str:
    """Return what people want to know of an outcome."""
    if "settings" in outcome:
        return (
            f"{outcome['settings']} ({outcome['frames']} frames); copy this into autofocus.toml:\n\n{outcome['toml']}"
        )
    measured = outcome["measured"]
    same = measured["held_out_after"] == measured["held_out_before"]
    useless = "\nfine-tuning has not improved it: take more pairs, or more steps" if same else ""
    left = "".join(f"\nleft out: {reason}" for reason in outcome["left_out"])
    return (
        f"{outcome['card']}: {outcome['pairs']} pairs, errors on held-out ones (µm, a.u., a.u.) "
        f"{measured['held_out_before']} before, {measured['held_out_after']} after{useless}{left}\n"
        f'use it with: strategy = "deepfocus", [strategies.deepfocus] model = "{outcome["card"]}"'
    )


def _check_out(out: Path, suffix: str) -> None:
    """Refuse a file that could not be written, before any frame is taken."""
    if out.suffix != suffix:
        raise SettingsError(f"recalibrate sem: --out {out} must end in {suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError("it is a folder")
        if out.exists():
            out.open("ab").close()
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise SettingsError(
            f"recalibrate sem: --out {out} can't be written ({error.strerror or error}); nothing has moved"
        ) from None


def _need_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise SettingsError("recalibrate sem --method deepfocus: torch is not installed; install mm-autofocus[train]")


# ---------------------------------------------------------------------------------------------------- ours
def _calibrate(
    core: Any, settings: Settings, out: Path, base: str, step: tuple[float, float], say: Say, tick: Tick
) -> dict[str, Any]:  # fmt: skip
    from mm_autofocus.estimators.spectral import SpectralEstimator
    from mm_autofocus.microscope.microscope import Microscope
    from mm_autofocus.strategies.phase_diversity import PhaseDiversity, PhaseDiversitySettings
    from mm_autofocus.training.known_pairs import taken_pairs
    from mm_autofocus.training.sem_calibration import calibration_steps, measure_calibration

    known = PhaseDiversitySettings.model_validate(dict(settings.strategies.get("phase-diversity", {})))
    estimator = SpectralEstimator.load(base or known.model)
    microscope = Microscope(core, settings)
    offsets = calibration_steps(*step)
    pairs: list[KnownPair] = []
    taking = taken_pairs(
        microscope, offsets, half_step_um=known.step_um, camera=known.camera, exposure_ms=known.exposure_ms
    )
    with closing(taking):
        for pair in taking:
            if not pairs:
                _check_specimen(pair, estimator, known)
            pairs.append(pair)
            tick(len(pairs), len(offsets))
    say(f"{len(pairs)} pairs taken, the column is back where it was")
    fit = measure_calibration(pairs, estimator, known.calibration())
    text = "\n".join(_section(PhaseDiversity.name, fit, pairs)) + "\n"
    _write(out, text)
    return {
        "settings": str(out), "frames": 2 * len(pairs), "calibration": asdict(fit.calibration),
        "was": asdict(known.calibration()), "convergence_angle": fit.angle, "convergence_sd": fit.convergence_sd,
        "stigmator_sd": fit.stigmator_sd, "rotation_sd_deg": fit.rotation_sd_deg, "misfit": fit.misfit, "toml": text,
    }  # fmt: skip


def _check_specimen(pair: KnownPair, estimator: Any, known: PhaseDiversitySettings) -> None:
    """Refuse a blank place after its first pair, before it is exposed further."""
    estimate = estimator.estimate(pair.under, pair.over, pair.step_um, pair.pixel_um, known.calibration())
    if estimate.signal < known.min_signal or not np.isfinite(estimate.sigma.vector()).all():
        raise FocusError(
            f"recalibrate sem: no specimen to calibrate on (signal {estimate.signal:.3g}, at least "
            f"{known.min_signal:g} is needed, with unsaturated grey values); nothing was written and the column is "
            "back where it was. Move to a place with structure, unblank the beam, or expose longer"
        )


def _section(name: str, fit: CalibrationFit, pairs: list[KnownPair]) -> Iterator[str]:
    """Return the lines of the settings."""
    c = fit.calibration
    pixel_nm = pairs[0].pixel_um * 1e3
    yield f"# Calibration of the electron column from {2 * len(pairs)} frames of {pixel_nm:.4g} nm pixels."
    yield f"[strategies.{name}]"
    angle = f"± {fit.convergence_sd:.0%}" if fit.angle == "measured" else fit.angle
    yield f"convergence_mrad = {_toml(c.convergence_mrad)}  # {angle}"
    yield f"stigmator_um = {_toml(c.stigmator_um)}  # ± {fit.stigmator_sd:.0%}"
    yield f"stigmator_rotation_deg = {_toml(c.stigmator_rotation_deg)}  # ± {fit.rotation_sd_deg:.2g}"
    yield f"calibration_sd = {_toml(min(max(fit.convergence_sd, fit.stigmator_sd, _BEST_KNOWN), 1.0))}"
    yield f"rotation_sd_deg = {_toml(min(max(fit.rotation_sd_deg, _BEST_KNOWN_DEG), 45.0))}"
    yield f"shift_um_per_um = [{', '.join(_toml(v) for v in c.shift_um_per_um)}]"


def _toml(value: float) -> str:
    text = f"{value:.4g}"
    return text if any(c in text for c in ".en") else f"{text}.0"


def _write(out: Path, text: str) -> None:
    """Write a whole file or none."""
    beside = out.with_name(f".{out.name}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise SettingsError(f"recalibrate sem: {out} can't be written ({error.strerror or error})") from None


# ---------------------------------------------------------------------------------------------------- the paper's
def _labelled(
    core: Any, settings: Settings, grid: tuple[int, int, float], seed: int, plugins: Iterable[object], say: Say,
    tick: Tick,
) -> tuple[list[KnownPair], list[str]]:  # fmt: skip
    """Return pairs labelled by DeepScore and the simplex, on a grid around the present place, and what was left out."""
    from mm_autofocus.autofocus import Autofocus
    from mm_autofocus.settings import Settings
    from mm_autofocus.training.known_pairs import check_room, random_aberrations, take_pairs

    stay = dict.fromkeys(("no_signal", "at_limit", "low_confidence", "timed_out", "failed"), ("stay",))
    data = settings.model_dump(exclude_unset=True) | {
        "strategy": ("deepscore",), "map": {"enabled": False}, "recorder": {}, "failure": stay,
        "budget": {"images": 200, "seconds": None}, "seed": seed,
    }  # fmt: skip
    autofocus = Autofocus(core, Settings.parse(data), plugins=plugins)
    microscope = autofocus.microscope
    locations, aberrations, spacing_um = grid
    every = random_aberrations(locations * aberrations, seed)
    drawn = [every[i * aberrations : (i + 1) * aberrations] for i in range(locations)]
    check_room(microscope, [offset for each in drawn for offset in each])
    pairs: list[KnownPair] = []
    left_out: list[str] = []
    with _put_back(core, microscope) as (x, y):
        try:
            across = max(1, round(locations**0.5))
            for i in range(locations):
                core.setXYPosition(x + spacing_um * (i % across), y + spacing_um * (i // across))
                core.waitForDevice(core.getXYStageDevice())
                where = f"location {i + 1} of {locations}"
                result = autofocus.focus().result
                if result is None or not result.ok:
                    left_out.append(f"{where}: {result.reason if result else 'no result'}")
                    say(f"{left_out[-1]}; left out")
                else:
                    try:
                        pairs += take_pairs(microscope, drawn[i])
                    except LimitError as error:
                        left_out.append(f"{where}: {error}")
                    say(f"{where}: {len(pairs)} pairs")
                tick(i + 1, locations)
        finally:
            autofocus.finish()
    if len(pairs) < _FEWEST_LABELLED:
        raise FocusError(
            f"recalibrate sem: DeepScore labelled {len(pairs)} pairs, {_FEWEST_LABELLED} are needed; nothing was "
            f"written. Go to a place with specimen, or allow more locations ({'; '.join(left_out[:2])})"
        )
    return pairs, left_out


@contextmanager
def _put_back(core: Any, microscope: Microscope) -> Iterator[tuple[float, float]]:
    """Yield the stage's (x, y), and put it and all knobs back afterwards, each even if another one fails."""
    stage = core.getXYStageDevice()
    if not stage:
        raise SettingsError("recalibrate sem --method deepfocus: the configuration has no XY stage (Core, XYStage)")
    x, y = float(core.getXPosition()), float(core.getYPosition())
    before = {name: knob.get() for name, knob in microscope.knobs.items()}

    def stage_back() -> None:
        core.setXYPosition(x, y)
        core.waitForDevice(stage)

    def knob_back(name: str) -> None:
        knob = microscope.knobs[name]
        knob.set(knob.limits.clip(before[name]))

    def all_back() -> list[str]:
        problems = []
        for name, back in [(n, lambda n=n: knob_back(n)) for n in before] + [("the XY stage", stage_back)]:
            for attempt in range(2):
                try:
                    back()
                    break
                except BaseException as error:  # a second Ctrl-C must not leave the rest undone
                    if attempt:
                        problems.append(f"{name}: {error or type(error).__name__}")
        return problems

    try:
        yield x, y
    except BaseException as error:
        problems = all_back()
        if problems:
            error.add_note("and not everything could be put back: " + "; ".join(problems))
        raise
    problems = all_back()
    if problems:
        raise HardwareError("not everything could be put back: " + "; ".join(problems))
