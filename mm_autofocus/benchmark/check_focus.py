"""Is the autofocus good enough today: inject a known defocus, and see how much of it comes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mm_autofocus.benchmark.truth import TruthSweep
from mm_autofocus.benchmark.under_test import Focuser, inside_limits, put_back
from mm_autofocus.errors import FocusError, SettingsError
from mm_autofocus.microscope import Microscope


class Injection(BaseModel):
    """One known defocus: what was injected, what was left of it (None: no focus was found), and the fraction back."""

    model_config = ConfigDict(frozen=True)

    injected_um: float
    left_um: float | None
    recovered: float
    reason: str = ""


class Check(BaseModel):
    """What came of `check_focus`.

    Attributes
    ----------
    recovered
        The smallest fraction that came back; 0 where no focus was found.
    threshold, passed
        What was wanted, and whether every injection reached it.
    reference_um
        The plane in focus that the defocus was counted from.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    recovered: float
    threshold: float
    passed: bool
    reference_um: float
    within_um: float
    injections: list[Injection]

    @property
    def sentence(self) -> str:
        """One sentence for the user."""
        parts = ", ".join(
            f"{i.injected_um:+.3g} µm: {'no focus' if i.left_um is None else f'{i.left_um:+.2f} µm left'}"
            for i in self.injections
        )
        return f"{self.device} recovers {self.recovered:.0%} of a known defocus, {self.threshold:.0%} wanted ({parts})"


def check_focus(
    microscope: Microscope,
    focuser: Focuser,
    *,
    injected_um: Sequence[float] = (),
    repeats: int = 1,
    threshold: float = 0.9,
    reference: Literal["image", "self"] = "image",
    focus_um: float | None = None,
    measure: str = "laplacian_of_gaussian",
) -> Check:
    """Inject a known defocus, focus, and return the fraction that came back; the instrument is put back.

    As SerialEM's *Check Autofocus*: it measures at known offsets and wants 0.9 of the true change.

    Parameters
    ----------
    microscope, focuser
        See `Characterizer`.
    injected_um
        The offsets, µm; empty: 5 depths of field to either side, so that 0.9 is half a depth of field.
    repeats
        Runs from each.
    threshold
        The fraction that each run must recover.
    reference
        Where focus is: by an image sweep, or "self" by the autofocus itself, which then only has to agree with itself.
    focus_um
        The stage position in focus, in place of either.
    measure
        Of the image sweep.

    Raises
    ------
    FocusError
        When no reference is found.
    LimitError
        When an offset, or the autofocus itself, leaves the limits.
    """
    knob, depth = microscope.knob("z"), microscope.depth_of_field_um
    offsets = tuple(injected_um) or (-5 * depth, 5 * depth)
    if any(not math.isfinite(o) or o == 0 for o in offsets):
        raise SettingsError(f"a defocus to inject must be a number of µm other than 0; got {list(offsets)}")
    with put_back(microscope):
        at = focus_um if focus_um is not None else _reference(microscope, focuser, reference, measure)
        for offset in offsets:
            knob.check(at + offset)  # all of them, before anything moves
        found = [_inject(microscope, focuser, at, offset) for offset in offsets for _ in range(repeats)]
    recovered = min(i.recovered for i in found)
    return Check(
        device=focuser.name,
        recovered=recovered,
        threshold=threshold,
        passed=recovered >= threshold,
        reference_um=at,
        within_um=depth / 2,
        injections=found,
    )


def _reference(microscope: Microscope, focuser: Focuser, reference: str, measure: str) -> float:
    knob = microscope.knob("z")
    if reference == "image":
        return TruthSweep(microscope, measure=measure).locate(knob.get())
    start = knob.get()
    ok, reason, _ = focuser.focus()
    z = inside_limits(microscope, focuser.name, start)
    if not ok:
        raise FocusError(f"{focuser.name} finds no focus to begin with: {reason}")
    return z


def _inject(microscope: Microscope, focuser: Focuser, at: float, offset: float) -> Injection:
    start = microscope.knob("z").set(at + offset)
    ok, reason, _ = focuser.focus()
    left = inside_limits(microscope, focuser.name, start) - at
    if not ok:
        return Injection(injected_um=offset, left_um=None, recovered=0.0, reason=reason)
    return Injection(injected_um=offset, left_um=left, recovered=max(0.0, 1.0 - abs(left) / abs(offset)))
