"""phase_diversity with its trained estimator on a column unlike those of its training: it focuses, or says no."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from column_double import DEPTHS
from mm_autofocus.estimators.aberration import Aberration
from mm_autofocus.request import Event, FocusRequest, Limits
from mm_autofocus.result import Status
from mm_autofocus.simulation.electron_probe import ProbeFamily
from mm_autofocus.simulation.sem_column import SETUP_A, Column
from mm_autofocus.strategies.phase_diversity import PhaseDiversity, PhaseDiversitySettings
from mm_autofocus.strategy import Frame, Verdict


class Drive:
    """The knobs and the camera of a simulated column, without Micro-Manager."""

    names = ("working_distance_um", "stig_x", "stig_y")

    def __init__(self, kind: str, seed: int, electrons: float, start: tuple[float, float, float]) -> None:
        probe = replace(SETUP_A.probe, family=ProbeFamily.POLYGON, seed=seed)
        self.column = Column(replace(SETUP_A, probe=probe, electrons_per_pixel=electrons), kind, seed)
        self.column.detune(Aberration(*start))
        self.frames = 0

    def knobs(self) -> dict[str, float]:
        return dict(zip(("z", "stig_x", "stig_y"), (getattr(self.column, n) for n in self.names), strict=True))

    def turn(self, targets: dict[str, float]) -> None:
        for name, value in targets.items():
            setattr(self.column, "working_distance_um" if name == "z" else name, value)

    def focus(self, **calibration: float) -> Verdict:
        start = self.knobs()
        limits = {"z": Limits(start["z"] - 100, start["z"] + 100), "stig_x": Limits(-30, 30), "stig_y": Limits(-30, 30)}
        request = FocusRequest(Event(), start, limits, depth_of_field_um=2.0, depths=DEPTHS, pixel_um=0.01)
        generator = PhaseDiversity(PhaseDiversitySettings(**calibration)).focus(request)
        look = next(generator)
        while True:
            self.turn(dict(look.targets))
            self.frames += 1
            try:
                look = generator.send(Frame(self.column.scan(), self.knobs(), 0.01))
            except StopIteration as stop:
                verdict: Verdict = stop.value
                return verdict

    def residual(self, verdict: Verdict) -> np.ndarray:
        self.turn(dict(verdict.target))
        return np.abs(self.column.truth().vector())


@pytest.mark.parametrize(
    ("kind", "electrons", "start", "calibration", "frames"),
    [
        ("tissue", 20.0, (12.0, -3.0, 2.0), {}, 6),
        ("powder", 5.0, (-14.0, 2.0, 3.0), {"convergence_mrad": 7.0}, 8),
    ],
    ids=["calibrated", "unseen texture, 5 electrons, angle off by 20 %"],
)
def test_it_focuses_and_stigmates(kind, electrons, start, calibration, frames):
    drive = Drive(kind, 9401, electrons, start)
    verdict = drive.focus(**calibration)
    assert verdict.status is Status.CONVERGED
    assert drive.frames <= frames
    assert np.all(drive.residual(verdict) < [1.0, 0.25, 0.25])
    assert verdict.scores[-1] > verdict.scores[0]


def test_a_blanked_beam_is_no_signal():
    drive = Drive("tissue", 9402, 20.0, (5.0, 1.0, 0.0))
    drive.column.blanked = True
    verdict = drive.focus()
    assert verdict.status is Status.NO_SIGNAL
    assert verdict.target == {}
