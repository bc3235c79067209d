"""Runs cases × methods and keeps each outcome as one line of a journal, so that a run that was killed goes on.

A bench of any instrument brings units, each a case with a method, and a function that measures one of them. All
methods meet the same case with the same seed, so they can be compared pair by pair. What takes part in no comparison (a
training, a series of images) is a unit too, `MEASURED` once and kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mm_autofocus.errors import SettingsError
from mm_autofocus.parallel import in_parallel

logger = logging.getLogger(__name__)

MEASURED = "measured"
"""Status of a unit that is no focus run: all that it came to is in its details, and no outcome table counts it."""


class Case(BaseModel):
    """One thing to focus on; a bench derives its own with the fields that it needs.

    Attributes
    ----------
    name
        Unique in its bench.
    group
        Cases that are summed up together ("low dose", "another PSF").
    seed
        Of the specimen, the noise and the start: the same for every method.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    group: str
    seed: int = 0


class Method(BaseModel):
    """One way of focusing: a strategy with settings, under the name that the tables show.

    Attributes
    ----------
    name
        For the tables.
    strategy, settings
        Name of the strategy and its section of the settings.
    peer
        True for what ours is compared with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    strategy: str
    settings: dict[str, Any] = {}
    peer: bool = False


class Outcome(BaseModel):
    """What one method came to on one case.

    Attributes
    ----------
    status, reason
        As in `mm_autofocus.result.FocusResult`.
    success
        Whether it did what the case asks: focused to within half the depth of field, or, where there is nothing to
        focus on, said so.
    error
        End minus truth in ``unit``, signed; None where the case has no focus to find.
    depth, unit
        Full width that counts as in focus, and the unit of both.
    errors
        Where several knobs were focused, the error of each, by its name and unit ("wd µm"). ``error`` is then the
        largest of them in halves of their depths.
    confidence
        What the method stated, 0 to 1; None for a method that states none.
    images, dose
        What it cost; dose in the microscope's unit.
    compute_seconds, instrument_seconds
        Time in the method's code, and on the (simulated) instrument's clock.
    details
        Anything else worth keeping that JSON can hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    status: str
    success: bool
    error: float | None = None
    depth: float = 1.0
    unit: str = "µm"
    errors: dict[str, float] = {}
    confidence: float | None = 0.0
    images: int = 0
    dose: float = 0.0
    compute_seconds: float = 0.0
    instrument_seconds: float = 0.0
    reason: str = ""
    details: dict[str, Any] = {}

    @property
    def converged(self) -> bool:
        """Whether the method said that it has found the focus."""
        return self.status == "converged"

    @property
    def judged(self) -> bool:
        """Whether it was a focus run, that the outcome tables count."""
        return self.status != MEASURED


class Record(Outcome):
    """An outcome with whose it is: one line of the journal."""

    key: str
    case: str
    group: str
    method: str
    peer: bool = False


CaseT = TypeVar("CaseT", bound=Case)
MethodT = TypeVar("MethodT", bound=Method)
Measure = Callable[[CaseT, MethodT], Outcome]
Progress = Callable[[int, int, Record], None]


class Failure(BaseModel):
    """A unit whose measurement raised; it is not in the journal, so that the next run tries it again."""

    case: str
    method: str
    message: str


class BenchRun(BaseModel):
    """Everything that was asked for: the records in the order of the units, and what raised."""

    records: list[Record]
    failures: list[Failure] = []
    resumed: int = 0
    """How many of the records an earlier run had left."""


