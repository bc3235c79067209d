"""pycro-manager's names of a core's methods, and its tagged images."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from pymmcore_plus.experimental.unicore import UniMMCore


class TaggedImage:
    """An image and its metadata, as pycro-manager's acquisition engine expects them.

    Attributes
    ----------
    tags
        Metadata by name, or None at the end of an acquisition.
    pix
        Pixels of shape (height, width), or None at the end of an acquisition.
    """

    def __init__(self, tags: dict[str, Any] | None, pix: np.ndarray | None) -> None:
        self.tags = tags
        self.pix = pix


def camel_to_snake(name: str) -> str:
    """Return pycro-manager's name of a core method: ``getXYPosition`` becomes ``get_xy_position``."""
    return re.sub("([a-z0-9])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()


class SnakeCaseNames:
    """A mixin with a snake_case name for every public method of `UniMMCore`, calling whatever overrides the method.

    It comes before `UniMMCore` among the bases: ``load_py_device`` is `UniMMCore`'s own and would bypass overrides.
    """

    TaggedImage = TaggedImage

    if TYPE_CHECKING:  # the names are made below

        def __getattr__(self, name: str) -> Any: ...


def _alias(name: str, snake: str) -> Callable[..., Any]:
    def method(self: SnakeCaseNames, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, name)(*args, **kwargs)

    method.__name__ = snake
    method.__qualname__ = f"SnakeCaseNames.{snake}"
    method.__doc__ = f"`{name}` under pycro-manager's name."
    return method


for _name in dir(UniMMCore):
    _snake = camel_to_snake(_name)
    if not _name.startswith("_") and _snake != _name and callable(getattr(UniMMCore, _name)):
        setattr(SnakeCaseNames, _snake, _alias(_name, _snake))
