"""The plate model is the full Kalman filter at constant cost, and dropping old drift knots changes no estimate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_autofocus_hooks.plate_model import PlateModel, PlatePriors, Site

HOUR = 3600.0


def place(well: int, index: int, columns: int = 48) -> Site:
    return Site(9000.0 * (well % columns) + 800.0 * index, 9000.0 * (well // columns), well, (well, index))


def dense(priors: PlatePriors, data: list[tuple[Site, float]], target: Site) -> tuple[float, float]:
    """The same model with every well and field written out: mean and variance of the height of a site."""
    origin = data[0][0]
    wells = sorted({str(s.well) for s, _ in data} | {str(target.well)})
    fields = sorted({str(s.field) for s, _ in data} | {str(target.field)})

    def row(site: Site) -> np.ndarray[Any, np.dtype[np.float64]]:
        x, y = (site.x - origin.x) / 1e4, (site.y - origin.y) / 1e4
        shape = [1.0, x, y, x * x, x * y, y * y]
        return np.array(
            shape + [float(str(site.well) == w) for w in wells] + [float(str(site.field) == f) for f in fields]
        )

    tilt, bow = priors.tilt_um_per_mm * 10, priors.bow_um_per_cm2
    sds = [1000.0, tilt, tilt, bow, bow, bow] + [priors.well_um] * len(wells) + [priors.field_um] * len(fields)
    prior = np.diag(np.square(sds))
    rows = np.array([row(site) for site, _ in data])
    values = np.array([z for _, z in data]) - data[0][1]
    at = row(target)
    gain = np.linalg.solve(rows @ prior @ rows.T + priors.measurement_um**2 * np.eye(len(data)), rows @ prior @ at)
    return float(gain @ values) + data[0][1], float(at @ prior @ at - gain @ (rows @ prior @ at))


@given(
    places=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=25),
    target=st.tuples(st.integers(0, 6), st.integers(0, 4)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_tree_is_the_full_filter(places: list[tuple[int, int]], target: tuple[int, int], seed: int) -> None:
    priors = PlatePriors(drift_um_per_hour=0.0, measurement_um=0.2)
    rng = np.random.default_rng(seed)
    data = [(place(*each, columns=3), float(5000 + rng.normal(0, 4))) for each in places]
    model = PlateModel(priors)
    for at, z in data:
        model.update(at, 0.0, z)
    mean, variance = dense(priors, data, place(*target, columns=3))
    estimate = model.estimate(place(*target, columns=3), 0.0)
    # the drift of a model without any still has its smallest SD, 0.001 µm
    assert estimate.mean == pytest.approx(mean, abs=1e-3)
    assert estimate.variance == pytest.approx(variance, rel=1e-3, abs=1e-4)


def test_dropping_a_variable_changes_no_estimate() -> None:
    rng = np.random.default_rng(0)
    model = PlateModel(PlatePriors(measurement_um=0.15))
    for visit in range(8):
        for step in range(30):
            model.update(place(step // 3, step % 3, 5), visit * HOUR + step * 30.0, 100 + visit + rng.normal(0, 1))
    model.bump(30.0)
    for step in range(4):
        model.update(place(step, 0, 5), 8 * HOUR + step * 30.0, 130 + rng.normal(0, 1))
    sites, now = [place(well, index, 5) for well in range(12) for index in range(4)], 8 * HOUR + 300.0
    before = [model.estimate(site, now) for site in sites]
    shared = model.shared
    while model._retired:
        model._drop_best_known()
    assert model.shared == 8 < shared
    for old, new in zip(before, (model.estimate(site, now) for site in sites), strict=True):
        assert new.mean == pytest.approx(old.mean, abs=1e-4)
        assert new.variance == pytest.approx(old.variance, rel=1e-4, abs=1e-6)


def test_size_stays_flat_at_1536_wells() -> None:
    model, sizes = PlateModel(PlatePriors()), []
    for visit in range(2):
        for step in range(1536 * 4):
            model.update(place(step // 4, step % 4), visit * 6 * HOUR + step * 3.0, 5000.0)
        sizes.append(model.nbytes)
    assert sizes[0] == sizes[1] < 5e6
    assert model.shared == model.capacity


def test_too_small_a_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity is 8; the map needs at least 11"):
        PlateModel(PlatePriors(), capacity=8)
