"""Starts de-twin, a digital twin of a transmission electron microscope, on loopback ports, with errors to be found.

``python -m mm_autofocus_devices.de.launcher --seed 3`` prints one JSON line with the two ports and serves until its
standard input is closed or it is killed. It differs from ``de-twin serve`` in a quick camera (1024 x 1024 pixels) and
in what the twin hides: an offset of the focus and of the stigmators, and the geometry of a real column.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mm_autofocus.errors import HardwareError

SPECIMEN = "Sparse Au on holey C"
CAMERA = "DESim"
START_TIMEOUT_S = 240.0
"""The first start after an installation compiles the renderer, which takes a minute or two."""


def serve(argv: Sequence[str] | None = None) -> None:
    """Serve a twin; see the module. Blocks until standard input ends."""
    import numpy as np
    from de_twin import DigitalTwin
    from de_twin.faces.deapi_server import TwinDeapiServer
    from de_twin.faces.temchannel_soap import TemChannelServer
    from de_twin.optics.config import OpticsConfig

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--soap-port", type=int, default=0)
    parser.add_argument("--deapi-port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--specimen", default=SPECIMEN)
    parser.add_argument("--camera", default=CAMERA)
    parser.add_argument("--defocus-offset-um", type=float, default=None, help="hidden focus error; drawn by the seed")
    parser.add_argument("--stigmator-zero", type=float, nargs=2, default=None, help="hidden error; drawn by the seed")
    parser.add_argument("--ideal", action="store_true", help="no image rotation, no error of the pixel size")
    chosen = parser.parse_args(argv)

    rng = np.random.default_rng([chosen.seed, 5002])
    offset, zero = float(rng.uniform(-1.5, 1.5)), tuple(float(v) for v in rng.uniform(-0.25, 0.25, 2))
    hidden: dict[str, Any] = {
        "defocus_offset_um": offset if chosen.defocus_offset_um is None else chosen.defocus_offset_um,
        "objective_stig_zero": zero if chosen.stigmator_zero is None else tuple(chosen.stigmator_zero),
    }
    # max_raster_pixels = 0: an upsampled frame carries its contrast transfer only up to the raster's Nyquist frequency
    make = OpticsConfig if chosen.ideal else lambda **kw: OpticsConfig.realistic(chosen.seed, **kw)
    optics = make(**hidden, max_raster_pixels=0)
    twin = DigitalTwin(chosen.specimen, camera=chosen.camera, seed=chosen.seed, optics_config=optics)
    column = TemChannelServer(twin.column, host="127.0.0.1", port=chosen.soap_port).start()
    camera = TwinDeapiServer(twin, chosen.deapi_port, host="127.0.0.1", pace=False).start()
    said = {"soap_port": column.port, "deapi_port": camera.port, "truth": hidden}
    print(json.dumps(said), flush=True)
    sys.stdin.read()
    camera.stop()
    column.stop()


@dataclass(frozen=True, slots=True)
class TwinAddress:
    """Where a twin listens, and what it hides (for scoring only).

    Attributes
    ----------
    soap_port, deapi_port
        Ports on 127.0.0.1 of the column and of the camera.
    defocus_offset_um
        The image is in focus at minus this defocus, where the specimen is at eucentric height.
    stigmator_zero
        The stigmators are right at this setting.
    """

    soap_port: int
    deapi_port: int
    defocus_offset_um: float
    stigmator_zero: tuple[float, float]


class Twin:
    """A de-twin in a process of its own; a context manager.

    Parameters
    ----------
    arguments
        For the launcher's command line, for instance ``"--seed", "3"``.
    log
        File for what it prints beside its ports; None to discard it.

    Raises
    ------
    HardwareError
        When it does not start: the extra is not installed, or it takes longer than `START_TIMEOUT_S`.
    """

    def __init__(self, *arguments: str, log: Path | None = None) -> None:
        self._log = log.open("w") if log is not None else None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mm_autofocus_devices.de.launcher", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log or subprocess.DEVNULL,
            text=True,
        )
        timer = threading.Timer(START_TIMEOUT_S, self._process.kill)
        timer.start()
        try:
            self.address = self._read_address()
        finally:
            timer.cancel()

    def _read_address(self) -> TwinAddress:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                said = json.loads(line)
                truth = said["truth"]
                x, y = truth["objective_stig_zero"]
                return TwinAddress(said["soap_port"], said["deapi_port"], truth["defocus_offset_um"], (x, y))
        code = self._process.wait()
        raise HardwareError(
            f"de-twin did not start (exit code {code}); install it with `pip install mm-autofocus[detwin]`, and run "
            "`python -m mm_autofocus_devices.de.launcher` to see why"
        )

    def stop(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> Twin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


if __name__ == "__main__":
    serve()
