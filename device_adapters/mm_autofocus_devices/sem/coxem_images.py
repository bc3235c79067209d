"""The folder in which the COXEM program leaves each image: a JPEG, and a text with what it was taken at.

Nothing says when a file is complete, or which request it answers. So a pair counts when both files appeared or changed
after the request, the JPEG decodes to its last byte, and the text can be read; whether its values are those asked for
is
then for the client to say. Only pairs whose text is of this kind are ever removed.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mm_autofocus.errors import HardwareError

logger = logging.getLogger(__name__)

JPEG_BEGINS, JPEG_ENDS = b"\xff\xd8", b"\xff\xd9"
MAGNIFICATION_LINE, WORKING_DISTANCE_LINE = 9, 21
"""Counted from 1."""
MAGNIFICATION_FROM = 4
WORKING_DISTANCE_FROM, WORKING_DISTANCE_TO = 3, -4
"""Of a line that ends in one newline character, whatever the file has."""
CLOCK_SLACK_S = 2.0
"""By how much a file may seem older than the request: a shared folder has a clock, and times of FAT come in 2 s."""

_LONGEST_TEXT, _LONGEST_IMAGE = 64 * 1024, 64 * 1024 * 1024
_POLL_S = 0.01
_KEEPS_S = 2.0
"""How long a file that another program has open is tried to be removed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text says.

    Attributes
    ----------
    working_distance_mm, magnification
        The values.
    working_distance_step_mm, magnification_step
        The smallest difference that they can show: one of the last digit.
    """

    working_distance_mm: float
    magnification: float
    working_distance_step_mm: float
    magnification_step: float

    @classmethod
    def parse(cls, data: bytes) -> Reading | None:
        """Read a text; None when it is none, or not complete.

        Lines end in CR LF or LF. Where the line of the working distance has digits beyond `WORKING_DISTANCE_TO`, the
        text is
        not as agreed, or was cut off there; half a number is never taken for a whole one.
        """
        lines = data.decode("euc-kr", errors="replace").replace("\r\n", "\n").split("\n")
        if len(data) > _LONGEST_TEXT or len(lines) < WORKING_DISTANCE_LINE:
            return None
        line = lines[WORKING_DISTANCE_LINE - 1] + "\n"
        if any(c.isdigit() or c == "." for c in line[WORKING_DISTANCE_TO:]):
            return None
        magnification = _number(lines[MAGNIFICATION_LINE - 1][MAGNIFICATION_FROM:])
        distance = _number(line[WORKING_DISTANCE_FROM:WORKING_DISTANCE_TO])
        if magnification is None or distance is None:
            return None
        return cls(distance[0], magnification[0], distance[1], magnification[1])

    def agrees(self, working_distance_mm: float, magnification: float) -> bool:
        """Tell whether these values, rounded to as many digits, are what the text says."""
        near = 0.5 + 1e-6
        return (
            abs(self.working_distance_mm - working_distance_mm) <= near * self.working_distance_step_mm
            and abs(self.magnification - magnification) <= near * self.magnification_step
        )

    def same(self, other: Reading | None) -> bool:
        """Tell whether another text says the same."""
        return other is not None and other.agrees(self.working_distance_mm, self.magnification)


@dataclass(frozen=True, slots=True)
class Exposure:
    """One image as the folder had it: shape (height, width), 8 bits, and what its text says."""

    image: NDArray[np.uint8]
    reading: Reading


_Mark = tuple[int, int, int]


class ImageFolder:
    """Finds complete pairs among files that appear while they are being written.

    Parameters
    ----------
    path
        The agreed folder.
    clock, sleep
        Monotonic seconds, and waiting; tests replace them.

    Raises
    ------
    HardwareError
        There is no such folder.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        if not path.is_dir():
            raise HardwareError(
                f"The folder {str(path)!r}, in which the COXEM program should leave its images, does not exist. "
                "Create it, or "
                "give the right one as folder=... in Options."
            )
        self.path = path
        self._clock, self._sleep = clock, sleep
        self._old: dict[Path, _Mark] = {}
        """Files that were there before the request, or were taken."""
        self._since = 0.0
        self.seen = ""
        """What the last wait saw and did not take, in words."""

    def forget(self) -> None:
        """Take nothing that is there now for an answer to what is asked for next."""
        self._old = self._marks()
        self._since = time.time() - CLOCK_SLACK_S
        self.seen = "no file appeared"

    def wait(self, seconds: float) -> Exposure | None:
        """Wait for the next pair that came after `forget`, read it and remove it; None when none was complete in
        time."""
        until = self._clock() + seconds
        while True:
            if (exposure := self._newest()) is not None:
                return exposure
            if (left := until - self._clock()) <= 0:
                return None
            self._sleep(min(_POLL_S, left))

    def _newest(self) -> Exposure | None:
        marks = self._marks()
        new = {path for path, mark in marks.items() if self._old.get(path) != mark}
        images = sorted((p for p in new if p.suffix.lower() != ".txt"), key=lambda p: marks[p][0], reverse=True)
        for image in images:
            text = next((p for p in new if p.suffix.lower() == ".txt" and p.stem == image.stem), None)
            if text is None:
                self.seen = f"{image.name} appeared without its new .txt"
            elif min(marks[image][0], marks[text][0]) * 1e-9 < self._since:
                self.seen = f"{image.name} is older than the request"
            elif (exposure := self._read(image, text)) is not None:
                for path in (image, text):
                    self._remove(path)
                return exposure
        return None

    def _read(self, image: Path, text: Path) -> Exposure | None:
        try:
            reading, data = Reading.parse(text.read_bytes()), image.read_bytes()
        except OSError as error:  # the writer may have it open alone
            self.seen = f"{image.name} or its text cannot be read: {error.strerror}"
            return None
        if reading is None:
            self.seen = f"{text.name} is not complete, or not as agreed"
            return None
        grey = decoded(data)
        if grey is None:
            self.seen = f"{image.name} is not complete: {len(data)} bytes"
            return None
        return Exposure(grey, reading)

    def _remove(self, path: Path) -> None:
        until = self._clock() + _KEEPS_S
        while True:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                if self._clock() < until:
                    self._sleep(_POLL_S)
                    continue
                logger.warning("%s was read and cannot be removed: %s; it stays and is not read again", path, error)
                self._old[path] = self._marks().get(path, (0, 0, 0))
            return

    def _marks(self) -> dict[Path, _Mark]:
        marks: dict[Path, _Mark] = {}
        try:
            for path in self.path.iterdir():
                if path.suffix.lower() in (".jpg", ".jpeg", ".txt"):
                    try:
                        status = path.stat()
                    except FileNotFoundError:  # removed by somebody meanwhile
                        continue
                    marks[path] = status.st_mtime_ns, status.st_size, status.st_ino
        except OSError as error:
            raise HardwareError(
                f"The folder {str(self.path)!r} of the COXEM program's images cannot be read: {error.strerror}. Check "
                "that "
                "it is there, and who may read it."
            ) from None
        return marks


def decoded(data: bytes) -> NDArray[np.uint8] | None:
    """Return the grey levels of a JPEG, shape (height, width); None while it is not complete."""
    if len(data) > _LONGEST_IMAGE or not data.startswith(JPEG_BEGINS):
        return None
    if not data.rstrip(b"\0").endswith(JPEG_ENDS):  # some writers fill a sector up
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return np.array(image.convert("L"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _number(text: str) -> tuple[float, float] | None:
    """Return a plain decimal number and one of its last digit."""
    text = text.strip()
    whole, _, fraction = text.partition(".")
    if not whole.isascii() or not whole.isdigit() or (fraction and not (fraction.isascii() and fraction.isdigit())):
        return None
    if len(text) > 24:
        return None
    return float(text), 10.0 ** -len(fraction)
