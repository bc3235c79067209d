"""The one orchestrator: every caller, whatever the engine, asks `Autofocus.at(event)` and goes where it says."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mm_autofocus import events as event_readers
from mm_autofocus.checks import check_focus_drive, check_plan, check_strategies
from mm_autofocus.errors import AcquisitionAborted, CancelledError, FocusError, SettingsError
from mm_autofocus.ledger import Ledger
from mm_autofocus.microscope import Microscope
from mm_autofocus.microscope.running import running_core
from mm_autofocus.observers import Observers
from mm_autofocus.plugins import Plugins, caller
from mm_autofocus.recovery import recover
from mm_autofocus.request import Event, FocusRequest, Key, Prior
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.results import ResultLog
from mm_autofocus.run import FocusRun, start_values
from mm_autofocus.settings import Settings
from mm_autofocus.strategies.cascade import Cascade
from mm_autofocus.strategy import Strategy
from mm_autofocus.toml import to_toml

if TYPE_CHECKING:
    from mm_autofocus.report.data import ReportData

logger = logging.getLogger(__name__)

Plan = TypeVar("Plan", bound=Iterable[Any])


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
        self.results = ResultLog()
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
        self._observers = Observers(self.plugins.manager)
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
            core = self._core if self._core is not None else running_core()
            microscope = Microscope(core, self.settings, clock=self._clock, sleep=self._sleep)
            microscope.cancel = self._cancel
            check_strategies(self.strategies, microscope)
            self._microscope = microscope
        return self._microscope

    @property
    def depth_of_field_um(self) -> float:
        """Depth of field of the microscope in µm; in focus means within half of it."""
        return self.microscope.depth_of_field_um

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
        check_plan(read, self.microscope)
        self.ledger.plan(read)
        return events

    def check_focus_drive(self) -> None:
        """Check that the engine and the knob "z" move the same device; the acquisition callers ask this.

        Raises
        ------
        SettingsError
            When the plan's z would go to one stage and the corrections belong to another.
        """
        check_focus_drive(self.microscope)

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
        _ = self.depth_of_field_um
        self._observers = Observers(self.plugins.manager)
        self.hook.mmaf_start(autofocus=self)
        self._started = True

    def finish(self, error: BaseException | None = None) -> None:
        """End an acquisition: tell the plugins. The results stay until the next `start`."""
        self.ended_by = error or self.ended_by
        if self._started:
            self._started = False
            self._observers.tell("mmaf_finish", autofocus=self, error=error)
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
        self.check_cancel()
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
        self._observers.tell("mmaf_event", event=event, z=z)

    def where(self, event: Event) -> Placement:
        """Return where to acquire this event with what is known now, without focusing.

        A correction never carries an image outside the limits: it is taken at the limit then, and a warning is logged.
        """
        self.check_cancel()
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
            logger.warning("%s: the predicted focal plane is %s and not used", event.name, prior)
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
            result, z, end = recover(self, request, result, from_here=from_here)
        self.results.append(result)
        if result.ok:
            self._skipped.discard(event.key)
        if z is not None and end is None and result.knob == "z":
            self.ledger.record(event, z, time=self._clock(), measured=result.ok)
        self._observers.tell("mmaf_focused", request=request, result=result)
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
            depths=microscope.depths,
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
        return self.run(request)

    def run(self, request: FocusRequest) -> FocusResult:
        """Focus once, as the plugins do it, and check what they answer.

        Raises
        ------
        AcquisitionAborted
            When a plugin answers with something that is no result.
        """
        return self._checked(self.hook.mmaf_focus(request=request, run=self._run))

    def _run(self, strategy: Strategy, request: FocusRequest) -> FocusResult:
        run = FocusRun(
            self.microscope, strategy, request, verify=self.settings.verify, on_frame=self._tell_frame
        )  # fmt: skip
        return run()

    def _tell_frame(self, request: FocusRequest, frame: Any, purpose: str) -> None:
        self._observers.tell("mmaf_frame", request=request, frame=frame, purpose=purpose)

    def _checked(self, result: object) -> FocusResult:
        """Apply the confidence threshold; a plugin that answers with something else is an error."""
        if not isinstance(result, FocusResult):
            raise AcquisitionAborted(
                f"mmaf_focus answered with {type(result).__name__}; a plugin must return a FocusResult"
            )
        ends = {knob: result.end.get(knob, math.nan) for knob in {result.knob, *result.end}}
        # a cascade's best result need not be its last, and a plugin may answer with anything
        lost = [name for name, value in ends.items() if not self.move(name, value)]
        if lost:
            reason = f"the focus that was found cannot be gone to: {', '.join(f'{n} = {ends[n]:g}' for n in lost)}"
            reason = f"{result.reason}; {reason}" if result.reason else reason
            back = {name: result.start.get(name, 0.0) for name in ends}
            return result.model_copy(update={"status": Status.FAILED, "reason": reason, "end": back})
        if result.ok and result.confidence < self.settings.min_confidence:
            reason = f"confidence {result.confidence:.2f} is below min_confidence {self.settings.min_confidence:g}"
            joined = f"{reason}; {result.reason}" if result.reason else reason
            return result.model_copy(update={"status": Status.LOW_CONFIDENCE, "reason": joined})
        return result

    def move(self, name: str, target: float) -> bool:
        """Move a knob if it is not there; False when it cannot go there, which is logged."""
        knob = self.microscope.knob(name)
        try:
            if not abs(knob.get() - target) <= 1e-6:  # NaN goes to the knob, which refuses it
                knob.set(target)
        except FocusError as error:
            logger.error("%s", error)
            return False
        return True

    def skip(self, event: Event) -> None:
        """Spend no light on this place and time from now on."""
        self._skipped.add(event.key)

    def check_cancel(self) -> None:
        """Raise `CancelledError` when someone has asked to stop."""
        if self._cancel.is_set():
            raise CancelledError("the acquisition was cancelled; the instrument is back where it was")

    # ------------------------------------------------------------------ small things
    def _within(self, event: Event, z: float | None) -> float | None:
        if z is None:
            return z
        if not math.isfinite(z):
            raise SettingsError(f"{event.name} would be acquired at z = {z}; nothing has moved. Correct the plan.")
        limits = self.microscope.knob("z").limits
        if z in limits:
            return z
        if event.key not in self._clipped:
            self._clipped.add(event.key)
            bounds = f"[{limits.low:g}, {limits.high:g}]"
            logger.warning("%s: z = %g is outside the limits %s; acquired at the limit", event.name, z, bounds)
        return limits.clip(z)

    def _here(self) -> Event:
        core = self.microscope.core
        stage = str(core.get_xy_stage_device())
        if not stage:
            return Event()
        x, y = float(core.get_x_position(stage)), float(core.get_y_position(stage))
        return Event(axes={"position": f"x {x:.0f} y {y:.0f}"}, x=x, y=y)
