"""The COXEM dialect on the wire: ASCII requests and EUC-KR replies without frames or terminators
(docs/protocol-coxem.md).

Requests are told apart by their words. ``WDMAG`` and ``POSITION`` end in a number, and a number has no end of its
own: the
next request's first letter ends it, or silence. A reply ends where silence begins.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from mm_autofocus_devices.transport import Kind, Message, ProtocolError

PORT = 9025
"""Where the instrument's program listens."""

GREETING = ("Connected.", "COMM.START.", "READY")
"""What a client says first, in this order, `GREETING_PAUSE_S` apart; nobody answers."""

GREETING_PAUSE_S = 0.005
ENCODING = "euc-kr"
QUIET_S = 0.05
"""Silence that ends a number or a reply, seconds; ten times the pause between the words of the greeting."""

WORKING_DISTANCE_DECIMALS = 5
"""Of a working distance in mm on the wire: 0.01 µm."""

_FIELDS = {"WDMAG": ("working_distance_mm", "magnification"), "POSITION": ("x", "y")}
_WORDS = (*GREETING, "FINISH", *(f"{name}," for name in _FIELDS))
_NUMBER = rb"-?\d{1,12}(?:\.\d{1,12})?"
_PLAIN = re.compile(rb"Connected\.|COMM\.START\.|READY|FINISH")
_NUMBERED = re.compile(rb"(WDMAG|POSITION),(" + _NUMBER + rb"),(" + _NUMBER + rb")")
_BEGUN = re.compile(
    rb"(?:WDMAG|POSITION),-?\d{0,12}(?:(?<=\d)\.\d{0,12})?(?:(?<=\d),-?\d{0,12}(?:(?<=\d)\.\d{0,12})?)?"
)
"""What may become such a request when more arrives."""

_CUT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_REPLY = 4096


class CoxemRequestDecoder:
    """Decodes what one client sends, and minds its order: greeting, requests, ``FINISH``, perhaps a new greeting."""

    def __init__(self) -> None:
        self._buffer = b""
        self._greeted = 0
        self._broken = False

    @property
    def busy(self) -> bool:
        """True while a request has begun that nothing has ended."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes and return the requests that they complete.

        Raises
        ------
        ProtocolError
            What arrived cannot become a request, or comes before the greeting.
        """
        if self._broken:
            raise ProtocolError("this connection has sent what is no COXEM request; close it")
        self._buffer += data
        try:
            return self._requests(ended=False)
        except ProtocolError:
            self._broken, self._buffer = True, b""
            raise

    def flush(self) -> list[Message]:
        """Return the request whose last number silence has ended; what lacks more than that is waited for."""
        return self._requests(ended=True)

    def _requests(self, *, ended: bool) -> list[Message]:
        messages: list[Message] = []
        while self._buffer:
            if plain := _PLAIN.match(self._buffer):
                messages += self._in_order(plain.group().decode("ascii"))
                self._buffer = self._buffer[plain.end() :]
                continue
            found = _NUMBERED.match(self._buffer)
            if found and ((ended and found.end() == len(self._buffer)) or self._buffer[found.end() :][:1].isalpha()):
                name = found.group(1).decode("ascii")
                values = (float(found.group(2)), float(found.group(3)))
                messages += self._in_order(name, **dict(zip(_FIELDS[name], values, strict=True)))
                self._buffer = self._buffer[found.end() :]
                continue
            begun = any(word.encode("ascii").startswith(self._buffer) for word in _WORDS)
            if not begun and not _BEGUN.fullmatch(self._buffer):
                raise ProtocolError(f"{self._buffer[:40]!r} does not begin any COXEM request")
            break
        return messages

    def _in_order(self, name: str, **fields: float) -> list[Message]:
        if self._greeted < len(GREETING):
            if name != GREETING[self._greeted]:
                raise ProtocolError(f"{name!r} came where the greeting's {GREETING[self._greeted]!r} is expected")
            self._greeted += 1
        elif name == "FINISH":
            self._greeted = 0
        elif name in GREETING:
            raise ProtocolError(f"{name!r} came a second time")
        return [Message(name, dict(fields))]


class CoxemReplyDecoder:
    """Decodes what the server sends: text, whose end only silence shows."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder(ENCODING)("strict")
        self._text = ""
        self._bytes = 0

    @property
    def busy(self) -> bool:
        """True while a reply has begun."""
        return self._bytes > 0

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes; never returns a message, `flush` does.

        Raises
        ------
        ProtocolError
            They are no EUC-KR, or more than any reply has.
        """
        self._bytes += len(data)
        if self._bytes > _LONGEST_REPLY:
            raise ProtocolError(f"a reply of more than {_LONGEST_REPLY} bytes arrived; no COXEM reply is that long")
        try:
            self._text += self._decoder.decode(data)
        except UnicodeDecodeError as error:
            raise ProtocolError(f"a reply arrived that is no {ENCODING}: {error.reason}") from None
        return []

    def flush(self) -> list[Message]:
        """Return what has arrived as one reply; of a character cut in two at its end a replacement character is
        left."""
        if not self._bytes:
            return []
        cut = self._decoder.getstate()[0]
        text = self._text + (_CUT if cut else "")
        self._decoder.reset()
        self._text, self._bytes = "", 0
        return [Message("", {"text": text}, kind=Kind.REPLY)]


@dataclass(frozen=True, slots=True)
class CoxemCodec:
    """The COXEM dialect; see `mm_autofocus_devices.transport.Codec`."""

    quiet_s: float | None = QUIET_S

    @property
    def identifies(self) -> bool:
        """False: nothing tells which request a reply belongs to."""
        return False

    def encode(self, message: Message) -> bytes:
        """Return the bytes of a request or a reply.

        Raises
        ------
        ProtocolError
            The dialect has no such request.
        """
        if message.kind is not Kind.REQUEST:
            return message.text("text").encode(ENCODING, errors="replace")
        if message.name in _FIELDS:
            x, y = (message.real(key) for key in _FIELDS[message.name])
            return f"{message.name},{_number(x)},{_number(y)}".encode("ascii")
        if message.name in (*GREETING, "FINISH"):
            return message.name.encode("ascii")
        raise ProtocolError(
            f"the COXEM dialect has no request {message.name!r}; it has {', '.join((*_FIELDS, 'FINISH'))}"
        )

    def decoder(self, *, server: bool) -> CoxemRequestDecoder | CoxemReplyDecoder:
        """Return a decoder for a new connection: of requests if ``server``, else of replies."""
        return CoxemRequestDecoder() if server else CoxemReplyDecoder()


def on_wire(value: float) -> float:
    """Return a number as the wire carries it: rounded to `WORKING_DISTANCE_DECIMALS`."""
    return float(_number(value))


def _number(value: float) -> str:
    """Write a number without exponent, sign of zero or needless zeros."""
    if not abs(value) < 1e12:
        raise ProtocolError(f"{value:g} is too large a number for the COXEM dialect")
    text = f"{value:.{WORKING_DISTANCE_DECIMALS}f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
