"""Hints that a kill flag was set: heard within milliseconds, and never trusted.

A hint only says "look now"; the beat decides. So a lost hint costs at most one heartrate.
"""

import math
import os
import select
import sqlite3
import time
import uuid
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, func
from sqlalchemy import select as sql_select

from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.deadline import connection_class
from jobrunner.errors import DatabaseError
from jobrunner.logs import get_logger

log = get_logger(__name__)

KILL_CHANNEL = "jobrunner_kill"
_ECHO_CHANNEL = "jobrunner_echo"
_ECHO_S = 2.0
_ECHO_EVERY_S = 60.0
"""How often a listener proves anew that it hears: a silent proxy leaves a connection that looks well."""
_CONNECT_S = 2
"""How long a connection for listening may take: the beat is waiting meanwhile."""
_SQLITE_LOOK_S = 0.03
_DEAF_LOOK_S = 1.0
_MEND_S = 15.0
"""How long a deaf listener waits before it tries to hear again."""


class Wake:
    """A way to end another thread's wait: `set` it, and its descriptor becomes readable."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._reader

    def set(self) -> None:
        """End the wait, now or the next one."""
        with suppress(BlockingIOError):  # full of wake-ups already
            os.write(self._writer, b"x")

    def clear(self) -> None:
        """Take back what was set."""
        with suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._reader)
        os.close(self._writer)


class Hints:
    """Waits that end early when somebody may have set a kill flag. One thread waits at a time."""

    def __init__(self, database: Database, wake: Wake | None = None) -> None:
        self._wake = wake
        self._ear: _Ear = _SqliteEar(database) if database.is_sqlite else _PostgresEar(database)
        self._deaf_until_s = 0.0
        self._said_deaf = False

    def wait(self, timeout_s: float) -> bool:
        """Wait for at most `timeout_s`; True: look at the kill flags now."""
        until_s = monotonic_s() + timeout_s
        if monotonic_s() >= self._deaf_until_s:
            try:
                return self._ear.wait(until_s, self._wake)
            except (DatabaseError, OSError) as error:
                self._ear.close()
                self._deaf_until_s = monotonic_s() + _MEND_S
                if not self._said_deaf:
                    self._said_deaf = True
                    log.info("kill hints are not heard: asking every second", error=str(error))
        # Deaf: say "look" once a second; the caller's own wait bounds it.
        rest_s = min(until_s - monotonic_s(), _DEAF_LOOK_S)
        if rest_s > 0:
            wait_readable([], self._wake, rest_s)
        return True

    def close(self) -> None:
        """Give the connection back."""
        self._ear.close()


def wait_readable(readers: list[int], wake: Wake | None, timeout_s: float) -> bool:
    """Wait; True when one of `readers` can be read, or `wake` was set (and then it is cleared)."""
    every = readers if wake is None else [*readers, wake.fileno()]
    if not every:
        time.sleep(max(0.0, timeout_s))
        return False
    poll = select.poll()  # select() fails on a descriptor of 1024 or more
    for reader in every:
        poll.register(reader, select.POLLIN)
    ready = [descriptor for descriptor, _ in poll.poll(max(0, math.ceil(timeout_s * 1000)))]
    if wake is not None and wake.fileno() in ready:
        wake.clear()
    return bool(ready)


class _Ear:
    def wait(self, until_s: float, wake: Wake | None) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _SqliteEar(_Ear):
    """`PRAGMA data_version` changes whenever another connection committed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: Connection | None = None
        self._bare: Any = None
        self._version: int | None = None

    def wait(self, until_s: float, wake: Wake | None) -> bool:
        while True:
            version = self._ask()
            # The first look hears what was set while nobody listened.
            changed, self._version = version != self._version, version
            rest_s = until_s - monotonic_s()
            if changed or rest_s <= 0:
                return changed
            if wait_readable([], wake, min(rest_s, _SQLITE_LOOK_S)):
                return False

    def _ask(self) -> int:
        if self._held is None:
            self._held = self._database.held()
            self._bare = self._held.connection.dbapi_connection
        try:
            # Past SQLAlchemy: this is asked thirty times a second, and must cost nothing.
            ((version,),) = self._bare.execute("PRAGMA data_version").fetchall()
        except sqlite3.Error as error:
            raise DatabaseError(str(error)) from error
        return int(version)

    def close(self) -> None:
        held, self._held, self._bare, self._version = self._held, None, None, None
        if held is not None:
            held.close()


class _PostgresEar(_Ear):
    """LISTEN on a direct connection of its own, proven by an echo sent through the ordinary one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        listener = database.settings.listener
        self._url = listener.to_sqlalchemy() if listener is not None else database.url
        self._connection: Any = None
        self._word = b""
        self._echo_until_s = math.inf
        """Until when the echo may come; infinite once it came."""
        self._next_echo_s = 0.0

    def wait(self, until_s: float, wake: Wake | None) -> bool:
        import psycopg

        try:
            if self._connection is None:
                self._connect()
                return True  # what was set while nobody listened
            if monotonic_s() >= self._next_echo_s:
                self._call_for_echo()
            limit_s = min(until_s, self._echo_until_s)
            wait_readable([self._connection.fileno()], wake, limit_s - monotonic_s())
            heard = self._hear()
        except psycopg.Error as error:
            raise DatabaseError(str(error).strip()) from error
        if monotonic_s() >= self._echo_until_s:
            raise DatabaseError("no echo came: set listen_url to a direct connection, past any pooler")
        return heard

    def _connect(self) -> None:
        _, arguments = self._database.engine.dialect.create_connect_args(self._url)
        arguments.update(
            {
                "autocommit": True,
                "connect_timeout": _CONNECT_S,
                "application_name": "jobrunner listen",
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
            }
        )
        self._connection = connection_class(self._database.settings.call_timeout_s).connect(**arguments)
        self._connection.execute(f"LISTEN {KILL_CHANNEL}")
        self._connection.execute(f"LISTEN {_ECHO_CHANNEL}")
        self._call_for_echo()

    def _call_for_echo(self) -> None:
        word = uuid.uuid4().hex
        with self._database.read() as connection:
            connection.execute(sql_select(func.pg_notify(_ECHO_CHANNEL, word)))
        self._word = word.encode()
        self._echo_until_s = monotonic_s() + _ECHO_S
        self._next_echo_s = monotonic_s() + _ECHO_EVERY_S

    def _hear(self) -> bool:
        """Take in what came, without waiting; True when a kill flag was among it."""
        wire = self._connection.pgconn
        wire.consume_input()
        heard = False
        while (note := wire.notifies()) is not None:
            if note.relname == KILL_CHANNEL.encode():
                heard = True
            elif note.extra == self._word:
                self._echo_until_s = math.inf
        return heard

    def close(self) -> None:
        connection, self._connection = self._connection, None
        self._echo_until_s = math.inf
        if connection is not None:
            connection.close()
