"""Relays, before PostgreSQL's unix socket above all, that can fall silent, cut, or refuse."""

import selectors
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

Address = str | tuple[str, int]
"""The path of a unix socket, or a host and a port."""

_SOCKET_NAME = ".s.PGSQL.5432"
_SEND_S = 5.0  # to one that reads no more: it is cut off then


class Relay:
    """Passes on what is said between those who connect to `listener` and a server."""

    def __init__(self, listener: socket.socket, server: Address) -> None:
        self._server = server
        self.is_silent = False
        self.is_refusing = False
        self.turns = 0
        """How often a client spoke after the server had: the round trips."""
        self._client_spoke_last = False
        self._selector = selectors.DefaultSelector()
        self._swallowed: list[tuple[socket.socket, tuple[socket.socket, bool]]] = []
        self._lock = threading.Lock()
        self._closing = False
        self._listener = listener
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._pass_on, name="proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more, and end every connection."""
        self._closing = True
        self._thread.join()
        self.cut()
        self._selector.close()
        self._listener.close()

    def swallow(self) -> int:
        """Pass on nothing more on the connections that there are, without ending them; return their number.

        As a firewall does that has forgotten them. Those that come from now on are served.
        """
        with self._lock:
            ends = [key for key in self._selector.get_map().values() if key.fileobj is not self._listener]
            for key in ends:
                self._selector.unregister(key.fileobj)
                self._swallowed.append((key.fileobj, key.data))  # type: ignore[arg-type]
            return len(ends) // 2

    def disgorge(self) -> None:
        """Pass on what was swallowed, late."""
        with self._lock:
            self._register_swallowed()

    def _register_swallowed(self) -> None:
        while self._swallowed:
            self._selector.register(self._swallowed[0][0], selectors.EVENT_READ, self._swallowed.pop(0)[1])

    def cut(self) -> None:
        """End every connection."""
        with self._lock:
            self._register_swallowed()
            for key in list(self._selector.get_map().values()):
                if key.fileobj is not self._listener:
                    self._drop(key.fileobj)  # type: ignore[arg-type]

    def _pass_on(self) -> None:
        while not self._closing:
            ready = self._selector.select(0.02)
            with self._lock:
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif not self.is_silent and key.fd in self._selector.get_map():
                        self._carry(key.fileobj, key.data)  # type: ignore[arg-type]
            if self.is_silent:
                threading.Event().wait(0.02)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self.is_refusing:
            client.close()
            return
        server = socket.socket(socket.AF_UNIX if isinstance(self._server, str) else socket.AF_INET)
        for end in (client, server):
            end.settimeout(_SEND_S)
        try:
            server.connect(self._server)
        except OSError:
            server.close()
            client.close()
            return
        self._selector.register(client, selectors.EVENT_READ, (server, True))
        self._selector.register(server, selectors.EVENT_READ, (client, False))

    def _carry(self, source: socket.socket, data: tuple[socket.socket, bool]) -> None:
        target, from_client = data
        try:
            words = source.recv(1 << 16)
            if words:
                self.turns += from_client and not self._client_spoke_last
                self._client_spoke_last = from_client
                target.sendall(words)
                return
        except OSError:
            pass
        self._drop(source)

    def _drop(self, end: socket.socket) -> None:
        with suppress(KeyError, ValueError):
            other = self._selector.get_key(end).data[0]
            for each in (end, other):
                with suppress(KeyError, ValueError):
                    self._selector.unregister(each)
                each.close()


class TcpProxy(Relay):
    """Listens on a port, before the PostgreSQL whose socket is in `server_socket_dir`."""

    def __init__(self, server_socket_dir: str) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        super().__init__(listener, socket_of(server_socket_dir))
        self.port = listener.getsockname()[1]

    def url(self, database: str) -> str:
        """Return the URL of a database behind it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"


class Proxy(Relay):
    """Listens as a PostgreSQL on a unix socket in a directory of its own."""

    def __init__(self, server_socket_dir: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="proxy")  # short: a socket's path is limited
        self.socket_dir = self._directory.name
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(socket_of(self.socket_dir))
        listener.listen(50)
        super().__init__(listener, socket_of(server_socket_dir))

    def close(self) -> None:
        super().close()
        self._directory.cleanup()


def socket_of(directory: str) -> str:
    """Return the path of PostgreSQL's socket."""
    return str(Path(directory, _SOCKET_NAME))


class LosingProxy(TcpProxy):
    """Loses the answer of a statement, on request: the server has done it, and the connection is cut."""

    def __init__(self, server_socket_dir: str) -> None:
        self._to_lose: bytes | None = None
        self._is_gone_after = False
        self.lost = 0
        super().__init__(server_socket_dir)

    def lose(self, statement: bytes, *, is_gone_after: bool = False) -> None:
        """Lose the answer of the next statement with this in it. `is_gone_after`: nobody gets in then."""
        self._to_lose, self._is_gone_after = statement, is_gone_after

    def _carry(self, source: socket.socket, data: tuple[socket.socket, bool]) -> None:
        target, from_client = data
        if not from_client or self._to_lose is None:
            super()._carry(source, data)
            return
        words = source.recv(1 << 16)
        target.sendall(words)
        if not words:
            self._drop(source)
        elif self._to_lose in words:
            target.recv(1 << 16)  # it comes once the statement is done
            self._to_lose = None
            self.lost += 1
            self.is_refusing = self._is_gone_after
            self._drop(source)
