"""A dataset of days: z-stacks of the laser camera as OME-TIFF, z in the metadata, acquired through the core.

- ``<dataset>/<day>/day.json``: objective, camera, exposure, where focus was (by image);
- ``<dataset>/<day>/long_000.ome.tif`` and so on: 1 µm over ±100 µm;
- ``<dataset>/<day>/short_000.ome.tif`` and so on: 50 nm over ±10 µm.
"""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mm_autofocus.errors import FocusError, LimitError, SettingsError
from mm_autofocus.microscope import Microscope
from mm_autofocus.training.laser_synthetic import Frames, join, labelled

Array = NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Called after each stack with (stacks done, stacks in all)."""

STEPS_UM = {"long": 1.0, "short": 0.05}
HALF_UM = {"long": 100.0, "short": 10.0}


class Day(BaseModel):
    """What belongs to every stack of one day.

    Attributes
    ----------
    objective, camera
        Names.
    shape, exposure_ms
        Of the laser camera's images.
    focus_um
        Stage position of zero defocus, found by image (a sweep) before the first stack.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: str
    camera: str
    shape: tuple[int, int]
    exposure_ms: float = Field(gt=0)
    focus_um: float


@dataclass(frozen=True, slots=True)
class Stack:
    """One stack: images of shape (planes, height, width), and the stage position of each plane, µm."""

    path: Path
    images: NDArray[np.uint16]
    z_um: Array


def write_stack(path: Path, images: NDArray[np.uint16], z_um: Array) -> None:
    """Write an OME-TIFF with a Plane PositionZ for each image; it appears under its name only when complete."""
    part = path.with_name(path.name.replace(".ome.tif", ".part.ome.tif"))
    plane = {"PositionZ": [float(z) for z in z_um], "PositionZUnit": ["µm"] * len(z_um)}
    tifffile.imwrite(part, images, ome=True, metadata={"axes": "ZYX", "Plane": plane}, compression="zlib")
    os.replace(part, path)


def read_stack(path: Path) -> Stack:
    """Read a stack.

    Raises
    ------
    SettingsError
        When the file cannot be read, or lacks the z position of a plane.
    """
    try:
        with tifffile.TiffFile(path) as file:
            images = np.asarray(file.asarray())
            description = file.ome_metadata
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise SettingsError(f"laser stack {path} cannot be read: {error}; delete it and calibrate again") from error
    z = _positions(description) if description else []
    if images.ndim != 3 or len(z) != len(images):
        raise SettingsError(
            f"laser stack {path} has {len(z)} z positions in its metadata for {len(images)} images; a dataset needs "
            "the Plane PositionZ of every image (OME-TIFF). Acquire it with `mm-autofocus calibrate laser`"
        )
    return Stack(path, images, np.array(z))


def _positions(description: str) -> list[float]:
    """Z positions of the planes in an OME-XML text, in µm, in the order of the planes."""
    try:
        root = ElementTree.fromstring(description)
    except ElementTree.ParseError:
        return []
    units = {"µm": 1.0, "nm": 1e-3, "mm": 1e3}
    found: dict[int, float] = {}
    for plane in root.iter():
        if plane.tag.endswith("}Plane") and "PositionZ" in plane.attrib:
            unit = units.get(plane.get("PositionZUnit", "µm"))
            if unit is not None:
                found[int(plane.get("TheZ", len(found)))] = float(plane.attrib["PositionZ"]) * unit
    return [found[i] for i in sorted(found)]


