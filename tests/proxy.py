"""Proxies before PostgreSQL's unix socket that can fall silent, cut, or refuse."""

import selectors
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

_SOCKET_NAME = ".s.PGSQL.5432"
_SEND_S = 5.0  # to one that reads no more: it is cut off then


class TcpProxy:
    """Listens on a port and passes on what it hears to the server in `server_socket_dir`."""

    def __init__(self, server_socket_dir: str, host: str = "127.0.0.1") -> None:
        self._start(server_socket_dir, socket.create_server((host, 0), backlog=50))
        self.host, self.port = host, self._listener.getsockname()[1]

    def url(self, database: str) -> str:
        """Return the URL of a database behind it."""
        return f"postgresql://postgres@{self.host}:{self.port}/{database}"

    def _start(self, server_socket_dir: str, listener: socket.socket) -> None:
        self._server = str(Path(server_socket_dir) / _SOCKET_NAME)
        self.is_silent = False
        self.is_refusing = False
        self.turns = 0
        """How often a client spoke after the server had: the round trips."""
        self._client_spoke_last = False
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._closing = False
        self._listener = listener
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._pass_on, name="proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._closing = True
        self._thread.join()
        self.cut()
        self._selector.close()
        self._listener.close()

    def cut(self) -> None:
        """End every connection."""
        with self._lock:
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
        server = socket.socket(socket.AF_UNIX)
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


class Proxy(TcpProxy):
    """Listens as a PostgreSQL on a unix socket in a directory of its own."""

    def __init__(self, server_socket_dir: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="proxy")  # short: a socket's path is limited
        self.socket_dir = self._directory.name
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(Path(self.socket_dir) / _SOCKET_NAME))
        listener.listen(50)
        self._start(server_socket_dir, listener)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._directory.cleanup()
