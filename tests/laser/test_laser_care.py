"""The laser notices that it has drifted, lets the image sweep take over, and recalibrates itself."""

from __future__ import annotations

from mm_autofocus.result import Status
from mm_autofocus.strategies.laser import Laser
from mm_autofocus.strategies.laser_care import LaserCare
from mm_autofocus_devices.laser import open_laser
from mm_autofocus_devices.plate import open_instrument


def test_it_recalibrates_where_the_image_sweep_has_found_the_focus(core, tools):
    open_laser(open_instrument(), scale=4.0)  # knocked: beyond what the gate lets pass, but not by far
    scope = open_instrument()
    care = LaserCare()
    autofocus = tools.orchestrator(core)
    autofocus.plugins.add(care, "care")
    answered = []
    for well in ("C3", "C4", "C5", "C6", "C7"):
        core.setXYPosition(*scope.plate.well_centre(well))
        core.waitForDevice("XY")
        core.setPosition(scope.true_focus_um(channel="DAPI") + 4.0)
        core.waitForDevice("Z")
        result = autofocus.focus().result
        answered.append(result.strategy)
        assert result.status is Status.CONVERGED
        assert abs(core.getPosition() - scope.true_focus_um(channel="DAPI")) < 0.6
    assert answered == ["sweep", "sweep", "sweep", "laser", "laser"]
    assert care.recalibrations == 1
    laser = autofocus.strategies["laser"]
    assert isinstance(laser, Laser)
    assert laser.model.short.curve is not None
