"""One TCP transport for every instrument: framed, size-capped, free of pickle, with a time-out on every wait.

A dialect is a `Codec` on it. The native one, `FrameCodec`, is described byte by byte in docs/protocol.md.
"""

from mm_autofocus_devices.transport.client import Client
from mm_autofocus_devices.transport.codec import Codec, Decoder
from mm_autofocus_devices.transport.faults import Fault, FaultKind, Faults
from mm_autofocus_devices.transport.framing import FrameCodec
from mm_autofocus_devices.transport.message import (
    Kind,
    Message,
    ProtocolError,
    RemoteError,
    RequestLostError,
    TransportError,
)
from mm_autofocus_devices.transport.server import Handler, Server

__all__ = [
    "Client",
    "Codec",
    "Decoder",
    "Fault",
    "FaultKind",
    "Faults",
    "FrameCodec",
    "Handler",
    "Kind",
    "Message",
    "ProtocolError",
    "RemoteError",
    "RequestLostError",
    "Server",
    "TransportError",
]
