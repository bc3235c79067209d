"""Client and server of the transport: what is asked is applied once, whatever happens to the connection."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from mm_autofocus.errors import HardwareError, LimitError
from mm_autofocus_devices.transport import (
    Client,
    Fault,
    FaultKind,
    Faults,
    FrameCodec,
    Kind,
    Message,
    ProtocolError,
    RemoteError,
    RequestLostError,
    Server,
    TransportError,
)


class Counter:
    """An instrument whose only command is not idempotent."""

    def __init__(self) -> None:
        self.value = 0
        self.left: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()

    def __call__(self, request: Message) -> Message:
        match request.name:
            case "add":
                assert self.gate.wait(20)
                with self.lock:
                    self.value += request.whole("by")
                    return request.reply(value=self.value)
            case "image":
                return request.reply(payload=bytes(request.whole("size")), doubled=2.0 * request.real("size"))
            case "limit":
                raise LimitError("beyond the end")
            case "broken":
                raise HardwareError("the gun is off")
            case "bug":
                raise ZeroDivisionError("oops")
            case "unsendable":
                return request.reply(payload=bytes(1 << 20 | 1))
        raise RemoteError(f"unknown request {request.name!r}", "unknown")


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def server(counter: Counter, faults: Faults) -> Iterator[Server]:
    codec = FrameCodec(max_payload=1 << 20)
    with Server(counter, codec, message_s=0.4, on_disconnect=counter.left.append, faults=faults) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.host, server.port, timeout_s=0.3, request_s=10.0) as client:
        yield client


def until(true: object, what: str = "it never happened") -> None:
    deadline = time.monotonic() + 10
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_requests_and_replies(client: Client) -> None:
    assert client.request("add", by=3).whole("value") == 3
    reply = client.request("image", size=500_000)
    assert len(reply.payload) == 500_000
    assert reply.real("doubled") == 1e6
    assert client.request("add", by=4).fields == {"value": 7}


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("limit", "limit", "beyond the end"),
        ("broken", "hardware", "the gun is off"),
        ("bug", "internal", "ZeroDivisionError: oops"),
        ("nonsense", "unknown", "nonsense"),
        ("add", "invalid", "no field 'by'"),
        ("unsendable", "internal", "over the limits"),
    ],
)
def test_a_refusal_says_why_and_the_connection_stays(client: Client, name: str, code: str, text: str) -> None:
    with pytest.raises(RemoteError, match=text) as caught:
        client.request(name)
    assert caught.value.code == code
    assert client.request("add", by=1).whole("value") == 1
    assert client.reconnects == 0


@pytest.mark.parametrize("kind", list(FaultKind))
def test_a_request_is_applied_once_whatever_happens_to_it(
    client: Client, counter: Counter, faults: Faults, kind: FaultKind
) -> None:
    client.request("add", by=1)
    faults.add(Fault(kind, "add"))
    assert client.request("add", by=10).whole("value") == 11
    assert counter.value == 11
    assert client.request("add", by=100).whole("value") == 111
    assert faults.struck == [("add", kind)]
    assert client.reconnects == (0 if kind is FaultKind.SLOW else 1)


def test_two_faults_in_a_row(client: Client, counter: Counter, faults: Faults) -> None:
    faults.add(Fault(FaultKind.CLOSE_AFTER, times=2))
    faults.add(Fault(FaultKind.GARBAGE))
    assert client.request("add", by=10).whole("value") == 10
    assert counter.value == 10


def test_a_request_that_outlasts_the_time_out_is_waited_for_not_repeated(client: Client, counter: Counter) -> None:
    counter.gate.clear()
    threading.Timer(0.5, counter.gate.set).start()
    assert client.request("add", by=1).whole("value") == 1
    assert counter.value == 1
    assert client.reconnects >= 1


def test_a_time_known_beforehand_is_waited_for(client: Client, counter: Counter) -> None:
    counter.gate.clear()
    threading.Timer(0.5, counter.gate.set).start()
    assert client.request("add", by=1, extra_s=5.0).whole("value") == 1
    assert client.reconnects == 0


def test_a_restarted_server_gets_no_request_twice(counter: Counter) -> None:
    faults = Faults(Fault(FaultKind.SILENT, "add"))
    first = Server(counter, faults=faults)
    first.start()
    with Client("127.0.0.1", first.port, timeout_s=0.6) as client:
        second = Server(counter, port=first.port)

        def restart() -> None:
            until(lambda: counter.value == 1)
            first.stop()
            second.start()

        thread = threading.Thread(target=restart)
        thread.start()
        try:
            with pytest.raises(RequestLostError, match="cannot be told whether"):
                client.request("add", by=1)
            assert counter.value == 1
            assert client.request("add", by=1).whole("value") == 2
            faults.add(Fault(FaultKind.SILENT, "add"))
        finally:
            thread.join()
            second.stop()


def test_an_idempotent_request_survives_a_restart_and_the_owner_restores_first(counter: Counter) -> None:
    order: list[str] = []

    def handler(request: Message) -> Message:
        order.append(request.name)
        return counter(request)

    with Server(handler) as first:
        port = first.port
        client = Client("127.0.0.1", port, timeout_s=2.0, on_restart=lambda: order.append("restored") or None)
        client.request("add", by=1)
    with Server(handler, port=port):
        assert client.request("add", by=1, idempotent=True).whole("value") == 2
        assert order == ["add", "restored", "add"]
        client.request("add", by=1)
        assert order.count("restored") == 1
        client.close()


def test_the_owner_may_ask_the_server_while_it_restores(counter: Counter) -> None:
    with Server(counter) as first:
        port = first.port
        client = Client("127.0.0.1", port, timeout_s=2.0, on_restart=lambda: client.request("add", by=100) and None)
        client.request("add", by=1)
    with Server(counter, port=port):
        assert client.request("add", by=1).whole("value") == 102
        client.close()


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pauses: list[float] = []
    client = Client("127.0.0.1", port, timeout_s=1.0, sleep=pauses.append)
    with pytest.raises(TransportError, match=rf"127.0.0.1:{port}.*no connection.*Is it running"):
        client.request("add", by=1)
    assert pauses == [0.05, 0.1, 0.2, 0.4]


def test_a_listener_that_never_answers_costs_bounded_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        client = Client("127.0.0.1", mute.getsockname()[1], timeout_s=0.1, request_s=0.5)
        with pytest.raises(TransportError, match="no complete reply in time"):
            client.request("add", by=1)


def test_many_clients_at_once(server: Server, counter: Counter) -> None:
    def work() -> None:
        with Client(server.host, server.port, timeout_s=10.0) as client:
            for _ in range(20):
                client.request("add", by=1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert counter.value == 160
    until(lambda: server.clients == 0)
    assert len(counter.left) == 8
    assert min(counter.left) == 0


def test_one_client_from_many_threads(client: Client, counter: Counter) -> None:
    threads = [threading.Thread(target=lambda: client.request("add", by=1)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert counter.value == 16
    assert client.reconnects == 0


def raw(server: Server) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=10)


def closed(connection: socket.socket) -> bool:
    """Tell whether the server ends the connection; anything it sends before is read."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


