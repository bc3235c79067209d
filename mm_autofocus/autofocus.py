"""The one orchestrator: every caller, whatever the engine, asks `Autofocus.at(event)` and goes where it says."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mm_autofocus import events as event_readers
from mm_autofocus.errors import AcquisitionAborted, CancelledError, FocusError, SettingsError
from mm_autofocus.ledger import Ledger
from mm_autofocus.microscope import Microscope
from mm_autofocus.plugins import Plugins, caller
from mm_autofocus.policy import Action
from mm_autofocus.request import Event, FocusRequest, Key, Limits, Prior
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.run import FocusRun, start_values
from mm_autofocus.settings import Settings
from mm_autofocus.strategies.cascade import Cascade
from mm_autofocus.strategy import Strategy
from mm_autofocus.toml import to_toml

if TYPE_CHECKING:
    from mm_autofocus.report.data import ReportData

logger = logging.getLogger(__name__)

Plan = TypeVar("Plan", bound=Iterable[Any])

MAX_ACTIONS = 10
"""No failure policy may go on for longer than this at one event."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an event is to be acquired.

    ``z`` is absolute in µm, None to leave the stage alone. ``skip`` asks for an image without exposing the specimen.
    """

    z: float | None
    result: FocusResult | None = None
    skip: bool = False


class Autofocus:
    """Focus at the right events, within limits, and know what came of it.

    Parameters
    ----------
    core
        Any Micro-Manager core; None for the one that pycro-manager or pymmcore-plus has running, found when needed.
    settings
        The settings; None for the defaults.
    strategy
        Name of a strategy, or several to try in turn; in place of ``settings.strategy``.
    plugins
        Plugins beside those of the entry points; they are asked first.
    clock, sleep
        Time in seconds, monotonic, and how to wait; a simulation passes its own.
    changes
        Sections of the settings to replace, for instance ``schedule={"every": "well"}``.

    Raises
    ------
    SettingsError
        When something in the settings cannot be used; nothing has moved.
    PluginError
        When a plugin cannot be registered.
    """

    def __init__(
        self,
        core: Any = None,
        settings: Settings | None = None,
        *,
        strategy: str | tuple[str, ...] | None = None,
        plugins: Iterable[object] = (),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        **changes: Any,
    ) -> None:
        base = (settings or Settings()).model_dump(exclude_unset=True)
        if strategy is not None:
            changes["strategy"] = strategy
        self.settings = Settings.parse({**base, **changes}) if changes else (settings or Settings())
        self.plugins = Plugins(self.settings, plugins)
        self.plugins.check_sections()
        self.strategies: dict[str, Strategy] = {name: self.plugins.strategy(name) for name in self.settings.strategy}
        self.plugins.add(Cascade(self.settings, self.strategies), "cascade")
        self.hook = self.plugins.manager.hook
        self.ledger = Ledger(self.settings.stack.focal_plane, self.settings.stack.channel_offsets)
        self.results: list[FocusResult] = []
        self.resume = threading.Event()
        """Set it to go on after the failure policy has paused."""
        self.paused = threading.Event()
        """Set while the failure policy has paused."""
        self.ended_by: BaseException | None = None
        """What ended the last acquisition before its time; None when nothing did."""
        self._core = core
        self._clock = clock
        self._sleep = sleep
        self._microscope: Microscope | None = None
        self._cancel = threading.Event()
        self._observers: dict[str, list[tuple[str, Any]]] = {}
        self._complained: set[tuple[str, str]] = set()
        """(plugin, hook) of observers whose failure was reported."""
        self._skipped: set[Key] = set()
        self._clipped: set[Key] = set()
        self._started = False

    @classmethod
    def load(cls, path: str | Path, core: Any = None, **arguments: Any) -> Autofocus:
        """Make an Autofocus from an ``autofocus.toml``; see the class for the errors."""
        return cls(core, Settings.load(path), **arguments)

    # ------------------------------------------------------------------ the instrument
    @property
    def microscope(self) -> Microscope:
        """The microscope; connected, and the settings checked against it, on first use."""
        if self._microscope is None:
            core = self._core if self._core is not None else _running_core()
            microscope = Microscope(core, self.settings, clock=self._clock, sleep=self._sleep)
            microscope.cancel = self._cancel
            self._check_ranges(microscope)
            self._microscope = microscope
        return self._microscope

    @property
    def depth_of_field_um(self) -> float:
        """Depth of field of the microscope in µm; in focus means within half of it."""
        return self.microscope.depth_of_field_um

    def _check_ranges(self, microscope: Microscope) -> None:
        """Raise `SettingsError` when a strategy's own range is wider than the limits, before anything moves."""
        if "z" not in microscope.knobs:
            return
        width = microscope.knob("z").limits.width
        for name, strategy in self.strategies.items():
            wanted = getattr(strategy.settings, "range_um", None)
            if wanted is not None and wanted > width:
                limits = microscope.knob("z").limits
                raise SettingsError(
                    f"[strategies.{name}] range_um = {wanted:g} is wider than the limits of knob 'z', "
                    f"[{limits.low:g}, {limits.high:g}]; narrow the range or widen [knobs.z] limits"
                )

    # ------------------------------------------------------------------ before
    def plan(self, events: Plan) -> Plan:
        """Learn a plan (pycro-manager events, or a ``useq.MDASequence``) and return it unchanged.

        An iterator is used up and returned as a list. Call it before acquiring, so that the focal plane of every
        z-stack is known from the plan.

        Raises
        ------
        SettingsError
            When the plan is empty, or reaches outside the limits of the stage. Nothing has moved.
        """
        if isinstance(events, dict):
            events = [events]  # type: ignore[assignment]
        if not hasattr(events, "__len__") and not hasattr(events, "stage_positions"):
            events = list(events)  # type: ignore[assignment]
        read = event_readers.read_plan(events)
        self._check_plan(read)
        self.ledger.plan(read)
        return events

    def _check_plan(self, events: list[Event]) -> None:
        """Raise `SettingsError` for a plan that cannot be placed; nothing has moved."""
        axes = {
            self.settings.knobs[name].axis: knob.limits
            for name, knob in self.microscope.knobs.items()
            if self.settings.knobs[name].axis in ("x", "y") or name == "z"
        }
        where: dict[Key, tuple[float | None, float | None]] = {}
        for event in events:
            for axis in ("x", "y", "z"):
                value, limits = getattr(event, axis), axes.get(axis)
                if value is not None and not isinstance(value, int | float):
                    raise SettingsError(f"the plan has {axis} = {value!r} at {dict(event.axes)}; it must be a number")
                if value is None or (math.isfinite(value) and (limits is None or value in limits)):
                    continue
                bounds = f"[{limits.low:g}, {limits.high:g}]" if limits else "finite numbers"
                raise SettingsError(
                    f"the plan goes to {axis} = {value:g} at {dict(event.axes)}, outside the limits {bounds} of knob "
                    f"{axis!r}; nothing has moved. Correct the plan, or [knobs.{axis}] limits."
                )
            if where.setdefault(event.key, (event.x, event.y)) != (event.x, event.y):
                raise SettingsError(
                    f"the plan has several XY positions at {dict(event.axes)} with the same time, position and grid "
                    "index, so that one focus would serve them all; number them along the axis 'position'"
                )
        channels = {event.channel for event in events if event.channel is not None}
        if len(channels) > 1 and not self.settings.microscope.channel:
            logger.warning(
                "the plan has the channels %s and [microscope] channel is not set: focusing uses whichever is in the "
                "light path",
                ", ".join(sorted(channels)),
            )

    def check_focus_drive(self) -> None:
        """Check that the engine and the knob "z" move the same device; the acquisition callers ask this.

        Raises
        ------
        SettingsError
            When the plan's z would go to one stage and the corrections belong to another.
        """
        if "z" not in self.settings.knobs:
            return
        knob, drive = self.microscope.knob("z"), str(self.microscope.core.get_focus_device())
        if knob.device != drive:
            raise SettingsError(
                f"acquisitions move the core's focus drive {drive!r}, but [knobs.z] focuses with {knob.device!r}. Make "
                f"that the focus drive (Core, Focus = {knob.device}), or set [knobs.z] device = {drive!r}."
            )

    def start(self) -> None:
        """Begin an acquisition: connect, check, forget earlier results, and tell the plugins. Called on first use.

        Raises
        ------
        SettingsError
            When something in the settings does not fit the instrument; nothing has moved.
        """
        if self._started:
            return
        self.ended_by = None
        self.ledger.clear(plan=False)
        self.results.clear()
        self._skipped.clear()
        self._clipped.clear()
        self._complained.clear()
        _ = self.depth_of_field_um
        self._find_observers()
        self.hook.mmaf_start(autofocus=self)
        self._started = True

    def finish(self, error: BaseException | None = None) -> None:
        """End an acquisition: tell the plugins. The results stay until the next `start`."""
        self.ended_by = error or self.ended_by
        if self._started:
            self._started = False
            self._tell("mmaf_finish", autofocus=self, error=error)
        self._cancel.clear()

    def reset(self) -> None:
        """Forget plan, corrections and results, for a new acquisition with the same settings."""
        self.finish()
        self.ledger.clear()
        self.results.clear()

    def cancel(self) -> None:
        """Stop the present run at its next step (from any thread); the instrument is put back."""
        self._cancel.set()
        self.resume.set()

    # ------------------------------------------------------------------ at an event
    def wants(self, event: Event) -> bool:
        """Whether the schedule wants to focus at this event."""
        if not self._started:
            self.start()
        self._check_cancel()
        return bool(self.hook.mmaf_should_focus(event=event, ledger=self.ledger))

    def at(self, event: Event) -> Placement:
        """Focus here if the schedule says so, and return where to acquire this event.

        Raises
        ------
        AcquisitionAborted, CancelledError
            When the failure policy, or the user, ends the acquisition.
        SettingsError
            When the event is a slice of a stack that was never planned.
        """
        placement = self.focus(event) if self.wants(event) else self.where(event)
        self.tell_event(event, placement.z)
        return placement

    def tell_event(self, event: Event, z: float | None) -> None:
        """Tell the observers at which z (absolute µm) an event is acquired; for callers that do not use `at`."""
        self._tell("mmaf_event", event=event, z=z)

    def where(self, event: Event) -> Placement:
        """Return where to acquire this event with what is known now, without focusing.

        A correction never carries an image outside the limits: it is taken at the limit then, and a warning is logged.
        """
        self._check_cancel()
        if "z" not in self.settings.knobs:
            return Placement(event.z)
        if not self.ledger.has(event):
            self.ledger.reference(event)  # raises for a stack that was never planned, before anything moves
            focal = self.expected(event)
            if focal is not None:  # noted, so that every slice and channel of this place is placed alike
                self.ledger.record(event, focal, time=self._clock(), measured=False)
        z = self.ledger.position(event)
        return Placement(self._within(event, z), skip=bool(self._skipped) and event.key in self._skipped)

    def expected(self, event: Event) -> float | None:
        """Where the focal plane is expected (absolute µm).

        As recorded at this place and time, else by the map, else as recorded here before, else as last measured nearby.
        """
        if self.ledger.has(event):
            return self.ledger.focal_z(event)
        prior = self.predict(event)
        if prior is not None:
            return prior.mean
        known = self.ledger.focal_z(event)
        return known if known is not None else self.ledger.last_good(event)

    def predict(self, event: Event) -> Prior | None:
        """Ask the plugins (the focus map) where the focal plane is."""
        prior: Prior | None = self.hook.mmaf_predict(event=event, ledger=self.ledger)
        if prior is not None and not (math.isfinite(prior.mean) and math.isfinite(prior.sd) and prior.sd >= 0):
            logger.warning("%s: the predicted focal plane is %s and not used", _name(event), prior)
            return None
        return prior

    def focus(self, event: Event | None = None) -> Placement:
        """Focus here and now, apply the failure policy, and return where to acquire.

        Parameters
        ----------
        event
            The event; None for here and now: the search starts where the stages stand, and whatever is expected
            is a prior only.

        Raises
        ------
        AcquisitionAborted, CancelledError
            When the failure policy, or the user, ends the acquisition. The instrument is as it was.
        """
        if not self._started:
            self.start()
        from_here = event is None
        event = event if event is not None else self._here()
        request = self._request(event, from_here=from_here)
        try:
            return self._focus(request, from_here)
        finally:
            if from_here:  # a script's cancel ends this run only
                self._cancel.clear()

    def _focus(self, request: FocusRequest, from_here: bool) -> Placement:
        event = request.event
        result = self._first_run(request)
        end: FocusError | None = None
        z: float | None = result.end[result.knob]
        if not result.ok:
            result, z, end = self._handle_failure(request, result, from_here)
        self.results.append(result)
        if result.ok:
            self._skipped.discard(event.key)
        if z is not None and end is None and result.knob == "z":
            self.ledger.record(event, z, time=self._clock(), measured=result.ok)
        self._tell("mmaf_focused", request=request, result=result)
        if end is not None:
            raise end
        if result.knob != "z":
            return Placement(event.z, result)
        where = self.where(event)
        return replace(where, z=where.z if event.z is not None else z, result=result)

    # ------------------------------------------------------------------ callers
    def pycromanager_hooks(self) -> dict[str, Any]:
        """Return the keyword arguments for ``pycromanager.Acquisition`` that make it focus."""
        hooks: dict[str, Any] = caller("pycromanager")(self)
        return hooks

    def mda_engine(self, core: Any = None) -> Any:
        """Return a pymmcore-plus MDA engine that focuses; use it with ``core.mda.set_engine(engine)``."""
        return caller("mda")(self, core)

    # ------------------------------------------------------------------ afterwards
    def report_data(self, title: str = "Autofocus") -> ReportData:
        """Return what `report` is made of, to add to it or to change it."""
        from mm_autofocus.report.data import ReportData, fields_from_results

        recorder = self.plugins.manager.get_plugin("recorder")
        thumbnails = getattr(recorder, "thumbnails", None) if getattr(recorder, "path", None) else None
        return ReportData(
            title=title,
            created=datetime.now().astimezone(),
            depth_of_field_um=self.depth_of_field_um,
            dose_unit=self.settings.microscope.dose_unit,
            strategy=", ".join(self.settings.strategy),
            results=list(self.results),
            fields=fields_from_results(self.results, thumbnails),
            settings_toml=to_toml(self.settings.model_dump(mode="json", exclude_unset=True)),
        )

    def report(self, path: str | Path, title: str = "Autofocus") -> Path:
        """Write what has been done so far into one self-contained HTML file.

        Raises
        ------
        SettingsError
            When the file cannot be written.
        """
        from mm_autofocus.report.html import write_report

        return write_report(self.report_data(title), path)

    # ------------------------------------------------------------------ one run
    def _request(self, event: Event, *, from_here: bool = False) -> FocusRequest:
        microscope = self.microscope
        start = self._start_values()
        limits = {name: knob.limits for name, knob in microscope.knobs.items()}
        prior = self.predict(event)
        if from_here and prior is not None and abs(prior.mean - start.get("z", prior.mean)) > 4.5 * prior.sd:
            prior = None  # whoever has moved there knows better than the map of an earlier specimen
        knob = "z" if "z" in start else next(iter(start))
        if knob == "z" and not from_here:
            expected = self.expected(event)
            if expected is None:
                expected = self.ledger.reference(event)
            if expected is not None:
                start["z"] = limits["z"].clip(expected)
        return FocusRequest(
            event=event,
            start=start,
            limits=limits,
            knob=knob,
            prior=prior,
            budget=self.settings.budget.budget(),
            depth_of_field_um=microscope.depth_of_field_um,
            pixel_um=microscope.pixel_um,
            seed=self.settings.seed,
        )

    def _start_values(self) -> dict[str, float]:
        """Where the knobs are; one that cannot be trusted ends the acquisition, since nothing may be moved blindly."""
        try:
            return start_values(self.microscope, tuple(self.microscope.knobs))
        except FocusError as error:
            raise AcquisitionAborted(str(error)) from error

    def _first_run(self, request: FocusRequest) -> FocusResult:
        """Go to the start and focus; a stage that refuses is a failed run, for the policy to deal with."""
        try:
            self.microscope.knob(request.knob).set(request.start[request.knob])
        except FocusError as error:
            return FocusResult(
                status=Status.FAILED, strategy=self.settings.strategy[0], knob=request.knob, start=dict(request.start),
                end=dict(request.start), reason=str(error), axes=dict(request.event.axes), label=request.event.label,
                x=request.event.x, y=request.event.y, time=self._clock(),
            )  # fmt: skip
        return self._checked(self.hook.mmaf_focus(request=request, run=self._run))

    def _run(self, strategy: Strategy, request: FocusRequest) -> FocusResult:
        run = FocusRun(
            self.microscope, strategy, request, verify=self.settings.verify, on_frame=self._tell_frame
        )  # fmt: skip
        return run()

    def _tell_frame(self, request: FocusRequest, frame: Any, purpose: str) -> None:
        self._tell("mmaf_frame", request=request, frame=frame, purpose=purpose)

    def _checked(self, result: object) -> FocusResult:
        """Apply the confidence threshold; a plugin that answers with something else is an error."""
        if not isinstance(result, FocusResult):
            raise AcquisitionAborted(
                f"mmaf_focus answered with {type(result).__name__}; a plugin must return a FocusResult"
            )
        ends = {knob: result.end.get(knob, math.nan) for knob in {result.knob, *result.end}}
        # a cascade's best result need not be its last, and a plugin may answer with anything
        lost = [name for name, value in ends.items() if not self._moved(name, value)]
        if lost:
            reason = f"the focus that was found cannot be gone to: {', '.join(f'{n} = {ends[n]:g}' for n in lost)}"
            start = {name: knob.get() for name, knob in self.microscope.knobs.items()}
            return result.model_copy(
                update={"status": Status.FAILED, "reason": reason, "end": {**start, result.knob: start[result.knob]}}
            )
        if result.ok and result.confidence < self.settings.min_confidence:
            reason = f"confidence {result.confidence:.2f} is below min_confidence {self.settings.min_confidence:g}"
            joined = f"{reason}; {result.reason}" if result.reason else reason
            return result.model_copy(update={"status": Status.LOW_CONFIDENCE, "reason": joined})
        return result

    # ------------------------------------------------------------------ failure
    def _handle_failure(
        self, request: FocusRequest, result: FocusResult, from_here: bool
    ) -> tuple[FocusResult, float | None, FocusError | None]:
        """Follow the policy; return the result, the focal z to use (None: none), and what ends the acquisition."""
        knob = request.knob
        while True:
            action: Action | None = self.hook.mmaf_focus_failed(request=request, result=result, ledger=self.ledger)
            if action is None or len(result.action) >= MAX_ACTIONS:
                action = Action("stay")
            logger.info("%s: %s (%s) -> %s", _name(request.event), result.status, result.reason, action.name)
            result = result.model_copy(update={"action": (*result.action, action.name)})
            if action.name == "accept":
                return result, result.end[knob], None
            if action.name == "stay":
                return result, self._stay(request), None
            if action.name in ("use_map", "use_last_good"):
                if from_here or action.z is None or action.z not in request.limits[knob]:
                    continue  # a script that asks for a focus here is not taken elsewhere
                if not self._moved(knob, action.z):
                    continue
                return result.model_copy(update={"final": action.z}), action.z, None
            if action.name == "skip":
                self._skipped.add(request.event.key)
                return result, self._stay(request), None
            if action.name == "abort":
                self._stay(request)
                if result.status is Status.CANCELLED:
                    return result, None, CancelledError(result.reason)
                return result, None, AcquisitionAborted(
                    f"focusing at {_name(request.event)} ended with {result.status}: {result.reason} The failure "
                    "policy says abort ([failure])."
                )  # fmt: skip
            if action.name == "pause":
                try:
                    self._pause(request, result)
                except CancelledError as error:
                    return result, None, error
                retried = self._again(request, result, request.window)
            elif action.name == "widen":
                retried = self._again(request, result, _widened(request, result, action.factor))
            else:
                logger.error("a plugin answered mmaf_focus_failed with the unknown action %r; staying", action.name)
                return result, self._stay(request), None
            if retried.ok:
                return retried, retried.end[knob], None
            result = retried

    def _again(self, request: FocusRequest, before: FocusResult, window: Limits | None) -> FocusResult:
        request = replace(request, window=window, attempt=len(before.action))
        if window is not None:
            request = replace(request, prior=None)
        result = self._checked(self.hook.mmaf_focus(request=request, run=self._run))
        return result.model_copy(
            update={
                "action": before.action,
                "images": before.images + result.images,
                "dose": before.dose + result.dose,
                "seconds": before.seconds + result.seconds,
                "compute_seconds": before.compute_seconds + result.compute_seconds,
                "moves": before.moves + result.moves,
                "samples": before.samples + result.samples,
            }
        )

    def _stay(self, request: FocusRequest) -> float | None:
        """Put the knob back to the start; as a focal plane the start only counts when it was expected to be one."""
        start = request.start[request.knob]
        self._moved(request.knob, start)
        return start if request.knob == "z" else None

    def _moved(self, name: str, target: float) -> bool:
        """Go there if possible; a stage that refuses is logged, and the policy goes on."""
        knob = self.microscope.knob(name)
        try:
            if not abs(knob.get() - target) <= 1e-6:  # NaN goes to the knob, which refuses it
                knob.set(target)
        except FocusError as error:
            logger.error("%s", error)
            return False
        return True

    def _pause(self, request: FocusRequest, result: FocusResult) -> None:
        self.resume.clear()
        self.paused.set()
        where = _name(request.event)
        logger.warning("paused at %s: %s; resume.set() goes on, cancel() ends", where, result.reason)
        try:
            while not self.resume.wait(0.2):
                self._check_cancel()
        finally:
            self.paused.clear()
        self._check_cancel()

    # ------------------------------------------------------------------ observers
    def _find_observers(self) -> None:
        """Prepare one caller for each observing plugin, so that one that fails keeps no other from being told."""
        manager = self.plugins.manager
        plugins = [plugin for _, plugin in manager.list_name_plugin() if plugin is not None]
        self._observers = {
            name: [
                (each.plugin_name, manager.subset_hook_caller(name, [p for p in plugins if p is not each.plugin]))
                for each in getattr(manager.hook, name).get_hookimpls()
            ]
            for name in ("mmaf_event", "mmaf_frame", "mmaf_focused", "mmaf_finish")
        }

    def _tell(self, hook: str, **arguments: Any) -> None:
        """Tell the observers; what one of them raises is logged, an acquisition does not end because of it."""
        for name, call in self._observers.get(hook, ()):
            try:
                call(**arguments)
            except Exception as error:
                if (name, hook) not in self._complained:  # once: it may fail at every event of a night
                    self._complained.add((name, hook))
                    logger.exception("plugin %r failed in %s; the acquisition goes on", name, hook)
                else:
                    logger.debug("plugin %r failed in %s again: %s", name, hook, error)

    # ------------------------------------------------------------------ small things
    def _check_cancel(self) -> None:
        if self._cancel.is_set():
            raise CancelledError("the acquisition was cancelled; the instrument is back where it was")

    def _within(self, event: Event, z: float | None) -> float | None:
        if z is None:
            return z
        if not math.isfinite(z):
            raise SettingsError(f"{_name(event)} would be acquired at z = {z}; nothing has moved. Correct the plan.")
        limits = self.microscope.knob("z").limits
        if z in limits:
            return z
        if event.key not in self._clipped:
            self._clipped.add(event.key)
            logger.warning(
                "%s: z = %g is outside the limits [%g, %g]; acquired at the limit", _name(event), z, *_pair(limits)
            )
        return limits.clip(z)

    def _here(self) -> Event:
        core = self.microscope.core
        stage = str(core.get_xy_stage_device())
        if not stage:
            return Event()
        x, y = float(core.get_x_position(stage)), float(core.get_y_position(stage))
        return Event(axes={"position": f"x {x:.0f} y {y:.0f}"}, x=x, y=y)


