"""pymmcore-plus's acquisition engine with a focus correction that reaches every event, hardware-sequenced ones too."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pymmcore_plus.core import CMMCorePlus
from pymmcore_plus.core._sequencing import SequencedEvent
from pymmcore_plus.mda import MDAEngine
from useq import HardwareAutofocus, MDAEvent, MDASequence

from mm_autofocus.errors import HardwareError

if TYPE_CHECKING:
    from pymmcore_plus.mda._protocol import PImagePayload
    from pymmcore_plus.metadata import SummaryMetaV1


class CorrectedMDAEngine(MDAEngine):
    """`MDAEngine` whose autofocus corrections are right for grids and for hardware-triggered z-stacks.

    It differs from `MDAEngine` in four points:

    - The correction is kept by position and grid tile, not by position alone. A tile that was never focused takes
      the latest correction of its position.
    - The correction is added to the z sequence of hardware-sequenced events, where `MDAEngine` loses it.
    - Events of different positions or tiles are never merged into one hardware sequence.
    - The autofocus action fails with `RuntimeError` only, so that a run goes on without the correction.

    Register it with ``core.mda.set_engine(CorrectedMDAEngine(core))``. Override `correction` to take the correction
    from elsewhere.
    """

    def __init__(self, mmc: CMMCorePlus, **settings: Any) -> None:
        super().__init__(mmc, **settings)
        self._corrections: dict[Hashable, float] = {}

    def correction(self, event: MDAEvent) -> float:
        """Return what is added to the nominal z of `event`, in µm."""
        place = _place(event)
        return self._corrections.get(place, self._corrections.get(place[0], 0.0))

    def setup_sequence(self, sequence: MDASequence) -> SummaryMetaV1 | None:
        """Prepare for a sequence; corrections of the sequence before are forgotten."""
        self._corrections.clear()
        return super().setup_sequence(sequence)

    def event_iterator(self, events: Iterable[MDAEvent]) -> Iterator[MDAEvent]:
        """Merge events for hardware sequencing, within one position and tile."""
        for _, same_place in groupby(events, key=_place):
            yield from super().event_iterator(same_place)

    def setup_sequenced_event(self, event: SequencedEvent) -> None:
        """Set up the hardware for triggered events, z sequence corrected."""
        if event.z_sequence:
            corrected = (z + self.correction(one) for z, one in zip(event.z_sequence, event.events, strict=True))
            event = event.model_copy(update={"z_sequence": tuple(corrected)})
        super().setup_sequenced_event(event)

    def exec_event(self, event: MDAEvent) -> Iterable[PImagePayload | None]:
        """Execute an event; an autofocus action adds to the correction of its position and tile."""
        output = super().exec_event(event)
        return self._focused(event, output) if isinstance(event.action, HardwareAutofocus) else output

    def _focused(self, event: MDAEvent, output: Iterable[PImagePayload | None]) -> Iterator[PImagePayload | None]:
        yield from output
        # MDAEngine writes down a success only, under the position; taken out again, it holds this action's move alone
        move = self._z_correction.pop(event.index.get("p"), None)
        if move is not None:
            position, _ = place = _place(event)
            self._corrections[place] = self._corrections[position] = self.correction(event) + move

    def _set_event_z(self, event: MDAEvent) -> None:
        core = self.mmcore
        if core.getFocusDevice() and event.z_pos is not None:
            first = event.events[0] if isinstance(event, SequencedEvent) else event
            core.setZPosition(event.z_pos + self.correction(first))
        else:
            super()._set_event_z(event)  # which warns

    def _execute_autofocus(self, action: HardwareAutofocus) -> float:
        try:
            return super()._execute_autofocus(action)
        except RuntimeError:
            raise
        except Exception as error:
            raise HardwareError(f"The autofocus action failed: {type(error).__name__}: {error}") from error


def _place(event: MDAEvent) -> tuple[int | None, int | None]:
    return event.index.get("p"), event.index.get("g")
