"""Thon rings of a pair: what is put into images of an amorphous film comes out, and what is no such film is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from mm_autofocus.errors import HardwareError, StrategyError
from mm_autofocus.estimators.thon_rings import (
    TransferOptics,
    TransferState,
    estimate_pair,
    estimate_single,
    find_rings,
)
from mm_autofocus.request import Budget, Event, FocusRequest, Limits
from mm_autofocus.result import Status
from mm_autofocus.strategies.defocus_pair import DefocusPair, DefocusPairSettings
from mm_autofocus.strategy import Frame, Look, Verdict

SIDE = 512
OPTICS = TransferOptics(pixel_nm=0.18)
RESPONSE = np.array([[0.9, -0.25], [0.3, 1.1]])
"""Astigmatism (a, b) in µm of one unit of each stigmator, in the simulated microscope."""


def film(
    defocus_um: float, a_um: float = 0.0, b_um: float = 0.0, *, seed: int, pixel_nm: float = 0.18, noise: float = 0.6
) -> NDArray[np.float64]:
    """An amorphous film, imaged with this defocus and astigmatism (weak phase object, overfocus positive)."""
    k = np.hypot(*np.meshgrid(f := np.fft.fftfreq(SIDE, pixel_nm), f))
    angle = np.arctan2(*np.meshgrid(f, f)[::-1])
    lam, cs = OPTICS.wavelength_nm, OPTICS.cs_mm * 1e6
    z = 1e3 * (defocus_um + a_um * np.cos(2 * angle) + b_um * np.sin(2 * angle))
    chi = math.pi * lam * z * k**2 + math.pi / 2 * cs * lam**3 * k**4
    envelope = np.exp(-((math.pi * 5e-5 * z * k) ** 2)) / (1 + (k / 0.8) ** 2)
    film = np.random.default_rng([seed, 1]).standard_normal((SIDE, SIDE))
    grains = np.random.default_rng([seed, round(1e6 * abs(defocus_um)), 2]).standard_normal((SIDE, SIDE))
    transferred = np.fft.ifft2(np.fft.fft2(film) * np.sin(chi - OPTICS.phase_of_amplitude) * envelope).real
    return np.asarray(1000 + 100 * (transferred + noise * grains))


@pytest.mark.parametrize(
    ("z", "a", "b"), [(0.0, 0.0, 0.0), (1.9, 0.2, -0.1), (-2.0, -0.25, 0.2), (0.6, 0.0, 0.3), (-0.3, 0.05, 0.02)]
)
def test_a_pair_gives_back_what_was_put_in(z: float, a: float, b: float) -> None:
    pair = [film(z + step, a, b, seed=3) for step in (-3.0, 3.0)]
    found = estimate_pair(pair, (-3.0, 3.0), OPTICS)
    assert found.state.defocus_um == pytest.approx(z, abs=0.03)
    assert found.state.astigmatism == pytest.approx((a, b), abs=0.03)
    assert found.scale == pytest.approx(1.0, abs=0.01)
    assert found.significance > 4
    assert not found.at_edge


def test_the_step_sets_the_scale_not_the_nominal_pixel_size() -> None:
    true = OPTICS.pixel_nm * 1.025
    pair = [film(1.2 + step, 0.2, 0.0, seed=4, pixel_nm=true) for step in (-3.0, 3.0)]
    found = estimate_pair(pair, (-3.0, 3.0), OPTICS)
    assert found.state.defocus_um == pytest.approx(1.2, abs=0.03)  # 60 nm off if the pixel size were believed
    assert found.scale == pytest.approx(1 / 1.025**2, abs=0.01)


def test_overfocus_and_underfocus_are_told_apart() -> None:
    for z in (-1.5, 1.5):
        pair = [film(z + step, seed=5) for step in (-3.0, 3.0)]
        assert estimate_pair(pair, (-3.0, 3.0), OPTICS).state.defocus_um == pytest.approx(z, abs=0.03)


def test_three_images_are_as_good_as_two() -> None:
    steps = (-3.0, -2.0, 2.5)
    found = estimate_pair([film(0.4 + s, seed=6) for s in steps], steps, OPTICS)
    assert found.state.defocus_um == pytest.approx(0.4, abs=0.03)


def test_a_single_image_near_a_known_defocus_shows_its_astigmatism() -> None:
    found = estimate_single(film(-2.0, 0.3, -0.2, seed=7), TransferState(-1.95), 1.0, OPTICS)
    assert found.state.astigmatism == pytest.approx((0.3, -0.2), abs=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_noise_alone_is_not_taken_for_rings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = estimate_pair([rng.normal(1000, 50, (SIDE, SIDE)) for _ in range(2)], (-3.0, 3.0), OPTICS)
    assert found.strength < 0.1


def test_rings_that_do_not_follow_the_step_are_not_significant() -> None:
    """Rings of the specimen's own structure are the same at both defocus values."""
    found = estimate_pair([film(2.0, seed=8), film(2.0, seed=8, noise=0.61)], (-3.0, 3.0), OPTICS)
    assert found.significance < 2.7 or found.strength < 0.13 or found.at_edge


@pytest.mark.parametrize(
    ("image", "optics", "words"),
    [
        (np.zeros((512, 512)), OPTICS, "constant"),
        (np.full((512, 512), np.nan), OPTICS, "finite"),
        (np.ones((100, 512)), OPTICS, "256 x 256"),
        (np.ones((512, 512, 3)), OPTICS, "grey plane"),
        (np.random.default_rng(0).random((512, 512)), TransferOptics(pixel_nm=5.0), "too large"),
    ],
)
def test_images_that_cannot_show_rings(image: NDArray[np.float64], optics: TransferOptics, words: str) -> None:
    with pytest.raises(HardwareError, match=words):
        find_rings(image, optics)