def acquire_day(
    microscope: Microscope,
    folder: Path,
    day: Day,
    *,
    stacks: int = 100,
    kinds: tuple[str, ...] = ("long", "short"),
    steps_um: dict[str, float] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Acquire a day's z-stacks; what a former run has completed is kept.

    Parameters
    ----------
    microscope
        Moves the knob "z" within its limits and snaps ``day.camera``.
    folder
        ``<dataset>/<day>``.
    day
        What belongs to all stacks; it must agree with what is in the folder already.
    stacks
        Stacks of each kind.
    kinds, steps_um
        "long", "short", and their steps when not `STEPS_UM`.
    progress
        Told after each stack.

    Raises
    ------
    SettingsError
        When the folder belongs to another objective, camera or exposure.
    LimitError
        When a stack would leave the stage's limits. Nothing has moved.
    """
    knob = microscope.knob("z")
    steps = {**STEPS_UM, **(steps_um or {})}
    for kind in kinds:
        for end in (day.focus_um - HALF_UM[kind], day.focus_um + HALF_UM[kind]):
            if end not in knob.limits:
                raise LimitError(
                    f"the {kind}-range stack reaches z = {end:.1f} µm, outside the limits [{knob.limits.low:g}, "
                    f"{knob.limits.high:g}] of knob 'z'; nothing has moved. Widen them, or calibrate where the focus "
                    "is nearer to their middle"
                )
    day = _agreed(folder, day)
    wanted = [folder / f"{kind}_{i:03d}.ome.tif" for kind in kinds for i in range(stacks)]
    for number, path in enumerate(wanted):
        if not path.exists():
            kind = path.name.partition("_")[0]
            count = round(2 * HALF_UM[kind] / steps[kind]) + 1
            with microscope.preserved():
                images, z = _take(microscope, day, np.linspace(-HALF_UM[kind], HALF_UM[kind], count) + day.focus_um)
            knob.set(day.focus_um)
            write_stack(path, images, z)
        if progress is not None:
            progress(number + 1, len(wanted))
    return wanted


def take_frames(microscope: Microscope, day: Day, offsets_um: Array) -> tuple[NDArray[np.uint16], Array]:
    """Take frames at known defocus and go back; return images and their defocus, µm.

    Raises
    ------
    FocusError
        When a frame cannot be taken; every knob is back where it was.
    """
    knob = microscope.knob("z")
    before = knob.get()
    with microscope.preserved():
        images, z = _take(microscope, day, day.focus_um + np.sort(np.asarray(offsets_um, dtype=float)))
        knob.set(before)
    return images, z - day.focus_um


def _take(microscope: Microscope, day: Day, planes: Array) -> tuple[NDArray[np.uint16], Array]:
    knob = microscope.knob("z")
    images, z = [], []
    for plane in planes:
        z.append(knob.set(float(plane)))
        image, _ = microscope.snap(camera=day.camera, exposure_ms=day.exposure_ms)
        if image.shape != day.shape:
            raise FocusError(
                f"camera {day.camera!r} gave an image of {image.shape}, the day was begun with {day.shape}; clear its "
                "region of interest and binning"
            )
        images.append(image.astype(np.uint16))
    return np.stack(images), np.array(z)


def _agreed(folder: Path, day: Day) -> Day:
    """Write day.json, or check it against what is there; a resumed day keeps its focus."""
    path = folder / "day.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(day.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return day
    known = read_day(folder)
    if known.model_copy(update={"focus_um": day.focus_um}) != day:
        raise SettingsError(f"{folder} was begun with {known}; continue with the same, or choose another folder")
    return known


def read_day(folder: Path) -> Day:
    """Read day.json.

    Raises
    ------
    SettingsError
        When it is missing or cannot be used.
    """
    path = folder / "day.json"
    try:
        return Day.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{folder} is not a day of a laser dataset: it has no day.json") from None
    except (OSError, ValidationError) as error:
        raise SettingsError(f"{path} cannot be used: {' '.join(str(error).split())}") from error


def days(dataset: Path) -> list[Path]:
    """Return the folders of a dataset's days, in order.

    Raises
    ------
    SettingsError
        When there are none, or they belong to different objectives or cameras.
    """
    folders = sorted(path.parent for path in dataset.glob("*/day.json"))
    if not folders:
        raise SettingsError(f"{dataset} holds no days (folders with a day.json); acquire one with calibrate laser")
    first = read_day(folders[0])
    for folder in folders[1:]:
        other = read_day(folder)
        if (other.objective, other.shape) != (first.objective, first.shape):
            raise SettingsError(
                f"{folder} is of objective {other.objective!r} and {other.shape} pixels, {folders[0]} of "
                f"{first.objective!r} and {first.shape}; a model serves one objective and camera, so split the dataset"
            )
    return folders


def stacks_of(folder: Path, kind: str) -> Iterator[tuple[Stack, Array]]:
    """Yield a day's stacks of one kind with the defocus of their planes, µm.

    Raises
    ------
    SettingsError
        When a stack cannot be used.
    """
    day = read_day(folder)
    for path in sorted(folder.glob(f"{kind}_*.ome.tif")):
        if ".part." in path.name:
            continue
        stack = read_stack(path)
        if stack.images.shape[1:] != day.shape:
            raise SettingsError(f"{path} has images of {stack.images.shape[1:]}, its day.json says {day.shape}")
        if not math.isfinite(float(stack.z_um.sum())):
            raise SettingsError(f"{path} has a z position that is not a number; acquire it again")
        yield stack, stack.z_um - day.focus_um


def frames_of(folders: list[Path], kind: str) -> Frames:
    """Return the labelled features of several days.

    Raises
    ------
    SettingsError
        When the days hold no stack of that kind.
    """
    parts = [
        labelled(stack.images, defocus, number)
        for number, folder in enumerate(folders)
        for stack, defocus in stacks_of(folder, kind)
    ]
    if not parts:
        raise SettingsError(f"the days hold no {kind}-range stack; acquire some with calibrate laser")
    return join(parts)
