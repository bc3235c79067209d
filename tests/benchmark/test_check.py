from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.benchmark.check_focus import check_focus
from mm_autofocus.cli import app_bench
from mm_autofocus.cli.demo_beads import bead_core
from mm_autofocus.cli.groups import Groups
from mm_autofocus.errors import AcquisitionAborted, FocusError, LimitError, SettingsError
from mm_autofocus.microscope import Microscope
from mm_autofocus.result import FocusResult
from mm_autofocus.settings import Settings
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_hooks.require_check import RequireCheck

DATA: dict[str, Any] = {
    "microscope": {"depth_of_field_um": 3.0},
    "knobs": {"z": {"limits": [-60.0, 60.0]}},
    "strategies": {"sweep": {"range_um": 60.0}},
    "map": {"enabled": False},
}
BEADS = Settings.parse(DATA)


@pytest.fixture
def core() -> Iterator[AutofocusCore]:
    pytest.importorskip("mm_test_adapters")
    core = bead_core()
    core.setROI(192, 192, 128, 128)
    yield core
    core.unloadAllDevices()


class Recovers:
    """Brings back a fraction of whatever defocus it finds; the beads are in focus at 0."""

    name = "partial"

    def __init__(self, core: Any, fraction: float, ok: bool = True) -> None:
        self.core, self.fraction, self.ok = core, fraction, ok

    def focus(self) -> tuple[bool, str, FocusResult | None]:
        self.core.setPosition(self.core.getPosition() * (1 - self.fraction))
        return self.ok, "", None


@pytest.mark.parametrize(("fraction", "passed"), [(1.0, True), (0.95, True), (0.5, False), (0.0, False), (-0.5, False)])
def test_the_fraction_that_comes_back_is_told(core: AutofocusCore, fraction: float, passed: bool) -> None:
    core.setPosition(4.0)
    outcome = check_focus(Microscope(core, BEADS), Recovers(core, fraction), injected_um=(-20.0, 20.0), focus_um=0.0)
    assert outcome.recovered == pytest.approx(max(0.0, min(fraction, 2 - fraction)), abs=0.01)
    assert outcome.passed == passed
    assert core.getPosition() == pytest.approx(4.0)


def test_one_side_that_fails_is_enough_to_fail(core: AutofocusCore) -> None:
    class OneSided(Recovers):
        def focus(self) -> tuple[bool, str, FocusResult | None]:
            return super().focus() if self.core.getPosition() > 0 else (False, "no signal", None)

    outcome = check_focus(Microscope(core, BEADS), OneSided(core, 1.0), focus_um=0.0)
    assert [i.recovered for i in outcome.injections] == [0.0, 1.0]
    assert not outcome.passed
    assert "no focus" in outcome.sentence


def test_the_reference_is_found_by_images_or_by_the_autofocus_itself(core: AutofocusCore) -> None:
    core.setPosition(5.0)
    by_image = check_focus(Microscope(core, BEADS), Recovers(core, 1.0))
    assert by_image.reference_um == pytest.approx(0.0, abs=0.6)
    assert [abs(i.injected_um) for i in by_image.injections] == [15.0, 15.0]  # five depths of field
    itself = check_focus(Microscope(core, BEADS), Recovers(core, 1.0), reference="self")
    assert itself.reference_um == 0.0
    with pytest.raises(FocusError, match="finds no focus to begin with"):
        check_focus(Microscope(core, BEADS), Recovers(core, 0.0, ok=False), reference="self")


def test_nothing_moves_for_an_offset_outside_the_limits(core: AutofocusCore) -> None:
    with pytest.raises(LimitError, match="asked for 80"):
        check_focus(Microscope(core, BEADS), Recovers(core, 1.0), injected_um=(5.0, 80.0), focus_um=0.0)
    with pytest.raises(SettingsError, match="other than 0"):
        check_focus(Microscope(core, BEADS), Recovers(core, 1.0), injected_um=(0.0,), focus_um=0.0)
    assert core.getPosition() == 0.0


