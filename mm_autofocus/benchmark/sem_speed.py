"""Times every reader of pairs on the same frames in one run, in turn, so that their ratios mean something.

It is the processor's time that is measured, so that a machine that is busy with something else does not change it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, cast

import numpy as np

from mm_autofocus.benchmark.sem_cases import WIDE, Conditions, cases, open_column, take_pair
from mm_autofocus.benchmark.sem_methods import Method
from mm_autofocus.strategy import Image

PATCH_PX = 512
REFERENCE = "StackedConv (DeepFocus), torch eager"
LONG_S = 2.0
"""What takes longer is timed once, and on the small pair only."""
Call = Callable[[], object]
Pair = tuple[Image, Image]


def measure_speed(methods: Mapping[str, Method], repeats: int, *, slow: bool = True) -> list[dict[str, Any]]:
    """Return one row for each model and back end.

    Parameters
    ----------
    methods
        Those that take part.
    repeats
        Rounds; the median counts.
    slow
        Time those too that take several seconds for a pair.

    Returns
    -------
    list
        ``name``, ``seconds_512`` and ``seconds_frame`` (a pair of 512 x 512, of 1024 x 768; registration included
        where the name says so; None for a reader that takes more than `LONG_S` for the first), ``mpx_per_s`` (both
        images counted, as in DeepFocus, Table 1) and ``ratio`` (times as fast as `REFERENCE` on a 512 x 512 pair, None
        when that was not timed).
    """
    readers = _readers(methods, slow)
    spent: dict[tuple[str, int], list[float]] = {(name, part): [] for name in readers for part in (0, 1)}
    for _ in range(repeats + 1):
        for name, calls in readers.items():
            for part, call in enumerate(calls):
                before = spent[name, part]
                if (before and before[0] > LONG_S) or (part and spent[name, 0][0] > LONG_S):
                    continue
                began = time.process_time()
                call()
                before.append(time.process_time() - began)
    # the first one warms up, where there are others
    seconds = {key: float(np.median(values[1:] or values or [np.nan])) for key, values in spent.items()}
    reference = seconds.get((REFERENCE, 0))
    return [
        {
            "name": name, "seconds_512": round(seconds[name, 0], 4),
            "seconds_frame": round(seconds[name, 1], 4) if spent[name, 1] else None,
            "mpx_per_s": round(2 * PATCH_PX**2 / 1e6 / seconds[name, 0], 2),
            "ratio": round(reference / seconds[name, 0], 2) if reference else None,
        }
        for name in readers
    ]  # fmt: skip


def _readers(methods: Mapping[str, Method], slow: bool) -> dict[str, tuple[Call, Call]]:
    """Return by name what reads a patch of 512 x 512, and what reads a frame of 1024 x 768."""
    conditions = Conditions(20.0)
    column = open_column(cases(1, 2, WIDE, at=(4.0, 0.5, -0.5))[0], conditions)
    under, over, step_um = take_pair(column)
    corner = slice(0, PATCH_PX)
    patch: Pair = under[corner, corner], over[corner, corner]
    pixel_um, calibration = column.pixel_nm * 1e-3, conditions.calibration()
    found: dict[str, tuple[Call, Call]] = {}
    for key in ("spectral", "convolutional"):
        if key in methods and (estimator := methods[key].estimator) is not None:
            read = partial(estimator.estimate, step_um=step_um, pixel_um=pixel_um, calibration=calibration)
            found[f"{methods[key].name}, with registration"] = partial(read, *patch), partial(read, under, over)
    networks: dict[str, Callable[[Any], Any]] = {}
    if "convolutional" in methods:
        networks |= _pair_nets()
    if "deepfocus" in methods:
        networks |= _published_nets(slow)
    for name, net in networks.items():
        found[name] = partial(_run, net, patch), partial(_run, net, (under, over))
    if "mapfost" in methods:
        from mm_autofocus.benchmark.mapfost_peer import MapfostEstimator

        for name, disc, fast in (
            ("MAPFoSt, Gaussian, as published", False, False),
            ("MAPFoSt, disc, as published", True, False),
            ("MAPFoSt, disc, with the Bessel function of real numbers", True, True),
        ):
            if disc and not fast and not slow:
                continue
            # its patch lies inside the frame: it looks for the displaced other one around it
            one, four = (
                partial(MapfostEstimator(patches=patches, disc=disc, fast_bessel=fast).estimate, under, over)
                for patches in ((1, 1), (2, 2))
            )
            found[name] = partial(one, step_um, pixel_um, calibration), partial(four, step_um, pixel_um, calibration)
    return found


def _pair_nets() -> dict[str, Callable[[Any], Any]]:
    import torch

    from mm_autofocus.networks.pair_net import PairNet

    def alone(net: Any) -> Callable[[Any], Any]:
        return lambda pairs: net(pairs, torch.zeros(len(pairs), 1))

    net = PairNet().eval()
    nets: dict[str, Callable[[Any], Any]] = {
        "PairNet, network alone, torch eager": alone(net),
        "PairNet, network alone, torch folded and channels last": alone(net.optimised()),
    }
    # one compilation for each number of patches, as an application would make them once
    if (compiled := _openvino(net, lambda count: (torch.zeros(count, 2, PATCH_PX, PATCH_PX), torch.zeros(count, 1)))):
        nets["PairNet, network alone, OpenVINO"] = compiled
    return nets


def _openvino(net: Any, example: Callable[[int], tuple[Any, ...]]) -> Callable[[Any], Any] | None:
    """Return a network that OpenVINO runs on one thread, or None where OpenVINO is not installed (extra ``bench``).

    Parameters
    ----------
    net
        The torch module.
    example
        Makes its inputs for a number of patches; beside the first, what they hold is used as it is.
    """
    try:
        import openvino
    except ImportError:
        return None
    import torch

    @lru_cache(maxsize=4)
    def compiled(count: int) -> Callable[[Any], Any]:
        model = openvino.convert_model(net, example_input=example(count))
        return cast(Callable[[Any], Any], openvino.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1}))

    def run(pairs: Any) -> Any:
        beside = [value.numpy() for value in example(len(pairs))[1:]]
        return torch.from_numpy(compiled(len(pairs))((pairs.numpy(), *beside))[0])

    return run


def _published_nets(slow: bool) -> dict[str, Callable[[Any], Any]]:
    """Return the paper's networks; what they answer does not matter here, so that the larger ones are not trained."""
    import torch

    from mm_autofocus.networks.deepfocus import DeepFocus
    from mm_autofocus.networks.efficientnet_b0 import pair_efficientnet_b0
    from mm_autofocus.networks.resnet import pair_resnet50

    stacked = DeepFocus(PATCH_PX).eval()
    traced = torch.jit.trace(stacked, torch.zeros(1, 2, PATCH_PX, PATCH_PX))  # type: ignore[no-untyped-call]
    nets: dict[str, Callable[[Any], Any]] = {
        REFERENCE: stacked,
        "StackedConv (DeepFocus), Conv3d as in Table 2, torch eager": DeepFocus(PATCH_PX, volumetric=True).eval(),
        "StackedConv (DeepFocus), TorchScript": torch.jit.optimize_for_inference(torch.jit.freeze(traced)),
    }
    if (compiled := _openvino(stacked, lambda count: (torch.zeros(count, 2, PATCH_PX, PATCH_PX),))):
        nets["StackedConv (DeepFocus), OpenVINO"] = compiled
    if slow:
        nets["EfficientNet-B0, torch eager"] = pair_efficientnet_b0().eval()
        nets["ResNet-50, torch eager"] = pair_resnet50().eval()
    return nets


def _run(net: Callable[[Any], Any], pair: Pair) -> object:
    """Read a pair as the paper times it: from the arrays to one correction, five patches of a frame."""
    import torch

    height, width = pair[0].shape
    down, right = height - PATCH_PX, width - PATCH_PX
    corners = sorted({(0, 0), (right, 0), (0, down), (right, down), (right // 2, down // 2)})
    cut = [np.stack([image[y : y + PATCH_PX, x : x + PATCH_PX] for image in pair]) for x, y in corners]
    with torch.inference_mode():
        return net(torch.from_numpy(np.stack(cut).astype(np.float32) / 127.5 - 1.0)).mean(0).numpy()
