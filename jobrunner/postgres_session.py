"""Sessions on PostgreSQL that know what they are: set as they must be, and whether they are ours alone.

Behind a pooler a server connection is shared: what is set, prepared or listened to there is left to
others, and what was asked for when connecting may not be in force. So each new connection asks, in one
statement, what it is. It is ours alone where the server process is the one that the connection was told
of (PgBouncer makes up a number of its own) and where a marker sent with the startup packet, new for each
connection, is in force: only a server process that was started for this very connection has it.
"""

import datetime as dt
import os
import select
import uuid
from dataclasses import dataclass
from functools import cache
from typing import Any

from jobrunner.deadline import connection_class
from jobrunner.errors import DatabaseError
from jobrunner.log_limits import Once
from jobrunner.logs import get_logger
from jobrunner.postgres_parameters import complete, own_options
from jobrunner.settings import Settings

log = get_logger(__name__)

_UNHEARD_LEAST_S, _UNHEARD_MOST_S = 4.0, 20.0
"""For how long what was sent may remain unacknowledged: TCP has sent it again several times by then."""
_MARKER = "jobrunner.session"
_PROTOCOL = {
    "default_transaction_isolation": r"read\ committed",
    "synchronous_commit": "on",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
}
"""What jobrunner depends on: it comes after the user's own options, and overrides them."""
_TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
_ASKED = (
    "pg_backend_pid()",
    f"current_setting('{_MARKER}', true)",
    *(
        f"current_setting('{name}')"
        for name in (
            "server_encoding",
            "client_encoding",
            "DateStyle",
            "default_transaction_isolation",
            "synchronous_commit",
            *_TIMEOUTS,
        )
    ),
)


