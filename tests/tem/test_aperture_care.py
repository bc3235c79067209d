"""The plugin aligns again after so many events, or when a frame shows a drift, and leaves other strategies alone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from mm_autofocus.errors import HardwareError, SettingsError
from mm_autofocus.estimators.beam_disc import Beam, Disc
from mm_autofocus.request import Event
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.settings import Settings
from mm_autofocus.simulation.tem_column import TemColumn
from mm_autofocus.strategies.aperture import Aperture
from mm_autofocus.strategies.aperture_care import ApertureCare, drift_measure

EVENT = Event(axes={"time": 0})
DONE = FocusResult(status=Status.CONVERGED, strategy="aperture", knob="aperture_x", start={}, end={})


class Scope:
    """A microscope that only snaps."""

    def __init__(self) -> None:
        self.column = TemColumn(1, 0)
        self.column.c1 = 1.02
        self.column.wait(3.0)
        self.snaps = 0
        self.broken = False

    @contextmanager
    def preserved(self) -> Any:
        yield

    def apply_imaging(self) -> None:
        pass

    def snap(self, **_: Any) -> Any:
        self.snaps += 1
        if self.broken:
            raise HardwareError("the camera is off")
        return self.column.image(), 100.0


class Instrument:
    def __init__(self, *strategies: Any) -> None:
        self.strategies = {each.name: each for each in strategies}
        self.microscope = Scope()


def care(instrument: Instrument, **section: Any) -> ApertureCare:
    plugin = ApertureCare(Settings(plugins={"aperture_care": section}))
    plugin.mmaf_start(instrument)  # type: ignore[arg-type]
    return plugin


def series(plugin: ApertureCare, events: int) -> list[int]:
    """Run events as an acquisition would; return those at which it aligned."""
    aligned = []
    for index in range(events):
        if plugin.mmaf_should_focus(EVENT):
            aligned.append(index)
            plugin.mmaf_focused(DONE)
        plugin.mmaf_event(EVENT)
    return aligned


def test_it_aligns_at_the_beginning_and_after_every_n_events() -> None:
    assert series(care(Instrument(Aperture()), every=4), 10) == [0, 4, 8]


def test_it_aligns_when_the_beam_has_drifted() -> None:
    instrument = Instrument(Aperture())
    plugin = care(instrument, check_every=2, threshold=0.05)
    assert series(plugin, 9) == [0]
    assert instrument.microscope.snaps >= 3
    instrument.microscope.column.beam_shift_x = 3.0
    instrument.microscope.column.wait(3.0)
    assert len(series(plugin, 6)) == 1


def test_a_beam_that_is_gone_counts_as_drifted() -> None:
    instrument = Instrument(Aperture())
    plugin = care(instrument, check_every=1)
    series(plugin, 4)
    instrument.microscope.column.beam_on = False
    instrument.microscope.column.wait(3.0)
    assert series(plugin, 2)
    assert plugin.drift == np.inf


def test_a_camera_that_fails_does_not_end_the_series() -> None:
    instrument = Instrument(Aperture())
    plugin = care(instrument, check_every=1)
    instrument.microscope.broken = True
    assert series(plugin, 5) == [0]


def test_it_leaves_the_decision_where_it_is_not_asked() -> None:
    assert care(Instrument(Aperture())).mmaf_should_focus(EVENT) is None
    assert care(Instrument(), every=2).mmaf_should_focus(EVENT) is None


def test_a_misspelt_key_is_an_error() -> None:
    with pytest.raises(SettingsError, match="evry"):
        care(Instrument(Aperture()), evry=3)


def test_the_measure_counts_movement_and_growth() -> None:
    cov = ((0.01, 0.0, 0.0), (0.0, 0.01, 0.0), (0.0, 0.0, 0.01))
    here = Disc(Beam.DISC, 100.0, 100.0, 40.0, cov)
    assert drift_measure(here, here, 256) == 0
    assert drift_measure(here, Disc(Beam.DISC, 110.0, 100.0, 40.0, cov), 256) == pytest.approx(10 / 256)
    assert drift_measure(here, Disc(Beam.DISC, 100.0, 100.0, 44.0, cov), 256) == pytest.approx(0.1)
    assert drift_measure(here, Disc(Beam.NONE), 256) == np.inf
    assert drift_measure(Disc(Beam.NONE), here, 256) == 0
