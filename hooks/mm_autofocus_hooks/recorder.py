"""The recorder: keeps every focus result as one JSON line, and a small image from before and after each run.

A folder never loses an earlier run: the first acquisition writes ``focus.jsonl``, the next ``focus-2.jsonl`` and so
on. The thumbnails of line 7 (counted from 1) of ``focus-2.jsonl`` are ``thumbnails/focus-2-00007-before.jpg`` and
``...-after.jpg``; see `thumbnail_paths`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from mm_autofocus.errors import FocusError, SettingsError
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.request import Event, FocusRequest
from mm_autofocus.result import FocusResult
from mm_autofocus.results import ResultLog
from mm_autofocus.settings import Settings
from mm_autofocus.strategy import Frame, Image

log = logging.getLogger(__name__)

STRETCH_PERCENTILES = (1.0, 99.7)
JPEG_QUALITY = 85
FRAMES_KEPT = 200
"""Thumbnails of one run held in memory until it ends."""


class _Seen(NamedTuple):
    knobs: dict[str, float]
    purpose: str
    image: NDArray[np.uint8]


class Recorder:
    """Write ``focus.jsonl`` and the thumbnails into ``settings.recorder.folder``; without a folder, keep in memory.

    Once the acquisition runs, nothing that happens to the disk disturbs it: a result that cannot be written is kept,
    one warning is logged, and all that is waiting is written with the next result, or at the end.

    Parameters
    ----------
    settings
        Section ``[recorder]``; see `mm_autofocus.settings.RecorderSettings`.

    Attributes
    ----------
    path
        The file of this acquisition, None without a folder or before ``mmaf_start``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.recorder
        self.path: Path | None = None
        self._clear()

    def _clear(self) -> None:
        self._kept = ResultLog()
        """The results that are not on disk yet; without a folder, all."""
        self._count = 0
        self._written = 0
        """How many results are on disk."""
        self._size = 0
        """Bytes of complete lines on disk; whatever lies beyond is the rest of a failed write."""
        self._warned = False
        self._event: Event | None = None
        self._first: _Seen | None = None
        self._seen: deque[_Seen] = deque(maxlen=FRAMES_KEPT)

    @property
    def results(self) -> Sequence[FocusResult]:
        """Every result since the acquisition began, in order; those on disk are read back from there.

        Raises
        ------
        FocusError
            When the file cannot be read any more.
        """
        if self.path is None or not self._written:
            return self._kept
        return [*load(self.path)[: self._written], *self._waiting()]

    def thumbnails(self, index: int) -> tuple[Path, Path]:
        """Return where the images from before and after the result of that index (from 0) are kept.

        Raises
        ------
        ValueError
            Without a folder.
        """
        if self.path is None:
            raise ValueError("results are kept in memory only: set [recorder] folder to have thumbnails")
        return thumbnail_paths(self.path, index + 1)

    # ------------------------------------------------------------------ hooks
    @hookimpl
    def mmaf_start(self) -> None:
        """Begin a new file.

        Raises
        ------
        SettingsError
            When the folder cannot be written to.
        """
        self.path = None
        self._clear()
        if not self._settings.folder:
            return
        folder = Path(self._settings.folder).expanduser()
        try:
            (folder / "thumbnails" if self._settings.thumbnails else folder).mkdir(parents=True, exist_ok=True)
            self.path = _new_file(folder)
        except OSError as error:
            raise SettingsError(
                f'recorder.folder = "{folder}" cannot be written to: {error}. Choose a folder that you may write to, '
                'or set folder = "" to keep the results in memory only.'
            ) from error

    @hookimpl
    def mmaf_frame(self, request: FocusRequest, frame: Frame, purpose: str) -> None:
        """Keep a thumbnail of the frame until the run ends."""
        if self.path is None or not self._settings.thumbnails:
            return
        if request.event is not self._event:
            self._event, self._first = request.event, None
            self._seen.clear()
        seen = _Seen(dict(frame.knobs), purpose, thumbnail(frame.image, self._settings.thumbnail_px))
        if self._first is None or (purpose == "start" and self._first.purpose != "start"):
            self._first = seen
        self._seen.append(seen)

    @hookimpl
    def mmaf_focused(self, result: FocusResult) -> None:
        """Keep the result, and write it with all that is still waiting."""
        self._kept.append(result)
        self._count += 1
        if self.path is None:
            return
        try:
            self._write_waiting(self.path)
            self._write_thumbnails(self.path, result)
            self._warned = False
        except OSError as error:
            if not self._warned:
                log.warning("cannot write to %s (%s); results are kept in memory and tried again", self.path, error)
            self._warned = True
        finally:
            self._event, self._first = None, None
            self._seen.clear()

    @hookimpl
    def mmaf_finish(self) -> None:
        """Write what is still waiting; an acquisition without a single result leaves no file."""
        if self.path is None:
            return
        try:
            self._write_waiting(self.path)
            if not self._count:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            waiting = self._count - self._written
            log.error("%d focus results could not be written to %s: %s", waiting, self.path, error)

    # ------------------------------------------------------------------ writing
    def _write_waiting(self, path: Path) -> None:
        """Append each waiting result; a write that fails half-way is overwritten by the next."""
        for result in self._waiting():
            line = _line(result)
            file = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            try:
                os.lseek(file, min(self._size, os.fstat(file).st_size), os.SEEK_SET)
                start = os.lseek(file, 0, os.SEEK_CUR)
                if os.write(file, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                os.ftruncate(file, start + len(line))
            finally:
                os.close(file)
            self._size = start + len(line)
            self._written += 1
        self._kept.clear()

    def _waiting(self) -> list[FocusResult]:
        """The results that are still to be written; the first of those kept may be on disk already."""
        return self._kept[len(self._kept) - (self._count - self._written) :]

    def _write_thumbnails(self, path: Path, result: FocusResult) -> None:
        if self._first is None:
            return
        import cv2  # here, because it is slow to import

        last = [seen for seen in self._seen if seen.purpose == "verify"] or list(self._seen)
        end = result.end.get(result.knob, 0.0)
        after = min(reversed(last), key=lambda seen: abs(seen.knobs.get(result.knob, end) - end))
        for target, seen in zip(thumbnail_paths(path, self._count), (self._first, after), strict=True):
            done, jpeg = cv2.imencode(".jpg", seen.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            if done:
                target.write_bytes(jpeg.tobytes())


def load(path: str | Path) -> list[FocusResult]:
    """Read the results back.

    A line that is not a whole result is left out with a warning: the last one is, when the computer lost power.

    Raises
    ------
    FocusError
        When the file cannot be read.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise FocusError(f"focus results {path} cannot be read: {error}") from error
    results = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            results.append(FocusResult.model_validate_json(line))
        except ValidationError as error:
            log.warning("%s, line %d is not a focus result and is left out: %s", path, number, error.errors()[0]["msg"])
    return results


def thumbnail_paths(path: Path, line: int) -> tuple[Path, Path]:
    """Return where the images from before and after the run on ``line`` (from 1) of a results file are kept."""
    stem = path.parent / "thumbnails" / f"{path.stem}-{line:05d}"
    return Path(f"{stem}-before.jpg"), Path(f"{stem}-after.jpg")


def thumbnail(image: Image, longest_px: int) -> NDArray[np.uint8]:
    """Shrink an image by averaging, and stretch it between its 1st and 99.7th percentile to 8 bits.

    Parameters
    ----------
    image
        Shape (height, width) or (height, width, colours), any integer or float dtype; NaN becomes black.
    longest_px
        Longest side of the result in pixels; a smaller image keeps its size.
    """
    import cv2  # here, because it is slow to import

    pixels: NDArray[Any] = np.asarray(image)
    if pixels.ndim == 3:
        pixels = pixels.mean(axis=2)
    if pixels.dtype not in (np.uint8, np.uint16):
        pixels = np.nan_to_num(pixels.astype(np.float32), posinf=0.0, neginf=0.0)
    height, width = pixels.shape
    shrink = longest_px / max(height, width)
    if shrink < 1:
        size = max(round(width * shrink), 1), max(round(height * shrink), 1)
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    low, high = np.percentile(pixels, STRETCH_PERCENTILES)
    scaled = (pixels.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))
    stretched: NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    return stretched


def _line(result: FocusResult) -> bytes:
    try:
        text = result.model_dump_json()
    except PydanticSerializationError:  # a plugin put something into the details that JSON does not know
        details = {name: repr(value) for name, value in result.details.items()}
        text = result.model_copy(update={"details": details}).model_dump_json()
    return text.encode() + b"\n"


def _new_file(folder: Path) -> Path:
    """Create focus.jsonl, or the first focus-N.jsonl that does not exist."""
    number = 1
    while True:
        path = folder / ("focus.jsonl" if number == 1 else f"focus-{number}.jsonl")
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return path
