"""Pixel-size presets that hang on a property of a Python device, such as an electron microscope's pixel size."""

from __future__ import annotations

from typing import Any, cast

from pymmcore_plus.experimental.unicore import UniMMCore


class PythonPixelSizes(UniMMCore):
    """`UniMMCore` that finds the present pixel size among presets of Python devices too.

    The native core keeps such presets but cannot read the property, so none would ever be the current one.
    """

    def getCurrentPixelSizeConfig(self, cached: bool = False) -> Any:
        """Return the pixel-size preset whose properties have their values now; "" for none."""
        return self._python_preset() or super().getCurrentPixelSizeConfig(cached)

    def getPixelSizeUm(self, cached: bool = False) -> float:
        """Return the size of a pixel in the specimen in µm, binning included; 0 when no preset fits."""
        if not (preset := self._python_preset()):
            return super().getPixelSizeUm(cached)
        return float(self.getPixelSizeUmByID(preset)) * self._enlargement()

    def getPixelSizeAffine(self, cached: bool = False) -> Any:
        """Return the affine transformation from pixels to µm of the present preset, row by row."""
        if not (preset := self._python_preset()):
            return super().getPixelSizeAffine(cached)
        factor = self._enlargement()
        return tuple(value * factor for value in self.getPixelSizeAffineByID(preset))

    def _python_preset(self) -> str:
        present: dict[tuple[str, str], object] = {}  # many presets, one property, one question to the instrument

        def is_so(label: str, name: str, value: str) -> bool:
            if (label, name) not in present:
                present[label, name] = self.getProperty(label, name)
            return _same(present[label, name], value)

        for preset in self.getAvailablePixelSizeConfigs():
            data = self.getPixelSizeConfigData(preset, native=True)
            settings = [data.getSetting(i) for i in range(data.size())]
            wanted = [(s.getDeviceLabel(), s.getPropertyName(), s.getPropertyValue()) for s in settings]
            if any(label in self._pydevices for label, _, _ in wanted) and all(is_so(*setting) for setting in wanted):
                return str(preset)
        return ""

    def _enlargement(self) -> float:
        camera = self._py_camera()
        binning = float(camera.get_property_value("Binning")) if camera is not None else 1.0
        return binning / float(self.getMagnificationFactor())


def _same(present: object, wanted: str) -> bool:
    """Tell whether a property has a preset's value; 10 and "10.0" are the same number."""
    try:
        return abs(float(cast("Any", present)) - float(wanted)) <= 1e-6 * max(abs(float(wanted)), 1.0)
    except (TypeError, ValueError):
        return str(present) == wanted
