"""``mm-autofocus characterize`` and ``check focus``: any autofocus, on any loaded Micro-Manager configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import useq

from mm_autofocus.benchmark.characterize import Characterization, Characterize, Characterizer, Place
from mm_autofocus.benchmark.characterize_page import write_characterization
from mm_autofocus.benchmark.check_focus import Check, check_focus
from mm_autofocus.benchmark.page import machine
from mm_autofocus.benchmark.under_test import DeviceFocuser, Focuser, StrategyFocuser
from mm_autofocus.cli.acquire import writable_folder
from mm_autofocus.cli.run_plan import load_plan
from mm_autofocus.errors import SettingsError
from mm_autofocus.microscope import Microscope
from mm_autofocus.report.data import installed_versions
from mm_autofocus.result import FocusResult
from mm_autofocus.settings import Settings, validate

Use = Literal["auto", "device", "strategy"]
Say = Callable[[str], None]


def under_test(core: Any, settings: Settings, use: Use = "auto", **arguments: Any) -> tuple[Microscope, Focuser]:
    """Return the microscope and the autofocus to test on it.

    Parameters
    ----------
    core
        With the configuration loaded.
    settings
        Limits, imaging, and the strategy when it is that one.
    use
        "device" for ``core.fullFocus()``, "strategy" for the strategy of the settings; "auto" for the device where the
        configuration has one.
    **arguments
        For `mm_autofocus.autofocus.Autofocus`.

    Raises
    ------
    SettingsError
        When the configuration has no such autofocus, or no knob "z".
    """
    if "z" not in settings.knobs:
        raise SettingsError('the settings have no knob "z"; add [knobs.z] with the limits of the focus drive')
    if use == "auto":
        use = "device" if str(core.getAutoFocusDevice()) else "strategy"
    if use == "strategy":
        focuser = StrategyFocuser(core, settings, **arguments)
        return focuser.microscope, focuser
    microscope = Microscope(core, settings)
    return microscope, DeviceFocuser(microscope, _result_of(core))


def _result_of(core: Any) -> Callable[[], FocusResult | None] | None:
    """Return what tells the last result of a device of ours; None for a vendor's, which has none."""
    label = core.getAutoFocusDevice()
    ours = label in getattr(core, "_pydevices", ())
    device: Any = core._pydevices[label] if ours else None
    return (lambda: device.last_result) if hasattr(device, "last_result") else None


def characterize(
    core: Any,
    settings: Settings,
    *,
    out: Path,
    use: Use = "auto",
    plan: Path | None = None,
    say: Say = print,
    facts: dict[str, str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Characterise, and write characterize.json and characterize.html; what was measured before Ctrl-C too.

    Parameters
    ----------
    core, settings, use
        See `under_test`.
    out
        Folder.
    plan
        A useq plan or a list of pycro-manager events, whose positions are visited too.
    say
        Told what goes on.
    facts
        Lines for the head of the page.
    **options
        Fields of `mm_autofocus.benchmark.characterize.Characterize`.

    Raises
    ------
    FocusError
        See `mm_autofocus.benchmark.characterize.Characterizer.run`.
    """
    out = writable_folder(out)
    chosen = validate(Characterize, {k: v for k, v in options.items() if v is not None}, "options")
    places = places_of(plan) if plan is not None else []
    microscope, focuser = under_test(core, settings, use)
    work = Characterizer(microscope, focuser, chosen, say)
    try:
        work.run(places)
    finally:
        if work.found.attempts:
            _write(work.found, out, facts or {})
    return {"report": str(out / "characterize.html"), **work.found.summary(), "by_offset": work.found.by_offset()}


def _write(found: Characterization, out: Path, facts: dict[str, str]) -> None:
    summary = {**found.summary(), "by_offset": found.by_offset(), "machine": machine()}
    whole = {"summary": summary, **found.model_dump(mode="json")}
    (out / "characterize.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    facts = {**facts, "machine": machine(), **installed_versions()}
    write_characterization(found, out / "characterize.html", facts)


def places_of(plan: Path) -> list[Place]:
    """Return the positions of a plan, each once.

    Raises
    ------
    SettingsError
        When it has no positions with x and y.
    """
    loaded = load_plan(plan)
    seen: dict[tuple[float, float], str] = {}
    if isinstance(loaded, useq.MDASequence):
        events = [(e.x_pos, e.y_pos, e.pos_name) for e in loaded]
    else:
        events = [(e.get("x"), e.get("y"), str(e["axes"].get("position", ""))) for e in loaded]
    for x, y, name in events:
        if x is not None and y is not None:
            seen.setdefault((float(x), float(y)), name or f"position {len(seen) + 1}")
    if not seen:
        raise SettingsError(f"plan {plan} has no positions with x and y to visit")
    return [Place(name, x, y) for (x, y), name in seen.items()]


def check(
    core: Any,
    settings: Settings,
    *,
    use: Use = "auto",
    injected_um: Sequence[float] = (),
    repeats: int = 1,
    threshold: float = 0.9,
    reference: Literal["image", "self"] = "image",
    focus_um: float | None = None,
) -> Check:
    """Inject a known defocus and return what came back; see `mm_autofocus.benchmark.check_focus.check_focus`."""
    microscope, focuser = under_test(core, settings, use)
    return check_focus(
        microscope, focuser, injected_um=injected_um, repeats=repeats, threshold=threshold, reference=reference,
        focus_um=focus_um,
    )  # fmt: skip
