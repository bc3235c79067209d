"""Networks against the papers' layer tables, and the symmetries of ours."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from mm_autofocus.networks.deepfocus import DeepFocus, score_loss, to_volumetric, weighted_mean  # noqa: E402
from mm_autofocus.networks.deepscore import DeepScore, image_score, score_target  # noqa: E402
from mm_autofocus.networks.efficientnet_b0 import EfficientNetB0, pair_efficientnet_b0  # noqa: E402
from mm_autofocus.networks.pair_net import PairNet  # noqa: E402
from mm_autofocus.networks.resnet import ResNet, pair_resnet50  # noqa: E402
from mm_autofocus.networks.spectral_arrays import forward  # noqa: E402
from mm_autofocus.networks.spectral_pair import SpectralPair, turned  # noqa: E402
from mm_autofocus.networks.unet import PixelScoreUNet, as_predictions  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# Table 2: (input channels, output channels, kernel) of the seven convolutions.
TABLE_2 = [(1, 20, 5), (20, 30, 5), (30, 40, 4), (40, 50, 4), (50, 60, 2), (60, 70, 1), (70, 70, 1)]
CONVOLUTIONS = sum(i * o * k * k + o + 2 * o for i, o, k in TABLE_2)  # weights, bias, batch normalisation


@pytest.mark.parametrize(
    ("edge", "linear", "total"),
    [
        (128, (140, 100, 50), 108_123),
        (256, (1260, 250, 50), 416_773),
        (384, (3500, 250, 50), 976_773),
        (512, (6860, 250, 50), 1_816_773),
    ],
)
def test_deepfocus_is_table_2(edge: int, linear: tuple[int, int, int], total: int) -> None:
    net = DeepFocus(edge).eval()
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in layers] == TABLE_2
    assert [m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d)] == [o for _, o, _ in TABLE_2]
    assert [m.kernel_size for m in net.modules() if isinstance(m, nn.MaxPool2d)] == [2, 2, 2, 2, 2, 2, 1]
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.1] * 7
    assert [(m.in_features, m.out_features) for m in net.last_layers()] == [
        (linear[0], linear[1]), (linear[1], linear[2]), (linear[2], 3),
    ]  # fmt: skip
    flat, wide, narrow = linear
    expected = CONVOLUTIONS + (flat + 1) * wide + (wide + 1) * narrow + (narrow + 1) * 3
    assert count(net) == expected == total
    with torch.inference_mode():
        assert net(torch.zeros(2, 2, edge, edge)).shape == (2, 3)


def test_planar_and_volumetric_convolutions_are_the_same() -> None:
    net = DeepFocus(128).eval()
    other = to_volumetric(net)
    assert [m.kernel_size for m in other.modules() if isinstance(m, nn.Conv3d)] == [(1, k, k) for _, _, k in TABLE_2]
    x = torch.randn(2, 2, 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(net(x), other(x), rtol=1e-4, atol=1e-6)
    assert count(net) == count(other)


def test_the_paper_has_four_patch_sizes() -> None:
    with pytest.raises(ValueError, match="100 px"):
        DeepFocus(100)


def test_patch_scores_weigh_and_equation_3() -> None:
    outputs = torch.tensor([[[1.0, 0, 0, 0], [3.0, 0, 0, float(np.log(3.0))]]])
    torch.testing.assert_close(weighted_mean(outputs), torch.tensor([[2.5, 0, 0]]))
    target = torch.zeros(1, 3)
    final, individual = 2.5 / 3, 2.0 / 3
    assert score_loss(outputs, target).item() == pytest.approx(0.75 * final + 0.25 * individual)
    assert DeepFocus(128, scores=True)(torch.zeros(2, 2, 128, 128)).shape == (2, 4)


def test_a_blank_patch_loses_its_say_in_training() -> None:
    # Two patches of each pair: one tells the target, the other is noise. The score must learn which.
    target = torch.randn(400, 3)
    told = torch.cat([target[:, None], torch.randn(400, 1, 3)], 1)
    marks = torch.cat([torch.ones(400, 1, 1), torch.zeros(400, 1, 1)], 1)
    score = nn.Linear(1, 1)
    optimiser = torch.optim.Adam(score.parameters(), 0.1)
    for _ in range(60):
        outputs = torch.cat([told, score(marks)], -1)
        loss = score_loss(outputs, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch.softmax(score(marks)[0, :, 0], 0)[0] > 0.95


def test_deepscore_is_table_3() -> None:
    net = DeepScore().eval()
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in layers] == [
        (1, 20, 3), (20, 30, 3), (30, 40, 3), (40, 50, 3), (50, 60, 3), (60, 70, 3),
    ]  # fmt: skip
    assert [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)] == [
        (2520, 250), (250, 50), (50, 2),
    ]  # fmt: skip
    assert count(net) == 742_892
    with torch.inference_mode():
        assert net(torch.zeros(1, 1, 512, 512)).shape == (1, 2)


def test_deepscore_target_and_score_of_an_image() -> None:
    torch.testing.assert_close(score_target(torch.tensor([[-3.0, 1.0, -2.0]])), torch.tensor([[3.0, 3.0]]))
    assert image_score(torch.tensor([[1.0, 5.0], [4.0, 2.0]])).item() == 3.0  # each kind's own minimum


def test_pixel_scores() -> None:
    net = PixelScoreUNet().eval()
    filters = {m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)}
    assert filters == {32, 64, 128, 20, 4}
    head = [m for m in net.head if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in head] == [(64, 20, (1, 1)), (20, 4, (1, 1))]
    assert not [m for m in net.modules() if isinstance(m, (nn.ConvTranspose2d, nn.BatchNorm2d))]
    with torch.inference_mode():
        dense = net(torch.randn(1, 2, 64, 48))
    assert dense.shape == (1, 4, 64, 48)
    assert weighted_mean(as_predictions(dense)).shape == (1, 3)
    every = as_predictions(dense)
    torch.testing.assert_close(every[0, 48 + 5], dense[0, :, 1, 5])


@pytest.mark.parametrize(
    ("net", "published"),
    [
        (lambda: ResNet(18, classes=1000), 11_689_512),
        (lambda: ResNet(50, classes=1000), 25_557_032),
        (lambda: EfficientNetB0(classes=1000), 5_288_548),
    ],
)
def test_classifiers_have_the_published_parameters(net, published: int) -> None:
    assert count(net()) == published


@pytest.mark.parametrize(("net", "hidden", "features"), [(pair_resnet50, 512, 2048), (pair_efficientnet_b0, 320, 1280)])
def test_encoders_on_pairs(net, hidden: int, features: int) -> None:
    built = net().eval()
    head = [m for m in built.head if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in head] == [
        (2 * features, hidden, (1, 1)), (hidden, 4, (1, 1)),
    ]  # fmt: skip
    with torch.inference_mode():
        assert built(torch.randn(2, 2, 64, 64)).shape == (2, 4)


def test_resnet_serves_other_uses() -> None:
    assert ResNet(18, channels=1)(torch.zeros(2, 1, 64, 64)).shape == (2, 512)
    with pytest.raises(ValueError, match="ResNet-34"):
        ResNet(34)


def test_pair_net_is_antisymmetric_and_folds() -> None:
    net = PairNet().train()
    assert 270_000 < count(net) < 290_000
    for _ in range(3):  # batch statistics that are not the identity
        net(torch.randn(4, 2, 128, 128) * 3 + 1, torch.zeros(4, 1))
    net.eval()
    x, delta = torch.rand(2, 2, 128, 160) * 255, torch.randn(2, 1)
    with torch.inference_mode():
        out, swapped = net(x, delta), net(x.flip(1), delta)
        torch.testing.assert_close(swapped[:, :3], -out[:, :3], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(swapped[:, 3:], out[:, 3:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(3 * x + 7, delta), out, rtol=1e-2, atol=1e-3)  # contrast and brightness
        torch.testing.assert_close(net.optimised()(x, delta), out, rtol=1e-3, atol=1e-4)
    assert not [m for m in net.optimised().modules() if isinstance(m, nn.BatchNorm2d)]


def spectra(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 5, 30, 16), torch.randn(n, 2)


def test_spectral_network_turns_with_the_specimen() -> None:
    net = SpectralPair().eval()
    x, beside = spectra()
    with torch.inference_mode():
        out = net(x, beside)
        for steps in (0, 1, 5, 8, 15):
            moved, expected = turned(x, out[:, :3], steps, False)
            torch.testing.assert_close(net(moved, beside)[:, :3], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(net(moved, beside)[:, 3:], out[:, 3:], rtol=1e-4, atol=1e-5)


def test_spectral_network_is_odd_under_a_swap() -> None:
    net = SpectralPair().eval()
    x, beside = spectra()
    swapped = x[:, [1, 0, 2, 3, 4]].clone()
    swapped[:, 3] *= -1
    with torch.inference_mode():
        one, two = net(x, beside), net(swapped, beside)
    torch.testing.assert_close(two[:, :3], -one[:, :3])
    torch.testing.assert_close(two[:, 3:], one[:, 3:])


def test_numpy_gives_what_torch_gives() -> None:
    net = SpectralPair().eval()
    x, beside = spectra(3)
    with torch.inference_mode():
        expected = net(x, beside).numpy()
    found = forward({k: v.numpy() for k, v in net.state_dict().items()}, x.numpy(), beside.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
