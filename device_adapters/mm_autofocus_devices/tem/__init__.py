"""A transmission electron microscope over TCP: the client and its devices; the simulated instrument is in `server`."""

from mm_autofocus_devices.tem.instrument import TemClient, discard_tem, open_tem

__all__ = ["TemClient", "discard_tem", "open_tem"]