HELLO = FrameCodec().encode(Message("hello", session=5))
REQUEST = FrameCodec().encode(Message("add", {"by": 1}, session=5, number=1))


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(range(256)) * 40,
        HELLO + b"X",
        HELLO + REQUEST[:-1] + bytes([REQUEST[-1] ^ 1]),
        HELLO + REQUEST[:60] + bytes([REQUEST[60] ^ 4]) + REQUEST[61:],
        REQUEST,  # without hello
        HELLO + FrameCodec().encode(Message("add", {"by": 1}, session=6, number=1)),
        HELLO + FrameCodec().encode(Message("add", {"by": 1}, kind=Kind.REPLY, session=5, number=1)),
        HELLO + REQUEST[:12] + (10 * 10**9).to_bytes(8, "big") + REQUEST[20:],
        HELLO + REQUEST[:8] + b"\xff\xff\xff\xff" + REQUEST[12:],
        b"",  # never says anything
        HELLO + REQUEST[:-5],  # half a frame, then silence
        HELLO[:3],
    ],
)
def test_what_is_no_request_ends_that_connection_and_nothing_else(
    server: Server, client: Client, counter: Counter, sent: bytes
) -> None:
    client.request("add", by=1)
    with raw(server) as connection:
        connection.sendall(sent)
        assert closed(connection)
    until(lambda: server.clients == 1)
    assert client.request("add", by=1).whole("value") == 2
    assert client.reconnects == 0


