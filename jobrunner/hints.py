"""Hints that a kill flag was set: heard within milliseconds, and never trusted.

A hint only says "look now"; the beat decides. So a lost hint costs at most one heartrate.
"""

import os
import select
import sqlite3
import uuid
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, make_url
from sqlalchemy.exc import SQLAlchemyError

from jobrunner.clock import monotonic_s
from jobrunner.database import Database, translate
from jobrunner.errors import DatabaseError
from jobrunner.logs import get_logger

log = get_logger(__name__)

KILL_CHANNEL = "jobrunner_kill"
_ECHO_CHANNEL = "jobrunner_echo"
_ECHO_S = 2.0
_SQLITE_LOOK_S = 0.02
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
            _wait_readable([], self._wake, rest_s)
        return True

    def close(self) -> None:
        """Give the connection back."""
        self._ear.close()


def _wait_readable(readers: list[Any], wake: Wake | None, timeout_s: float) -> bool:
    """Wait; True when one of `readers` can be read, or `wake` was set (and then it is cleared)."""
    every = readers if wake is None else [*readers, wake]
    ready, _, _ = select.select(every, [], [], max(0.0, timeout_s))
    if wake is not None and wake in ready:
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
        self._version: int | None = None

    def wait(self, until_s: float, wake: Wake | None) -> bool:
        while True:
            version = self._ask()
            changed, self._version = self._version is not None and version != self._version, version
            rest_s = until_s - monotonic_s()
            if changed or rest_s <= 0:
                return changed
            if _wait_readable([], wake, min(rest_s, _SQLITE_LOOK_S)):
                return False

    def _ask(self) -> int:
        if self._held is None:
            self._held = self._database.held()
        # Past SQLAlchemy: this is asked fifty times a second, and must cost nothing.
        bare: Any = self._held.connection.dbapi_connection
        try:
            ((version,),) = bare.execute("PRAGMA data_version").fetchall()
        except sqlite3.Error as error:
            raise DatabaseError(str(error)) from error
        return int(version)

    def close(self) -> None:
        held, self._held, self._version = self._held, None, None
        if held is not None:
            held.close()


class _PostgresEar(_Ear):
    """LISTEN on a direct connection of its own, proven by an echo sent through the ordinary one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        listen_url = database.settings.effective_listen_url
        self._url = make_url(listen_url) if listen_url else database.url
        self._connection: Any = None

    def wait(self, until_s: float, wake: Wake | None) -> bool:
        import psycopg

        try:
            if self._connection is None:
                self._connect()
                return True  # what was set while nobody listened
            if not _wait_readable([self._connection.fileno()], wake, until_s - monotonic_s()):
                return False
            return self._heard(KILL_CHANNEL)
        except psycopg.Error as error:
            raise DatabaseError(str(error).strip()) from error

    def _connect(self) -> None:
        import psycopg

        arguments: dict[str, Any] = self._url.translate_connect_args(username="user", database="dbname")
        self._connection = psycopg.connect(
            **(arguments | dict(self._url.query)),
            autocommit=True,
            connect_timeout=max(2, round(self._database.settings.connect_timeout_s)),
            application_name="jobrunner listen",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
        self._connection.execute(f"LISTEN {KILL_CHANNEL}")
        self._connection.execute(f"LISTEN {_ECHO_CHANNEL}")
        word = uuid.uuid4().hex
        try:
            with self._database.read() as connection:
                connection.exec_driver_sql(
                    "SELECT pg_notify(%(channel)s, %(word)s)", {"channel": _ECHO_CHANNEL, "word": word}
                )
        except SQLAlchemyError as error:
            raise translate(error, self._database.shown_url) from error
        until_s = monotonic_s() + _ECHO_S
        while monotonic_s() < until_s:
            _wait_readable([self._connection.fileno()], None, until_s - monotonic_s())
            if self._heard(_ECHO_CHANNEL, word):
                return
        raise DatabaseError("no echo came: set listen_url to a direct connection, past any pooler")

    def _heard(self, channel: str, word: str | None = None) -> bool:
        wire = self._connection.pgconn
        wire.consume_input()
        heard = False
        while (note := wire.notifies()) is not None:
            heard |= note.relname == channel.encode() and (word is None or note.extra == word.encode())
        return heard

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
