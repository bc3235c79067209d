"""The caller for pymmcore-plus: an MDA engine that focuses where the plan, or else the schedule, says so."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pymmcore_plus.core import CMMCorePlus
from pymmcore_plus.core._sequencing import SequencedEvent
from pymmcore_plus.mda import SkipEvent
from pymmcore_plus.mda._generator_sequence import GeneratorMDASequence
from useq import CustomAction, HardwareAutofocus, MDAEvent, MDASequence

from mm_autofocus.autofocus import Autofocus, Placement
from mm_autofocus.errors import SettingsError
from mm_autofocus.events import from_useq, useq_channel_offset
from mm_autofocus.request import Event
from mm_autofocus_hooks.mda_engine import CorrectedMDAEngine

if TYPE_CHECKING:
    from pymmcore_plus.mda._protocol import PImagePayload
    from pymmcore_plus.metadata import SummaryMetaV1

logger = logging.getLogger(__name__)


def engine(autofocus: Autofocus, core: Any = None) -> AutofocusMDAEngine:
    """Return an engine for ``core.mda.set_engine``; see `Autofocus.mda_engine`.

    Raises
    ------
    SettingsError
        When the core is not one of pymmcore-plus.
    """
    core = core if core is not None else autofocus.microscope.core.raw
    if not isinstance(core, CMMCorePlus):
        raise SettingsError(
            f"{type(core).__name__} has no MDA engine; load the configuration into a pymmcore-plus core "
            "(CMMCorePlus or AutofocusCore)"
        )
    return AutofocusMDAEngine(core, autofocus)


class AutofocusMDAEngine(CorrectedMDAEngine):
    """`CorrectedMDAEngine` that asks an `Autofocus` where each event belongs.

    A sequence with an ``autofocus_plan`` is focused where that says (the failure policy applies; the core's AutoFocus
    device is not needed); one without, where the schedule says. ``CustomAction(name="mm_autofocus")`` focuses too.
    """

    def __init__(self, mmc: CMMCorePlus, autofocus: Autofocus, **settings: Any) -> None:
        super().__init__(mmc, **settings)
        self.autofocus = autofocus
        self._plan_says_when = False
        self._error: BaseException | None = None
        self._read: tuple[MDAEvent | None, Event] = None, Event()
        """The event read last: one event is asked about several times in a row."""

    def setup_sequence(self, sequence: MDASequence) -> SummaryMetaV1 | None:
        """Learn the plan and start.

        Raises
        ------
        SettingsError
            When plan, settings and instrument do not fit; nothing has moved.
        """
        self._plan_says_when = False
        self._error = None
        if not isinstance(sequence, GeneratorMDASequence):  # events from an iterable: the user has called plan()
            self.autofocus.plan(sequence)
            parts = [sequence, *(p.sequence for p in sequence.stage_positions if p.sequence is not None)]
            self._plan_says_when = any(part.autofocus_plan is not None for part in parts)
        self.autofocus.check_focus_drive()
        self.autofocus.start()
        return super().setup_sequence(sequence)

    def correction(self, event: MDAEvent) -> float:
        """Return what `Autofocus` adds to the nominal z of ``event``, in µm; never carries it outside the limits."""
        z = self._z(event)
        return 0.0 if z is None or event.z_pos is None else z - event.z_pos

    def setup_event(self, event: MDAEvent) -> None:
        """Set the hardware up, then focus if the schedule says so.

        Raises
        ------
        SkipEvent
            When the failure policy skips this position; the sink fills the gap.
        """
        try:
            first = event.events[0] if isinstance(event, SequencedEvent) else event
            ours = self._event(first)
            if isinstance(event.action, HardwareAutofocus | CustomAction):
                super().setup_event(event)
                return
            wanted = not self._plan_says_when and self.autofocus.wants(ours)
            if wanted and isinstance(event, SequencedEvent):
                # before the sequences are armed: a triggered stage would step along with the focus images
                super().setup_event(first)
                self._focus(first)
            super().setup_event(event)
            if wanted and not isinstance(event, SequencedEvent):
                self._focus(event)
            placement = self.autofocus.where(ours)
            if placement.skip:
                frames = len(event.events) if isinstance(event, SequencedEvent) else 1
                raise SkipEvent(frames, "the failure policy skips this position")
            z = self._z(first)
            if first.z_pos is None:
                self._move_z(z)
            for one in event.events if isinstance(event, SequencedEvent) else (event,):
                self.autofocus.tell_event(self._event(one), z)
        except SkipEvent:
            raise
        except BaseException as error:
            self._error = error
            raise

    def exec_event(self, event: MDAEvent) -> Iterable[PImagePayload | None]:
        """Execute an event; an autofocus action focuses with the strategy and the failure policy."""
        action = event.action
        if isinstance(action, HardwareAutofocus):
            if action.autofocus_motor_offset is not None:
                logger.warning(
                    "autofocus_motor_offset = %s is for hardware autofocus and not used; set [stack] channel_offsets",
                    action.autofocus_motor_offset,
                )
            self._focus(event)
            return ()
        if isinstance(action, CustomAction) and action.name == "mm_autofocus":
            self._focus(event)
            return ()
        return super().exec_event(event)

    def teardown_sequence(self, sequence: MDASequence) -> None:
        """End the acquisition."""
        super().teardown_sequence(sequence)
        self.autofocus.finish(self._error)

    def _set_event_z(self, event: MDAEvent) -> None:
        """Move through the knob: inside the limits, backlash taken up."""
        if not self._move_z(self._z(event.events[0] if isinstance(event, SequencedEvent) else event)):
            super()._set_event_z(event)

    def _move_z(self, z: float | None) -> bool:
        """Move the knob "z" there; False when there is none, or nowhere to go."""
        if z is None or "z" not in self.autofocus.settings.knobs:
            return False
        self.autofocus.microscope.knob("z").set(z)
        return True

    def _focus(self, event: MDAEvent) -> Placement:
        try:
            placement = self.autofocus.focus(self._event(event))
        except BaseException as error:
            self._error = error
            raise
        finally:
            # the engine skips a channel that it believes to be set; focusing may have set another in between
            self.mmcore._last_config = ("", "")
        self._move_z(self._z(event))
        if event.channel is not None:
            self._set_event_channel(event)
            self.mmcore.waitForConfig(event.channel.group, event.channel.config)
        return placement

    def _event(self, event: MDAEvent) -> Event:
        if self._read[0] is not event:
            self._read = event, from_useq(event)
        return self._read[1]

    def _z(self, event: MDAEvent) -> float | None:
        """Absolute z of an event in µm, its channel's offset in the plan included, inside the limits."""
        if "z" not in self.autofocus.settings.knobs:
            return event.z_pos
        z = self.autofocus.where(self._event(event)).z
        if z is None:
            return None
        return self.autofocus.microscope.knob("z").limits.clip(z + useq_channel_offset(event))

