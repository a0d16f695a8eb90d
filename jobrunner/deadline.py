"""A client-side deadline on every call to PostgreSQL.

A server-side timeout says nothing when the server, or a proxy before it, is silent: the call would
wait for ever on a socket that still looks healthy. One thread looks at the calls under way and shuts
the socket of one that is over its time; the call then ends with an ordinary connection error.
"""

import contextlib
import os
import socket
import threading
from functools import cache
from typing import Any

from jobrunner.clock import monotonic_s

_LOOK_S = 0.25


class _Watchdog:
    """The calls under way, each with its time, and the thread that ends the late ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: dict[Any, float] = {}
        self._thread: threading.Thread | None = None

    def arm(self, connection: Any, seconds: float) -> None:
        """Let the call on this driver connection last at most `seconds`."""
        with self._changed:
            self._calls[connection] = monotonic_s() + seconds
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="jobrunner-deadline", daemon=True)
                self._thread.start()
            elif len(self._calls) == 1:
                self._changed.notify()

    def disarm(self, connection: Any) -> None:
        """The call on this driver connection is over."""
        # A dictionary's own methods are atomic: the hot path takes no lock here.
        self._calls.pop(connection, None)

    def _watch(self) -> None:
        while True:
            with self._changed:
                while not self._calls:
                    self._changed.wait()
                now = monotonic_s()
                late = [connection for connection, until in list(self._calls.items()) if now > until]
                for connection in late:
                    self._calls.pop(connection, None)
            for connection in late:
                shut(connection)
            threading.Event().wait(_LOOK_S)


def shut(connection: Any) -> None:
    """End the connection under its user, who gets an error; the descriptor stays his to close."""
    # The connection may have ended, or been closed, by itself in this very moment.
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


_watchdog = _Watchdog()
os.register_at_fork(after_in_child=_watchdog.__init__)  # type: ignore[misc]  # a fork has no threads


@cache
def connection_class(seconds: float) -> Any:
    """Return psycopg's connection with a deadline on everything that waits for the server.

    On statements, and also on commit, rollback, and what SQLAlchemy asks of a new connection. The
    attribute `call_s` of a connection may give it another one than the `seconds` of all.
    """
    import psycopg

    class _Connection(psycopg.Connection[Any]):
        call_s = seconds

        def wait(self, *args: Any, **kwargs: Any) -> Any:
            _watchdog.arm(self, self.call_s)
            try:
                return super().wait(*args, **kwargs)
            finally:
                _watchdog.disarm(self)

    return _Connection
