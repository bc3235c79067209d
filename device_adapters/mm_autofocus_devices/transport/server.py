"""The server's end: several clients at once, every complete request applied exactly once, and none able to stop it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from mm_autofocus.errors import FocusError, LimitError
from mm_autofocus_devices.transport.client import HELLO, RECEIVE_BYTES
from mm_autofocus_devices.transport.codec import Codec
from mm_autofocus_devices.transport.faults import CLOSE, FaultKind, Faults, steps
from mm_autofocus_devices.transport.framing import FrameCodec
from mm_autofocus_devices.transport.message import Message, ProtocolError, RemoteError

logger = logging.getLogger(__name__)

Handler = Callable[[Message], Message | None]
"""Applies one request and returns its reply (``request.reply(...)``), or None in dialects that do not answer it.

It is called from one thread per client: it locks what it needs. A `RemoteError` that it raises reaches the client with
its code, a `LimitError` as "limit", another `FocusError` as "hardware", a `ProtocolError` (a missing field) as
"invalid", anything else as "internal".
"""

_ACCEPT_S = 0.1
_STOP_S = 5.0
_REMEMBERED = 16
"""Clients without a connection whose last reply is kept, in case they come back for it."""


class _Session:
    """What is known of one client."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Held while a request is applied: its repetition waits, and gets the reply of the first."""
        self.last = 0
        self.reply: Message | None = None
        self.connections = 0


