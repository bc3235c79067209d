"""Plugins are found, checked when they are registered, asked in a known order, and a whole one works as installed."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

from mm_autofocus import Autofocus, Event, FocusResult, Prior, Status, StrategySettings, hookimpl
from mm_autofocus.errors import PluginError, SettingsError
from mm_autofocus.plugins import GROUP, Plugins, caller
from mm_autofocus.settings import Settings
from support import FakeCore, Stack, settings

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "mmaf_variance_climb"


# ---------------------------------------------------------------- a whole plugin, as a user installs it
def install(target: Path, source: Path = EXAMPLE) -> None:
    """Put a plugin where `pip install --target` would, without a build backend or the network."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    for module in source.glob("*.py"):
        shutil.copy(module, target)
    info = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = configparser.ConfigParser()
    points.read_dict(project["entry-points"])
    with (info / "entry_points.txt").open("w") as file:
        points.write(file)


def python(target: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    tests = str(Path(__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(target), tests]), "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, env=env)


MM_AUTOFOCUS = ("-c", "from mm_autofocus.cli import main; main()")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    install(target)
    return target


def test_the_example_is_listed(installed: Path) -> None:
    done = python(installed, *MM_AUTOFOCUS, "plugins", "--json")
    assert done.returncode == 0, done.stderr
    found = {plugin["name"]: plugin for plugin in json.loads(done.stdout)}
    assert found["variance_climb"] == {
        "name": "variance_climb", "source": "mmaf-variance-climb 0.1.0: mmaf_variance_climb",
        "hooks": ["mmaf_focused", "mmaf_strategies"], "strategies": ["variance-climb"],
    }  # fmt: skip
    assert next(iter(found)) == "variance_climb"  # asked before ours
    assert {"strategies", "schedule", "failure", "focus_map", "recorder"} < set(found)


FOCUS = """
import json, logging, sys
from mm_autofocus import Autofocus
from mm_autofocus.cli.demo_beads import bead_core
from support import FakeCore

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
settings = {"microscope": {"depth_of_field_um": 3.0}, "knobs": {"z": {"limits": [-50, 50]}}, "map": {"enabled": False}}
outcomes = {}
for name, core in (("fake", FakeCore(focus=7.0)), ("demo", bead_core())):
    core.setPosition("Z", 12.0)
    autofocus = Autofocus(core, strategy="variance-climb", strategies={"variance-climb": {"range_um": 60}}, **settings)
    result = autofocus.focus().result
    outcomes[name] = [result.status, result.end["z"], result.reason]
autofocus.finish()
print(json.dumps(outcomes))
"""


def test_the_example_focuses_and_observes(installed: Path) -> None:
    done = python(installed, "-c", FOCUS)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert outcomes["fake"][:2] == ["converged", pytest.approx(7.0, abs=1.5)], outcomes
    assert outcomes["demo"][:2] == ["converged", pytest.approx(0.0, abs=1.5)], outcomes
    assert done.stderr.count("INFO:mmaf_variance_climb:") == 2


def test_the_settings_of_the_example_are_checked(installed: Path, tmp_path: Path) -> None:
    path = tmp_path / "autofocus.toml"
    path.write_text('strategy = "variance-climb"\n[strategies.variance-climb]\nstep = 3\n')
    done = python(installed, *MM_AUTOFOCUS, "settings", str(path))
    assert done.returncode == 2
    assert 'unknown key "step"; did you mean "step_um"?' in done.stderr


def test_the_example_can_be_disabled(installed: Path, tmp_path: Path) -> None:
    path = tmp_path / "autofocus.toml"
    path.write_text('disable = ["variance_climb"]\n')
    done = python(installed, *MM_AUTOFOCUS, "plugins", "--json", "--settings", str(path))
    assert "variance_climb" not in done.stdout
    path.write_text('disable = ["variance_climb"]\nstrategy = "variance-climb"\n')
    done = python(installed, "-c", f"from mm_autofocus import Autofocus; Autofocus.load({str(path)!r}, object())")
    assert "SettingsError: unknown strategy 'variance-climb'; there are:" in done.stderr.replace("\n", " ")


def test_a_plugin_that_cannot_be_imported_is_named_and_can_be_disabled(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / "mmaf_variance_climb.py").write_text("import not_installed_anywhere\n")
    done = python(tmp_path, *MM_AUTOFOCUS, "plugins", "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)
    assert error["error"] == "PluginError"
    for words in ("plugin 'variance_climb' (mmaf-variance-climb 0.1.0", "not_installed_anywhere", "variance_climb"):
        assert words in error["message"]
    assert 'set disable = ["variance_climb"]' in error["message"]
    path = tmp_path / "autofocus.toml"
    path.write_text('disable = ["variance_climb"]\n')
    assert python(tmp_path, *MM_AUTOFOCUS, "plugins", "--settings", str(path)).returncode == 0


# ---------------------------------------------------------------- what is refused
class WrongArgument:
    @hookimpl
    def mmaf_focused(self, resultt: Any) -> None: ...


class UnknownHook:
    @hookimpl
    def mmaf_focussed(self, result: Any) -> None: ...


class NeedsMore:
    def __init__(self, settings: Settings, more: int) -> None: ...


class Nameless(Stack):
    name = ""


class Settingsless(Stack):
    Settings: Any = None


class ForeignSettings(Stack):
    Settings: Any = dict


class Blind(Stack):
    focus: Any = None


class Scoreless(Stack):
    score: Any = None


class Namesake(Stack):
    name = "sweep"


def bringing(*classes: Any) -> object:
    class Brings:
        @hookimpl
        def mmaf_strategies(self) -> Any:
            return classes

    return Brings()


REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "wrong argument": (WrongArgument(), ("plugin 'WrongArgument@", "(given in the script)", "resultt", "mmaf_focused")),
    "unknown hook": (UnknownHook(), ("mmaf_focussed", "The hooks are:", "mmaf_focused,")),
    "constructor": (NeedsMore, ("plugin 'NeedsMore'", "Class(settings)", "more")),
    "no name": (bringing(Nameless), ("Nameless", 'give the class an attribute name = "..."')),
    "no Settings": (bringing(Settingsless), ("Settingsless", "a subclass of StrategySettings")),
    "foreign Settings": (bringing(ForeignSettings), ("ForeignSettings", "a subclass of StrategySettings")),
    "no focus": (bringing(Blind), ("Blind", "has no method focus()")),
    "no score": (bringing(Scoreless), ("Scoreless", "has no method score()")),
    "not a class": (bringing(Stack()), ("Stack object", "is not a class")),
    "name of ours": (bringing(Namesake), ("second strategy named 'sweep'", "rename it, or disable")),
    "two of one name": (bringing(Stack, type("Other", (Stack,), {})), ("second strategy named 'test-stack'", "rename")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_plugin_is_refused_at_registration(case: str) -> None:
    plugin, words = REFUSED[case]
    with pytest.raises(PluginError) as caught:
        Plugins(Settings(), [plugin])
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("answer", "words"), [(None, "None"), (1, "int")], ids=["nothing", "a number"])
def test_a_plugin_that_brings_no_sequence_is_named(answer: Any, words: str) -> None:
    class Bringer:
        @hookimpl
        def mmaf_strategies(self) -> Any:
            return answer

    with pytest.raises(PluginError, match="Bringer"):
        Plugins(Settings(), [Bringer()])


def test_a_plugin_whose_constructor_fails_is_named() -> None:
    class Fails:
        def __init__(self, settings: Settings) -> None:
            raise ValueError("no licence")

    with pytest.raises(PluginError, match="no licence"):
        Plugins(Settings(), [Fails])


def test_the_same_plugin_twice_is_refused() -> None:
    class Twice:
        def __init__(self, settings: Settings) -> None: ...

    with pytest.raises(PluginError, match=r"plugin 'Twice' .* cannot be registered"):
        Plugins(Settings(), [Twice, Twice])


def test_disabling_who_is_not_there_names_those_who_are() -> None:
    with pytest.raises(SettingsError, match=r"disable names recordr, which is no plugin; there are: .*recorder"):
        Plugins(Settings(disable=("recordr",)))


def test_an_unknown_caller() -> None:
    with pytest.raises(PluginError, match="caller 'napari' is not installed"):
        caller("napari")


# ---------------------------------------------------------------- order, disabling, tracing
class Answers:
    """Answers every question that only one may answer."""

    @hookimpl
    def mmaf_should_focus(self) -> bool:
        return False

    @hookimpl
    def mmaf_predict(self) -> Prior:
        return Prior(5.5, 0.5)


def test_a_third_partys_plugin_is_asked_before_ours() -> None:
    event = Event(axes={"position": 0}, z=1.0)
    ours = Autofocus(FakeCore(), settings())
    assert ours.wants(event)
    assert ours.predict(event) is None
    theirs = Autofocus(FakeCore(), settings(), plugins=[Answers()])
    assert not theirs.wants(event)
    assert theirs.predict(event) == Prior(5.5, 0.5)
    assert theirs.at(event).z == 5.5


@pytest.mark.parametrize("name", ["aaa", "zzz"])
def test_the_order_does_not_hang_on_the_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ours = tuple(entry_points(group=GROUP))
    theirs = EntryPoint(name, "json", GROUP)  # any module will do
    monkeypatch.setattr("mm_autofocus.plugins.entry_points", lambda group: (*ours[:2], theirs, *ours[2:]))
    assert [p.name for p in Plugins(Settings()).active()].index(name) == 0


def test_a_third_party_focuses_in_our_place() -> None:
    class Focuses:
        @hookimpl
        def mmaf_focus(self, request: Any, run: Any) -> FocusResult:
            start = dict(request.start)
            return FocusResult(
                status=Status.CONVERGED, strategy="oracle", start=start, end={"z": 2.5}, confidence=1.0
            )  # fmt: skip

    core = FakeCore()
    placement = Autofocus(core, settings(), plugins=[Focuses()]).focus()
    assert (placement.result.strategy, placement.z, core.z) == ("oracle", 2.5, 2.5)  # type: ignore[union-attr]
    assert core.snaps == 0


def test_disable_leaves_a_plugin_out() -> None:
    assert {"schedule"} == {p.name for p in Plugins(Settings()).active()} - {
        p.name for p in Plugins(Settings(disable=("schedule",))).active()
    }
    autofocus = Autofocus(FakeCore(), settings(disable=["schedule"]))
    assert not autofocus.wants(Event(axes={"position": 0}, z=1.0))  # nobody says when


def test_the_list_says_who_implements_what() -> None:
    plugins = {p.name: p for p in Plugins(Settings(), [bringing(Stack)]).active()}
    assert "sweep" in plugins["strategies"].strategies
    assert plugins["strategies"].source.startswith("mm-autofocus 0.1.0: mm_autofocus.strategies")
    assert "mmaf_should_focus" in plugins["schedule"].hooks
    given = next(p for name, p in plugins.items() if name.startswith("Brings@"))
    assert (given.source, given.strategies) == ("given in the script", ("test-stack",))
    assert next(iter(plugins)) == given.name


def test_every_hook_call_can_be_traced() -> None:
    autofocus = Autofocus(FakeCore(), settings(), plugins=[Answers()])
    lines: list[str] = []
    autofocus.plugins.trace(lines.append)
    autofocus.at(Event(axes={"position": 0}, z=1.0))
    text = "".join(lines)
    calls = [text.index(f"{hook} [hook]") for hook in ("mmaf_start", "mmaf_should_focus", "mmaf_event")]
    assert calls == sorted(calls)
    assert "finish mmaf_should_focus --> False [hook]" in text


def test_a_plugin_may_have_a_section_of_its_own() -> None:
    class Section(StrategySettings):
        colour: str = "red"

    class WithSection:
        @hookimpl
        def mmaf_settings(self) -> dict[str, Any]:
            return {"lamp": Section}

    Autofocus(FakeCore(), settings(plugins={"lamp": {"colour": "blue"}}), plugins=[WithSection()])
    with pytest.raises(SettingsError, match=r'\[plugins\.lamp\]: unknown key "color"; did you mean "colour"'):
        Autofocus(FakeCore(), settings(plugins={"lamp": {"color": "blue"}}), plugins=[WithSection()])