# ---------------------------------------------------------------------- acquisitions that require it
def required(core: Any, **section: Any) -> Autofocus:
    settings = Settings.parse(DATA | {"plugins": {"require_check": section}, "strategy": "sweep"})
    extra = [] if "require_check" in _registered() else [RequireCheck(settings)]
    return Autofocus(core, settings, plugins=extra)


def _registered() -> set[str]:
    from importlib.metadata import entry_points

    return {point.name for point in entry_points(group="mm_autofocus")}


def test_an_acquisition_begins_when_the_check_is_passed(core: AutofocusCore) -> None:
    core.setPosition(3.0)
    autofocus = required(core)
    autofocus.start()
    assert core.getPosition() == pytest.approx(3.0)
    assert len(autofocus.results) == 0


def test_an_acquisition_does_not_begin_when_it_is_not(core: AutofocusCore) -> None:
    autofocus = required(core, threshold=1.0)
    with pytest.raises(AcquisitionAborted, match="nothing was acquired"):
        autofocus.start()
    assert core.getPosition() == 0.0
    blind = required(core)
    core.setProperty("Camera", "Mode", "Color Test Pattern")
    with pytest.raises(AcquisitionAborted, match="the check before the acquisition failed"):
        blind.start()


def test_without_its_section_or_switched_off_nothing_is_checked(core: AutofocusCore) -> None:
    snaps = core.getProperty("Camera", "Mode")
    for settings in (BEADS, Settings.parse(DATA | {"plugins": {"require_check": {"enabled": False}}})):
        plugin = RequireCheck(settings)
        plugin.mmaf_start(autofocus=None)  # type: ignore[arg-type]
        assert plugin.check is None
    assert core.getProperty("Camera", "Mode") == snaps


# ---------------------------------------------------------------------- exit codes
CONFIG = """Property,Core,Initialize,0
Device,Camera,DemoCamera,DCam
Device,Z,DemoCamera,DStage
Device,Shutter,DemoCamera,DShutter
{device}
Property,Core,Initialize,1
Property,Core,Camera,Camera
Property,Core,Focus,Z
Property,Core,Shutter,Shutter
{role}
Property,Camera,Mode,Fluorescent Beads
Property,Camera,PixelType,16bit
Property,Camera,OnCameraCCDXSize,128
Property,Camera,OnCameraCCDYSize,128
"""
OURS = "", ""
NATIVE = "Device,AF,DemoCamera,DAutoFocus", "Property,Core,AutoFocus,AF"
"""DemoCamera's own autofocus moves nothing: it must be found out."""


@pytest.mark.parametrize(("device", "code"), [(OURS, 0), (NATIVE, 2)])
def test_scripts_get_an_exit_code(tmp_path: Path, device: tuple[str, str], code: int) -> None:
    pytest.importorskip("mm_test_adapters")
    (tmp_path / "demo.cfg").write_text(CONFIG.format(device=device[0], role=device[1]))
    (tmp_path / "autofocus.toml").write_text(
        "[microscope]\ndepth_of_field_um = 3.0\n[knobs.z]\nlimits = [-60, 60]\n[strategies.sweep]\nrange_um = 60\n"
    )
    arguments = [
        "check",
        "focus",
        "--config",
        str(tmp_path / "demo.cfg"),
        "--settings",
        str(tmp_path / "autofocus.toml"),
    ]
    ended = CliRunner().invoke(command(), [*arguments, "--json"])
    assert ended.exit_code == code, ended.output
    assert json.loads(ended.stdout)["passed"] == (code == 0)


def test_errors_are_1_and_told() -> None:
    ended = CliRunner().invoke(command(), ["check", "focus", "--config", "nowhere.cfg", "--settings", "nowhere.toml"])
    assert ended.exit_code == 1
    assert "nowhere.cfg does not exist" in ended.output


def command() -> typer.Typer:
    app = typer.Typer()
    app_bench.register(Groups.make(app))
    return app
