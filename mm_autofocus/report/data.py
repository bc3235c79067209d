"""What a report is made of: the fields acquired, the focus runs behind them, and the numbers that sum them up."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mm_autofocus.request import Event
from mm_autofocus.result import FocusResult, Status

ACTION_WORDS = {
    "accept": "accepted the result as it was",
    "widen": "searched a wider window",
    "use_map": "went to the focus map's prediction",
    "use_last_good": "went to the last good focus nearby",
    "stay": "stayed where the run began",
    "skip": "skipped the position",
    "pause": "paused for the operator",
    "abort": "ended the acquisition",
}

_PACKAGES = ("mm-autofocus", "numpy", "scipy", "plotly", "pymmcore", "pymmcore-plus", "pycromanager", "torch")


def _none_unless_finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Finite = Annotated[float | None, BeforeValidator(_none_unless_finite)]


class FieldRecord(BaseModel):
    """One field of view as it was acquired.

    Attributes
    ----------
    label
        Name of the position ("B7_0001").
    well
        Name of the well ("B7"); taken from the label when absent, None for positions outside a plate.
    x, y
        Stage position in µm.
    z
        Height in µm (absolute) at which the focal plane's slice was acquired; None when it was not acquired.
    truth_z
        True focal height in µm, from the simulation or a truth sweep; None when unknown.
    blank
        True for a well without specimen; None when unknown.
    result_index
        Index of the focus run that served this field in ``ReportData.results``; None without one.
    before, after
        Image before and after focusing: a path, or the bytes of an image file.
    others
        Further knobs that must be right too (stigmators): by name with its unit ("stig x, a.u."), the error and the
        largest one that counts as in focus.
    """

    model_config = ConfigDict(frozen=True)

    label: str
    well: str | None = None
    x: Finite = None
    y: Finite = None
    z: Finite = None
    truth_z: Finite = None
    blank: bool | None = None
    result_index: int | None = None
    before: bytes | str | Path | None = None
    after: bytes | str | Path | None = None
    others: dict[str, tuple[float, float]] = {}

    def sharp(self, tolerance_um: float) -> bool | None:
        """Whether every knob was in focus, z within ``tolerance_um``; None where the truth is unknown."""
        if self.error_um is None:
            return None
        return abs(self.error_um) <= tolerance_um and all(abs(e) <= limit for e, limit in self.others.values())

    @property
    def error_um(self) -> float | None:
        """Acquired minus true focal height in µm, None where either is unknown."""
        return None if self.z is None or self.truth_z is None else self.z - self.truth_z

    @property
    def place(self) -> str:
        """The well, or the label of a position outside a plate."""
        return self.well or Event(label=self.label).well or self.label


class MethodSummary(BaseModel):
    """One row of the table of methods.

    Attributes
    ----------
    name
        "autofocus", "without autofocus", "OughtaFocus" ...
    fields, scored
        Number of fields, and of those with a specimen and a known true focal height; ``scored`` None means all.
    in_focus
        Of the scored fields, those within half the depth of field of the truth; None when no truth is known.
    blank_fields, blank_in_focus
        The same two numbers for blank fields, where no image can tell the focus.
    median_um, p95_um, worst_um
        Median, 95th percentile and maximum of the absolute error of the scored fields in µm.
    runs, converged
        Number of focus runs, and of those that converged.
    images, dose, dose_unit
        Spent on focusing.
    instrument_seconds, compute_seconds
        Time by the microscope's clock, and time spent in the strategies' code; None when it was not measured.
    false_confident
        Fields out of focus although their run converged.
    note
        Remark for the table.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    fields: int
    scored: int | None = None
    in_focus: int | None = None
    blank_fields: int = 0
    blank_in_focus: int | None = None
    median_um: Finite = None
    p95_um: Finite = None
    worst_um: Finite = None
    runs: int = 0
    converged: int = 0
    images: int = 0
    dose: float = 0.0
    dose_unit: str = "ms"
    instrument_seconds: float = 0.0
    compute_seconds: Finite = None
    false_confident: int | None = None
    note: str = ""

    @property
    def denominator(self) -> int:
        """Number of fields that ``in_focus`` is counted among."""
        return self.fields if self.scored is None else self.scored

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of the fraction in focus, None without truth."""
        return wilson(self.in_focus, self.denominator) if self.in_focus is not None else None


class Chart(BaseModel):
    """One figure of a `Section`: its name (unique in the report), heading, explanation, and what plotly draws.

    ``kind`` "chart" takes half of the width, "wide" all of it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    caption: str
    figure: dict[str, Any]
    kind: Literal["chart", "wide"] = "chart"


