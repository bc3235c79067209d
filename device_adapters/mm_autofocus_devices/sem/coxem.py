"""A COXEM SEM behind its program's socket and image folder, as the devices want an SEM (docs/protocol-coxem.md).

The dialect says little: it sets working distance and magnification together, sends the stage somewhere, and answers
with an
image whose text tells the first two. So every change of those makes a frame, and the frame is the only confirmation.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import HardwareError
from mm_autofocus_devices.sem.coxem_codec import GREETING, GREETING_PAUSE_S, CoxemCodec, on_wire
from mm_autofocus_devices.sem.coxem_images import Exposure, ImageFolder, Reading
from mm_autofocus_devices.sem.coxem_options import MAGNIFICATION, WORKING_DISTANCE_MM, XY_UM, CoxemOptions
from mm_autofocus_devices.sem.instrument import RETRY_S, Roi
from mm_autofocus_devices.sem.protocol import Description, State, checked
from mm_autofocus_devices.transport import Client, Message, TransportError

logger = logging.getLogger(__name__)

REUSED_S = 0.5
"""The frame that confirmed a working distance is the next scan's when it is no older; wait longer for one of its
own."""
_FRAME_S = 0.1
"""A frame's time while none is known."""
UNSAID = (
    "stig_x",
    "stig_y",
    "scan_rotation_deg",
    "brightness",
    "contrast",
    "blanked",
    "dwell_ns",
    "dose",
    "frame_dose",
)
"""Of `State`, what the dialect neither tells nor sets."""


