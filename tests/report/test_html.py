from __future__ import annotations

import base64
import gzip
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mm_autofocus.errors import SettingsError
from mm_autofocus.report import FieldRecord, ReportData, write_report
from mm_autofocus.report.html import render, thumbnails
from mm_autofocus.result import FocusResult, Sample, Status

HOSTILE = '</script><script>alert("x")</script><!-- & \u2028 ${title} <b>'


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text of its script elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.scripts and self.lasttag == "script":
            self.scripts[-1] += data

    @property
    def ids(self) -> set[str | None]:
        return {attrs["id"] for _, attrs in self.tags if "id" in attrs}

    @property
    def payload(self) -> dict[str, Any]:
        def refuse(name: str) -> None:
            raise AssertionError(f"{name} in the JSON")

        payload = json.loads(self.scripts[0], parse_constant=refuse)
        assert isinstance(payload, dict)
        return payload


@pytest.fixture(scope="module")
def page(plate: ReportData) -> str:
    return render(plate)


def test_the_page_loads_nothing_from_elsewhere(page: str) -> None:
    assert not re.search(r"https?://|//cdn|@import|url\(", page)
    parsed = Page(page)
    assert len(parsed.scripts) == 3
    for tag, attrs in parsed.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert not {"src", "href", "action", "srcset"} & attrs.keys(), (tag, attrs)
    assert b"plotly.js" in gzip.decompress(base64.b64decode(parsed.scripts[1]))[:200]
    assert not [line for line in page.splitlines() if re.search(r"\$(title|data|style|script)\b", line)]


def test_the_page_holds_the_numbers_and_the_payload(page: str, plate: ReportData) -> None:
    parsed = Page(page)
    for text in (
        plate.headline,
        "Plate scan HeLa-0417",
        "OughtaFocus",
        "min_confidence = 0.5",
        "went to the focus map",
    ):
        assert text in page.replace("&#x27;", "'").replace("&quot;", '"')
    payload = parsed.payload
    assert len(payload["fields"]) == len(payload["boxes"]) == len(payload["results"]) == 192
    expected = {"height", "error", "histogram", "confidence", "reliability", "prior", "cost"}
    assert payload["figures"].keys() == expected
    assert {f"plot-{name}" for name in expected} | {"choice", "plot-curve", "numbers"} <= parsed.ids
    heatmap = payload["figures"]["error"]["data"][0]
    drawn = sorted(i for row in heatmap["customdata"] for i in row if i is not None)
    assert drawn == list(range(192))
    assert len(heatmap["z"]) == len(heatmap["y"]) - 1


def test_plotly_accepts_every_figure(night: Callable[..., ReportData]) -> None:
    from plotly import graph_objects

    for data in (night(rows=2, columns=3), night(rows=2, columns=3, truth=False)):
        for figure in Page(render(data)).payload["figures"].values():
            graph_objects.Figure(figure)


def test_hostile_text_stays_text() -> None:
    result = FocusResult(
        status=Status.FAILED, strategy=HOSTILE, start={"z": 0.0}, end={"z": 0.0}, reason=HOSTILE, label=HOSTILE,
        samples=(Sample(knobs={"z": 0.0}, score=1.0, purpose=HOSTILE),),
    )  # fmt: skip
    data = ReportData(
        title=HOSTILE, depth_of_field_um=1, results=[result], plan={HOSTILE: HOSTILE}, settings_toml=HOSTILE,
        fields=[FieldRecord(label=HOSTILE, z=0.0, truth_z=0.0, result_index=0)], notes=[HOSTILE], dose_unit=HOSTILE,
        dataset={"path": HOSTILE}, strategy=HOSTILE,
    )  # fmt: skip
    text = render(data)
    parsed = Page(text)
    assert len(parsed.scripts) == 3
    assert "<b>" not in text.replace("<div class=tile><b>", "")
    assert parsed.payload["fields"][0]["label"] == HOSTILE
    hover = parsed.payload["figures"]["height"]["data"][0]["text"]
    assert "<" not in hover[0]


