"""The facade over any Micro-Manager core: knobs with limits, imaging, and a state that is always restored."""

from mm_autofocus.microscope.core import PortableCore
from mm_autofocus.microscope.knob import Knob
from mm_autofocus.microscope.microscope import Microscope

__all__ = ["Knob", "Microscope", "PortableCore"]
