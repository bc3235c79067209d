"""``mm-autofocus bench memory``: scans a 1536-well plate and watches whether the memory grows with the wells."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mm_autofocus.autofocus import Autofocus
from mm_autofocus.benchmark.page import machine, write_page
from mm_autofocus.cli.acquire import acquire_events, writable_folder
from mm_autofocus.errors import SettingsError
from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.report.data import Chart, Section, installed_versions
from mm_autofocus.report.plots import GOOD, MUTED, axis, chart, plain
from mm_autofocus.settings import Settings
from mm_autofocus.simulation.plate import Plate
from mm_autofocus_devices.autofocus_strategy import CONFIGS
from mm_autofocus_devices.core import AutofocusCore
from mm_autofocus_devices.plate import PlateInstrument, discard_instrument, open_instrument

INSTRUMENT = "plate"
FIELD_PX = 256
"""A small camera: what is measured is what stays, not one frame."""
MIB = 2**20


def resident_mib() -> float:
    """Return the resident memory of this process in MiB.

    Raises
    ------
    SettingsError
        Where the system does not tell.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        raise SettingsError(f"the resident memory cannot be read on {sys.platform}; run it on Linux") from None
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


class MemoryWatch:
    """Notes the resident memory after every focus run."""

    def __init__(self, say: Callable[[str], None], wells: int, instrument: PlateInstrument) -> None:
        self.mib: list[float] = []
        self._say, self._wells, self._instrument = say, wells, instrument

    @hookimpl
    def mmaf_focused(self) -> None:
        """Note it; the simulation's own book-keeping of the truth is not what is measured."""
        self._instrument.forget_exposures()
        self.mib.append(resident_mib())
        if len(self.mib) % 96 == 0:
            self._say(f"well {len(self.mib)} of {self._wells}: {self.mib[-1]:.0f} MiB")


def bench_memory(
    *, wells: int = 1536, first: int = 96, out: Path, seed: int = 1, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Focus in and image every well with pycro-manager, recorder on; compare the peak so far at two wells.

    The peak counts from the first third of the ``first`` wells on: before that, tables are computed once that need
    more memory than anything later, and would hide what grows.

    Parameters
    ----------
    wells, first
        How many wells; the well whose peak the last one's is compared with.
    out
        Folder for the dataset, the records, memory.json and memory.html.
    seed
        Of the plate.
    say
        Told every 96 wells.

    Raises
    ------
    SettingsError
        When ``first`` is not below ``wells``, or the folder cannot be written to.
    """
    if first >= wells:
        raise SettingsError(f"--first {first} must be below --wells {wells}")
    out = writable_folder(out)
    plate = Plate("1536")
    discard_instrument(INSTRUMENT)
    instrument = open_instrument(INSTRUMENT, wells="1536", seed=seed, height_span_um=60.0, field_px=FIELD_PX)
    core = AutofocusCore()
    watch = MemoryWatch(say, wells, instrument)
    try:
        core.loadSystemConfiguration(_configuration(out))
        settings = Settings.load(CONFIGS / "plate.toml").model_dump(exclude_unset=True)
        settings["recorder"] = {"folder": str(out)}
        autofocus = Autofocus(
            core, Settings.parse(settings), plugins=[watch], clock=lambda: instrument.clock_s, sleep=instrument.advance
        )  # fmt: skip
        dataset = acquire_events(core, autofocus, _events(plate, wells, instrument), out)
    finally:
        core.unloadAllDevices()
        discard_instrument(INSTRUMENT)
    gc.collect()
    begin = first // 3
    peak_first, peak_last = max(watch.mib[begin:first]), max(watch.mib[begin:])
    outcome = {
        "wells": wells,
        "first": first,
        "machine": machine(),
        "images_expected": dataset["images_expected"],
        "images_present": dataset["images_present"],
        "peak_mib_first": round(peak_first, 1),
        "peak_mib_last": round(peak_last, 1),
        "growth_percent": round(100 * (peak_last / peak_first - 1), 2),
        "mib": [round(value, 1) for value in watch.mib],
    }
    (out / "memory.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    _page(outcome, out / "memory.html")
    return outcome


def _configuration(out: Path) -> Path:
    """Write plate.cfg without the properties that the instrument has got already."""
    text = (CONFIGS / "plate.cfg").read_text(encoding="utf-8")
    taken = ("Wells", "Seed", "HeightSpanUm")
    starts = tuple(f"#py Property,Camera,{name}," for name in taken)
    lines = [line for line in text.splitlines() if not line.startswith(starts)]
    path = out / "plate.cfg"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _events(plate: Plate, wells: int, instrument: Any) -> list[dict[str, Any]]:
    """One image in each well, row by row in a snake."""
    rows, columns = plate.format.rows, plate.format.columns
    names = plate.well_names()
    order = [
        names[row * columns + (column if row % 2 == 0 else columns - 1 - column)]
        for row in range(rows)
        for column in range(columns)
    ]
    z = float(round(instrument.true_focus_um(*plate.well_centre(order[0])) + 3.0))  # focused by hand, a little off
    return [
        {"axes": {"position": name}, "x": x, "y": y, "z": z, "config_group": ["Channel", "DAPI"], "exposure": 20.0}
        for name in order[:wells]
        for x, y in [plate.well_centre(name)]
    ]


def _page(outcome: dict[str, Any], path: Path) -> None:
    mib = outcome["mib"]
    figure = chart(
        [{
            "type": "scatter", "mode": "lines", "x": list(range(1, len(mib) + 1)), "y": plain(mib),
            "line": {"color": GOOD},
        }],
        axis("well"), axis("resident memory, MiB", rangemode="tozero"),
    )  # fmt: skip
    figure["layout"]["shapes"] = [{
        "type": "line", "x0": outcome["first"], "x1": outcome["first"], "y0": 0, "y1": 1, "yref": "paper",
        "line": {"color": MUTED, "dash": "dot"},
    }]  # fmt: skip
    headline = (
        f"Peak {outcome['peak_mib_first']:.0f} MiB at well {outcome['first']}, {outcome['peak_mib_last']:.0f} MiB at "
        f"well {outcome['wells']}: {outcome['growth_percent']:+.1f} %"
    )
    picture = Chart(
        name="memory", title="Resident memory", kind="wide", figure=figure,
        caption="After every focus run. Dotted: the well that the growth counts from.",
    )  # fmt: skip
    section = Section(name="memory", title="Memory over the wells", charts=[picture])
    write_page(path, "bench memory", headline, {"machine": machine(), **installed_versions()}, [section])
