"""The variants of DeepFocus: built, read, trained and kept like the network of Table 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mm_autofocus.cli.groups import Groups
from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators import Aberration, ColumnCalibration
from mm_autofocus.estimators.cards import Arrays, SemCard, load_card, save_card
from mm_autofocus.estimators.deepfocus_estimator import DeepFocusEstimator, patch_pair, variant_of
from mm_autofocus.estimators.patches import random_corners
from mm_autofocus.training.known_pairs import KnownPair
from mm_autofocus.training.sem_pairs import PairSampler
from mm_autofocus.training.sem_recalibration import recalibrate_deepfocus

torch = pytest.importorskip("torch")

from mm_autofocus.networks.deepfocus import weighted_mean  # noqa: E402
from mm_autofocus.networks.deepfocus_variants import VARIANTS, Taught, make_variant, predictions  # noqa: E402
from mm_autofocus.networks.unet import as_predictions  # noqa: E402

SCALES = [5.0, 1.5, 1.5]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def kept(folder: Path, variant: str) -> Path:
    """Write a card of random weights."""
    torch.manual_seed(4)
    state = make_variant(variant, 128).state_dict()
    arrays: Arrays = {name: value.contiguous().numpy() for name, value in state.items()}
    parameters = {"variant": variant, "edge": 128, "binning": 2, "standardised": False, "scales": SCALES}
    card = SemCard(
        model="deepfocus", what="test", weights="test.safetensors", precision="float32", parameters=parameters
    )
    save_card(folder / "test.json", card, arrays)
    return folder / "test.json"


def frames() -> tuple[np.ndarray, np.ndarray]:
    both = np.random.default_rng(2).integers(0, 256, (2, 300, 400)).astype(np.uint8)
    return both[0], both[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_says_a_place_at_a_time_and_how_blurred_each_image_is(variant: str) -> None:
    taught = Taught(make_variant(variant, 128)).train()
    images = torch.randn(2, 2, 128, 128)
    for module in taught.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # statistics of what it sees, without which random weights let nothing through
    with torch.inference_mode():
        taught(images)
        taught.eval()
        outputs, blur = taught(images)
        assert torch.allclose(outputs, taught.net(images), atol=1e-5)
        told = predictions(taught.net, outputs)
        # the head sees each image alone: another second image leaves what it says of the first
        other = taught(torch.stack([images[:, 0], torch.randn(2, 128, 128)], 1))[1]
    assert told.shape[0] == 2
    assert told.shape[1] == (128 * 128 if variant == "pixel-scores" else 1)
    assert told.shape[2] == (3 if variant == "stacked" else 4)
    assert blur.shape[:3] == (2, 2, 3)
    assert torch.allclose(blur[:, 0], other[:, 0], atol=1e-5)
    assert not torch.allclose(blur[:, 1], other[:, 1], atol=1e-5)


def test_another_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="pixel-scores"):
        make_variant("vgg", 128)  # type: ignore[arg-type]


def test_patches_are_weighted_by_the_softmax_of_their_scores(tmp_path: Path) -> None:
    estimator = DeepFocusEstimator.load(kept(tmp_path, "patch-scores"), patches=4)
    under, over = frames()
    found = estimator.estimate(under, over, 10.0, 0.01, ColumnCalibration())
    corners = random_corners(under.shape, 256, 4, 0)
    cut = np.stack([patch_pair(under, over, (int(x), int(y)), 256, 2) for x, y in corners])
    with torch.inference_mode():
        expected = weighted_mean(estimator.net(torch.from_numpy(cut))[None])[0].numpy() * SCALES
    assert -found.aberration.vector() == pytest.approx(expected, abs=1e-5)
    assert sum(patch.weight for patch in found.patches) == pytest.approx(1.0)
    assert len({patch.weight for patch in found.patches}) == 4


def test_pixels_are_weighted_and_told_in_cells_of_their_patch(tmp_path: Path) -> None:
    estimator = DeepFocusEstimator.load(kept(tmp_path, "pixel-scores"), patches=2)
    under, over = frames()
    found = estimator.estimate(under, over, 10.0, 0.01, ColumnCalibration())
    corners = random_corners(under.shape, 256, 2, 0)
    cut = np.stack([patch_pair(under, over, (int(x), int(y)), 256, 2) for x, y in corners])
    with torch.inference_mode():
        each = weighted_mean(as_predictions(estimator.net(torch.from_numpy(cut)))).numpy() * SCALES
    assert -found.aberration.vector() == pytest.approx(each.mean(0), abs=1e-5)
    assert len(found.patches) == 2 * 16
    assert sum(patch.weight for patch in found.patches) == pytest.approx(1.0)
    for i, (x, y) in enumerate(corners):
        cells = found.patches[16 * i : 16 * (i + 1)]
        assert sum(cell.weight for cell in cells) == pytest.approx(0.5)
        assert {cell.size for cell in cells} == {64}
        assert {(cell.x - x, cell.y - y) for cell in cells} == {(64 * c, 64 * r) for r in range(4) for c in range(4)}
        mean = np.sum([2 * cell.weight * cell.aberration.vector() for cell in cells], 0)
        assert -mean == pytest.approx(each[i], abs=1e-5)
    # a cell says what its own pixels do
    first = estimator.net(torch.from_numpy(cut[:1]))[0, :, :32, 32:64].detach().numpy().reshape(4, -1)
    weights = np.exp(first[3] - first[3].max())
    expected = first[:3] @ weights / weights.sum() * SCALES
    assert -found.patches[1].aberration.vector() == pytest.approx(expected, abs=1e-4)


def test_a_patch_that_has_no_say_at_all_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = DeepFocusEstimator.load(kept(tmp_path, "patch-scores"), patches=3)
    outputs = torch.tensor([[1.0, 0.2, 0.0, 0.0], [-1.0, 0.0, 0.1, 900.0], [2.0, 0.0, 0.0, 0.0]])
    monkeypatch.setattr(type(estimator.net), "forward", lambda self, x: outputs)
    found = estimator.estimate(*frames(), 10.0, 0.01, ColumnCalibration())
    assert -found.aberration.vector() == pytest.approx([-5.0, 0.0, 0.15], abs=1e-6)
    assert np.isfinite(found.sigma.vector()).all()


def test_the_cells_of_a_patch_are_not_so_many_witnesses(tmp_path: Path) -> None:
    from mm_autofocus.strategies.deepfocus import _combined

    estimator = DeepFocusEstimator.load(kept(tmp_path, "pixel-scores"), patches=2)
    found = estimator.estimate(*frames(), 10.0, 0.01, ColumnCalibration())
    cells = found.patches
    for weighting in ("scores", "mean"):
        correction, scatter = _combined(found, weighting)
        whole = []
        for part in (cells[:16], cells[16:]):
            weights = [cell.weight if weighting == "scores" else 1.0 for cell in part]
            whole.append(np.average([cell.aberration.vector() for cell in part], axis=0, weights=weights))
        assert -correction == pytest.approx(np.mean(whole, 0))
        assert scatter == pytest.approx(np.abs(whole[0] - whole[1]) / 2)
    alone = DeepFocusEstimator.load(kept(tmp_path, "pixel-scores"), patches=1)
    found = alone.estimate(*frames(), 10.0, 0.01, ColumnCalibration())
    assert _combined(found, "scores")[1] == pytest.approx(found.sigma.vector())


@pytest.mark.parametrize("change", [{"variant": "vgg"}, {"edge": 100}, {"variant": "pixel-scores"}, {"edge": 256}])
def test_a_card_that_does_not_fit_its_weights_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = kept(tmp_path, "stacked")
    card = SemCard.model_validate_json(path.read_text())
    path.write_text(card.model_copy(update={"parameters": card.parameters | change}).model_dump_json())
    with pytest.raises(SettingsError, match="do not fit"):
        DeepFocusEstimator.load(path)


@pytest.mark.parametrize(("model", "variant"), [("deepfocus", "vgg"), ("spectral", "resnet-50")])
def test_a_variant_that_there_is_not_is_refused_at_once(tmp_path: Path, model: str, variant: str) -> None:
    from mm_autofocus.training.sem_training import train_model

    with pytest.raises(SettingsError, match="no variant"):
        train_model(model, tmp_path / "x.json", variant=variant)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variant", ["efficientnet-b0", "resnet-50"])
def test_the_common_architectures_weigh_patches_equally(tmp_path: Path, variant: str) -> None:
    estimator = DeepFocusEstimator.load(kept(tmp_path, variant), patches=3)
    found = estimator.estimate(*frames(), 10.0, 0.01, ColumnCalibration())
    assert [patch.weight for patch in found.patches] == pytest.approx([1 / 3] * 3)
    mean = np.mean([patch.aberration.vector() for patch in found.patches], 0)
    assert found.aberration.vector() == pytest.approx(mean)


@pytest.mark.parametrize(("variant", "batch"), [("patch-scores", 10), ("pixel-scores", 2), ("efficientnet-b0", 2)])
def test_a_variant_is_trained_from_the_same_seed_to_the_same_weights(variant: str, batch: int) -> None:
    from mm_autofocus.training.sem_deepfocus import fit_deepfocus

    view = np.random.default_rng(1).integers(0, 256, (720, 720), dtype=np.uint8)
    said: list[str] = []
    nets = [
        fit_deepfocus(PairSampler([view], 5), pairs=4, variant=variant, batch=batch, seed=3, say=said.append)
        for _ in range(2)
    ]
    random = make_variant(variant, 128).state_dict()
    one, two = (net.state_dict() for net in nets)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.isfinite(value).all() for value in one.values())
    assert set(one) == set(random)  # the head that is taught blur is thrown away
    assert not nets[0].training


def test_models_are_named_as_they_are_listed(tmp_path: Path) -> None:
    card, _ = load_card("sem_deepfocus", "deepfocus")
    assert variant_of(card) == "stacked"
    with pytest.raises(SettingsError, match="card of a deepfocus model"):
        load_card("sem_deepfocus", "spectral")
    with pytest.raises(SettingsError, match=r"sem_nothing\.json can't be read"):
        load_card("sem_nothing", "deepfocus")
    with pytest.raises(SettingsError, match="can't be read"):
        load_card(tmp_path / "sem_deepfocus", "deepfocus")  # a path is a path


def test_only_the_network_of_table_2_is_recalibrated(tmp_path: Path) -> None:
    under, over = frames()
    pairs = [KnownPair(under, over, Aberration(1.0), 10.0, 0.01)] * 10
    with pytest.raises(SettingsError, match="patch-scores"):
        recalibrate_deepfocus(pairs, tmp_path / "out.json", base=kept(tmp_path, "patch-scores"))
    assert not (tmp_path / "out.json").exists()


def test_a_variant_is_one_of_deepfocus(tmp_path: Path) -> None:
    from mm_autofocus.cli.app_sem_training import register

    groups = Groups.make(typer.Typer())
    register(groups)
    result = CliRunner().invoke(groups.train, ["--out", str(tmp_path / "x.json"), "--variant", "patch-scores"])
    assert result.exit_code != 0
    assert "--model deepfocus" in result.output