class Section(BaseModel):
    """A section of the report that only some instruments have.

    Attributes
    ----------
    name, title, lead
        Its id on the page, its heading, and what the reader should know first.
    header, rows
        A table; none where ``rows`` is empty.
    charts
        Figures below it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    lead: str = ""
    header: list[str] = []
    rows: list[list[str]] = []
    charts: list[Chart] = []


class Incident(BaseModel):
    """A run that did not converge, that needed the failure policy to, or that converged out of focus."""

    model_config = ConfigDict(frozen=True)

    label: str
    field_index: int | None
    status: Status
    reason: str
    actions: tuple[str, ...]
    final_z: Finite
    error_um: Finite


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter here, those that are installed."""
    versions = {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


class ReportData(BaseModel):
    """Everything the report shows.

    Attributes
    ----------
    title, created
        Heading, and when the acquisition was made.
    instrument, plan
        Lines for the header: objective, pixel size ...; wells, fields, slices, channels ...
    depth_of_field_um
        Depth of field in µm; in focus means within half of it.
    strategy
        Name of the strategy or cascade.
    results, fields
        The focus runs in order, and the fields acquired.
    methods
        Rows to compare; the first is the autofocus of this report. Empty: made from fields and results.
    dataset
        ``path``, ``images expected`` and ``images present`` of the acquired data.
    settings_toml
        The settings as TOML text.
    notes
        Remarks for the reader.
    dose_unit
        Unit of the dose of the results.
    reference, reference_results
        Name and runs of another method at the same places, drawn beside the costs.
    versions
        Version by package name.
    sections
        What only this kind of instrument has to show; after the table of methods.
    """

    model_config = ConfigDict(frozen=True)

    title: str
    created: datetime = Field(default_factory=lambda: datetime.now().astimezone())
    instrument: dict[str, str] = {}
    plan: dict[str, str] = {}
    depth_of_field_um: float = Field(gt=0, allow_inf_nan=False)
    strategy: str = ""
    results: list[FocusResult] = []
    fields: list[FieldRecord] = []
    methods: list[MethodSummary] = []
    dataset: dict[str, Any] = {}
    settings_toml: str = ""
    notes: list[str] = []
    dose_unit: str = "ms"
    reference: str = ""
    reference_results: list[FocusResult] = []
    versions: dict[str, str] = Field(default_factory=installed_versions)
    sections: list[Section] = []

    @model_validator(mode="after")
    def _indices_exist(self) -> Self:
        for field in self.fields:
            if field.result_index is not None and not 0 <= field.result_index < len(self.results):
                have = len(self.results)
                raise ValueError(
                    f"field {field.label!r}: result_index {field.result_index} is not one of {have} results"
                )
        return self

    @property
    def tolerance_um(self) -> float:
        """Largest absolute error in µm that counts as in focus: half the depth of field."""
        return self.depth_of_field_um / 2

    @property
    def has_truth(self) -> bool:
        """True when the true focal height of at least one field is known."""
        return any(field.error_um is not None for field in self.fields)

    @property
    def table(self) -> list[MethodSummary]:
        """The methods to compare, at least the autofocus itself."""
        if self.methods or not self.fields:
            return self.methods
        own = summarise("autofocus", self.fields, self.results, self.depth_of_field_um, dose_unit=self.dose_unit)
        return [own]

    def result_of(self, field: FieldRecord) -> FocusResult | None:
        """Return the focus run that served a field."""
        return None if field.result_index is None else self.results[field.result_index]

    def own_fields(self) -> dict[int, int]:
        """Return, by index of a result, the index of the field it was measured at."""
        own: dict[int, int] = {}
        for index, field in enumerate(self.fields):
            result = field.result_index
            if result is not None and (result not in own or self.results[result].label == field.label):
                own[result] = index
        return own

    def scored_runs(self) -> list[tuple[FocusResult, float]]:
        """Return each focus run with its own error in µm (end minus truth), where the truth is known."""
        scored = []
        for result_index, field_index in sorted(self.own_fields().items()):
            result, truth = self.results[result_index], self.fields[field_index].truth_z
            end = result.end.get(result.knob)
            if truth is not None and end is not None and math.isfinite(end):
                scored.append((result, end - truth))
        return scored

    def sharp_runs(self) -> list[tuple[FocusResult, bool]]:
        """Return each focus run and whether its own end was in focus in every knob, where the truth is known."""
        judged = []
        for result_index, field_index in sorted(self.own_fields().items()):
            result, field = self.results[result_index], self.fields[field_index]
            sharp = field.model_copy(update={"z": result.end.get(result.knob)}).sharp(self.tolerance_um)
            if sharp is not None:
                judged.append((result, sharp))
        return judged

    @property
    def tolerances(self) -> str:
        """What counts as in focus, in words: "|error| ≤ 1 µm", with the limits of further knobs where there are any."""
        others = next((field.others for field in self.fields if field.others), {})
        words = [f"|error| ≤ {self.tolerance_um:.2g} µm"]
        for name, (_, limit) in others.items():
            knob, _, unit = name.partition(", ")
            words.append(f"{knob} ≤ {limit:g} {unit}".strip())
        return ", ".join(words)

    def status_counts(self) -> Counter[Status]:
        """Return how often each status occurred, the most frequent first."""
        return Counter(dict(Counter(result.status for result in self.results).most_common()))

    def incidents(self) -> list[Incident]:
        """Return, in order, the runs that did not converge, needed the failure policy, or converged out of focus."""
        own, found = self.own_fields(), []
        for index, result in enumerate(self.results):
            field_index = own.get(index)
            field = None if field_index is None else self.fields[field_index]
            error = field.error_um if field else None
            wrong = result.ok and field is not None and field.sharp(self.tolerance_um) is False
            if result.ok and not result.action and not wrong:
                continue
            found.append(
                Incident(
                    label=result.label or (field.label if field else f"run {index + 1}"),
                    field_index=field_index,
                    status=result.status,
                    reason="confident and wrong: out of focus" if wrong else result.reason,
                    actions=result.action,
                    final_z=result.final if result.final is not None else result.end.get(result.knob),
                    error_um=error,
                )
            )
        return found

    @property
    def headline(self) -> str:
        """The one sentence that a reader takes away."""
        rows = [row for row in self.table if row.in_focus is not None]
        if rows:
            first, *others = rows
            fields = "fields with a specimen" if first.blank_fields else "fields"
            text = (
                f"{first.in_focus} of {first.denominator} {fields} in focus ({self.tolerances}) "
                f"{_with(first.name)}"
            )
            text = ", ".join([text, *(f"{row.in_focus} {_with(row.name)}" for row in others)])
            if first.blank_fields:
                text += f"; of the blank fields, {first.blank_in_focus} of {first.blank_fields}"
            return text
        if not self.results:
            return "No focus run was recorded."
        converged = sum(result.ok for result in self.results)
        text = f"{converged} of {len(self.results)} focus runs converged"
        failed = len(self.results) - converged
        return f"{text}; the failure policy handled the other {failed}" if failed else text


def fields_from_results(
    results: Sequence[FocusResult], thumbnails: Callable[[int], tuple[Path, Path]] | None = None
) -> list[FieldRecord]:
    """Return one field per focus run, where the run or the failure policy put the focal plane; no truth is known.

    ``thumbnails`` returns the paths of the images before and after the run of that index (from 0).
    """
    records = []
    for i, result in enumerate(results):
        before, after = (p if p.exists() else None for p in thumbnails(i)) if thumbnails else (None, None)
        label = result.label or ", ".join(f"{k} {v}" for k, v in result.axes.items()) or f"run {i + 1}"
        z = result.final if result.final is not None else result.end.get(result.knob)
        records.append(
            FieldRecord(
                label=label, well=result.well, x=result.x, y=result.y, z=z, result_index=i, before=before, after=after
            )
        )
    return records


def _with(name: str) -> str:
    return name if name.lower().startswith(("without", "no ", "with ")) else f"with {name}"


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion, (0, 1) when ``n`` is 0.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209, without continuity correction.
    """
    if n <= 0:
        return 0.0, 1.0
    z = 1.959963984540054
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(
    name: str,
    fields: Sequence[FieldRecord],
    results: Sequence[FocusResult],
    depth_of_field_um: float,
    *,
    dose_unit: str = "ms",
    note: str = "",
) -> MethodSummary:
    """Sum up one method.

    Parameters
    ----------
    name
        Name of the method for the table.
    fields
        What was acquired; a field that has a truth but was not acquired counts as out of focus.
    results
        The focus runs; their ``seconds`` are by the microscope's clock, which in a simulation leaves computing out.
    depth_of_field_um
        In focus means within half of it.
    dose_unit, note
        Handed on.
    """
    scored = [field for field in fields if field.truth_z is not None]
    blank = [field for field in scored if field.blank]
    grown = [field for field in scored if not field.blank]
    errors = [abs(field.error_um) for field in grown if field.error_um is not None]
    sharp = {id(f) for f in scored if f.sharp(depth_of_field_um / 2)}
    confident = [f for f in scored if f.result_index is not None and results[f.result_index].ok]
    compute = sum(result.compute_seconds for result in results)
    return MethodSummary(
        name=name,
        fields=len(fields),
        scored=len(grown),
        in_focus=sum(id(f) in sharp for f in grown) if grown else None,
        blank_fields=len(blank),
        blank_in_focus=sum(id(f) in sharp for f in blank) if blank else None,
        median_um=float(np.median(errors)) if errors else None,
        p95_um=float(np.percentile(errors, 95)) if errors else None,
        worst_um=max(errors, default=None),
        runs=len(results),
        converged=sum(result.ok for result in results),
        images=sum(result.images for result in results),
        dose=sum(result.dose for result in results),
        dose_unit=dose_unit,
        instrument_seconds=sum(result.seconds for result in results),
        compute_seconds=compute or None,
        false_confident=sum(id(f) not in sharp for f in confident) if scored else None,
        note=note,
    )