def test_nan_never_reaches_the_json() -> None:
    result = FocusResult(
        status=Status.FAILED, strategy="sweep", start={"z": math.nan}, end={"z": math.inf}, confidence=math.nan,
        samples=(Sample(knobs={"z": math.nan}, score=math.nan), Sample(knobs={}, score=None)), prior_mean=math.nan,
        seconds=1.0,
    )  # fmt: skip
    field = FieldRecord(label="A1", z=math.nan, truth_z=1.0, x=math.nan, result_index=0)
    payload = Page(render(ReportData(title="t", depth_of_field_um=1, results=[result], fields=[field]))).payload
    assert payload["results"][0]["samples"] == [[None, None], [None, None], ["search", "search"]]


@pytest.mark.parametrize("kind", ["plate", "stage", "list"])
def test_without_truth_there_are_no_residuals(night: Callable[..., ReportData], kind: str) -> None:
    data = night(rows=2, columns=3, per_well=1, truth=False)
    if kind != "plate":
        away = {"well": None} | ({"x": None, "y": None} if kind == "list" else {})
        fields = [field.model_copy(update={"label": f"Pos{i}", **away}) for i, field in enumerate(data.fields)]
        data = data.model_copy(update={"fields": fields, "methods": []})
    text = render(data)
    figures = Page(text).payload["figures"]
    assert figures.keys() == {"height", "belief", "beliefs", "prior", "cost"}
    assert figures["height"]["data"][0]["type"] == ("heatmap" if kind == "plate" else "scatter")
    assert "Residual error" not in text
    assert "focus runs converged" in text


@pytest.mark.parametrize(
    ("fields", "results"),
    [
        ([], []),
        ([FieldRecord(label="only", z=3.0)], []),
        ([FieldRecord(label="B2", z=3.0, truth_z=3.1)], []),
        ([FieldRecord(label="B2")], []),
        ([], [FocusResult(status=Status.CONVERGED, strategy="sweep", start={"z": 0.0}, end={"z": 1.0})]),
        (
            [FieldRecord(label="B2", z=1.0, result_index=0)],
            [FocusResult(status=Status.CONVERGED, strategy="laser", start={"z": 0.0}, end={"z": 1.0})],
        ),
    ],
    ids=["nothing", "one position", "one well", "not acquired", "runs only", "one run"],
)
def test_small_reports(fields: list[FieldRecord], results: list[FocusResult]) -> None:
    payload = Page(render(ReportData(title="small", depth_of_field_um=1, fields=fields, results=results))).payload
    assert len(payload["fields"]) == len(fields)


def test_thumbnails_are_small_share_their_grey_scale_and_may_be_missing(tmp_path: Path) -> None:
    def tiff(level: int, name: str) -> Path:
        ramp = np.tile(np.linspace(0, level, 400), (300, 1)).astype(np.uint16)
        Image.fromarray(ramp).save(tmp_path / name)
        return tmp_path / name

    dim, bright = thumbnails(FieldRecord(label="A1", before=tiff(10_000, "a.tif"), after=tiff(40_000, "b.tif")))
    peaks = []
    for uri in (dim, bright):
        assert uri is not None
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        assert image.size == (160, 120)
        peaks.append(int(np.asarray(image.convert("L")).max()))
    assert peaks[0] == pytest.approx(64, abs=8)
    assert peaks[1] > 245
    assert thumbnails(FieldRecord(label="A1", before=tmp_path / "gone.png", after=b"not an image")) == (None, None)


def test_writing_is_atomic_and_makes_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ReportData(title="first", depth_of_field_um=1)
    path = write_report(data, tmp_path / "new" / "folder" / "report.html")
    before = path.read_text(encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mm_autofocus.report.html.os.replace", full)
    with pytest.raises(SettingsError, match="No space left"):
        write_report(data.model_copy(update={"title": "second"}), path)
    assert path.read_text(encoding="utf-8") == before
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="name a file in a folder that exists"):
        write_report(ReportData(title="t", depth_of_field_um=1), tmp_path / "file" / "report.html")


def test_importing_the_report_does_not_import_plotly() -> None:
    code = "import sys, mm_autofocus.report; print([m for m in ('plotly', 'PIL', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
