"""The double of the Java core refuses what the Java core refuses, so that code tested with it is portable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from java_core import JavaCore


@pytest.fixture
def java(core: Any) -> JavaCore:
    return JavaCore(core)


def test_snake_case_only(java: JavaCore) -> None:
    java.set_position("Z", 3.0)
    assert java.get_position() == 3
    assert java.get_x_position() == 0
    for name in ("getPosition", "snapImage", "get_nothing", "_pydevices", "TaggedImage"):
        assert not hasattr(java, name)


def test_tagged_image_is_flat_and_takes_no_arguments(java: JavaCore) -> None:
    java.snap_image()
    tagged = java.get_tagged_image()
    assert tagged.pix.shape == (24,)
    assert (tagged.tags["Height"], tagged.tags["Width"]) == (4, 6)
    assert java.get_image().shape == (24,)
    with pytest.raises(TypeError):
        java.get_tagged_image(0, "Cam", 4, 6)  # type: ignore[call-arg]


def test_vectors_and_rectangles_are_remote(java: JavaCore) -> None:
    devices = java.get_loaded_devices()
    assert "Cam" in [devices.get(i) for i in range(devices.size())]
    roi = java.get_roi()
    assert (roi.x, roi.y, roi.width, roi.height) == (0, 0, 6, 4)
    for remote in (java, devices, roi):
        with pytest.raises(TypeError):
            hash(remote)
        with pytest.raises(TypeError):
            list(remote)


def test_plain_arguments_only(java: JavaCore) -> None:
    with pytest.raises(TypeError, match="float64 cannot be sent"):
        java.set_position(np.float64(3))


def test_errors_are_plain_exceptions(java: JavaCore) -> None:
    with pytest.raises(Exception, match=r"java\.lang\.Exception: No device with label") as caught:
        java.set_focus_device("nope")
    assert type(caught.value) is Exception
    with pytest.raises(Exception, match="Call snapImage"):
        java.get_tagged_image()


def test_focusing_through_it(java: JavaCore) -> None:
    java.full_focus()
    assert java.get_position() == 5
    assert java.calls == ["full_focus", "get_position"]
