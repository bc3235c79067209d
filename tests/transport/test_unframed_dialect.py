"""The seam for vendors' dialects: ASCII without frames, identities or terminators, on the same transport."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from mm_autofocus_devices.transport import (
    Client,
    Fault,
    FaultKind,
    Faults,
    Message,
    ProtocolError,
    RequestLostError,
    Server,
    TransportError,
)

REQUESTS = re.compile(rb"START\.|WD,(-?\d+\.\d)|PARK")


class AsciiDecoder:
    """Requests are told apart by their words; a reply ends where silence begins."""

    def __init__(self, server: bool) -> None:
        self._server, self._buffer = server, b""

    @property
    def busy(self) -> bool:
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Message]:
        self._buffer += data
        if len(self._buffer) > 1000:
            raise ProtocolError("more than any message of this dialect")
        messages: list[Message] = []
        while self._server and (found := REQUESTS.match(self._buffer)):
            word = found.group().partition(b",")[0].decode().strip(".")
            messages.append(Message(word, {"wd": float(found.group(1))} if found.group(1) else {}))
            self._buffer = self._buffer[found.end() :]
        return messages

    def flush(self) -> list[Message]:
        if self._server or not self._buffer:
            return []
        text, self._buffer = self._buffer.decode("euc-kr"), b""
        return [Message("", {"text": text})]


@dataclass(frozen=True)
class AsciiCodec:
    identifies: bool = False
    quiet_s: float | None = 0.05
    fields: list[str] = field(default_factory=list)

    def encode(self, message: Message) -> bytes:
        match message.name, message.kind:
            case "WD", 1:
                return f"WD,{message.real('wd'):.1f}".encode("ascii")
            case "PARK" | "START", 1:
                return message.name.encode("ascii")
            case _, 2:
                return message.text("text").encode("euc-kr")
        raise ProtocolError(f"this dialect has no {message.name!r}")

    def decoder(self, *, server: bool) -> AsciiDecoder:
        return AsciiDecoder(server)


class Instrument:
    def __init__(self) -> None:
        self.log: list[str] = []

    def __call__(self, request: Message) -> Message | None:
        self.log.append(request.name + (f" {request.real('wd'):g}" if request.name == "WD" else ""))
        match request.name:
            case "START":
                return request.reply(text="준비")
            case "WD":
                return request.reply(text=f"작동 {request.real('wd'):g}")
        return None  # PARK is not answered


def greet(send: Callable[[bytes], None], receive: Callable[[], Message]) -> None:
    send(b"START.")
    assert receive().text("text") == "준비"


@pytest.fixture
def instrument() -> Instrument:
    return Instrument()


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def client(instrument: Instrument, faults: Faults) -> Iterator[Client]:
    with (
        Server(instrument, AsciiCodec(), faults=faults) as server,
        Client(server.host, server.port, AsciiCodec(), timeout_s=1.0, request_s=3.0, on_connect=greet) as client,
    ):
        yield client


def test_requests_replies_and_requests_without_reply(client: Client, instrument: Instrument) -> None:
    assert client.request("WD", wd=4.5).text("text") == "작동 4.5"
    client.send("PARK")
    assert client.request("WD", wd=4.0).text("text") == "작동 4"
    assert instrument.log == ["START", "WD 4.5", "PARK", "WD 4"]
    with pytest.raises(ProtocolError, match="has no 'FLY'"):
        client.request("FLY")


def test_a_lost_reply_is_reported_unless_repeating_is_harmless(
    client: Client, instrument: Instrument, faults: Faults
) -> None:
    faults.add(Fault(FaultKind.CLOSE_AFTER, "WD"))
    with pytest.raises(RequestLostError):
        client.request("WD", wd=4.5)
    assert instrument.log == ["START", "WD 4.5", "START"]
    faults.add(Fault(FaultKind.CLOSE_AFTER, "WD"))
    assert client.request("WD", idempotent=True, wd=4.0).text("text") == "작동 4"
    assert instrument.log == ["START", "WD 4.5", "START", "WD 4", "START", "WD 4"]


def test_a_server_that_says_nothing(client: Client, faults: Faults) -> None:
    faults.add(Fault(FaultKind.SILENT, "START", times=100))
    with pytest.raises(TransportError, match="no complete reply in time"):
        client.request("WD", wd=4.5)


def test_an_unasked_reply_is_not_taken_for_that_of_the_next_request(instrument: Instrument) -> None:
    def chatty(request: Message) -> Message | None:
        return instrument(request) or request.reply(text="nobody asked")

    with (
        Server(chatty, AsciiCodec()) as server,
        Client(server.host, server.port, AsciiCodec(), timeout_s=1.0, on_connect=greet) as client,
    ):
        client.send("PARK")
        time.sleep(0.3)
        assert client.request("WD", wd=4.5).text("text") == "작동 4.5"
        assert client.reconnects == 1
