"""One microscope with a Direct Electron camera: the camera by ``deapi``, the column by `TemChannel`; plain Python."""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import HardwareError
from mm_autofocus_devices.de.soap import TemChannel

CONNECT_TIMEOUT_S = 5.0
POLL_S = 0.01
ANSWER_S = 20.0
"""How much longer than ten exposures an acquisition may take, unless `DeCamera.answer_s` says otherwise."""

_PIXEL_NM = "Specimen Pixel Size X (nanometers)"
_EXPOSURE = "Exposure Time (seconds)"


class DeCamera:
    """The camera of DE-Server. All methods may be called from any thread; one at a time is served.

    Parameters
    ----------
    host, port
        Where DE-Server listens.
    """

    exposure_limits_ms: tuple[float, float] = (1.0, 60_000.0)

    def __init__(self, host: str = "127.0.0.1", port: int = 13240) -> None:
        self.host, self.port = host, port
        self._lock = threading.RLock()
        self._client: Any = None
        self._taken = 0
        self.answer_s = ANSWER_S

    # ------------------------------------------------------------------ properties
    def get(self, name: str) -> Any:
        """Return a property of DE-Server.

        Raises
        ------
        HardwareError
            When the server cannot be reached or has no such property.
        """
        with self._lock:
            value = self._call(name, lambda client: client.get_property(name))
            if value is False or value is None:
                self._drop(f"DE-Server does not tell {name!r}")
            return value

    def set(self, name: str, value: Any, *, within: float = 0.0) -> None:
        """Set a property and read it back; a number may differ by ``within``.

        Raises
        ------
        HardwareError
            When the server refuses, or the read-back is another number.
        """
        with self._lock:
            done = self._call(name, lambda client: client.set_property(name, value))
            now = self.get(name)
            same = str(now) == str(value)
            if not same and isinstance(value, int | float):
                same = abs(float(now) - value) <= 1e-6 * abs(value) + within
            if not done or not same:
                raise HardwareError(f"DE-Server was told {name!r} = {value!r} but it reads {now!r}")

    @property
    def exposure_ms(self) -> float:
        """Exposure as the server rounds it to whole frames."""
        return float(self.get(_EXPOSURE)) * 1000.0

    @exposure_ms.setter
    def exposure_ms(self, value: float) -> None:
        low, high = self.exposure_limits_ms
        if not low <= value <= high:
            raise ValueError(f"an exposure of {value} ms is outside {low:g} to {high:g} ms")
        frame_s = 1.0 / max(float(self.get("Frames Per Second")), 1e-6)
        self.set(_EXPOSURE, value / 1000.0, within=frame_s)  # exposures come in whole frames, one at least

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return int(self.get("Image Size Y (pixels)")), int(self.get("Image Size X (pixels)"))

    @property
    def binning(self) -> int:
        """Hardware binning, 1 or 2."""
        return int(float(self.get("Hardware Binning X")))

    @binning.setter
    def binning(self, value: int) -> None:
        self.set("Hardware Binning X", int(value))
        if int(float(self.get("Hardware Binning Y"))) != int(value):
            self.set("Hardware Binning Y", int(value))

    @property
    def pixel_nm(self) -> float:
        """Nominal size of a pixel in the specimen at the present magnification, nm; a real one is off by a few %."""
        return float(self.get(_PIXEL_NM))

    # ------------------------------------------------------------------ images
    def snap(self) -> NDArray[np.float32]:
        """Expose and return the sum of the frames, shape (height, width), in the camera's units.

        Raises
        ------
        HardwareError
            When the acquisition does not end in time, or brings back no image, or the one before.
        """
        with self._lock:
            exposure = self.exposure_ms / 1000.0
            patience = self.answer_s + 10.0 * exposure
            deadline = time.monotonic() + patience
            self._call("start_acquisition", lambda client: client.start_acquisition(1))
            while self.get("Acquisition Status") == "Acquiring":
                if time.monotonic() > deadline:
                    self._drop(
                        f"DE-Server is still acquiring after {patience:.0f} s; check the camera, or raise its property "
                        "Timeout"
                    )
                time.sleep(POLL_S)
            image, attributes = self._call("get_result", _sum_of_frames)
            if image is None or np.ndim(image) != 2:
                self._drop("DE-Server delivered no image; check the camera and its exposure mode")
            stamp = hash((attributes.datasetName, attributes.timestamp, attributes.imageMean, attributes.imageStd))
            if stamp == self._taken:
                raise HardwareError(
                    "DE-Server delivered the image before once more: the acquisition did not run. Check the camera, "
                    "and whether another client holds it."
                )
            self._taken = stamp
            return np.asarray(image, np.float32)

    # ------------------------------------------------------------------ connection
    def connect(self) -> None:
        """Connect, unless it is connected.

        Raises
        ------
        HardwareError
            When ``deapi`` is missing or the server does not answer.
        """
        with self._lock:
            if self._client is not None:
                return
            deapi = _deapi()
            try:
                # deapi itself waits for ever for a host that drops the connection
                socket.create_connection((self.host, self.port), CONNECT_TIMEOUT_S).close()
                client = deapi.Client()
                client.usingMmf = False  # the shared memory of a server on the same machine
                client.connect(self.host, self.port)
            except Exception as error:
                raise HardwareError(
                    f"DE-Server at {self.host}:{self.port} does not answer: {error or type(error).__name__}. Is it "
                    "running, and the port right?"
                ) from error
            self._client = client

    def disconnect(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock:
            client, self._client = self._client, None
            if client is not None:
                try:
                    client.disconnect()
                except Exception as error:
                    logging.getLogger(__name__).debug("while closing the camera: %s", error)

    def _call(self, what: str, action: Any) -> Any:
        self.connect()
        try:
            return action(self._client)
        except Exception as error:
            self.disconnect()
            raise HardwareError(f"DE-Server at {self.host}:{self.port} failed at {what}: {error}") from error

    def _drop(self, words: str) -> None:
        """Close the connection, whose state is unknown, and raise."""
        self.disconnect()
        raise HardwareError(words)


def _deapi() -> Any:
    """Import deapi, and undo what that does to everybody's logging.

    Raises
    ------
    HardwareError
        When it is not installed.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        import deapi
    except ImportError as error:
        raise HardwareError("the package deapi is not installed; run `pip install mm-autofocus[detwin]`") from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    logging.getLogger("DECameraClientLib").setLevel(logging.CRITICAL)  # what fails is raised as an error of ours
    return deapi


def _sum_of_frames(client: Any) -> tuple[Any, Any]:
    import deapi

    image, _, attributes, _ = client.get_result(deapi.FrameType.SUMTOTAL, deapi.PixelFormat.FLOAT32)
    return image, attributes


class DeInstrument:
    """Camera and column of one microscope."""

    def __init__(self, host: str = "127.0.0.1", deapi_port: int = 13240, soap_port: int = 5002) -> None:
        self.camera = DeCamera(host, deapi_port)
        self.column = TemChannel(host, soap_port)


_lock = threading.Lock()
_open: dict[tuple[str, int, int], DeInstrument] = {}


def open_de(host: str = "127.0.0.1", deapi_port: int = 13240, soap_port: int = 5002) -> DeInstrument:
    """Return the instrument at these addresses, made on the first call; its devices share it."""
    with _lock:
        key = host, deapi_port, soap_port
        if key not in _open:
            _open[key] = DeInstrument(*key)
        return _open[key]


def discard_de(host: str = "127.0.0.1", deapi_port: int = 13240, soap_port: int = 5002) -> None:
    """Disconnect from the instrument at these addresses and forget it."""
    with _lock:
        instrument = _open.pop((host, deapi_port, soap_port), None)
    if instrument is not None:
        instrument.camera.disconnect()
