from __future__ import annotations

from collections.abc import Iterator

import pytest

from focus_curves import peaks, replayed, request
from mm_autofocus.benchmark.peers import GoldenSection, OughtaFocusBrent, PeerSettings, brent_maximum, golden_maximum
from mm_autofocus.measures.curve import FINE, GUIDE
from mm_autofocus.strategies.scoring import RecordedScorer

PEERS = [OughtaFocusBrent, GoldenSection]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("at", [-3.3, 0.0, 4.1])
def test_a_single_peak_is_found_and_never_doubted(peer: type[OughtaFocusBrent], at: float) -> None:
    strategy = peer(PeerSettings(tolerance_um=0.2), RecordedScorer((FINE, GUIDE)))
    verdict, looks = replayed(strategy, request(-5.0, 5.0), peaks((at, 10.0), fwhm=4.0))
    assert verdict.target["z"] == pytest.approx(at, abs=0.4)
    assert verdict.confidence == 1.0
    assert verdict.status.ok
    assert len(looks) <= 14
    assert replayed(strategy, request(-5.0, 5.0), peaks())[0].status.ok  # even on a blank field


def test_the_defaults_are_those_of_oughtafocus() -> None:
    defaults = PeerSettings()
    assert (defaults.range_um, defaults.tolerance_um) == (10.0, 1.0)


@pytest.mark.parametrize("search", [brent_maximum, golden_maximum])
def test_the_searches_stay_inside_and_end(search: object) -> None:
    looks: list[float] = []

    def driver() -> Iterator[float]:
        found = yield from search(-1.0, 3.0, 0.01)  # type: ignore[operator]
        assert found == pytest.approx(0.7, abs=0.05)

    generator = driver()
    z: float | None = next(generator)
    while z is not None:
        looks.append(z)
        try:
            z = generator.send(-((z - 0.7) ** 4))  # type: ignore[attr-defined]
        except StopIteration:
            z = None
    assert len(looks) < 40
    assert -1.0 <= min(looks) < max(looks) <= 3.0


def test_the_budget_holds() -> None:
    strategy = GoldenSection(PeerSettings(tolerance_um=1e-3), RecordedScorer((FINE, GUIDE)))
    assert len(replayed(strategy, request(images=6), peaks((3.0, 10.0)))[1]) == 5