@dataclass(frozen=True, slots=True)
class Session:
    """What a new connection turned out to be."""

    is_direct: bool
    """Whether nothing shows that it is shared."""
    is_ours_alone: bool
    """Whether it is proven that no pooler gives its server process to others."""
    unmet: tuple[str, ...] = ()
    """What is not in force although jobrunner asked, or would have asked, for it."""


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens connections of psycopg, each with its `Session`, and each in bounded time."""

    settings: Settings
    shown_url: str
    is_for_listening: bool = False

    def open(self, parameters: dict[str, Any]) -> Any:
        """Open a connection; its `session` says what it is.

        Raises `psycopg.Error`, and `DatabaseError` where the database cannot be used as it is.
        """
        import psycopg

        settings = self.settings
        try:
            given = complete(parameters, settings.connect_timeout_s)
        except OSError as error:
            raise psycopg.OperationalError(str(error)) from error
        marker = uuid.uuid4().hex if settings.postgres_options or self.is_for_listening else None
        arguments = {
            "fallback_application_name": "jobrunner",  # one in the URL, or PGAPPNAME, is heeded
            **self._kernel_timeouts(),
            "connect_timeout": self._connect_timeout_s(given),
            **given,
            "client_encoding": "utf8",
            "prepare_threshold": None,
            "autocommit": True,
        }
        own = own_options(given)
        if marker is not None:
            arguments["options"] = f"{self._options(own)} -c {_MARKER}={marker}"
        connection = connection_class(settings.call_timeout_s).connect(**arguments)
        try:
            self._prove(connection, marker, own)
        except BaseException:
            connection.close()
            raise
        return connection

    def _kernel_timeouts(self) -> dict[str, int]:
        """Return when the kernel gives up a peer that vanished without a word, by what a beat can wait for.

        A peer acknowledges what was sent, and a probe, whatever its server does: only the network takes time.
        """
        heartrate = self.settings.heartrate
        unheard_s = min(max(heartrate, _UNHEARD_LEAST_S), _UNHEARD_MOST_S, self.settings.call_timeout_s)
        return {
            "keepalives_idle": max(1, round(unheard_s / 2)),
            "keepalives_interval": max(1, round(unheard_s / 4)),
            "keepalives_count": 3,
            "tcp_user_timeout": round(unheard_s * 1000),
        }

    def _connect_timeout_s(self, parameters: dict[str, Any]) -> int:
        """Return the seconds for each address: all of them together take no longer than one call may."""
        addresses = max(1, str(parameters.get("host", "")).count(",") + 1)
        return max(2, round(min(self.settings.connect_timeout_s, self.settings.call_timeout_s / addresses)))

    def _options(self, own: str) -> str:
        if self.is_for_listening:
            return own
        settings = self.settings
        timeouts = {
            "statement_timeout": settings.statement_timeout_s,
            "lock_timeout": settings.lock_timeout_s,
            "idle_in_transaction_session_timeout": settings.call_timeout_s,
        }
        before = " ".join(f"-c {name}={round(value * 1000)}" for name, value in timeouts.items())
        after = " ".join(f"-c {name}={value}" for name, value in _PROTOCOL.items())
        return f"{before} {own} {after}"

    def _prove(self, connection: Any, marker: str | None, own: str) -> None:
        row = connection.execute(f"SELECT {', '.join(_ASKED)}").fetchone()
        pid, its_marker, server_encoding, client_encoding, date_style, isolation, commit, *timeouts = row
        is_same_process = pid == connection.info.backend_pid
        has_options = (its_marker or None) == marker
        expected = [
            ("default_transaction_isolation", isolation, isolation == "read committed"),
            ("synchronous_commit", commit, commit != "off"),
            *((name, value, value != "0") for name, value in zip(_TIMEOUTS, timeouts, strict=True)),
        ]
        unmet = [f"{name} is {value}" for name, value, is_met in expected if not is_met]
        if own and not has_options:
            unmet.append(f"{own!r} of your own is not in force")
        connection.session = session = Session(
            is_direct=is_same_process and has_options,
            is_ours_alone=is_same_process and has_options and marker is not None,
            unmet=tuple(unmet),
        )
        self._check_encoding(server_encoding)
        if self.is_for_listening:
            return
        self._check_dates(connection, date_style)
        self._check_client_encoding(client_encoding, connection.info.encoding)
        self._say_unmet(session)
        connection.prepare_threshold = self.settings.prepare_threshold if session.is_direct else None
        connection.adapters.register_loader("timestamptz", _tolerant_loader())
        connection.autocommit = False

    def _check_encoding(self, encoding: str) -> None:
        if encoding != "UTF8":
            raise DatabaseError(
                f"The database {self.shown_url} is encoded in {encoding}, which cannot hold all text: "
                "create one with ENCODING 'UTF8' and use that."
            )

    def _check_client_encoding(self, in_force: str, known: str) -> None:
        if in_force != "UTF8" or known != "utf-8":
            raise DatabaseError(
                f"A pooler before {self.shown_url} sets client_encoding to {in_force}: let it pass on UTF8, "
                "or run `ALTER ROLE … SET client_encoding = 'UTF8'` for its role."
            )

    def _check_dates(self, connection: Any, in_force: str) -> None:
        if not in_force.startswith("ISO") and connection.session.is_ours_alone:
            connection.execute("SET DateStyle = 'ISO'")  # PGDATESTYLE comes after all options
        elif not in_force.startswith("ISO"):
            advice = (
                "unset PGDATESTYLE, which a pooler passes on"
                if os.environ.get("PGDATESTYLE")
                else "run `ALTER ROLE … SET DateStyle = 'ISO'` for its role, or set postgres_options = true "
                "where no pooler is in between"
            )
            raise DatabaseError(
                f"The database {self.shown_url} writes times in the DateStyle {in_force}, and no connection "
                f"option changes that: {advice}."
            )

    def _say_unmet(self, session: Session) -> None:
        if session.is_ours_alone or not session.unmet or not _said.is_new(self.shown_url):
            return
        unmet = ", ".join(session.unmet)
        next_step = "set them on the role, see 'Behind a pooler' in the page on the database"
        if self.settings.postgres_options:
            log.warning(
                "connection options are ignored by a pooler",
                database=self.shown_url,
                unmet=unmet,
                hint=next_step,
            )
        else:
            log.info(
                "timeouts are not set: postgres_options is false",
                database=self.shown_url,
                unmet=unmet,
                hint=next_step,
            )


def is_closed(connection: Any) -> bool:
    """Whether the server has ended an idle connection; asks the kernel alone, and waits for nothing."""
    import psycopg

    try:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        while poll.poll(0):  # its last words, or the end; or news such as a changed setting
            connection.pgconn.consume_input()
        return bool(connection.closed)
    except (psycopg.Error, OSError, ValueError):
        return True


@cache
def _tolerant_loader() -> Any:
    """Return psycopg's loader of times, which yields for those that Python has not.

    `kill_requested_at = 'infinity'`, written by any client, must not make every list an error.
    """
    import psycopg
    from psycopg.adapt import Loader

    class _TolerantLoader(Loader):
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            loader = psycopg.adapters.get_loader(oid, psycopg.pq.Format.TEXT)
            assert loader is not None
            self._exact = loader(oid, context)

        def load(self, data: Any) -> Any:
            try:
                return self._exact.load(data)
            except psycopg.DataError:
                is_past = bytes(data).startswith(b"-") or bytes(data).endswith(b"BC")
                return dt.datetime(1970 if is_past else 9999, 1, 1, tzinfo=dt.UTC)

    return _TolerantLoader


_said = Once()
"""The databases of which this process has said what is not in force."""
