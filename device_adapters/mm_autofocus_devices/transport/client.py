"""The client's end: one request at a time, time-outs on every wait, back-off, and no request applied twice."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from mm_autofocus_devices.transport.codec import Codec, Decoder
from mm_autofocus_devices.transport.framing import FrameCodec
from mm_autofocus_devices.transport.message import (
    Kind,
    Message,
    ProtocolError,
    RemoteError,
    RequestLostError,
    TransportError,
    Value,
)

logger = logging.getLogger(__name__)

HELLO = "hello"
"""First request of a connection in dialects that identify requests; the server answers it itself."""
RECEIVE_BYTES = 256 * 1024
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
"""Back-off: each pause is twice the one before."""
TRIES = 5


class _Broken(Exception):
    """The connection failed; ``sent`` tells whether the server may have the request, ``why`` in words."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Client:
    """Talks to one server, from any thread; requests wait for each other.

    It connects when the first request is made, and again after a failure. A request whose reply was lost is sent again
    when that cannot apply it twice: the dialect identifies requests and the server still knows this client, or the
    caller says that the request is idempotent. Otherwise `RequestLostError` is raised.

    Parameters
    ----------
    host, port
        The server.
    codec
        The dialect; `FrameCodec` by default.
    timeout_s
        Longest wait for a connection, for sending, and for one reply.
    request_s
        Longest time for a request with all its repetitions; four times ``timeout_s`` by default.
    tries
        How often a request is tried before the first connection has succeeded: a wrong address is told soon. After
        that a server has ``request_s`` to come back; once it has not, requests are tried once until it is there again.
    on_connect
        Called with every new connection before it is used, as ``on_connect(send, receive)``: sends raw bytes, and
        waits for one message. For dialects with a greeting of their own.
    on_restart
        Called, outside of any request, before the first request to a server that does not know this client any more:
        it was restarted, and its settings may have gone.
    clock, sleep
        Monotonic seconds, and waiting; tests replace them.
    """

    def __init__(
        self,
        host: str,
        port: int,
        codec: Codec | None = None,
        *,
        timeout_s: float = 10.0,
        request_s: float | None = None,
        tries: int = TRIES,
        on_connect: Callable[[Callable[[bytes], None], Callable[[], Message]], None] | None = None,
        on_restart: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s={timeout_s} must be above 0.")
        self.host, self.port, self.codec = host, port, codec or FrameCodec()
        self.timeout_s = timeout_s
        self.request_s = 4 * timeout_s if request_s is None else request_s
        self._tries = max(tries, 1)
        self._on_connect, self._on_restart = on_connect, on_restart
        self._clock, self._sleep = clock, sleep
        self._lock = threading.RLock()
        self._session = secrets.randbits(63) | 1
        self._numbers = itertools.count(1)
        self._socket: socket.socket | None = None
        self._decoder: Decoder | None = None
        self._connections = 0
        self._welcomed = self._given_up = False
        self._done = 0
        """Number of the last request that was answered."""
        self._server_last = 0
        """Number of the last request that the server knew of when we connected."""
        self._incarnation = self._served_by = ""
        """The run of the server that we are connected to, and the one that has our settings."""
        self._restoring = False

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self.host}:{self.port}"

    @property
    def connected(self) -> bool:
        """True while a connection is open, as far as this end knows."""
        return self._socket is not None

    def alive(self) -> bool:
        """Look whether the connection is open and silent, as it must be between requests."""
        with self._lock:
            return self._socket is not None and not self._stale()

    @property
    def reconnects(self) -> int:
        """How many connections were made after the first."""
        return max(self._connections - 1, 0)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        with self._lock:
            self._drop()

    def request(
        self, name: str, *, payload: bytes = b"", idempotent: bool = False, extra_s: float = 0.0, **fields: Value
    ) -> Message:
        """Send a request and return its reply.

        Parameters
        ----------
        name, payload, fields
            The message.
        idempotent
            Applying it twice is the same as once: it may always be sent again.
        extra_s
            How long the server is known to take (a frame's scan time), beyond ``timeout_s``.

        Raises
        ------
        RemoteError
            The server refused or failed; it says why. The request was not repeated.
        RequestLostError
            The connection broke and sending again could apply the request twice.
        TransportError
            The server cannot be reached or does not answer in time.
        ProtocolError
            The request cannot be said in this dialect, or the server's bytes are not of it.
        """
        with self._lock:
            return self._tried(Message(name, fields, payload), idempotent, extra_s, wants_reply=True)

    def send(self, name: str, *, payload: bytes = b"", **fields: Value) -> None:
        """Send a request that this dialect does not answer; raises what `request` raises but RemoteError."""
        with self._lock:
            self._tried(Message(name, fields, payload), False, 0.0, wants_reply=False)

    # ------------------------------------------------------------------ repeating
    def _tried(self, message: Message, idempotent: bool, extra_s: float, *, wants_reply: bool) -> Message:
        data = self.codec.encode(message)  # what cannot be said is refused before anybody is bothered
        began = self._clock()
        deadline = began + self.request_s + extra_s
        pause, sent, sent_to, why = FIRST_PAUSE_S, False, "", ""
        for attempt in itertools.count(1):
            if attempt > 1:
                if self._clock() + pause >= deadline or attempt > self._patience():
                    break
                self._sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            try:
                self._ready(deadline)
                if sent and not idempotent and not self._remembers(sent_to):
                    raise RequestLostError(
                        f"the server at {self.address} went away during {message.name!r} ({why}); it cannot be told "
                        "whether that was applied, so it was not sent again. Check the instrument, then repeat it."
                    )
                if self.codec.identifies and (not sent or sent_to != self._incarnation):
                    # Only now: requests that restore settings go before this one, and the server wants rising numbers.
                    message = replace(message, session=self._session, number=next(self._numbers))
                    data, sent_to = self.codec.encode(message), self._incarnation
                until = min(deadline, self._clock() + self.timeout_s + extra_s)
                reply = self._attempt(data, message, until, wants_reply)
            except _Broken as broken:
                self._drop()
                sent, why = sent or broken.sent, str(broken)
                logger.info("request %r to %s, try %d: %s", message.name, self.address, attempt, why)
            except RequestLostError:
                raise
            except BaseException:  # Ctrl-C: a reply still to come must not be taken for that of the next request
                self._drop()
                raise
            else:
                self._done = max(self._done, message.number)
                if reply.kind is Kind.ERROR:
                    raise _remote_error(reply)
                return reply
        self._given_up = True
        raise TransportError(
            f"the server at {self.address} did not answer {message.name!r} in {self._clock() - began:.1f} s: {why}. Is "
            "it running, and are host, port and time-out right?"
        )

    def _patience(self) -> float:
        """Return how many tries a request has."""
        if self._given_up:
            return 1
        return math.inf if self._welcomed else self._tries

    def _remembers(self, incarnation: str) -> bool:
        """Tell whether the server would know a repeated request for one."""
        return self.codec.identifies and self._incarnation == incarnation and self._server_last >= self._done

    def _attempt(self, data: bytes, message: Message, until: float, wants_reply: bool) -> Message:
        self._send(data, until)
        if not wants_reply:
            return message.reply()
        reply = self._receive(until)
        if self.codec.identifies and (reply.session, reply.number) != (message.session, message.number):
            raise _Broken(f"a reply to request {reply.number} came to request {message.number}", sent=True)
        return reply

    # ------------------------------------------------------------------ connection
    def _ready(self, deadline: float) -> None:
        """Connect when necessary, and let the owner restore what a restarted server has lost."""
        if self._socket is not None and self._stale():
            self._drop()
        if self._socket is None:
            self._connect(deadline)
        present = self._incarnation
        if present == self._served_by or self._restoring:
            return
        if self._served_by and self._on_restart is not None:
            self._restoring = True
            try:
                self._on_restart()
            except TransportError as error:
                raise _Broken(f"the settings could not be restored: {error}", sent=False) from None
            finally:
                self._restoring = False
            if self._incarnation != present:
                raise _Broken("the server was restarted again while the settings were restored", sent=False)
        self._served_by = present

    def _stale(self) -> bool:
        """Tell whether the server closed the connection, or talked unasked, since the last reply.

        Found out before a request is sent, this costs nothing; afterwards nobody could tell whether it was applied.
        """
        assert self._socket is not None
        try:
            self._socket.settimeout(0.0)
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _connect(self, deadline: float) -> None:
        until = min(deadline, self._clock() + self.timeout_s)
        try:
            self._socket = socket.create_connection((self.host, self.port), timeout=self._left(until))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except (OSError, OverflowError) as error:
            raise _Broken(f"no connection: {error}", sent=False) from None
        self._decoder = self.codec.decoder(server=False)
        self._connections += 1
        try:
            if self.codec.identifies:
                self._hello(until)
            if self._on_connect is not None:
                self._on_connect(lambda data: self._send(data, until), lambda: self._receive(until))
        except (_Broken, TransportError) as error:
            raise _Broken(str(error), sent=False) from None
        self._welcomed, self._given_up = True, False

    def _hello(self, until: float) -> None:
        greeting = Message(HELLO, {}, b"", Kind.REQUEST, self._session, 0)
        self._send(self.codec.encode(greeting), until)
        reply = self._receive(until)
        if reply.kind is Kind.ERROR:
            raise _Broken(f"the server refused the connection: {_remote_error(reply)}", sent=False)
        if (reply.name, reply.session) != (HELLO, self._session):
            raise _Broken(f"the server answered hello with {reply.name!r}", sent=False)
        self._server_last = reply.whole("last")
        self._incarnation = reply.text("incarnation")

    def _drop(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        self._socket = self._decoder = None

    # ------------------------------------------------------------------ bytes
    def _send(self, data: bytes, until: float) -> None:
        assert self._socket is not None
        try:
            self._socket.settimeout(self._left(until))
            self._socket.sendall(data)  # its time-out is for the whole of it
        except TimeoutError:
            raise _Broken("the server does not take what is sent to it", sent=True) from None
        except OSError as error:
            raise _Broken(f"the connection broke while sending: {error}", sent=True) from None

    def _receive(self, until: float) -> Message:
        """Wait for one message; anything but exactly one is the end of the connection."""
        assert self._socket is not None
        assert self._decoder is not None
        quiet = self.codec.quiet_s
        while True:
            wait = self._left(until)
            listening = wait if quiet is None or not self._decoder.busy else min(wait, quiet)
            try:
                self._socket.settimeout(listening)
                data = self._socket.recv(RECEIVE_BYTES)
                messages = self._decoder.feed(data) if data else self._decoder.flush()
            except TimeoutError:
                if listening == wait:
                    raise _Broken("no complete reply in time", sent=True) from None
                data, messages = b"quiet", self._decoder.flush()
            except ProtocolError as error:
                raise _Broken(str(error), sent=True) from None
            except OSError as error:
                raise _Broken(f"the connection broke: {error}", sent=True) from None
            if len(messages) == 1:
                return messages[0]
            if messages:
                raise _Broken(f"{len(messages)} replies came to one request", sent=True)
            if not data:
                raise _Broken("the server closed the connection", sent=True)

    def _left(self, until: float) -> float:
        left = until - self._clock()
        if left <= 0:
            raise _Broken("no complete reply in time", sent=True)
        return left


def _remote_error(reply: Message) -> RemoteError:
    code, text = reply.fields.get("code"), reply.fields.get("text")
    return RemoteError(str(text or "the server gave no reason"), str(code or "unknown"))