def key_of(case: Case, method: Method) -> str:
    """Return what identifies a unit in the journal: a hash of all that defines it, and of mm-autofocus's version.

    A case or a method that was changed has another key, so a journal never passes old outcomes off as new ones. Whoever
    changes the code of a strategy begins with a fresh journal.
    """
    defined = [version("mm-autofocus"), case.model_dump(mode="json"), method.model_dump(mode="json")]
    text = json.dumps(defined, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def run_bench(
    cases: Sequence[CaseT],
    methods: Sequence[MethodT],
    measure: Measure[CaseT, MethodT],
    journal: Path,
    *,
    workers: int = 0,
    scheduler: str = "",
    progress: Progress | None = None,
) -> BenchRun:
    """Measure every method on every case, except the pairs that the journal holds already; see `run_units`.

    Raises
    ------
    SettingsError
        When there is no case or no method, and as `run_units` does.
    """
    for what, names in ("case", [case.name for case in cases]), ("method", [method.name for method in methods]):
        if not names:
            raise SettingsError(f"there is no {what} to run")
        if twice := _twice(names):
            raise SettingsError(f"two {what}s are named {twice!r}; rename one")
    units = [(case, method) for case in cases for method in methods]
    return run_units(units, measure, journal, workers=workers, scheduler=scheduler, progress=progress)


def run_units(
    units: Sequence[tuple[CaseT, MethodT]],
    measure: Measure[CaseT, MethodT],
    journal: Path,
    *,
    workers: int = 0,
    scheduler: str = "",
    progress: Progress | None = None,
) -> BenchRun:
    """Measure every unit, except those that the journal holds already.

    Parameters
    ----------
    units
        Cases, each with a method, in the order in which to begin them.
    measure
        An importable function; called as ``measure(case, method)`` in this process or in a worker.
    journal
        File of JSON lines; made when absent. Kill the run at any time: started again it goes on, and no unit is
        lost or measured twice.
    workers, scheduler
        See `mm_autofocus.parallel.in_parallel`.
    progress
        Called with the number done, the number of all units, and the record.

    Raises
    ------
    SettingsError
        When two units are the same, or the journal cannot be used or is in use.
    """
    keys = [key_of(case, method) for case, method in units]
    if twice := _twice(keys):
        case, method = units[keys.index(twice)]
        raise SettingsError(f"{case.name} with {method.name} is there twice; leave one out")
    failures: list[Failure] = []
    with Journal(journal) as kept:
        resumed = sum(key in kept.records for key in keys)
        waiting = [i for i, key in enumerate(keys) if key not in kept.records]
        done = resumed
        for finished in in_parallel(
            partial(_measured, measure), [units[i] for i in waiting], workers=workers, scheduler=scheduler
        ):
            index = waiting[finished.index]
            case, method = units[index]
            if finished.result is None:
                message = f"{type(finished.error).__name__}: {finished.error}"
                logger.error("%s, %s: %s", case.name, method.name, message, exc_info=finished.error)
                failures.append(Failure(case=case.name, method=method.name, message=message))
                continue
            record = kept.add(
                Record(
                    **finished.result.model_dump(), key=keys[index], case=case.name, group=case.group,
                    method=method.name, peer=method.peer,
                )
            )  # fmt: skip
            done += 1
            if progress is not None:
                progress(done, len(units), record)
        return BenchRun(
            records=[kept.records[key] for key in keys if key in kept.records], failures=failures, resumed=resumed
        )


def set_aside(journal: Path) -> None:
    """Let a bench begin anew: the journal, if there is one, is kept under the name STEM-previous.jsonl."""
    if journal.exists():
        journal.replace(journal.with_name(f"{journal.stem}-previous{journal.suffix}"))


def _measured(measure: Measure[CaseT, MethodT], pair: tuple[CaseT, MethodT]) -> Outcome:
    return measure(*pair)


def _twice(names: Sequence[str]) -> str | None:
    """Return the first name that is there twice, None when there is none."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


class Journal:
    """An append-only file of records, one JSON line each, on disk before the next begins.

    A line that was cut off by a kill is removed when the file is opened again. The file is locked while it is open; the
    lock dies with the process.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    SettingsError
        When it cannot be written to, another run has it open, or it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        """What the file holds, by key."""
        self._file = -1

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        except OSError as error:
            raise SettingsError(
                f"the journal {self.path} cannot be written to: {error}; choose another --out"
            ) from None
        try:
            _lock(self._file, self.path)
            self._read()
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                record = Record.model_validate_json(line)
            except ValidationError:
                raise SettingsError(
                    f"{self.path}, line {number} is no record of a bench; move the file away, or choose another --out"
                ) from None
            self.records.setdefault(record.key, record)
        os.ftruncate(self._file, whole)
        os.lseek(self._file, whole, os.SEEK_SET)

    def add(self, record: Record) -> Record:
        """Append a record; it is on disk when this returns.

        Returns
        -------
        Record
            As a later run will read it: tuples have become lists.

        Raises
        ------
        SettingsError
            When the disk is full; the file stays readable.
        """
        line = record.model_dump_json().encode() + b"\n"
        at = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            if os.write(self._file, line) < len(line):
                raise OSError("the disk is full")
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, at)
            raise SettingsError(f"{self.path} cannot be written to: {error}; make room and run it again") from error
        self.records[record.key] = Record.model_validate_json(line)
        return self.records[record.key]


def _lock(file: int, path: Path) -> None:
    """Lock the file for this process; the operating system unlocks it when the process ends, however it ends."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(file, 1 << 40, os.SEEK_SET)  # Windows locks bytes against reading too: one far beyond the end
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SettingsError(f"another run has {path} open; wait for it, or choose another --out") from None
