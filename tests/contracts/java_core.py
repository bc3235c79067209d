"""A double of the core that ``pycromanager.Core()`` returns when Micro-Manager runs in Java.

It delegates to a real core and looks like the Java one through pycro-manager's bridge: methods have snake_case names
only, ``get_tagged_image()`` takes no arguments and returns flat pixels, vectors of strings are remote objects with
``size()`` and ``get(i)``, the ROI is a rectangle object, remote objects cannot be hashed. Errors of Java arrive as
plain `Exception`. It is stricter than the bridge in one point: NumPy numbers are refused, where the bridge takes
some kinds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from mm_autofocus_devices.snake_case import camel_to_snake


class RemoteObject:
    """An object that lives in Java: known by its methods, not hashable, not iterable."""

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__!r} object is not iterable: it is in Java")


class StrVector(RemoteObject):
    """mmcorej.StrVector."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = list(strings)

    def size(self) -> int:
        return len(self._strings)

    def get(self, i: int) -> str:
        return self._strings[i]


class Rectangle(RemoteObject):
    """java.awt.Rectangle; fields are attributes."""

    def __init__(self, x: int, y: int, width: int, height: int) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height


class JavaTaggedImage(RemoteObject):
    """mmcorej.TaggedImage: `pix` is one-dimensional, `tags` says its shape."""

    def __init__(self, pix: Any, tags: dict[str, Any]) -> None:
        self.pix, self.tags = pix, tags


class JavaCore(RemoteObject):
    """The double; `core` is any core with Micro-Manager's own names."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._names = {camel_to_snake(name): name for name in dir(core) if camel_to_snake(name) != name}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(f"JavaCore object has no attribute {name!r}")

        def method(*args: Any) -> Any:
            return self._call(name, args)

        return method

    def _call(self, name: str, args: tuple[Any, ...]) -> Any:
        for arg in args:
            if type(arg) not in (str, int, float, bool):
                raise TypeError(f"{name}: {type(arg).__name__} cannot be sent to Java")
        self.calls.append(name)
        try:
            answer = getattr(self._core, self._names[name])(*args)
        except Exception as error:
            raise Exception(f"java.lang.Exception: {error}") from None
        if name == "get_roi":
            return Rectangle(*answer)
        if isinstance(answer, (tuple, list)) and all(isinstance(item, str) for item in answer):
            return StrVector(answer)
        return answer.ravel() if name == "get_image" else answer

    def get_tagged_image(self) -> JavaTaggedImage:
        """Return the image of the last snap, flat, with its shape in the tags."""
        self.calls.append("get_tagged_image")
        try:
            pix = self._core.getImage()
        except Exception as error:
            raise Exception(f"java.lang.Exception: {error}") from None
        tags = {"Width": pix.shape[1], "Height": pix.shape[0], "Camera": self._core.getCameraDevice()}
        return JavaTaggedImage(pix.ravel(), tags)
