"""``core.fullFocus()`` on the simulated plate microscope: the strategy behind Micro-Manager's AutoFocus device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import useq
from pymmcore_plus.mda import MDAEngine

from mm_autofocus import Autofocus, Settings, Status
from mm_autofocus.errors import FocusError, SettingsError
from mm_autofocus_devices.autofocus_strategy import CONFIGS, StrategyAutofocus
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.plate import discard_instrument, open_instrument

A1, A2, B1 = (0.0, 0.0), (9000.0, 0.0), (0.0, 9000.0)


@pytest.fixture
def core(tmp_path: Path) -> Iterator[AutofocusCore]:
    """plate.cfg with well B1 empty, at A1 and 8 µm from its focus."""
    discard_instrument()
    text = (CONFIGS / "plate.cfg").read_text(encoding="utf-8").replace("BlankWells,", "BlankWells,B1")
    path = tmp_path / "plate.cfg"
    path.write_text(text, encoding="utf-8")
    core = AutofocusCore()
    core.loadSystemConfiguration(path)
    go(core, A1, 8.0)
    yield core
    core.unloadAllDevices()
    discard_instrument()


def go(core: Any, xy: tuple[float, float], defocus: float) -> None:
    core.setXYPosition(*xy)
    core.waitForDevice("XY")
    core.setPosition(truth(xy) + defocus)
    core.waitForDevice("Z")


def truth(xy: tuple[float, float]) -> float:
    """Where the focus is: to score with; the strategy cannot reach it."""
    return open_instrument().true_focus_um(*xy, "DAPI")


def device(core: AutofocusCore) -> StrategyAutofocus:
    found = core._pydevices[core.getAutoFocusDevice()]
    assert isinstance(found, StrategyAutofocus)
    return found


def imaging(core: Any) -> tuple[Any, ...]:
    return (
        core.getCameraDevice(), core.getExposure(), core.getCurrentConfig("Channel"), tuple(core.getROI()),
        core.getProperty("Camera", "Binning"), core.getAutoShutter(), core.getShutterOpen(),
    )  # fmt: skip


def test_it_focuses_within_half_the_depth_of_field_and_restores_the_rest(core: AutofocusCore) -> None:
    core.setConfig("Channel", "FITC")
    core.setExposure(33.0)
    before = imaging(core)
    core.fullFocus()
    half = device(core).autofocus.depth_of_field_um / 2
    assert abs(core.getPosition() - truth(A1)) <= half
    assert imaging(core) == before
    go(core, A2, -12.0)
    core.fullFocus()
    assert abs(core.getPosition() - truth(A2)) <= half
    assert (core.getXPosition(), core.getYPosition()) == pytest.approx(A2, abs=1.0)
    result = device(core).last_result
    assert result is not None
    assert result.status is Status.CONVERGED
    assert result.start["z"] != pytest.approx(result.end["z"], abs=5.0)
    assert device(core).autofocus.results[-1] is result


def test_the_offset_is_added_to_the_plane_that_was_found(core: AutofocusCore) -> None:
    core.setAutoFocusOffset(4.0)
    assert core.getAutoFocusOffset() == 4.0
    core.fullFocus()
    half = device(core).autofocus.depth_of_field_um / 2
    assert abs(core.getPosition() - truth(A1) - 4.0) <= half
    with pytest.raises(SettingsError, match="offset nan is not a finite number"):
        core.setAutoFocusOffset(float("nan"))
    assert core.getAutoFocusOffset() == 4.0


def test_an_offset_beyond_the_limits_is_refused_and_the_focus_kept(core: AutofocusCore) -> None:
    core.setAutoFocusOffset(400.0)
    with pytest.raises(RuntimeError, match="outside its limits"):
        core.fullFocus()
    assert abs(core.getPosition() - truth(A1)) <= 1.0


def test_the_scores(core: AutofocusCore) -> None:
    assert core.getLastFocusScore() == 0.0
    before = imaging(core)
    far = core.getCurrentFocusScore()
    core.fullFocus()
    assert core.getLastFocusScore() == pytest.approx(core.getCurrentFocusScore(), rel=0.1)
    assert core.getLastFocusScore() > 1.2 * far
    assert imaging(core) == before


def test_a_failure_raises_and_leaves_the_stage(core: AutofocusCore) -> None:
    core.setXYPosition(*B1)
    core.waitForDevice("XY")
    core.setPosition(7.0)
    core.waitForDevice("Z")
    before = imaging(core)
    with pytest.raises(RuntimeError, match="autofocus ended with no_signal"):
        core.fullFocus()
    assert core.getPosition() == pytest.approx(7.0, abs=0.01)
    assert imaging(core) == before
    go(core, A1, 5.0)
    core.fullFocus()  # and the next one is a new one
    assert abs(core.getPosition() - truth(A1)) <= 1.0


@pytest.mark.parametrize("name", ["none.toml", "bad.toml"])
def test_settings_that_cannot_be_used_fail_when_the_configuration_is_loaded(tmp_path: Path, name: str) -> None:
    discard_instrument()
    bad = tmp_path / "bad.toml"
    bad.write_text("[knobs.z]\nlimit = [0, 1]\n")
    path = tmp_path / "plate.cfg"
    path.write_text((CONFIGS / "plate.cfg").read_text(encoding="utf-8").replace("plate.toml", str(tmp_path / name)))
    core = AutofocusCore()
    with pytest.raises(RuntimeError, match=r"does not exist|did you mean \"limits\""):
        core.loadSystemConfiguration(path)
    assert list(core.getLoadedDevices()) == ["Core"]


def test_the_configuration_comes_back_from_a_file(core: AutofocusCore, tmp_path: Path) -> None:
    path = tmp_path / "saved.cfg"
    core.saveSystemConfiguration(path)
    core.unloadAllDevices()
    discard_instrument()
    core.loadSystemConfiguration(path)
    assert core.getAutoFocusDevice() == "Autofocus"
    assert device(core).settings_path == "plate.toml"
    assert core.getProperty("Core", "AutoFocus") == "Autofocus"
    go(core, A1, 8.0)
    core.fullFocus()
    assert abs(core.getPosition() - truth(A1)) <= 1.0


def test_the_strategy_can_be_named_in_the_configuration(core: AutofocusCore, tmp_path: Path) -> None:
    text = (CONFIGS / "plate.cfg").read_text(encoding="utf-8")
    settings = "#py Property,Autofocus,Settings,plate.toml"
    path = tmp_path / "strategy.cfg"
    path.write_text(text.replace(settings, f"{settings}\n#py Property,Autofocus,Strategy,full-stack"))
    core.loadSystemConfiguration(path)
    assert device(core).autofocus.settings.strategy == ("full-stack",)


def test_a_script_may_hand_over_its_own_autofocus(core: AutofocusCore) -> None:
    settings = Settings.load(CONFIGS / "plate.toml").model_dump(exclude_unset=True)
    mine = Autofocus(core, Settings.parse({**settings, "budget": {"images": 3}}))
    device(core).use(mine)
    with pytest.raises(FocusError, match="autofocus ended with"):
        core.fullFocus()
    assert device(core).autofocus is mine
    assert mine.results[0].images <= 3 * (1 + len(mine.results[0].action))


def test_the_stock_engine_calls_it_where_the_plan_says(core: AutofocusCore) -> None:
    base = truth(A1) + 6.0
    plan = useq.MDASequence(
        axis_order="pz",
        stage_positions=[{"x": x, "y": y, "z": base, "name": name} for name, (x, y) in {"A1": A1, "A2": A2}.items()],
        z_plan={"range": 2, "step": 1},
        autofocus_plan=useq.AxesBasedAF(axes=("p",)),
    )
    core.mda.set_engine(MDAEngine(core))
    errors: dict[str, float] = {}

    def frame_ready(image: Any, event: useq.MDAEvent, meta: Any) -> None:
        if event.index["z"] == 1:
            xy = event.x_pos or 0.0, event.y_pos or 0.0
            errors[str(event.pos_name)] = meta["position"]["z"] - truth(xy)

    core.mda.events.frameReady.connect(frame_ready)
    core.mda.run(plan)
    results = device(core).autofocus.results
    half = device(core).autofocus.depth_of_field_um / 2
    assert [result.status for result in results] == [Status.CONVERGED] * 2
    assert set(errors) == {"A1", "A2"}
    assert all(abs(error) <= half for error in errors.values()), errors
