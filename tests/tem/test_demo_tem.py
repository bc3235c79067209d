"""The demonstration of the TEM: a whole pycro-manager series with re-alignment, and its report."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mm_autofocus.cli import app_tem_devices, demo_tem
from mm_autofocus.cli.demo_tem import TemDemo, configuration
from mm_autofocus.cli.groups import Groups
from mm_autofocus.report.tem import AlignmentRecord, SeriesRecord, composite, headline, rms_percent, write_tem_report
from tem_microscope import AtFrame

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def with_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bring the strategy in any case; it is the same class that the package's own plugin brings."""
    made = demo_tem.Autofocus

    def autofocus(*args: object, plugins: list[object], **keywords: object) -> object:
        return made(*args, plugins=[*plugins, AtFrame()], **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(demo_tem, "Autofocus", autofocus)


@pytest.mark.usefixtures("with_strategy")
@pytest.mark.parametrize("capture", ["detector", "screen"])
def test_a_series_keeps_its_aperture_aligned(tmp_path: Path, capture: str) -> None:
    outcome = TemDemo(images=18, every=8, capture=capture, out=tmp_path / "out", seed=3, quiet=True).run()
    assert outcome["dataset"]["images_present"] == 18
    runs = outcome["alignments"]
    assert [run["image"] for run in runs] == [0, 8, 16]
    assert all(run["status"] in ("converged", "low_confidence") for run in runs), runs
    assert np.hypot(*runs[0]["before"]) > 150
    for run in runs:
        assert np.hypot(*run["after"]) < 20  # 2 % of the range, what a human is content with
    assert runs[0]["images"] > runs[1]["images"]  # the response is measured once
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Fig. 10" in page
    assert page.count("data:image/webp") == 2 * len(runs)
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    assert len(figures["series"]["data"][0]["y"]) == 18
    assert "http" not in page.split("plotly-gzip")[0]  # needs no network


def test_errors_are_given_as_the_paper_gives_them() -> None:
    assert rms_percent([(20.0, -20.0)]) == pytest.approx(2.0)  # 20 units are 2 % (section 3.4)


def test_a_composite_gives_each_image_its_own_colour() -> None:
    images = []
    for i in range(7):
        image = np.zeros((40, 70), np.uint16)
        image[10:30, 10 * i : 10 * i + 8] = 1000
        images.append(image)
    picture = composite(images)
    colours = {tuple(picture[20, 10 * i + 4]) for i in range(7)}
    assert picture.shape == (40, 70, 3)
    assert len(colours) == 7
    assert tuple(picture[0, 0]) == (0, 0, 0)
    assert not composite(images, every=2)[20, 14].any()  # the second image is left out


def test_the_report_of_a_series_in_which_nothing_worked(tmp_path: Path) -> None:
    failed = AlignmentRecord(0, (400.0, 0.0), (400.0, 0.0), "no_signal", 0.0, 31, 40.0, "no beam on the detector")
    record = SeriesRecord(
        "<b>series</b>", {"x": "<y>"}, np.arange(3.0), np.full((3, 2), 300.0), np.full((3, 2), 300.0), (failed,),
        notes=("no beam",),
    )  # fmt: skip
    page = write_tem_report(record, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;series&lt;/b&gt;" in page
    assert "<b>series</b>" not in page
    assert "no signal" in page
    assert "30.00 % rms" in headline(record)


def test_serve_says_where_it_listens_and_ends_on_ctrl_c() -> None:
    code = (
        "import typer; from mm_autofocus.cli.groups import Groups; from mm_autofocus.cli import app_tem_devices as a;"
        "app = typer.Typer(); a.register(Groups.make(app)); app(['serve', 'tem', '--port', '0', '--json'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            lines = []
            while "}" not in (line := server.stdout.readline()):
                assert line, "it ended"
                lines.append(line)
            port = json.loads("".join([*lines, "}"]))["port"]
            socket.create_connection(("127.0.0.1", port), 5).close()
        finally:
            server.terminate()


def test_a_port_that_is_taken_is_a_clear_error() -> None:
    app = typer.Typer()
    app_tem_devices.register(Groups.make(app))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answer = CliRunner().invoke(app, ["serve", "tem", "--port", str(taken.getsockname()[1])])
    assert answer.exit_code == 2
    assert "Choose another port" in answer.output


def test_the_commands_import_nothing_heavy() -> None:
    code = "import sys; import mm_autofocus.cli.app_tem_devices; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_configuration_names_the_port_for_every_device() -> None:
    text = configuration(4711)
    assert text.count(",Port,4711") == text.count("mm_autofocus_devices.tem.devices")
