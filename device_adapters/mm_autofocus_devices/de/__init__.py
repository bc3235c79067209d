"""A Direct Electron camera (DE-Server) and the TEM under it (DE-TEM-Channel) as Micro-Manager devices.

Needs the package ``deapi``; ``pip install mm-autofocus[detwin]`` brings it together with ``de-twin``, a digital twin of
such a microscope that speaks both protocols.
"""

from mm_autofocus_devices.de.instrument import DeInstrument, discard_de, open_de

__all__ = ["DeInstrument", "discard_de", "open_de"]
