"""A recorded z-stack as a microscope: any strategy runs on it, in Micro-Manager."""

from mm_autofocus_devices.replay.instrument import RecordedStack

__all__ = ["RecordedStack"]
