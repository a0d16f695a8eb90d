"""The probe's HTTP: one thread and a bounded number of connections, whatever they send, or do not."""

import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from jobrunner.clock import monotonic_s
from jobrunner.log_limits import Seldom
from jobrunner.logs import get_logger

log = get_logger(__name__)

CONNECTIONS_MOST = 32
"""Connections at once; one more takes the place of the oldest."""
REQUEST_S = 5.0
"""Seconds within which a request has to be complete."""
_HEAD_MOST = 8 * 1024  # bytes
_LINGER_S = 1.0  # what a client still sends is read for so long: else it would lose its answer
_READ = 4096
_ACCEPT_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: its status and a line of text."""

    code: int
    reason: str
    text: str

    def head(self) -> bytes:
        """Return it without its text."""
        lines = (
            f"HTTP/1.1 {self.code} {self.reason}",
            "Server: jobrunner",
            "Content-Type: text/plain",
            f"Content-Length: {len(self.text)}",
            "Connection: close",
        )
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


_BAD = Answer(400, "Bad Request", "not HTTP\n")
_TOO_LARGE = Answer(431, "Request Header Fields Too Large", "too large\n")
_NOT_ALLOWED = Answer(405, "Method Not Allowed", "GET or HEAD\n")


@dataclass(slots=True, eq=False)
class _Client:
    peer: socket.socket
    until_s: float
    request: bytearray = field(default_factory=bytearray)
    is_answered: bool = False


class ProbeServer:
    """Answers GET and HEAD on `listener` by `answer(path)`, which must be quick."""

    def __init__(self, listener: socket.socket, answer: Callable[[str], Answer]) -> None:
        self._listener = listener
        self._answer = answer
        self._clients: dict[_Client, None] = {}
        """The oldest first."""
        self._accept_at_s = 0.0
        self._seldom = Seldom()
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._ended = threading.Event()
        for each in (listener, self._wake, self._waker):
            each.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)

    def serve(self) -> None:
        """Answer until it is closed."""
        try:
            while self._serve_some():
                pass
        finally:
            for client in list(self._clients):
                self._drop(client)
            for each in (self._listener, self._wake, self._waker):
                each.close()
            self._selector.close()
            self._ended.set()

    def close(self) -> None:
        """End `serve`."""
        with suppress(OSError):
            self._waker.send(b"x")
        self._ended.wait(REQUEST_S)

    def _serve_some(self) -> bool:
        """Do what is to be done next; False: it was closed."""
        for key, _ in self._selector.select(self._wait_s()):
            if key.fileobj is self._wake:
                return False
            if key.fileobj is self._listener:
                self._accept()
            elif key.data in self._clients:
                self._read(key.data)
        now_s = monotonic_s()
        for client in [client for client in self._clients if client.until_s <= now_s]:
            self._drop(client)
        if self._accept_at_s and now_s >= self._accept_at_s:
            self._accept_at_s = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)
        return True

    def _wait_s(self) -> float | None:
        until_s = [client.until_s for client in self._clients]
        until_s += [self._accept_at_s] if self._accept_at_s else []
        return max(0.0, min(until_s) - monotonic_s()) if until_s else None

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor is left: the listener stays readable
            self._seldom.warning(log, "the probe can accept no connection now", error=error)
            self._selector.unregister(self._listener)
            self._accept_at_s = monotonic_s() + _ACCEPT_AGAIN_S
            return
        if len(self._clients) >= CONNECTIONS_MOST:
            self._drop(next(iter(self._clients)))
        peer.setblocking(False)
        client = _Client(peer, monotonic_s() + REQUEST_S)
        self._clients[client] = None
        self._selector.register(peer, selectors.EVENT_READ, client)

    def _read(self, client: _Client) -> None:
        try:
            received = client.peer.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._drop(client)
            return
        if client.is_answered:
            return
        client.request += received
        if b"\r\n\r\n" in client.request or b"\n\n" in client.request:
            self._reply(client)
        elif len(client.request) > _HEAD_MOST:
            self._send(client, _TOO_LARGE)

    def _reply(self, client: _Client) -> None:
        words = bytes(client.request.splitlines()[0]).decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/"):  # noqa: PLR2004  # method, target, version
            self._send(client, _BAD)
        elif words[0] not in {"GET", "HEAD"}:
            self._send(client, _NOT_ALLOWED)
        else:
            self._send(client, self._answer(words[1].partition("?")[0]), with_text=words[0] == "GET")

    def _send(self, client: _Client, answer: Answer, *, with_text: bool = True) -> None:
        client.is_answered, client.until_s = True, monotonic_s() + _LINGER_S
        client.request.clear()
        try:
            # It fits into an empty buffer; a client that reads nothing gets nothing.
            client.peer.send(answer.head() + (answer.text.encode() if with_text else b""))
            client.peer.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        del self._clients[client]
        self._selector.unregister(client.peer)
        client.peer.close()
