"""What travels between a client and an instrument's server, and what can go wrong on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from mm_autofocus.errors import HardwareError

Scalar = str | int | float | bool | None
Value = Scalar | list[Scalar]


class TransportError(HardwareError):
    """The instrument's server could not be reached, or did not answer in time."""


class ProtocolError(TransportError):
    """What arrived is not a message, or a message is not what its name promises; the connection is given up."""


class RequestLostError(TransportError):
    """The connection broke and nobody can tell whether the request was applied; it was not sent again."""


class RemoteError(HardwareError):
    """The server received the request, refused it or failed at it, and said why.

    Attributes
    ----------
    code
        A word to act upon: "limit", "unknown", "invalid", "session", "hardware", "internal".
    """

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class Kind(IntEnum):
    """What a message is."""

    REQUEST = 1
    REPLY = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Message:
    """One request, reply or error.

    Attributes
    ----------
    name
        What is asked for; a reply repeats it. Dialects without named replies leave it empty.
    fields
        Strings, whole and finite real numbers, truth values, None, and flat lists of those.
    payload
        Raw bytes, for images.
    kind
        Request, reply or error.
    session, number
        Identify a request: a retry repeats them, so that the server applies it once. 0 in dialects without.
    """

    name: str
    fields: Mapping[str, Value] = field(default_factory=dict)
    payload: bytes = b""
    kind: Kind = Kind.REQUEST
    session: int = 0
    number: int = 0

    def reply(self, *, payload: bytes = b"", **fields: Value) -> Message:
        """Return the reply to this request."""
        return Message(self.name, fields, payload, Kind.REPLY, self.session, self.number)

    def error(self, code: str, text: str) -> Message:
        """Return the refusal of this request."""
        return Message(self.name, {"code": code, "text": text}, b"", Kind.ERROR, self.session, self.number)

    def real(self, key: str) -> float:
        """Return a field that must be a finite number.

        Raises
        ------
        ProtocolError
            When it is missing or something else.
        """
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, "a finite number")
        try:
            return float(value)
        except OverflowError:
            raise self._wrong(key, "a finite number") from None

    def whole(self, key: str) -> int:
        """Return a field that must be a whole number; raises what `real` raises."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "a whole number")
        return value

    def text(self, key: str) -> str:
        """Return a field that must be a string; raises what `real` raises."""
        value = self._get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def truth(self, key: str) -> bool:
        """Return a field that must be true or false; raises what `real` raises."""
        value = self._get(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def wholes(self, key: str, count: int) -> tuple[int, ...]:
        """Return a field that must be a list of ``count`` whole numbers; raises what `real` raises."""
        value = self._get(key)
        numbers = [v for v in value if isinstance(v, int) and not isinstance(v, bool)] if type(value) is list else []
        if len(numbers) != count or not isinstance(value, list) or len(value) != count:
            raise self._wrong(key, f"a list of {count} whole numbers")
        return tuple(numbers)

    def _get(self, key: str) -> Value:
        if key not in self.fields:
            raise ProtocolError(
                f"message {self.name!r} has no field {key!r}; it has {', '.join(self.fields) or 'none'}"
            )
        return self.fields[key]

    def _wrong(self, key: str, wanted: str) -> ProtocolError:
        shown = repr(self.fields[key])
        return ProtocolError(f"field {key!r} of message {self.name!r} must be {wanted}, not {shown[:60]}")
