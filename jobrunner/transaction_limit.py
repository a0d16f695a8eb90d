"""Limits for the transactions of others' code, which keep everybody else waiting for what they hold.

One that only reads holds nothing: on SQLite each of its statements stands alone, as on PostgreSQL. The
first write begins what is limited: SQLite has one writer, and on PostgreSQL a row that was written is
locked. A hook that hangs then would keep beats and kills from being written.
"""

import re
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DisconnectionError

from jobrunner.clock import monotonic_s
from jobrunner.deadline import shut
from jobrunner.errors import DatabaseUnavailable
from jobrunner.logs import get_logger

log = get_logger(__name__)

LIMIT_OPTION = "jobrunner_limit"
"""The execution option that holds the `Limit` of a transaction."""
_HOLD = "jobrunner_hold"
_IS_OVER = "jobrunner_over"
_LONG_S = 0.1
"""Transactions that take longer are followed by a rest of ..."""
_REST = 4
"""... so many times their length."""
_CANCEL_S = 2.0

_READS = re.compile(r"[\s(]*(SELECT|VALUES|PRAGMA|SHOW|BEGIN)\b", re.IGNORECASE)
_MAY_READ = re.compile(r"[\s(]*(WITH|EXPLAIN)\b", re.IGNORECASE)
_LOCKS = re.compile(r"\bFOR\s+(NO\s+KEY\s+|KEY\s+)?(UPDATE|SHARE)\b|\bINTO\b", re.IGNORECASE)
_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE|REPLACE|MERGE)\b", re.IGNORECASE)


class Turns:
    """The turns of hooks to write: one at a time, and after a long one a rest, in which others write.

    Without it they would hand SQLite's writer from one to the next, and a beat would wait for all of them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_taken = False
        self._free_s = 0.0

    def take(self, most_s: float, refuse: Callable[[], None]) -> None:
        """Wait for a turn. `refuse` may raise meanwhile. Raises `DatabaseUnavailable` after `most_s`."""
        until_s = monotonic_s() + most_s
        with self._changed:
            while True:
                refuse()
                now_s = monotonic_s()
                if not self._is_taken and now_s >= self._free_s:
                    self._is_taken = True
                    return
                if now_s >= until_s:
                    raise DatabaseUnavailable(
                        f"Other hooks kept this one from writing for {most_s:g} s: see the log for which."
                    )
                next_s = until_s if self._is_taken else min(until_s, self._free_s)
                self._changed.wait(next_s - now_s)

    def give_back(self, held_s: float) -> None:
        """Let the next one have its turn."""
        with self._changed:
            self._is_taken = False
            self._free_s = monotonic_s() + (_REST * held_s if held_s > _LONG_S else 0.0)
            self._changed.notify_all()


def _say_over(write_s: float) -> None:
    log.warning(f"a session kept what it had written locked for {write_s:.3g} s: it is rolled back")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What the transactions of one session may hold, and for how long."""

    write_s: float
    """Seconds from the first write to the end."""
    idle_s: float | None = None
    """Seconds for which one may stand idle on PostgreSQL, also where it has written nothing."""
    turns: Turns | None = None
    wait_s: float = 0.0
    """Seconds to wait for a turn."""
    refuse: Callable[[], None] = lambda: None
    """Raises, where this session may write no more."""
    on_over: Callable[[float], None] = _say_over
    """Called with `write_s`, on another thread, when one was ended because it took longer."""


