"""The paper's networks by their layers, the spiral and its datasets, training, and a model in the strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_autofocus.benchmark.tem_drive import drive, turn
from mm_autofocus.benchmark.tem_table import TemBench
from mm_autofocus.errors import HardwareError, LimitError, SettingsError
from mm_autofocus.result import Status
from mm_autofocus.simulation.tem_column import TemColumn
from mm_autofocus.strategies.aperture import Aperture, ApertureSettings
from mm_autofocus.training.tem_dataset import ColumnSource, Spiral, WobbleCard, acquire, load, simulate

torch = pytest.importorskip("torch")

from mm_autofocus.networks.aperture_cnn import (  # noqa: E402
    VARIANTS,
    ApertureCNN,
    Ftrl,
    make_optimiser,
    parameters,
)
from mm_autofocus.networks.aperture_model import ApertureModel, prepared  # noqa: E402
from mm_autofocus.training.tem_training import (  # noqa: E402
    median,
    repeated,
    rmse_percent,
    small_images,
    split,
    train,
)


# ---------------------------------------------------------------------- the networks
def test_the_initial_network_is_the_papers_listing() -> None:
    net = ApertureCNN("cnn")
    kinds = [type(layer).__name__ for layer in net.layers]
    assert kinds == [
        "Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "Flatten",
        "Linear", "ReLU", "Linear", "ReLU", "Linear", "ReLU",
    ]  # fmt: skip
    # 5x5x7x32+32, 5x5x32x64+64, 3x3x64x32+32, 64*64*32 x 64 + 64, 64x32+32, 32x2+2
    assert parameters(net) == 5632 + 51_264 + 18_464 + 8_388_672 + 2080 + 66


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns_a_step_and_changes_one_thing(variant: str) -> None:
    torch.set_num_threads(1)
    changes = []
    for seed in range(4):  # a network that ends in a ReLU may be born dead (the paper's section 3.4), but not always
        torch.manual_seed(seed)
        net = ApertureCNN(variant, 32)
        optimiser = make_optimiser(net.variant, net)
        images, labels = torch.rand(4, 7, 32, 32), torch.full((4, 2), 0.5)
        assert net(images).shape == (4, 2)
        before = [p.detach().clone() for p in net.parameters()]
        loss = ((net(images) - labels) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert all(torch.isfinite(p).all() for p in net.parameters())
        changes.append(any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)))
    assert any(changes)
    if variant not in ("cnn", "final"):
        fields = ("convolutions", "dense", "activation", "dropout", "batch_norm", "optimiser", "learning_rate")
        changed = [f for f in fields if getattr(VARIANTS[variant], f) != getattr(VARIANTS["cnn"], f)]
        assert len(changed) == 1 or changed == ["optimiser", "learning_rate"]  # Keras's SGD begins at 0.01


def test_depths_are_ordered_as_their_names_say() -> None:
    convolutions = {name: len(variant.convolutions) for name, variant in VARIANTS.items()}
    assert convolutions["fewer_convolutions"] < convolutions["cnn"] < convolutions["more_convolutions"]
    dense = {name: len(variant.dense) for name, variant in VARIANTS.items()}
    assert dense["fewer_dense"] < dense["cnn"] < dense["more_dense"]
    final = VARIANTS["final"]
    assert (len(final.convolutions), len(final.dense)) == (convolutions["more_convolutions"], dense["more_dense"])
    assert final.activation == "leaky_relu"


def test_ftrl_goes_downhill() -> None:
    x = torch.nn.Parameter(torch.tensor([3.0]))
    optimiser = Ftrl([x], lr=0.5)
    for _ in range(200):
        loss = ((x - 1.0) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert abs(float(x.detach()) - 1.0) < 0.1


def test_a_network_that_cannot_be_built_says_why() -> None:
    with pytest.raises(ValueError, match="no variant 'deepest'"):
        ApertureCNN("deepest")
    with pytest.raises(ValueError, match="too small"):
        ApertureCNN("cnn", 3)


# ---------------------------------------------------------------------- the spiral and its datasets
@given(points=st.integers(3, 200), revolutions=st.floats(0.5, 12), reach=st.floats(10, 1000))
def test_the_spiral_begins_aligned_stays_within_reach_and_makes_short_ways(
    points: int, revolutions: float, reach: float
) -> None:
    spiral = Spiral(points=points, revolutions=revolutions, reach=reach)
    shifts = spiral.shifts()
    assert shifts.shape == (points, 2)
    assert np.hypot(*shifts[0]) == 0
    assert np.hypot(*shifts.T).max() < reach
    assert spiral.proximity <= reach * (2 * np.pi * revolutions + 1) / points + 1e-9


def card(points: int = 6, **changes: Any) -> WobbleCard:
    values: dict[str, Any] = {"spiral": Spiral(points=points, revolutions=1, reach=120.0), "aligned": (0.0, 0.0)}
    return WobbleCard(**{**values, **changes})


def test_a_dataset_is_resumed_where_it_stopped_and_the_knobs_go_back(tmp_path: Path) -> None:
    column = TemColumn(2, 0, size=64)
    turn(column, {"aperture_x": 7, "c1": 1.001})
    source = ColumnSource(column)

    class Stops(ColumnSource):
        shots = 0

        def image(self) -> Any:
            self.shots += 1
            if self.shots > 17:
                raise KeyboardInterrupt
            return super().image()

    with pytest.raises(KeyboardInterrupt):
        acquire(Stops(column), tmp_path / "night", card())
    assert (column.aperture_x, column.c1) == (pytest.approx(7, abs=1), 1.001)
    assert len(list((tmp_path / "night").glob("*.tif"))) == 2
    first = (tmp_path / "night" / "0001.tif").read_bytes()
    told: list[tuple[int, int]] = []
    assert acquire(source, tmp_path / "night", card(), progress=lambda done, total: told.append((done, total))) == 4
    assert told[-1] == (6, 6)
    assert (tmp_path / "night" / "0001.tif").read_bytes() == first
    data = load(tmp_path / "night")
    assert data.images.shape == (6, 7, 64, 64)
    assert data.shifts == pytest.approx(card().spiral.shifts(), abs=1.6)
    assert data.lens[0] == pytest.approx(np.linspace(0.97, 1.03, 7))
    assert acquire(source, tmp_path / "night", card()) == 0


def test_another_dataset_in_its_folder_and_a_spiral_beyond_the_limits_are_refused(tmp_path: Path) -> None:
    source = ColumnSource(TemColumn(2, 0, size=64))
    acquire(source, tmp_path / "a", card(3))
    with pytest.raises(SettingsError, match="other settings"):
        acquire(source, tmp_path / "a", card(3, wobble=0.02))
    with pytest.raises(LimitError, match="aperture_x"):
        acquire(source, tmp_path / "b", card(), limits={"aperture_x": (-20.0, 20.0)})
    assert not list((tmp_path / "b").glob("*.tif"))


@pytest.mark.parametrize("damage", ["no card", "cut file", "too few"])
def test_a_damaged_dataset_is_named(tmp_path: Path, damage: str) -> None:
    acquire(ColumnSource(TemColumn(2, 0, size=64)), tmp_path, card(3))
    if damage == "no card":
        (tmp_path / "dataset.json").unlink()
    elif damage == "cut file":
        file = tmp_path / "0001.tif"
        file.write_bytes(file.read_bytes()[:100])
    else:
        (tmp_path / "0001.tif").unlink()
    with pytest.raises(SettingsError):
        load(tmp_path)


# ---------------------------------------------------------------------- training
@pytest.fixture(scope="module")
def night() -> Any:
    column = TemColumn(8, 0, size=64)
    truth = column.truth()
    aligned = (round(truth["aperture_x"]), round(truth["aperture_y"]))
    return simulate(column, card(40, spiral=Spiral(points=40, revolutions=3, reach=200.0), aligned=aligned))


def test_training_learns_and_repeats_with_its_seed(night: Any) -> None:
    small = small_images(night.images, 16)
    inside, outside = split(len(night), 0)
    assert len(inside) == 32
    assert not set(inside) & set(outside)
    test = small[outside], night.shifts[outside]
    untrained = train(small[inside], night.shifts[inside], "final", test=test, epochs=1, seed=1)
    trained = train(small[inside], night.shifts[inside], "final", test=test, epochs=60, seed=1)
    again = train(small[inside], night.shifts[inside], "final", test=test, epochs=60, seed=1)
    spread = rmse_percent(night.shifts[outside] - night.shifts[outside].mean(0))
    assert trained.rmse < 0.5 * spread
    assert trained.rmse < untrained.rmse
    assert trained.rmse == again.rmse
    assert len(trained.curve) == 10


def test_repeated_trainings_differ_and_have_a_median(night: Any) -> None:
    small = small_images(night.images, 16)
    outcomes = repeated(small, night.shifts, "cnn", repeats=3, epochs=3)
    assert len({outcome.rmse for outcome in outcomes}) == 3
    assert median(outcomes).rmse == sorted(outcome.rmse for outcome in outcomes)[1]


def test_a_model_is_kept_and_drives_the_strategy(night: Any, tmp_path: Path) -> None:
    small = small_images(night.images, 16)
    inside, outside = split(len(night), 0, 0.9)
    outcome = train(
        small[inside], night.shifts[inside], "final", test=(small[outside], night.shifts[outside]), epochs=60, seed=0
    )  # fmt: skip
    path = outcome.model.save(tmp_path / "net.json")
    model = ApertureModel.load(path)
    assert model.shifts(small) == pytest.approx(outcome.model.shifts(small), abs=0.01)
    assert model.sigma == pytest.approx(outcome.rmse * 10, abs=0.01)
    column = TemColumn(8, 0, size=64)
    truth = column.truth()
    turn(column, {"aperture_x": round(truth["aperture_x"]) + 90, "aperture_y": round(truth["aperture_y"]) - 60})
    run = drive(Aperture(ApertureSettings(model=str(path), tolerance=60.0, search_step=0.0)), column)
    after = np.hypot(column.aperture_x - truth["aperture_x"], column.aperture_y - truth["aperture_y"])
    assert run.verdict.status in (Status.CONVERGED, Status.LOW_CONFIDENCE)
    assert after < 75
    assert column.c1 == 1.0


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    net = ApertureModel(ApertureCNN("cnn", 16, 5), "cnn", 16, 5)
    path = net.save(tmp_path / "net.json")
    with pytest.raises(SettingsError, match="count = 5"):
        Aperture(ApertureSettings(model=str(path)))
    with pytest.raises(HardwareError, match="takes 5"):
        net.offset([np.zeros((64, 64), np.uint8)] * 7)
    (tmp_path / "net.safetensors").write_bytes(b"nothing")
    with pytest.raises(SettingsError, match=r"net\.json"):
        ApertureModel.load(path)


@pytest.mark.parametrize(
    "frames",
    [[np.zeros((64, 64)), np.zeros((32, 32))], [np.zeros((64, 64, 3))], [np.full((64, 64), np.nan)]],
    ids=["sizes", "colour", "nan"],
)
def test_frames_that_are_none_are_refused(frames: list[Any]) -> None:
    with pytest.raises(HardwareError):
        prepared(frames, 16)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_table_holds_every_part_and_goes_on(tmp_path: Path) -> None:
    table = TemBench(tmp_path, quick=True).measure()
    assert table["ours"]["table2"]["14"] < 1.2
    assert table["confidence"]["wrong by 2 %"] == 0
    for name in ("tem_table.json", "tem_table.md", "tem_table.html", "tem.jsonl"):
        assert (tmp_path / name).stat().st_size > 500
    again = TemBench(tmp_path, quick=True).measure()
    assert again["networks"] == table["networks"]
    assert again["resumed"] == again["units"]
