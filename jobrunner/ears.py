"""How a change in the database is heard: LISTEN on PostgreSQL, `PRAGMA data_version` on SQLite.

An ear may raise anything, and may take long: it is used on a thread on which nothing waits for it.
"""

import math
import uuid
from abc import ABC, abstractmethod
from typing import Any

from sqlalchemy import func
from sqlalchemy import select as sql_select

from jobrunner.clock import monotonic_s
from jobrunner.database import Database, driver_connection
from jobrunner.errors import DatabaseError
from jobrunner.postgres_session import Opener
from jobrunner.waking import Wake, wait_readable

KILL_CHANNEL = "jobrunner_kill"
_ECHO_CHANNEL = "jobrunner_echo"
_ECHO_S = 2.0
_ECHO_EVERY_S = 60.0
"""How often a listener proves anew that it hears: a silent proxy leaves a connection that looks well."""
_CONNECT_S = 2
"""How long a connection for listening may take where its URL says nothing of that."""
_SQLITE_LOOK_S = 0.03
_STAY = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'"
"""A listener waits for hours by design; PostgreSQL 13 does not have this setting."""


class Ear(ABC):
    """Hears that somebody may have set a kill flag. It is opened, used and closed by one thread."""

    @abstractmethod
    def open(self) -> None:
        """Begin to listen: what comes from now on is heard."""

    @abstractmethod
    def hear(self, wake: Wake) -> bool:
        """Wait until something was heard (True), or `wake` was set, or it is time to call again."""

    @abstractmethod
    def close(self) -> None:
        """Give the connection back."""


def make_ear(database: Database) -> Ear:
    """Return the ear for a database. Raises what a wrong listen_url raises."""
    return SqliteEar(database) if database.is_sqlite else PostgresEar(database)


class SqliteEar(Ear):
    """`PRAGMA data_version` changes whenever another connection committed."""

    def __init__(self, database: Database) -> None:
        self._held = database.held()
        self._bare = driver_connection(self._held)
        self._version: int | None = None

    def open(self) -> None:
        """Begin to listen."""
        self._version = self._ask()

    def hear(self, wake: Wake) -> bool:
        """Wait until another connection committed, or `wake` was set."""
        while not wait_readable([], wake, _SQLITE_LOOK_S):
            version = self._ask()
            if version != self._version:
                self._version = version
                return True
        return False

    def _ask(self) -> int:
        # Past SQLAlchemy: this is asked thirty times a second, and must cost nothing.
        ((version,),) = self._bare.execute("PRAGMA data_version").fetchall()
        return int(version)

    def close(self) -> None:
        """Give the connection back."""
        self._held.close()


class PostgresEar(Ear):
    """LISTEN on a direct connection of its own, proven by an echo sent through the ordinary one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        listener = database.settings.listener
        url = database.url if listener is None else listener.to_sqlalchemy()
        _, self._parameters = database.engine.dialect.create_connect_args(url)
        self._connection: Any = None
        self._word = b""
        self._echo_until_s = math.inf
        """Until when the echo may come; infinite once it came."""
        self._next_echo_s = 0.0

    def open(self) -> None:
        """Begin to listen, on a session that is proven to be ours alone: LISTEN stays set behind a pooler."""
        opener = Opener(self._database.settings, self._database.shown_url, is_for_listening=True)
        own = {"connect_timeout": _CONNECT_S, **self._parameters, "application_name": "jobrunner listen"}
        self._connection = opener.open(own)
        if not self._connection.session.is_ours_alone:
            raise DatabaseError("a pooler is in between: set listen_url to a direct connection")
        self._connection.execute(f"LISTEN {KILL_CHANNEL}; LISTEN {_ECHO_CHANNEL}; {_STAY}")
        self._call_for_echo()

    def hear(self, wake: Wake) -> bool:
        """Wait until a kill flag was set, or `wake` was set, or the echo is due."""
        if monotonic_s() >= self._next_echo_s:
            self._call_for_echo()
        limit_s = min(self._next_echo_s, self._echo_until_s)
        wait_readable([self._connection.fileno()], wake, limit_s - monotonic_s())
        heard = self._take_in()
        if monotonic_s() >= self._echo_until_s:
            raise DatabaseError("no echo came: set listen_url to a direct connection, past any pooler")
        return heard

    def _call_for_echo(self) -> None:
        word = uuid.uuid4().hex
        with self._database.read() as connection:
            connection.execute(sql_select(func.pg_notify(_ECHO_CHANNEL, word)))
        self._word = word.encode()
        self._echo_until_s = monotonic_s() + _ECHO_S
        self._next_echo_s = monotonic_s() + _ECHO_EVERY_S

    def _take_in(self) -> bool:
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
        """Give the connection back: whatever it listened to ends with it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
