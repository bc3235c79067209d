"""The seam for dialects: how messages become bytes, and bytes messages, without touching a socket."""

from __future__ import annotations

from typing import Protocol

from mm_autofocus_devices.transport.message import Message


class Decoder(Protocol):
    """Turns the bytes of one connection into messages, whatever pieces they arrive in."""

    @property
    def busy(self) -> bool:
        """True while a message has begun and is not complete."""
        ...

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes that arrived and return the messages that they complete.

        Raises
        ------
        ProtocolError
            These bytes are not this dialect, or announce more than the limit. The connection must be closed.
        """
        ...

    def flush(self) -> list[Message]:
        """Return what silence completes: called when nothing has arrived for the codec's ``quiet_s``, and at the end.

        A framed dialect returns nothing. One without terminators takes what it has for a message.
        """
        ...


class Codec(Protocol):
    """A dialect."""

    @property
    def identifies(self) -> bool:
        """True when messages carry session and number, and connections begin with "hello"."""
        ...

    @property
    def quiet_s(self) -> float | None:
        """Silence that ends a message, seconds; None where the bytes tell."""
        ...

    def encode(self, message: Message) -> bytes:
        """Return the bytes of a message.

        Raises
        ------
        ProtocolError
            The dialect cannot say this, or it is over the size limit.
        """
        ...

    def decoder(self, *, server: bool) -> Decoder:
        """Return a decoder for a new connection: of requests if ``server``, else of replies."""
        ...
