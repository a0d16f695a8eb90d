"""A limit for the transactions of others' code on SQLite, whose one writer keeps everybody else waiting.

PostgreSQL ends a transaction that is left open by itself (`idle_in_transaction_session_timeout`); SQLite has
nothing of the kind. A hook that hangs within one would keep every beat and every kill from being written.
"""

import sqlite3
import threading
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DisconnectionError

from jobrunner.logs import get_logger

log = get_logger(__name__)

LIMIT_OPTION = "jobrunner_limit_s"
"""The execution option that holds the most seconds of a transaction."""
_TIMER = "jobrunner_timer"
_IS_OVER = "jobrunner_over"


def limit_transactions(engine: Engine) -> None:
    """End each transaction that has the option and takes longer; its connection does nothing any more."""

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        limit_s = connection.get_execution_options().get(LIMIT_OPTION)
        if limit_s is None:
            return
        driver, info = connection.connection.dbapi_connection, connection.info
        timer = info[_TIMER] = threading.Timer(limit_s, _end, (driver, info, limit_s))
        timer.name, timer.daemon = "jobrunner-transaction-limit", True
        timer.start()

    @event.listens_for(engine, "commit")
    @event.listens_for(engine, "rollback")
    def _ended(connection: Connection) -> None:
        timer = connection.info.pop(_TIMER, None)
        if timer is not None:
            timer.cancel()

    @event.listens_for(engine, "checkout")
    def _checkout(_driver: Any, record: Any, _fairy: Any) -> None:
        if record.info.pop(_IS_OVER, False):
            raise DisconnectionError("its transaction took too long")


def _end(driver: Any, info: dict[str, Any], limit_s: float) -> None:
    info[_IS_OVER] = True
    log.warning(f"a hook kept a transaction open for {limit_s:g} s, and everybody waiting: it is rolled back")
    with suppress(sqlite3.Error):
        driver.interrupt()
        driver.set_authorizer(_only_rollback)  # what comes next would else be done outside of a transaction
        driver.rollback()


def _only_rollback(action: int, what: str | None, *_more: object) -> int:
    is_rollback = action == sqlite3.SQLITE_TRANSACTION and what == "ROLLBACK"
    return sqlite3.SQLITE_OK if is_rollback else sqlite3.SQLITE_DENY