class _Hold:
    """What a transaction holds, from its first write to its end."""

    def __init__(self, connection: Connection, limit: Limit) -> None:
        self._limit = limit
        self._driver: Any = connection.connection.dbapi_connection
        self._info = connection.info
        self._lock = threading.Lock()
        self._has_ended = False
        if limit.turns is not None:
            limit.turns.take(limit.wait_s, limit.refuse)
        self._begun_s: float | None = None
        self._timer = threading.Timer(limit.write_s, self._cut)
        self._timer.name, self._timer.daemon = "jobrunner-transaction-limit", True

    def start(self) -> None:
        """Let the time run: from now on others wait."""
        self._begun_s = monotonic_s()
        self._timer.start()

    def end(self) -> None:
        """Stop the time; others may have their turn."""
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
        self._timer.cancel()
        if self._limit.turns is not None:
            self._limit.turns.give_back(0.0 if self._begun_s is None else monotonic_s() - self._begun_s)

    def _cut(self) -> None:
        """End the transaction under its user; its connection does nothing any more."""
        with self._lock:
            if self._has_ended:
                return
            self._info[_IS_OVER] = True
        try:
            self._limit.on_over(self._limit.write_s)
        finally:
            self._roll_back()
            self.end()

    def _roll_back(self) -> None:
        if isinstance(self._driver, sqlite3.Connection):
            with suppress(sqlite3.Error):
                self._driver.interrupt()
                self._driver.set_authorizer(_only_rollback)  # what comes next would else stand alone
                self._driver.rollback()
        else:
            with suppress(Exception):  # it may have ended by itself, or the server be away
                self._driver.cancel_safe(timeout=_CANCEL_S)
            shut(self._driver)


def limited(engine: Engine) -> Engine:
    """Return an engine for the sessions of others' code: each needs a `Limit` as its option."""
    is_sqlite = engine.dialect.name == "sqlite"
    engine = engine.execution_options(jobrunner_begin="")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        limit = _limit_of(connection)
        if not is_sqlite and limit.idle_s is not None:
            connection.exec_driver_sql(
                "SELECT set_config('idle_in_transaction_session_timeout', %s, true), "
                "set_config('lock_timeout', %s, true)",
                (f"{round(1000 * limit.idle_s)}ms", f"{round(1000 * limit.write_s)}ms"),
            )

    @event.listens_for(engine, "before_cursor_execute")
    def _before(connection: Connection, _cursor: Any, statement: str, *_more: Any) -> None:
        if _HOLD in connection.info or _is_read(statement):
            return
        connection.info[_HOLD] = hold = _Hold(connection, _limit_of(connection))
        if is_sqlite:
            try:
                # IMMEDIATE: a deferred transaction that turns into a writer fails when another wrote.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            except BaseException:
                hold.end()
                del connection.info[_HOLD]
                raise
        hold.start()

    @event.listens_for(engine, "commit")
    def _commit(connection: Connection) -> None:
        _end(connection)
        if is_sqlite and connection.info.get(_IS_OVER):  # it would say nothing; PostgreSQL's is gone
            raise DatabaseUnavailable(
                "The transaction took too long after its first write: it is rolled back."
            )

    event.listen(engine, "rollback", _end)
    return engine


def renew_after_limit(engine: Engine) -> None:
    """Give out no connection whose transaction was ended."""

    @event.listens_for(engine, "checkout")
    def _checkout(_driver: Any, record: Any, _fairy: Any) -> None:
        hold = record.info.pop(_HOLD, None)  # where an end was not heard of
        if hold is not None:
            hold.end()
        if record.info.pop(_IS_OVER, False):
            raise DisconnectionError("its transaction took too long")


def _limit_of(connection: Connection) -> Limit:
    limit: Limit = connection.get_execution_options()[LIMIT_OPTION]
    return limit


def _end(connection: Connection) -> None:
    hold = connection.info.pop(_HOLD, None)
    if hold is not None:
        hold.end()


def _is_read(statement: str) -> bool:
    """Whether it certainly holds nothing; what is doubtful counts as a write."""
    if _READS.match(statement):
        return not _LOCKS.search(statement)
    return bool(_MAY_READ.match(statement)) and not (_LOCKS.search(statement) or _WRITES.search(statement))


def _only_rollback(action: int, what: str | None, *_more: object) -> int:
    is_rollback = action == sqlite3.SQLITE_TRANSACTION and what == "ROLLBACK"
    return sqlite3.SQLITE_OK if is_rollback else sqlite3.SQLITE_DENY