class Server:
    """Serves a handler over TCP.

    Parameters
    ----------
    handler
        Applies the requests.
    codec
        The dialect; `FrameCodec` by default.
    host, port
        Where to listen; port 0 takes a free one, see ``port``. Loopback unless told otherwise: nobody is
        authenticated.
    message_s
        Longest time from a message's first byte to its last, until a new connection's first message, and for sending a
        reply.
    max_clients
        Connections at once; further ones are closed.
    on_disconnect
        Called after a connection has ended, however it did, with the number that are left.
    faults
        What shall go wrong on purpose.
    """

    def __init__(
        self,
        handler: Handler,
        codec: Codec | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        message_s: float = 10.0,
        max_clients: int = 32,
        on_disconnect: Callable[[int], None] | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.codec = codec or FrameCodec()
        self.host = host
        self.faults = faults or Faults()
        self.requests = 0
        """Requests applied so far."""
        self._handler, self._port = handler, port
        self._message_s, self._max_clients, self._on_disconnect = message_s, max_clients, on_disconnect
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._sessions: OrderedDict[int, _Session] = OrderedDict()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._acceptor: threading.Thread | None = None
        self._stopping = threading.Event()
        self._incarnation = ""

    @property
    def port(self) -> int:
        """The port it listens on; known after `start` when 0 was asked for."""
        return self._port

    @property
    def clients(self) -> int:
        """Number of open connections."""
        with self._lock:
            return len(self._connections)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, in threads of its own.

        Raises
        ------
        OSError
            The address cannot be used: taken already, or not this machine's.
        """
        if self._listener is not None:
            return
        listener = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # elsewhere it would allow two servers on one port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self._port))
            listener.listen(self._max_clients)
        except (OSError, OverflowError) as error:
            listener.close()
            raise OSError(f"cannot listen on {self.host}:{self._port}: {error}. Choose another port.") from None
        listener.settimeout(_ACCEPT_S)
        self._port = int(listener.getsockname()[1])
        self._listener, self._incarnation = listener, secrets.token_hex(8)
        self._sessions.clear()
        self._stopping.clear()
        self._acceptor = threading.Thread(target=self._accept, args=(listener,), daemon=True, name="server accept")
        self._acceptor.start()

    def stop(self) -> None:
        """Close the port and every connection; requests that are being applied are finished."""
        if self._listener is None:
            return
        self._stopping.set()
        self._listener.close()
        self._listener = None
        if self._acceptor is not None:
            self._acceptor.join(_STOP_S)
        with self._lock:
            open_now = list(self._connections.items())
        for connection, _ in open_now:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _STOP_S
        for _, thread in open_now:
            thread.join(max(deadline - time.monotonic(), 0.0))

    # ------------------------------------------------------------------ connections
    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                connection, peer = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if self._stopping.is_set():
                    return
                logger.warning("a connection could not be accepted: %s", error)
                self._stopping.wait(_ACCEPT_S)
                continue
            with self._lock:
                full = len(self._connections) >= self._max_clients or self._stopping.is_set()
                if not full:
                    thread = threading.Thread(
                        target=self._serve, args=(connection, f"{peer[0]}:{peer[1]}"), daemon=True, name="server client"
                    )
                    self._connections[connection] = thread
                    thread.start()
            if full:
                logger.warning("client %s was turned away: %d are connected", peer, self._max_clients)
                connection.close()

    def _serve(self, connection: socket.socket, peer: str) -> None:
        ends = contextlib.ExitStack()
        ends.callback(self._ended, connection)
        with ends:
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                self._converse(connection, ends)
            except ProtocolError as error:
                logger.warning("client %s was disconnected: %s", peer, error)
            except TimeoutError:
                logger.warning("client %s was disconnected: it stopped in the middle of a message", peer)
            except OSError as error:
                logger.info("client %s is gone: %s", peer, error)
            except Exception:
                logger.exception("client %s was disconnected", peer)

    def _ended(self, connection: socket.socket) -> None:
        connection.close()
        with self._lock:
            self._connections.pop(connection, None)
            left = len(self._connections)
        if self._on_disconnect is not None:
            try:
                self._on_disconnect(left)
            except Exception:
                logger.exception("what was to be done after a client had left failed")

    def _converse(self, connection: socket.socket, ends: contextlib.ExitStack) -> None:
        decoder, quiet = self.codec.decoder(server=True), self.codec.quiet_s
        session: _Session | None = None if self.codec.identifies else _Session()
        identity = 0
        until: float | None = time.monotonic() + self._message_s
        while not self._stopping.is_set():
            messages: list[Message] = []
            try:
                waits = [until - time.monotonic()] if until is not None else []
                waits += [quiet] if quiet is not None and decoder.busy else []
                wait = min(waits, default=None)
                if wait is not None and wait <= 0:
                    raise TimeoutError
                connection.settimeout(wait)
                data = connection.recv(RECEIVE_BYTES)
                messages = decoder.feed(data) if data else decoder.flush()
            except TimeoutError:
                if not (messages := decoder.flush()):
                    if until is not None and time.monotonic() >= until:
                        raise
                    continue
                data = b"quiet"
            for message in messages:
                if message.name == HELLO and self.codec.identifies:
                    if session is None:
                        session, identity = self._enter(message.session, ends), message.session
                    reply = message.reply(incarnation=self._incarnation, last=session.last)
                    self._send(connection, self.codec.encode(reply))
                    continue
                if session is None or message.session != identity:
                    refusal = message.error(
                        "session", "the first request of a connection must be hello, by that session"
                    )
                    self._send(connection, self.codec.encode(refusal))
                    raise ProtocolError("it sent a request of a session that has not said hello")
                self._answer(connection, session, message)
            if not data:
                return
            if messages:
                until = None  # a client may be idle between messages as long as it likes
            if decoder.busy and until is None:
                until = time.monotonic() + self._message_s

    def _enter(self, identity: int, ends: contextlib.ExitStack) -> _Session:
        with self._lock:
            session = self._sessions.setdefault(identity, _Session())
            self._sessions.move_to_end(identity)
            session.connections += 1
            absent = [key for key, other in self._sessions.items() if other.connections == 0]
            for key in absent[: max(len(absent) - _REMEMBERED, 0)]:
                del self._sessions[key]

        def leave() -> None:
            with self._lock:
                session.connections -= 1

        ends.callback(leave)
        return session

    # ------------------------------------------------------------------ requests
    def _answer(self, connection: socket.socket, session: _Session, request: Message) -> None:
        fault = self.faults.due(request)
        if fault is not None and fault.kind is FaultKind.CLOSE_BEFORE:
            raise ConnectionAbortedError("closed on purpose before the request was applied")
        reply = self._applied_once(session, request)
        if reply is None:
            return
        try:
            data = self.codec.encode(reply)
        except ProtocolError as error:
            data = self.codec.encode(request.error("internal", f"the reply cannot be sent: {error}"))
        if fault is None:
            self._send(connection, data)
            return
        for step in steps(fault, data):
            if step is CLOSE:
                raise ConnectionAbortedError("closed on purpose")
            if isinstance(step, bytes):
                self._send(connection, step)
            elif self._wait(connection, step):
                return

    def _wait(self, connection: socket.socket, seconds: float) -> bool:
        """Pause on purpose; return True when the client has left meanwhile."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stopping.is_set():
            connection.settimeout(min(left, _ACCEPT_S))
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1, socket.MSG_PEEK):
                    return True
                time.sleep(min(left, 0.01))
        return self._stopping.is_set()

    def _applied_once(self, session: _Session, request: Message) -> Message | None:
        if not self.codec.identifies:
            return self._apply(request)
        with session.lock:
            if request.number > session.last:
                session.reply = self._apply(request) or request.reply()
                session.last = request.number
            elif request.number < session.last or session.reply is None:
                return request.error("stale", f"request {request.number} is older than the last one, {session.last}")
            return session.reply

    def _apply(self, request: Message) -> Message | None:
        with self._lock:
            self.requests += 1
        try:
            return self._handler(request)
        except RemoteError as error:
            return request.error(error.code, str(error))
        except ProtocolError as error:
            return request.error("invalid", str(error))
        except LimitError as error:
            return request.error("limit", str(error))
        except FocusError as error:
            return request.error("hardware", str(error))
        except Exception as error:
            logger.exception("request %r failed", request.name)
            return request.error("internal", f"{type(error).__name__}: {error}")

    def _send(self, connection: socket.socket, data: bytes) -> None:
        connection.settimeout(self._message_s)
        connection.sendall(data)