# ---------------------------------------------------------------------- the strategy
class Scope:
    """A column for the strategy: what its frames show depends on its knobs, and on what it hides."""

    def __init__(self, z: float = 0.7, stig: tuple[float, float] = (0.15, -0.1), **options: float) -> None:
        self.best = {"z": z, "stig_x": stig[0], "stig_y": stig[1]}
        self.options = options
        self.frames: list[dict[str, float]] = []
        self.dead: set[str] = set()

    def image(self, knobs: dict[str, float]) -> NDArray[np.float64]:
        off = {name: knobs.get(name, 0.0) - best for name, best in self.best.items()}
        for name in self.dead:
            off[name] = -self.best[name]
        a, b = RESPONSE @ (off["stig_x"], off["stig_y"])
        return film(off["z"], float(a), float(b), seed=len(self.frames), **self.options)

    def run(
        self, strategy: DefocusPair, image: Callable[..., NDArray[np.float64]] | None = None, **changes: object
    ) -> Verdict:
        at = {"z": 0.0, "stig_x": 0.0, "stig_y": 0.0}
        limits = {"z": Limits(-12, 12), "stig_x": Limits(-1, 1), "stig_y": Limits(-1, 1)}
        values: dict[str, object] = {
            "event": Event(), "start": dict(at), "limits": limits, "budget": Budget(images=20), "pixel_um": 0.18e-3,
            "depth_of_field_um": 0.1, "depths": {"stig_x": 0.06, "stig_y": 0.06},
        }  # fmt: skip
        generator = strategy.focus(FocusRequest(**{**values, **changes}))  # type: ignore[arg-type]
        try:
            look = next(generator)
            while True:
                assert isinstance(look, Look)
                at |= look.targets
                self.frames.append(dict(at))
                look = generator.send(Frame((image or self.image)(at), dict(at), 0.18e-3))
        except StopIteration as stop:
            verdict: Verdict = stop.value
        return verdict


def test_focus_and_stigmators_are_found_and_confirmed() -> None:
    scope = Scope()
    verdict = scope.run(DefocusPair())
    assert verdict.status is Status.CONVERGED, verdict.reason
    assert verdict.confidence > 0.9
    for name, best in scope.best.items():
        assert verdict.target[name] == pytest.approx(best, abs=0.03)
    assert np.array(verdict.details["stigmator_response_um"]) == pytest.approx(RESPONSE, abs=0.12)
    assert len(scope.frames) <= 8


def test_a_known_response_saves_the_kicks() -> None:
    response = tuple(tuple(float(v) for v in row) for row in RESPONSE)
    scope = Scope()
    verdict = scope.run(DefocusPair(DefocusPairSettings(response=response)))  # type: ignore[arg-type]
    assert verdict.status is Status.CONVERGED
    assert len(scope.frames) in (4, 6)  # pairs only
    assert scope.frames[2]["z"] - scope.frames[3]["z"] == pytest.approx(-4.0)


def test_without_stigmators_only_the_focus_is_corrected() -> None:
    scope = Scope(stig=(0.0, 0.0))
    verdict = scope.run(DefocusPair(DefocusPairSettings(stigmate=False, target_um=-0.2)))
    assert verdict.target.keys() == {"z"}
    assert verdict.target["z"] == pytest.approx(0.5, abs=0.03)


def test_a_stigmator_that_ignores_its_commands_is_named() -> None:
    scope = Scope()
    scope.dead = {"stig_y"}
    verdict = scope.run(DefocusPair())
    assert verdict.status is Status.NO_SIGNAL
    assert "stigmators" in verdict.reason
    assert not verdict.target


def test_a_focus_beyond_the_limits() -> None:
    verdict = Scope(z=1.5).run(
        DefocusPair(), limits={"z": Limits(-3.5, 1.2), "stig_x": Limits(-1, 1), "stig_y": Limits(-1, 1)}
    )
    assert verdict.status is Status.AT_LIMIT
    assert not verdict.target


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (lambda _: np.zeros((512, 512), np.uint16), "no beam"),
        (lambda _: np.minimum(film(1.0, seed=1), 1010), "saturated"),
        (lambda _: np.random.default_rng(1).normal(1000, 50, (512, 512)), "no Thon rings"),
    ],
)
def test_what_shows_no_rings_ends_where_it_began(image: Callable[..., NDArray[np.float64]], words: str) -> None:
    verdict = Scope().run(DefocusPair(), image)
    assert verdict.status is Status.NO_SIGNAL
    assert words in verdict.reason
    assert not verdict.target


def test_it_needs_a_pixel_size_and_images_enough() -> None:
    with pytest.raises(StrategyError, match="pixel_nm"):
        Scope().run(DefocusPair(), pixel_um=None)
    with pytest.raises(StrategyError, match="at least 6"):
        Scope().run(DefocusPair(), budget=Budget(images=5))


def test_one_stigmator_alone_is_a_mistake() -> None:
    scope = Scope()
    alone = {"start": {"z": 0.0, "stig_y": 0.0}, "limits": {"z": Limits(-12, 12), "stig_y": Limits(-1, 1)}}
    with pytest.raises(StrategyError, match=r"add \[knobs.stig_x\]"):
        scope.run(DefocusPair(DefocusPairSettings()), **alone)
    assert scope.frames == []
