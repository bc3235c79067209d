"""Focus from any script: load a configuration whose AutoFocus device runs a strategy, and call fullFocus()."""

from pathlib import Path

import mm_autofocus_devices
from mm_autofocus_devices.core import AutofocusCore

core = AutofocusCore()
core.loadSystemConfiguration(Path(mm_autofocus_devices.__path__[0]) / "configs" / "plate.cfg")
for x, y in ((0, 0), (9000, 0), (18000, 0)):
    core.setXYPosition(x, y)
    core.waitForDevice("XY")
    core.fullFocus()  # raises RuntimeError, with the reason, when no focus is found
    print(f"well at {x / 1000:g} mm: in focus at z = {core.getPosition():.2f} µm")
core.unloadAllDevices()
