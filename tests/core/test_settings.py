"""A bad autofocus.toml is refused with the key, the value and what is allowed; what we print is what we read."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mm_autofocus.cli.app import app
from mm_autofocus.errors import SettingsError
from mm_autofocus.plugins import Plugins
from mm_autofocus.request import Limits
from mm_autofocus.settings import Settings
from mm_autofocus.toml import to_toml

BAD: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown key": ("min_confidense = 0.5", ('unknown key "min_confidense"', 'did you mean "min_confidence"?')),
    "misspelt section": ("[microscop]\nna = 1", ('unknown key "microscop"', 'did you mean "microscope"?')),
    "unknown key in a section": (
        "[microscope]\nexposure = 3", ('unknown key "microscope.exposure"', 'did you mean "exposure_ms"?', "roi"),
    ),
    "unknown key of a knob": (
        "[knobs.z]\nlimit = [1, 2]", ('unknown key "knobs.z.limit"', 'did you mean "limits"?', "max_step"),
    ),
    "reversed limits": ("[knobs.z]\nlimits = [5, -5]", ('"knobs.z.limits" = [5, -5]', "5.0 must be below high -5.0")),
    "empty limits": ("[knobs.z]\nlimits = [5, 5]", ('"knobs.z.limits" = [5, 5]', "reversed or empty")),
    "NaN limit": ("[knobs.z]\nlimits = [nan, 5]", ('"knobs.z.limits" = [nan, 5]', "two finite numbers [low, high]")),
    "one limit": ("[knobs.z]\nlimits = [1]", ('"knobs.z.limits" = [1]', "two finite numbers [low, high]")),
    "limits of text": ("[knobs.z]\nlimits = ['a', 'b']", ('"knobs.z.limits"', "two finite numbers [low, high]")),
    "NaN": ("[knobs.z]\nmax_step = nan", ('"knobs.z.max_step" = nan', "finite number")),
    "NaN confidence": ("min_confidence = nan", ('"min_confidence" = nan', "finite")),
    "NaN offset": ("[stack.channel_offsets]\nFITC = nan", ('"stack.channel_offsets.FITC" = nan', "finite")),
    "infinite exposure": ("[microscope]\nexposure_ms = inf", ('"microscope.exposure_ms" = inf', "finite")),
    "zero exposure": ("[microscope]\nexposure_ms = 0", ('"microscope.exposure_ms" = 0', "greater than 0")),
    "beyond a bound": ("min_confidence = 1.5", ('"min_confidence" = 1.5', "less than or equal to 1")),
    "no images": ("[budget]\nimages = 0", ('"budget.images" = 0', "greater than or equal to 1")),
    "wrong type": ("min_confidence = 'high'", ("\"min_confidence\" = 'high'", "valid number")),
    "value for a section": ("microscope = 3", ('"microscope" = 3', "MicroscopeSettings")),
    "a choice": ("[schedule]\nevery = 'wel'", ("\"schedule.every\" = 'wel'", "'well'", "'never'")),
    "an action": (
        "[failure]\nno_signal = ['use_map', 'give_up']", ("\"failure.no_signal.1\" = 'give_up'", "'use_last_good'"),
    ),
    "no action": ("[failure]\nno_signal = []", ('"failure.no_signal" = []', "at least 1")),
    "where the focal plane is": ("[stack]\nfocal_plane = 'top'", ("\"stack.focal_plane\" = 'top'", "'middle'")),
    "channel without group": ("[microscope]\nchannel = 'DAPI'", ("\"microscope.channel\" = 'DAPI'", "Channel/DAPI")),
    "short ROI": ("[microscope]\nroi = [1, 2, 3]", ("microscope.roi", "[1, 2, 3]", "required")),
    "property without a name": ("[knobs.z]\naxis = 'property'", ('"knobs.z"', 'property = "Name" go together')),
    "no strategy": ("strategy = []", ('"strategy" = []', "must name a strategy")),
    "unknown strategy": ("strategy = 'sweeep'", ("unknown strategy 'sweeep'", "there are:", "sweep")),
    "second strategy unknown": ("strategy = ['sweep', 'swep']", ("unknown strategy 'swep'", "there are:", "sweep")),
    "section of no strategy": (
        "[strategies.sweeep]\nrange_um = 3", ("[strategies.sweeep]", "unknown strategy 'sweeep'", "there are:"),
    ),
    "key of a strategy": (
        "[strategies.sweep]\nrang_um = 3", ("[strategies.sweep]", 'unknown key "rang_um"', 'did you mean "range_um"?'),
    ),
    "unused strategy's key": (
        "strategy = 'full-stack'\n[strategies.sweep]\nrang_um = 3", ("[strategies.sweep]", 'unknown key "rang_um"'),
    ),
    "unknown measure": (
        "[strategies.sweep]\nmeasure = 'brener'", ("[strategies.sweep]", "\"measure\" = 'brener'", "brenner"),
    ),
    "section of no plugin": ("[plugins.foo]\na = 1", ("[plugins.foo]", "no active plugin", "there are: aperture_care")),
    "disabling nobody": ("disable = ['sched']", ("disable names sched", "there are:", "schedule")),
    "not TOML": ("strategy: sweep", ("is not valid TOML", "line 1")),
    "not text": ("\x00\x01", ("is not valid TOML",)),
}  # fmt: skip
"""Case -> the file, and what its message says."""


def use(path: Path) -> Settings:
    """Load a file and ask for all that it configures, as Autofocus does before anything moves."""
    settings = Settings.load(path)
    plugins = Plugins(settings)
    plugins.check_sections()
    for name in settings.strategy:
        plugins.strategy(name)
    return settings


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_say_which_key_which_value_and_what_is_allowed(tmp_path: Path, case: str) -> None:
    text, words = BAD[case]
    path = tmp_path / "autofocus.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        use(path)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "autofocus.toml"
    path.write_text("seed = 'x'\n[knobs.z]\nlimits = [5, -5]\n[map]\ntilt = 3\n")
    with pytest.raises(SettingsError) as caught:
        Settings.load(path)
    assert all(key in str(caught.value) for key in ('"seed"', '"knobs.z.limits"', '"map.tilt"', str(path)))


def test_the_key_of_a_union_is_the_users(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.parse({"stack": {"focal_plane": "top"}})
    assert "literal[" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key"),
    [("schedule", "minutes"), ("budget", "seconds"), ("budget", "dose"), ("map", "well_sd_um"), ("map", "field_sd_um")],
)
def test_infinity_is_refused_everywhere(section: str, key: str) -> None:
    with pytest.raises(SettingsError, match=f"{section}.{key}"):
        Settings.parse({section: {key: math.inf}})


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"does not exist; `mm-autofocus settings` prints one"):
        Settings.load(tmp_path / "none.toml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.load(tmp_path)


# ---------------------------------------------------------------- printing
def test_the_defaults_come_back_from_toml() -> None:
    text = to_toml(Settings().model_dump(mode="json"))
    assert Settings.parse(tomllib.loads(text)) == Settings()


FULL: dict[str, Any] = {
    "strategy": ["sweep", "full-stack"],
    "microscope": {"camera": 'Cam "1" \\ µ', "roi": [1, 2, 30, 40], "channel": "Channel/DAPI", "na": 0.75},
    "knobs": {"z": {"limits": [-5.5, 1e3], "max_step": 1e-7}, "working distance": {"device": "SEM", "limits": [0, 1]}},
    "stack": {"focal_plane": 0.25, "channel_offsets": {"FITC": 0.7, "Cy5 µ": -1, "a.b": 2, "": 0}},
    "failure": {"no_signal": "skip"},
    "strategies": {"sweep": {"range_um": 30, "guide": "brenner"}},
    "budget": {"images": None, "seconds": None},
    "map": {"enabled": False},
    "seed": -3,
}


def test_every_kind_of_value_comes_back_from_toml() -> None:
    settings = Settings.parse(FULL)
    assert settings.knobs["z"].limits == Limits(-5.5, 1000.0)
    text = to_toml(settings.model_dump(mode="json", exclude_none=True))
    again = Settings.parse({**tomllib.loads(text), "budget": FULL["budget"]})
    assert again == settings


def test_no_limit_is_printed_as_a_comment_and_reads_as_the_default() -> None:
    text = to_toml(Settings.parse({"budget": {"dose": None}}).model_dump(mode="json"))
    assert "# dose =" in text.splitlines()


def test_the_command_prints_the_defaults() -> None:
    printed = CliRunner().invoke(app, ["settings"])
    assert printed.exit_code == 0
    assert Settings.parse(tomllib.loads(printed.output)) == Settings()


def test_the_command_checks_a_file(tmp_path: Path) -> None:
    path = tmp_path / "autofocus.toml"
    path.write_text(to_toml(Settings().model_dump(mode="json")))
    assert "is in order" in CliRunner().invoke(app, ["settings", str(path)]).output


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().seed = 3  # type: ignore[misc]