class CoxemClient:
    """A COXEM SEM; usable from several threads. See `mm_autofocus_devices.sem.instrument.Sem`.

    Nothing is sent before the first question. Then working distance and magnification of the options are set, and the
    stage
    where they say where. ``WDMAG`` is absolute, so it is repeated when its reply or its image is lost (it costs a frame
    more); so is a stage move when the connection broke under it.

    Parameters
    ----------
    host, port
        The program's socket.
    options
        See `CoxemOptions`.
    timeout_s
        Longest wait for one reply.
    retry_s
        How long a request keeps trying while the program is away or its images do not come.
    clock, sleep
        Monotonic seconds, and waiting; tests replace them.
    """

    def __init__(
        self,
        host: str,
        port: int,
        options: CoxemOptions,
        timeout_s: float = 5.0,
        retry_s: float = RETRY_S,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.options = options
        self.folder = ImageFolder(Path(options.folder), clock=clock, sleep=sleep)
        self.retry_s = max(retry_s, timeout_s)
        self.client = Client(
            host, port, CoxemCodec(), timeout_s=timeout_s, request_s=self.retry_s, on_connect=self._greet
        )
        self.last_reply = ""
        """What the program said last; its words are not documented, so it is shown and never interpreted."""
        self._clock, self._sleep = clock, sleep
        self._lock = threading.RLock()
        self._known: State | None = None
        self._frame: tuple[NDArray[np.uint8], float] | None = None
        self._slowest_s = 0.0
        self._unsure = False
        """True while an image of an earlier request may still come."""

    def __enter__(self) -> CoxemClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say ``FINISH`` and close the connection; the next request greets again."""
        with self._lock:
            if self.client.alive():
                try:
                    self.client.send("FINISH")
                except TransportError as error:
                    logger.info("the COXEM program at %s was gone before FINISH: %s", self.client.address, error)
            self.client.close()

    def describe(self) -> Description:
        """Return what can be said: frames have the size of the first image; raises what `state` raises."""
        width, height = self.state().width, self.state().height
        pixels = tuple(self._pixel_nm(mag, width) for mag in reversed(MAGNIFICATION))
        low, high = (mm * 1e3 for mm in WORKING_DISTANCE_MM)
        missing = UNSAID if self.options.x_um is not None else (*UNSAID, "x_um", "y_um")
        return Description(
            "COXEM SEM", (low, high), (math.nan, math.nan), (pixels[0], pixels[1]), XY_UM, ((width, height),), (),
            missing=missing,
        )  # fmt: skip

    def state(self) -> State:
        """Return where everything stands as the last image told; NaN (``blanked``: False) is what the dialect does
        not tell.

        A change made at the instrument's own console shows with the next image only, and that asks for the old values.

        Raises
        ------
        HardwareError
            The first time, when `set` would.
        """
        with self._lock:
            return self._known or self._start()

    def set(self, **values: float | bool) -> State:
        """Change working distance, magnification (or pixel size), or stage position; all or, when one is refused, none.

        Returns
        -------
        State
            Working distance and magnification as the image's text tells them (as asked for, when they are the same to
            the
            text's last digit), the stage position as sent: the dialect does not confirm that.

        Raises
        ------
        HardwareError
            The dialect cannot say it, the program cannot be reached, or no complete image came.
        """
        wanted = checked(values)
        with self._lock:
            known = self.state()
            if "width" in wanted and (wanted.pop("width"), wanted.pop("height")) != (known.width, known.height):
                raise HardwareError(
                    f"the COXEM dialect cannot choose frames; they have {known.width}x{known.height} pixels. Choose "
                    "them in "
                    "the instrument's program, and initialize the devices again"
                )
            if unsaid := sorted(wanted.keys() & set(self.describe().missing)):
                raise HardwareError(
                    f"the COXEM dialect cannot set {', '.join(unsaid)}; set it in the instrument's program. Nothing "
                    "was set"
                )
            distance_um = wanted.get("working_distance_um", known.working_distance_um)
            magnification = wanted.get("magnification", known.magnification)
            if "pixel_nm" in wanted:
                magnification = self._magnification(wanted["pixel_nm"], known.width)
            x_um, y_um = wanted.get("x_um", known.x_um), wanted.get("y_um", known.y_um)
            _check("working distance in mm", distance_um / 1e3, WORKING_DISTANCE_MM)
            _check("magnification", magnification, MAGNIFICATION)
            if {"x_um", "y_um"} & wanted.keys():
                _check("x in µm", x_um, XY_UM)
                _check("y in µm", y_um, XY_UM)
                self._move(x_um, y_um)
            if {"working_distance_um", "magnification", "pixel_nm"} & wanted.keys():
                self._take(self._expose(distance_um / 1e3, magnification), distance_um, magnification)
            return self.state()

    def scan(self, roi: Roi | None = None) -> NDArray[np.uint8]:
        """Return one frame, or the part ``roi`` of it; a part costs time and dose of the whole.

        The frame that confirmed a working distance is handed out once, unless it is older than `REUSED_S`; otherwise
        the
        present values are sent again, which makes another.

        Raises
        ------
        HardwareError
            What `set` raises, or the instrument has left the values that it was set to.
        """
        with self._lock:
            known = self.state()
            x, y, width, height = roi or (0, 0, known.width, known.height)
            if min(x, y) < 0 or min(width, height) < 1 or x + width > known.width or y + height > known.height:
                raise HardwareError(
                    f"roi {[x, y, width, height]} does not lie in the frame of {known.width}x{known.height} pixels; "
                    "nothing "
                    "was scanned"
                )
            ready, self._frame = self._frame, None
            if ready is None or self._clock() - ready[1] > REUSED_S:
                self._take(self._expose(known.working_distance_um / 1e3, known.magnification), *_set(known))
                now = self._known
                ready, self._frame = self._frame, None
                if now is None or ready is None or _set(now) != _set(known):
                    raise HardwareError(
                        f"the SEM was left at working distance {known.working_distance_um:g} µm and magnification "
                        f"{known.magnification:g}, and its image was taken at {_said(now)}. Somebody else sets it, or "
                        "it does "
                        "not hold its values"
                    )
            return np.ascontiguousarray(ready[0][y : y + height, x : x + width])

    # ------------------------------------------------------------------ conversation
    def _greet(self, send: Callable[[bytes], None], receive: Callable[[], Message]) -> None:
        del receive  # the program does not answer a greeting
        for word in GREETING:
            send(word.encode("ascii"))
            self._sleep(GREETING_PAUSE_S)

    def _start(self) -> State:
        """Set what the options say, and learn from the image what frames there are."""
        o = self.options
        if o.x_um is not None and o.y_um is not None:
            self._move(o.x_um, o.y_um)
        exposure = self._expose(o.working_distance_mm, o.magnification)
        height, width = exposure.image.shape
        nan = math.nan
        self._known = State(
            nan, nan, nan, nan, nan, nan, nan, nan, False, nan if o.x_um is None else o.x_um,
            nan if o.y_um is None else o.y_um, nan, width, height, nan, nan, 0,
        )  # fmt: skip
        self._take(exposure, o.working_distance_mm * 1e3, o.magnification)
        state = self._known
        if _set(state) != (o.working_distance_mm * 1e3, o.magnification):
            self._known = None
            raise HardwareError(
                f"the SEM was asked for working distance {o.working_distance_mm:g} mm and magnification "
                f"{o.magnification:g}, "
                f"as Options say, and its image was taken at {_said(state)}: it clamps or ignores them. Correct "
                "Options, or "
                "check the instrument."
            )
        return state

    def _move(self, x_um: float, y_um: float) -> None:
        """Send the stage and wait as long as a move takes; send it again when the connection broke meanwhile."""
        unit = self.options.stage_unit_um
        deadline = self._clock() + self.retry_s + self.options.move_s
        self._frame = None
        while True:
            self.client.send("POSITION", x=x_um / unit, y=y_um / unit)
            self._sleep(self.options.move_s)
            if self.client.alive():
                break
            if self._clock() + self.options.move_s > deadline:
                raise TransportError(
                    f"the connection to {self.client.address} breaks whenever the stage is sent to ({x_um:g}, "
                    f"{y_um:g}) µm; "
                    "nobody can tell where it is. Check the instrument."
                )
        if self._known is not None:
            self._known = replace(self._known, x_um=x_um, y_um=y_um)

    def _expose(self, distance_mm: float, magnification: float) -> Exposure:
        """Set both, and return the frame that this makes; of another reading only if the instrument insists on it."""
        self._frame = None
        began, refused, exposure = self._clock(), None, None
        while True:
            if self._unsure:
                self._drain()
            self.folder.forget()
            connections = self.client.reconnects
            self._unsure = True  # until its image is here, whatever happens
            sent = self._clock()
            reply = self.client.request(
                "WDMAG", idempotent=True, working_distance_mm=distance_mm, magnification=magnification
            )
            self.last_reply = reply.text("text")
            exposure, insists = self._awaited(distance_mm, magnification, refused)
            if exposure is not None:
                self._unsure = self.client.reconnects != connections
                if not self._unsure:
                    self._slowest_s = max(self._slowest_s, self._clock() - sent)
                if insists or exposure.reading.agrees(on_wire(distance_mm), on_wire(magnification)):
                    return exposure
                refused = exposure.reading
            if self._clock() - began > self.retry_s:
                break
            logger.info("WDMAG to %s is repeated: %s", self.client.address, self.folder.seen)
        raise HardwareError(
            f"the SEM at {self.client.address} was asked for an image at {distance_mm:g} mm, {magnification:g} times, "
            "and none "
            f"came to {str(self.folder.path)!r} in {self._clock() - began:.1f} s: {self.folder.seen}. Its last reply "
            "was "
            f"{self.last_reply!r}. Is the folder the one that the program uses, and may it write there?"
        )

    def _awaited(
        self, distance_mm: float, magnification: float, refused: Reading | None
    ) -> tuple[Exposure | None, bool]:
        """Return the first agreeing pair, else the last one that did not agree, and whether it says so a second time.

        A pair that does not agree may be an earlier request's that came late, so the right one has its time to follow.
        """
        until = self._clock() + self.options.image_s
        other: Exposure | None = None
        while (left := until - self._clock()) > 0:
            if (exposure := self.folder.wait(left)) is None:
                break
            if exposure.reading.agrees(on_wire(distance_mm), on_wire(magnification)):
                return exposure, False
            other = exposure
            said = f"{exposure.reading.working_distance_mm:g} mm, {exposure.reading.magnification:g} times"
            self.folder.seen = f"the image that came was taken at {said}"
            if exposure.reading.same(refused):
                return exposure, True
            until = min(until, self._clock() + 2 * self._slowest_s + REUSED_S)
        return other, False

    def _drain(self) -> None:
        """Let images of earlier requests come, and throw them away."""
        self.folder.forget()
        while self.folder.wait(2 * max(self._slowest_s, _FRAME_S)) is not None:
            pass

    def _take(self, exposure: Exposure, distance_um: float, magnification: float) -> None:
        """Believe an image's text: it is asked-for values that it confirms, else what it says."""
        known, reading = self._known, exposure.reading
        assert known is not None
        if exposure.image.shape != (known.height, known.width):
            height, width = exposure.image.shape
            raise HardwareError(
                f"the SEM sent a frame of {width}x{height} pixels where {known.width}x{known.height} came before; "
                "initialize "
                "the devices again after a change of the image size"
            )
        if not reading.agrees(on_wire(distance_um / 1e3), on_wire(magnification)):
            distance_um, magnification = reading.working_distance_mm * 1e3, reading.magnification
        self._frame = exposure.image, self._clock()
        self._known = replace(
            known, working_distance_um=distance_um, magnification=magnification,
            pixel_nm=self._pixel_nm(magnification, known.width), frames=known.frames + 1,
        )  # fmt: skip

    def _pixel_nm(self, magnification: float, width: int) -> float:
        return self.options.display_mm * 1e6 / (magnification * width)

    def _magnification(self, pixel_nm: float, width: int) -> float:
        if not pixel_nm > 0:
            raise HardwareError(f"a pixel size of {pixel_nm:g} nm must be above 0; nothing was set")
        return self.options.display_mm * 1e6 / (pixel_nm * width)


def connect(host: str, port: int, timeout_s: float, retry_s: float, options: str) -> CoxemClient:
    """Make the client for the devices; ``options`` as in `CoxemOptions.parse`."""
    return CoxemClient(host, port, CoxemOptions.parse(options), timeout_s, retry_s)


def _set(state: State) -> tuple[float, float]:
    return state.working_distance_um, state.magnification


def _said(state: State | None) -> str:
    return "nothing known" if state is None else f"{state.working_distance_um:g} µm and {state.magnification:g} times"


def _check(name: str, value: float, limits: tuple[float, float]) -> None:
    if not limits[0] <= value <= limits[1]:
        raise HardwareError(
            f"{name} = {value:g} is outside {limits[0]:g} to {limits[1]:g}, what the COXEM dialect is trusted with; "
            "nothing "
            "was set"
        )