def _widened(request: FocusRequest, result: FocusResult, factor: float) -> Limits:
    """A window ``factor`` times as wide as what was searched, around where it was searched, inside the limits."""
    searched = [s.knobs[request.knob] for s in result.samples if request.knob in s.knobs]
    start = request.start[request.knob]
    half = max((abs(z - start) for z in searched), default=0.0)
    half = max(half, 2.0 * request.depth_of_field_um) * factor
    return Limits(start - half, start + half).intersect(request.limits[request.knob])


def _pair(limits: Limits) -> tuple[float, float]:
    return limits.low, limits.high


def _name(event: Event) -> str:
    return event.label or event.well or (str(dict(event.axes)) if event.axes else "this position")


def _running_core() -> Any:
    """Find the core that runs in this process.

    Raises
    ------
    SettingsError
        When none does.
    """
    launcher = sys.modules.get("mmpycorex.launcher")
    cores = getattr(launcher, "_PYMMCORES", None)
    if cores:
        return cores[0]  # the one that pycromanager.Core() returns
    if getattr(launcher, "_JAVA_HEADLESS_SUBPROCESSES", None) and "pycromanager" in sys.modules:
        return sys.modules["pycromanager"].Core()
    if "pymmcore_plus" in sys.modules:
        core = sys.modules["pymmcore_plus"].CMMCorePlus.instance()
        if len(core.getLoadedDevices()) > 1:
            return core
    raise SettingsError(
        "no Micro-Manager core with a configuration runs in this process; pass one: Autofocus(core), with a pymmcore, "
        "pymmcore-plus or pycro-manager core"
    )
