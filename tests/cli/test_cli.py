"""The commands as a user types them: what they print, what they leave behind, and what they say to a mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from mm_autofocus.cli.app import app
from mm_autofocus_devices.autofocus_strategy import CONFIGS

PLATE = ("--config", str(CONFIGS / "plate.cfg"), "--settings", str(CONFIGS / "plate.toml"))


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def command(*arguments: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a command in a folder and return its JSON; with pycro-manager in a process, which may not hang."""
    line = [*map(str, arguments), "--json"]
    if "pycromanager" in line:
        done = subprocess.run(
            [sys.executable, "-c", "from mm_autofocus.cli import main; main()", *line],
            capture_output=True, text=True, timeout=100, cwd=folder, env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        code, printed, errors = done.returncode, done.stdout, done.stderr
    else:
        monkeypatch.chdir(folder)
        outcome = invoke(*line)
        code, printed, errors = outcome.exit_code, outcome.stdout, outcome.output
    assert code == 0, errors[-3000:]
    answer: dict[str, Any] = json.loads(printed)  # and nothing else is on standard output
    return answer


# ---------------------------------------------------------------- help
HEAVY = ("numpy", "scipy", "cv2", "torch", "matplotlib", "plotly", "pymmcore", "pymmcore_plus", "pycromanager", "useq")
HELP = f"""
import sys
sys.argv = ["mm-autofocus", *{{arguments}}, "--help"]
from mm_autofocus.cli import main
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [[], ["demo", "plate"], ["run"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = HELP.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "Usage: mm-autofocus" in done.stdout
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["demo", "bench", "run", "replay", "plugins", "settings", "report"])
def test_every_command_has_help(name: str) -> None:
    assert name in invoke("--help").stdout
    assert invoke(name, "--help").exit_code == 0


# ---------------------------------------------------------------- mistakes
@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with good and bad files, and in it."""
    files = {
        "file": "no folder",
        "bad.toml": "[microscop]\nna = 1\n",
        "beyond.toml": '[knobs.z]\nlimits = [-10, 10]\n[microscope]\nna = 0.75\n[strategies.sweep]\nrange_um = 50\n',
        "bad.cfg": "Device,Cam,NoSuchAdapter,DCam\n",
        "noshutter.cfg": "Property,Core,Initialize,0\nProperty,Core,Initialize,1\n",
        "good.yaml": "stage_positions: [{x: 0, y: 0, z: 0, name: A1}]\n",
        "empty.yaml": "{}\n",
        "broken.yaml": "stage_positions: [\n",
        "unknown.yaml": "stage_position: [{x: 0}]\n",
        "far.yaml": "stage_positions: [{x: 0, y: 0, z: 999}]\n",
        "none.json": "[]",
        "axes.json": '[{"x": 0}]',
        "far.json": '[{"axes": {"position": 0}, "z": 999}]',
        "events.json": '[{"axes": {"position": 0}, "z": 0}]',
        "text.json": '[{"axes": {"position": 0}, "z": "up"}]',
        "listed.json": '[{"axes": [0], "z": 0}]',
        "words.json": '{"z_um": ["a", "b", "c"]}',
        "nokey.json": '{"z": [1, 2, 3]}',
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    tifffile.imwrite(tmp_path / "plain.tif", np.zeros((3, 16, 16), np.uint16), photometric="minisblack")
    tifffile.imwrite(tmp_path / "two.tif", np.zeros((2, 16, 16), np.uint16), photometric="minisblack")
    monkeypatch.chdir(tmp_path)


RUN = ("run", *PLATE, "--out", "out")
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "demo, unknown strategy": (("demo", "plate", "--strategy", "nope", "--out", "out"), "unknown strategy 'nope'"),
    "demo, unwritable folder": (("demo", "plate", "--out", "file"), "--out file cannot be written to"),
    "demo, folder in a file": (("demo", "plate", "--out", "file/out"), "cannot be written to"),
    "demo, settings misspelt": (("demo", "plate", "--settings", "bad.toml", "--out", "out"), 'mean "microscope"?'),
    "beads, unknown strategy": (("demo", "beads", "--strategy", "nope"), "unknown strategy 'nope'; there are:"),
    "run, missing plan": ((*RUN, "none.yaml"), "plan none.yaml does not exist"),
    "run, plan without positions": ((*RUN, "empty.yaml"), "holds no events: give it stage_positions"),
    "run, no events": ((*RUN, "none.json"), "holds no pycro-manager events"),
    "run, events without axes": ((*RUN, "axes.json"), 'each needs "axes"'),
    "run, plan broken": ((*RUN, "broken.yaml"), "is neither a useq plan nor a list of pycro-manager events"),
    "run, plan outside the limits": ((*RUN, "far.json"), "goes to z = 999"),
    "run, useq plan outside the limits": ((*RUN, "far.yaml", "--engine", "mda"), "goes to z = 999"),
    "run, events with mda": ((*RUN, "events.json", "--engine", "mda"), "--engine mda needs a useq plan"),
    "run, engine of the demo": ((*RUN, "good.yaml", "--engine", "script"), "--engine script belongs to the demo"),
    "run, unwritable folder": (("run", *PLATE, "--out", "file", "good.yaml"), "--out file cannot be written to"),
    "run, config missing": (
        ("run", "--config", "none.cfg", *PLATE[2:], "--out", "out", "good.yaml"), "none.cfg does not exist",
    ),
    "run, unknown adapter": (
        ("run", "--config", "bad.cfg", *PLATE[2:], "--out", "out", "good.yaml"), "cannot be loaded",
    ),
    "run, config without devices": (
        ("run", "--config", "noshutter.cfg", *PLATE[2:], "--out", "out", "good.yaml"), "no default focus stage",
    ),
    "run, settings misspelt": (
        ("run", *PLATE[:2], "--settings", "bad.toml", "--out", "out", "good.yaml"), 'mean "microscope"?',
    ),
    "run, settings missing": (
        ("run", *PLATE[:2], "--settings", "none.toml", "--out", "out", "good.yaml"), "none.toml does not exist",
    ),
    "run, range beyond the limits": (
        ("run", *PLATE[:2], "--settings", "beyond.toml", "--out", "out", "good.yaml"), "wider than the limits",
    ),
    "replay, missing": (("replay", "none.tif"), "z-stack none.tif cannot be read"),
    "replay, no TIFF": (("replay", "file"), "z-stack file cannot be read"),
    "replay, no z": (("replay", "plain.tif"), "give --step or --positions"),
    "replay, two planes": (("replay", "two.tif", "--step", "1"), "three planes or more"),
    "replay, no step at all": (("replay", "plain.tif", "--step", "0"), "different, finite z positions"),
    "replay, step NaN": (("replay", "plain.tif", "--step", "nan"), "different, finite z positions"),
    "replay, positions missing": (("replay", "plain.tif", "--positions", "no.json"), "positions file no.json"),
    "replay, positions elsewhere": (("replay", "plain.tif", "--positions", "nokey.json"), 'has no "z_um"'),
    "replay, start outside": (("replay", "plain.tif", "--step", "1", "--start", "99"), "--start 99 is outside"),
    "replay, unknown strategy": (("replay", "plain.tif", "--step", "1", "--strategy", "nope"), "unknown strategy"),
    "replay, depth of field": (("replay", "plain.tif", "--step", "1", "--depth-of-field", "-1"), "-1 must be above 0"),
    "plugins, settings misspelt": (("plugins", "--settings", "bad.toml"), 'did you mean "microscope"?'),
    "settings, misspelt": (("settings", "bad.toml"), 'unknown key "microscop"; did you mean "microscope"?'),
    "settings, missing": (("settings", "none.toml"), "none.toml does not exist"),
    "report, no folder": (("report", "nowhere"), "there is no focus.jsonl in nowhere"),
    "report, empty folder": (("report", "."), "there is no focus.jsonl"),
}  # fmt: skip

SEVERAL_LINES = {"run, plan broken", "run, unknown adapter"}
"""Messages of others, quoted as they are."""


@pytest.mark.parametrize("case", MISTAKES)
@pytest.mark.usefixtures("here")
def test_a_mistake_is_one_clear_line_and_exit_code_2(case: str) -> None:
    arguments, words = MISTAKES[case]
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("SettingsError: ")
    assert words in done.stderr
    assert "Traceback" not in done.output
    if case not in SEVERAL_LINES:
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("case", MISTAKES)
@pytest.mark.usefixtures("here")
def test_a_mistake_as_json(case: str) -> None:
    arguments, words = MISTAKES[case]
    done = invoke(*arguments, "--json")
    assert done.exit_code == 2
    answer = json.loads(done.stdout)
    assert answer["error"] == "SettingsError"
    assert words in answer["message"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((*RUN, "text.json"), id="z is text"),
        pytest.param((*RUN, "listed.json"), id="axes are a list"),
        pytest.param(("replay", "plain.tif", "--positions", "words.json"), id="positions are words"),
    ],
)
@pytest.mark.usefixtures("here")
def test_values_of_the_wrong_type_are_mistakes_too(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


@pytest.mark.usefixtures("here")
def test_an_unknown_key_of_a_plan_is_named() -> None:
    done = invoke(*RUN, "unknown.yaml")
    assert done.exit_code == 2
    assert "stage_position" in done.stderr


def test_an_unknown_option_or_choice_is_refused() -> None:
    assert "No such option" in invoke("demo", "plate", "--well", "3").stderr
    assert invoke("demo", "plate", "--engine", "napari").exit_code == 2
    assert invoke("demo", "plate", "--wells", "97").exit_code == 2


# ---------------------------------------------------------------- plugins
def test_plugins_lists_ours() -> None:
    done = invoke("plugins", "--json")
    found = {plugin["name"]: plugin for plugin in json.loads(done.stdout)}
    assert {"strategies", "schedule", "failure", "focus_map", "recorder"} <= set(found)
    assert "sweep" in found["strategies"]["strategies"]
    assert "sweep" in invoke("plugins").stdout


# ---------------------------------------------------------------- replay
FOCUS_UM, STEP_UM = 6.0, 0.5


@cache
def planes() -> np.ndarray:
    rng = np.random.default_rng(0)
    specimen = gaussian_filter((rng.random((96, 96)) > 0.99).astype(float), 1.0)
    blurs = 0.5 + 1.2 * np.abs(np.arange(21) * STEP_UM - FOCUS_UM)
    stack = np.stack([gaussian_filter(specimen, blur) for blur in blurs])
    noisy = 100 + 20000 * stack / stack.max() + rng.normal(0, 20, stack.shape)
    return noisy.clip(0, 65535).astype(np.uint16)


def imagej(path: Path) -> list[str]:
    tifffile.imwrite(path, planes(), imagej=True, metadata={"spacing": STEP_UM, "unit": "um", "axes": "ZYX"})
    return []


def ome(path: Path) -> list[str]:
    meta = {"axes": "ZYX", "PhysicalSizeZ": STEP_UM, "PhysicalSizeZUnit": "µm"}
    tifffile.imwrite(path, planes(), ome=True, metadata=meta)
    return []


def ome_in_nm(path: Path) -> list[str]:
    meta = {"axes": "ZYX", "PhysicalSizeZ": 1000 * STEP_UM, "PhysicalSizeZUnit": "nm"}
    tifffile.imwrite(path, planes(), ome=True, metadata=meta)
    return []


def step(path: Path) -> list[str]:
    tifffile.imwrite(path, planes(), photometric="minisblack")
    return ["--step", str(STEP_UM)]


def positions(path: Path) -> list[str]:
    """The planes in another order, which the JSON says."""
    order = np.random.default_rng(1).permutation(21)
    tifffile.imwrite(path, planes()[order], photometric="minisblack")
    path.with_name("z.json").write_text(json.dumps({"z_um": (order * STEP_UM).tolist()}))
    return ["--positions", str(path.with_name("z.json"))]


def beside(path: Path) -> list[str]:
    tifffile.imwrite(path, planes(), photometric="minisblack")
    z = (np.arange(21) * STEP_UM).tolist()
    path.with_name("stacks.json").write_text(json.dumps({path.name: {"z_um": z}, "other.tif": {}}))
    return []


def bytes_(path: Path) -> list[str]:
    tifffile.imwrite(path, (planes() // 128).astype(np.uint8), photometric="minisblack")
    return ["--step", str(STEP_UM)]


def fractions(path: Path) -> list[str]:
    tifffile.imwrite(path, (planes() / planes().max()).astype(np.float32), photometric="minisblack")
    return ["--step", str(STEP_UM)]


@pytest.mark.parametrize(
    "write",
    [imagej, ome, step, positions, beside, bytes_, ome_in_nm, fractions],
)
def test_replay_focuses_on_a_stack_wherever_its_z_comes_from(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "stack.tif"
    done = invoke("replay", path, *write(path), "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["status"], result["strategy"]) == ("converged", "sweep")
    assert abs(result["end"]["z"] - FOCUS_UM) <= STEP_UM / 2
    assert result["start"]["z"] == 10 * STEP_UM  # the middle
    assert all(0 <= sample["knobs"]["z"] <= 20 * STEP_UM for sample in result["samples"])


def test_replay_prints_what_it_looked_at(tmp_path: Path) -> None:
    arguments = imagej(tmp_path / "stack.tif")
    done = invoke("replay", tmp_path / "stack.tif", *arguments, "--strategy", "full-stack", "--start", "1")
    assert done.exit_code == 0
    assert "converged at z = 6." in done.stdout or "converged at z = 5." in done.stdout


# ---------------------------------------------------------------- run
USEQ = """
axis_order: pcz
stage_positions:
  - {x: 0, y: 0, z: -40, name: A1_0000}
  - {x: 9000, y: 0, z: -40, name: A2_0000}
channels:
  - {config: DAPI, exposure: 20}
  - {config: FITC, exposure: 20}
z_plan: {range: 2, step: 1}
"""


def pycromanager_events() -> list[dict[str, Any]]:
    return [
        {"axes": {"position": p, "channel": c, "z": i}, "x": 9000.0 * p, "y": 0.0, "z": -40.0 + i - 1,
         "config_group": ["Channel", c], "exposure": 20}
        for p in range(2) for c in ("DAPI", "FITC") for i in range(3)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "engine"),
    [
        ("plan.yaml", USEQ, "mda"),
        ("plan.yaml", USEQ, "pycromanager"),
        ("plan.json", json.dumps(pycromanager_events()), "pycromanager"),
    ],
    ids=["useq-mda", "useq-pycromanager", "events-pycromanager"],
)
def test_run_acquires_every_image_of_a_plan_in_focus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, engine: str
) -> None:
    (tmp_path / name).write_text(text)
    outcome = command("run", name, *PLATE, "--out", "out", "--engine", engine, folder=tmp_path, monkeypatch=monkeypatch)
    dataset = outcome["dataset"]
    assert (dataset["images_expected"], dataset["images_present"]) == (12, 12)
    assert outcome["runs"] == 2
    assert count(tmp_path / dataset["path"]) == 12
    assert "<html" in (tmp_path / outcome["report"]).read_text(encoding="utf-8")[:500]
    results = [json.loads(line) for line in (tmp_path / "out" / "focus.jsonl").read_text().splitlines()]
    assert [result["status"] for result in results] == ["converged", "converged"]


def count(dataset: Path) -> int:
    """Count the images that another reader finds."""
    if not (dataset / "NDTiff.index").exists():
        files = [dataset] if dataset.is_file() else sorted(dataset.glob("*.tif*"))
        return sum(len(tifffile.TiffFile(path).pages) for path in files)
    from ndstorage import Dataset

    data = Dataset(str(dataset))
    try:
        return len({json.dumps(axes, sort_keys=True) for axes in data.get_image_coordinates_list()})
    finally:
        data.close()


# ---------------------------------------------------------------- demo, and the report afterwards
@pytest.mark.parametrize("engine", ["pycromanager", "mda", "script"])
def test_demo_plate_scans_in_focus_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    outcome = command(
        "demo", "plate", "--wells", 2, "--no-peer", "--engine", engine, "--out", "demo", folder=tmp_path,
        monkeypatch=monkeypatch,
    )  # fmt: skip
    dataset = outcome["dataset"]
    planned = 2 * 2 * 2 * 3  # wells, fields, channels, slices
    assert (dataset["images_expected"], dataset["images_present"]) == (planned, planned)
    assert count(tmp_path / dataset["path"]) == 24
    ours, without = outcome["methods"]
    assert (ours["fields"], ours["scored"], ours["in_focus"]) == (4, 4, 4)
    assert without["in_focus"] < 4
    assert (tmp_path / outcome["report"]).stat().st_size > 10_000
    again = invoke("report", tmp_path / "demo", "--out", tmp_path / "again.html", "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout) == {"report": str(tmp_path / "again.html")}
    assert "A1" in (tmp_path / "again.html").read_text(encoding="utf-8")


def test_demo_beads_focuses_micro_managers_own_camera() -> None:
    done = invoke("demo", "beads", "--starts", 3, "--json")
    assert done.exit_code == 0, done.output
    outcome = json.loads(done.stdout)
    assert (outcome["starts"], len(outcome["runs"])) == (3, 3)
    assert outcome["in_focus"] >= 2  # DemoCamera's noise has no seed, and its beads are equally sharp over 2 µm
    assert {run["status"] for run in outcome["runs"]} <= {"converged", "low_confidence"}
    again = json.loads(invoke("demo", "beads", "--starts", 3, "--json").stdout)
    assert [run["start_um"] for run in again["runs"]] == [run["start_um"] for run in outcome["runs"]]


def test_an_earlier_demo_is_kept_aside(tmp_path: Path) -> None:
    from mm_autofocus.cli.demo_plate import fresh_folder

    (tmp_path / "report.html").write_text("first")
    (tmp_path / "scan").mkdir()
    for text in ("first", "second"):
        (tmp_path / "report.html").write_text(text)
        assert fresh_folder(tmp_path) == tmp_path
        assert (tmp_path / "previous" / "report.html").read_text() == text
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "previous" / "scan").is_dir()
