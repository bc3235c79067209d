"""The native dialect: frames of a fixed prefix, a JSON header, raw bytes, and a checksum (docs/protocol.md)."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from mm_autofocus_devices.transport.message import Kind, Message, ProtocolError, Value

MAGIC = b"MMAF"
VERSION = 1
PREFIX = struct.Struct(">4sBBHIQQQ")
"""Magic, version, kind, reserved (0), header length, payload length, session, number."""
TRAILER = struct.Struct(">I")
"""CRC-32 of everything before it."""

MAX_HEADER = 64 * 1024
MAX_PAYLOAD = 64 * 1024 * 1024
"""A 16-bit frame of 4096 x 4096 is half of it."""

_KINDS = frozenset(int(kind) for kind in Kind)
_MAX_FIELDS = 256
_MAX_WHOLE = 1 << 63


@dataclass(frozen=True, slots=True)
class FrameCodec:
    """The native dialect.

    Parameters
    ----------
    max_header, max_payload
        Most bytes of a header and of a payload. What announces more is refused before anything is allocated.
    """

    max_header: int = MAX_HEADER
    max_payload: int = MAX_PAYLOAD

    @property
    def identifies(self) -> bool:
        """True: frames carry session and number."""
        return True

    @property
    def quiet_s(self) -> float | None:
        """None: frames say where they end."""
        return None

    def encode(self, message: Message) -> bytes:
        """Return the frame of a message.

        Raises
        ------
        ProtocolError
            A field cannot be expressed, or the message is over the size limit.
        """
        _check_fields(message.name, message.fields)
        try:
            text = json.dumps({"name": message.name, "fields": dict(message.fields)}, allow_nan=False)
            header = text.encode("utf-8")
            prefix = PREFIX.pack(
                MAGIC, VERSION, message.kind, 0, len(header), len(message.payload), message.session, message.number
            )
        except (TypeError, ValueError, struct.error) as error:
            raise ProtocolError(f"message {message.name!r} cannot be sent: {error}") from None
        self._check_lengths(len(header), len(message.payload))
        checksum = zlib.crc32(message.payload, zlib.crc32(header, zlib.crc32(prefix)))
        return b"".join((prefix, header, message.payload, TRAILER.pack(checksum)))

    def decoder(self, *, server: bool) -> FrameDecoder:
        """Return a decoder for a new connection, of requests if ``server``, else of replies."""
        return FrameDecoder(self, server=server)

    def _check_lengths(self, header: int, payload: int) -> None:
        if header > self.max_header or payload > self.max_payload:
            raise ProtocolError(
                f"a frame with a header of {header} and a payload of {payload} bytes is over the limits of "
                f"{self.max_header} and {self.max_payload} bytes; it was refused and nothing was allocated for it"
            )


class FrameDecoder:
    """Decodes one connection's frames; after a `ProtocolError` it accepts nothing more.

    Parameters
    ----------
    codec
        The limits.
    server
        True: requests are expected, else replies and errors.
    """

    def __init__(self, codec: FrameCodec, *, server: bool) -> None:
        self._codec, self._server = codec, server
        self._buffer = bytearray()
        self._need = PREFIX.size
        self._broken = False

    @property
    def busy(self) -> bool:
        """True while a frame has begun and is not complete."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes that arrived and return the messages that they complete.

        Raises
        ------
        ProtocolError
            These bytes are no frame. Messages that were complete before them in the same call are lost with them.
        """
        if self._broken:
            raise ProtocolError("this connection has sent what is no frame; close it")
        try:
            return self._feed(data)
        except ProtocolError:
            self._broken = True
            self._buffer.clear()
            raise

    def flush(self) -> list[Message]:
        """Return nothing: silence ends no frame."""
        return []

    def _feed(self, data: bytes) -> list[Message]:
        buffer = self._buffer
        buffer += data
        messages: list[Message] = []
        start = 0
        while True:
            have = len(buffer) - start
            if have < PREFIX.size:
                head = bytes(buffer[start : start + len(MAGIC)])
                if not MAGIC.startswith(head):  # nonsense is refused at its first byte, not after a whole prefix
                    raise ProtocolError(f"a frame must begin with {MAGIC!r}, not {head!r}")
                break
            need = self._frame_length(start)
            if have < need:
                break
            messages.append(self._frame(start, need))
            start += need
        del buffer[:start]
        return messages

    def _frame_length(self, start: int) -> int:
        magic, version, kind, reserved, header, payload, _, _ = PREFIX.unpack_from(self._buffer, start)
        if magic != MAGIC:
            raise ProtocolError(f"a frame must begin with {MAGIC!r}, not {magic!r}")
        if version != VERSION:
            raise ProtocolError(f"a frame of version {version} arrived; this end speaks version {VERSION}")
        if kind not in _KINDS or (kind == Kind.REQUEST) != self._server:
            wanted = "a request" if self._server else "a reply or an error"
            raise ProtocolError(f"a frame of kind {kind} arrived where {wanted} is expected")
        if reserved:
            raise ProtocolError(f"the reserved bytes of a frame must be 0, not {reserved:#06x}")
        self._codec._check_lengths(header, payload)
        return int(PREFIX.size + header + payload + TRAILER.size)

    def _frame(self, start: int, length: int) -> Message:
        with memoryview(self._buffer) as view:
            body = start + PREFIX.size
            end = start + length - TRAILER.size
            (checksum,) = TRAILER.unpack_from(view, end)
            if zlib.crc32(view[start:end]) != checksum:
                raise ProtocolError("a frame arrived damaged: its checksum does not match")
            _, _, kind, _, header_length, _, session, number = PREFIX.unpack_from(view, start)
            header = bytes(view[body : body + header_length])
            payload = bytes(view[body + header_length : end])
        name, fields = _parse_header(header)
        return Message(name, fields, payload, Kind(kind), session, number)


def _parse_header(header: bytes) -> tuple[str, dict[str, Value]]:
    try:
        parsed: Any = json.loads(header.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the header of a frame is no JSON: {error}") from None
    if not isinstance(parsed, dict) or set(parsed) != {"name", "fields"}:
        raise ProtocolError('the header of a frame must be {"name": ..., "fields": {...}}')
    name, fields = parsed["name"], parsed["fields"]
    if not isinstance(name, str) or not isinstance(fields, dict):
        raise ProtocolError('in the header of a frame "name" must be a string and "fields" an object')
    _check_fields(name, fields)
    return name, fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_fields(name: str, fields: Mapping[str, Any]) -> None:
    if len(fields) > _MAX_FIELDS:
        raise ProtocolError(f"message {name[:60]!r} has {len(fields)} fields, more than {_MAX_FIELDS}")
    for key, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            if not _is_scalar(item):
                raise ProtocolError(
                    f"field {key[:60]!r} of message {name[:60]!r} must be a string, a finite number, true, false, null "
                    f"or a flat list of those, not {type(item).__name__}"
                )


def _is_scalar(item: object) -> bool:
    if isinstance(item, float):
        return math.isfinite(item)
    if isinstance(item, int):  # bool included
        return -_MAX_WHOLE <= item < 2 * _MAX_WHOLE
    return item is None or isinstance(item, str)
