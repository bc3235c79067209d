"""Where the focus really is, by images: a whole stack around a place, whatever the autofocus under test may say."""

from __future__ import annotations

import logging

import numpy as np

from mm_autofocus.errors import CancelledError, FocusError, HardwareError, LimitError
from mm_autofocus.microscope import Microscope
from mm_autofocus.request import Budget, Event, FocusRequest, Limits
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.run import FocusRun, start_values
from mm_autofocus.settings import VerifySettings
from mm_autofocus.strategies.full_stack import FullStack, FullStackSettings

logger = logging.getLogger(__name__)

HALF_DEPTHS = 4.0
"""The sweep reaches this many depths of field to either side, and as far again where the peak lies at its end."""


class TruthSweep:
    """Finds the plane in focus by a z-stack of images at half a depth of field.

    Parameters
    ----------
    microscope
        What to drive; its settings say camera, channel and exposure.
    measure
        The sharpness measure.
    half_um
        How far the stack reaches to either side, µm; None: `HALF_DEPTHS` depths of field.
    knob
        The knob to turn.
    """

    def __init__(
        self,
        microscope: Microscope,
        *,
        measure: str = "laplacian_of_gaussian",
        half_um: float | None = None,
        knob: str = "z",
    ) -> None:
        self._microscope = microscope
        self._knob = knob
        self._depth = microscope.depth_of_field_um
        self.half_um = half_um if half_um is not None else HALF_DEPTHS * self._depth
        self._strategy = FullStack(FullStackSettings(measure=measure, step_um=self._depth / 2, fit_points=5))
        self.images = 0
        """Images taken so far."""

    def locate(self, centre: float) -> float:
        """Return the plane in focus, looked for ever farther from ``centre``: 1, 4 and 16 times as far; see `find`."""
        for widening in (1.0, 4.0, 16.0):
            try:
                return self.find(centre, widening)
            except (LimitError, HardwareError, CancelledError):
                raise
            except FocusError as error:
                last = error
                logger.info("%s", error)
        raise last

    def find(self, centre: float, widening: float = 1.0) -> float:
        """Return the plane in focus near ``centre`` and leave the stage there, µm.

        Parameters
        ----------
        centre
            Where to look.
        widening
            How many times as far as usual.

        Raises
        ------
        FocusError
            When the images show none; the stage stands where it stood.
        LimitError
            When the limits leave no room to look.
        """
        half = widening * self.half_um
        limits = self._microscope.knob(self._knob).limits
        result: FocusResult | None = None
        for _ in range(3):
            window = Limits(centre - half, centre + half).intersect(limits)
            if window.width < 2 * self._depth:
                raise LimitError(
                    f"the image sweep around {centre:.6g} µm has no room inside the limits [{limits.low:g}, "
                    f"{limits.high:g}]; widen [knobs.{self._knob}] limits, or start elsewhere"
                )
            result = self._sweep(window)
            if result.status is not Status.AT_LIMIT:
                break
            centre = result.target[self._knob]
        assert result is not None
        if not result.ok:
            raise FocusError(
                f"the images around {centre:.6g} µm show no plane in focus ({result.status}: {result.reason}); go to a "
                "place with specimen, near focus, or say where it is (--focus)"
            )
        return float(result.end[self._knob])

    def _sweep(self, window: Limits) -> FocusResult:
        microscope = self._microscope
        before = microscope.images
        request = FocusRequest(
            event=Event(),
            start=start_values(microscope, (self._knob,)),
            limits={self._knob: microscope.knob(self._knob).limits},
            knob=self._knob,
            window=window,
            budget=Budget(None, None, None),
            depth_of_field_um=self._depth,
            pixel_um=microscope.pixel_um,
        )
        result = FocusRun(microscope, self._strategy, request, verify=VerifySettings(enabled=False))()
        self.images += microscope.images - before
        if result.status is Status.CANCELLED:
            raise CancelledError(result.reason)
        if result.status is Status.FAILED:
            raise HardwareError(result.reason)
        return result


def interpolated(times: list[float], truths: list[float], at: float) -> float:
    """Return the truth at one time from sweeps before and after it: what drifts evenly is no error of the autofocus."""
    return float(np.interp(at, times, truths))
