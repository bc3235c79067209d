"""What ``mm-autofocus demo sem --strategy dual-network`` has of its own: a tabletop column with a specimen that slants.

Scores of single images focus the working distance alone, at 500 to 30,000x, so the demo has an instrument of that kind.
"""

from __future__ import annotations

import re
from typing import Any

from mm_autofocus.estimators.aberration import Aberration
from mm_autofocus.simulation.sem_specimen import Specimen
from mm_autofocus.strategies.focus_belief import depth_um
from mm_autofocus.training.score_data import TABLETOP

STRATEGY = "dual-network"
SPECIMEN = "tin"
FRAME, PIXEL_NM = (320, 240), 150.0
"""The fast mode of the papers, at 2381x."""

TILT_DEG = 8.0
"""How steep the specimen stands: 35 µm from one position to the next, three times what is in focus."""

START = Aberration(330.0, 0.0, 0.0)
"""What the column is off by at the first position: things can just be recognised there."""

_REACH_UM = 1500.0


def slanting_specimen(kind: str, seed: int) -> Specimen:
    """Return a specimen whose height differs from position to position by more than is in focus."""
    return Specimen(kind, seed, tilt_deg=TILT_DEG)


def depth_of_field_um() -> float:
    """Return the full width of working distance over which no score falls by more than 0.15, µm."""
    return depth_um(PIXEL_NM * 1e-3, TABLETOP.probe.convergence_mrad)


def with_small_frames(configuration: str) -> str:
    """Return sem.cfg with the frame and the pixel of this demo."""
    text = re.sub(r"(?m)^(#py Property,Camera,FrameSize,).*$", rf"\g<1>{FRAME[0]}x{FRAME[1]}", configuration)
    return re.sub(r"(?m)^(#py Property,Column,PixelSizeNm,).*$", rf"\g<1>{PIXEL_NM:g}", text)


def without_stigmators(data: dict[str, Any], working_distance_um: float) -> dict[str, Any]:
    """Return the settings of sem.toml for a knob alone that reaches far, and a depth that goes with the pixel."""
    depth = round(depth_of_field_um(), 2)
    limits = [working_distance_um - _REACH_UM, working_distance_um + _REACH_UM]
    knob = {"limits": limits, "tolerance": 0.02 * depth, "depth": depth}
    microscope = {**data.get("microscope", {}), "depth_of_field_um": depth}
    return {**data, "strategy": STRATEGY, "knobs": {"z": knob}, "microscope": microscope}