def test_a_slow_loris_is_cut_off(server: Server, client: Client) -> None:
    with raw(server) as connection:
        connection.sendall(HELLO)
        sent = 0
        try:
            for byte in FrameCodec().encode(Message("add", payload=bytes(1000), session=5, number=1)):
                connection.sendall(bytes([byte]))
                sent += 1
                time.sleep(0.02)
        except ConnectionError:
            pass
        assert sent < 500
    assert client.request("add", by=1).whole("value") == 1


def test_an_idle_client_is_not_cut_off(server: Server, client: Client) -> None:
    client.request("add", by=1)
    time.sleep(0.6)  # more than message_s
    client.request("add", by=1)
    assert client.reconnects == 0


def test_a_frame_in_single_bytes_is_applied_once(counter: Counter) -> None:
    with Server(counter) as server, raw(server) as connection:
        for byte in HELLO + REQUEST:
            connection.sendall(bytes([byte]))
        until(lambda: counter.value == 1)
        connection.sendall(REQUEST)  # a repetition
        until(lambda: server.requests == 1)
        time.sleep(0.05)
        assert counter.value == 1


def test_a_client_that_leaves_mid_frame_has_applied_nothing(server: Server, counter: Counter) -> None:
    with raw(server) as connection:
        connection.sendall(HELLO + REQUEST[:-1])
    until(lambda: counter.left == [0])
    assert counter.value == 0


def test_more_clients_than_allowed_are_turned_away(counter: Counter) -> None:
    with Server(counter, max_clients=2) as server:
        kept = [Client(server.host, server.port) for _ in range(2)]
        for client in kept:
            client.request("add", by=1)
        with pytest.raises(TransportError):
            Client(server.host, server.port, timeout_s=0.2, tries=2).request("add", by=1)
        kept[0].close()
        until(lambda: server.clients == 1)
        assert Client(server.host, server.port).request("add", by=1).whole("value") == 3


def test_a_server_can_be_stopped_twice_and_started_again(counter: Counter) -> None:
    server = Server(counter)
    server.start()
    server.start()
    port = server.port
    server.stop()
    server.stop()
    server.start()
    assert server.port == port
    with Client(server.host, port) as client:
        assert client.request("add", by=1).whole("value") == 1
    server.stop()


def test_a_port_in_use_is_said_so(server: Server, counter: Counter) -> None:
    with pytest.raises(OSError, match=rf"127.0.0.1:{server.port}.*Choose another port"):
        Server(counter, port=server.port).start()


def test_an_interrupted_request_leaves_nothing_behind(client: Client, counter: Counter) -> None:
    class Interrupt(BaseException):
        pass

    client.request("add", by=1)
    receive = client._receive

    def interrupted(deadline: float) -> Message:
        raise Interrupt

    client._receive = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupt):
        client.request("add", by=10)
    client._receive = receive  # type: ignore[method-assign]
    until(lambda: counter.value == 11)
    assert client.request("add", by=100).whole("value") == 111


def test_what_cannot_be_sent_is_refused_before_it_is() -> None:
    client = Client("127.0.0.1", 9)
    for bad in (float("nan"), float("inf"), 1 << 70, [[1]], {"a": 1}, b"x"):
        with pytest.raises(ProtocolError):
            client.request("add", by=bad)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="over the limits"):
        Client("127.0.0.1", 9, FrameCodec(max_payload=10)).request("add", payload=bytes(11))
