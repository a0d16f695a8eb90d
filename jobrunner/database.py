"""The database: engine, transactions, what differs between SQLite and PostgreSQL.

Every error of a driver leaves this module as a `DatabaseError` with one sentence.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, ExceptionContext, MetaData, create_engine, event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Session

from jobrunner import registry
from jobrunner.driver_errors import is_missing_table, is_session_lost, refused_value, translate
from jobrunner.errors import DatabaseError, DatabaseUnavailable, SchemaError, SettingsError
from jobrunner.listen_url import check_listen_url
from jobrunner.paths import is_directory
from jobrunner.postgres_session import Opener, is_closed
from jobrunner.private import make_private_directory, prepare_sqlite_file
from jobrunner.settings import Settings, get_settings
from jobrunner.sqltypes import json_or_text
from jobrunner.transaction_limit import LIMIT_OPTION, Limit, limited, renew_after_limit

SCHEMA_VERSION = "0005"
"""The newest migration of this version; a test holds it against the migrations themselves."""

_MIN_SQLITE = (3, 35, 0)  # RETURNING
_SESSION_PART = 1 / 3
"""Of the time for which others wait for SQLite's writer, what a transaction of others' code may keep it."""


class Base(DeclarativeBase):
    """The declarative base: its metadata holds the tables, and names their constraints."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Database:
    """One database, reached through one pool.

    `read` and `write` give a connection for a moment; `held` one to keep, for beats. On PostgreSQL
    each statement is its own transaction; on SQLite `write` is an IMMEDIATE one.

    `has_bounded_pool`: False lets there be as many connections as are wanted at once.
    """

    def __init__(self, settings: Settings, *, has_bounded_pool: bool = True) -> None:
        self.settings = settings
        place = settings.database
        self.url = place.to_sqlalchemy()
        check_listen_url(settings)  # a thread that beats must not be the first to find out
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.shown_url = place.shown
        self.engine = (
            _sqlite_engine(self.url, settings, has_bounded_pool=has_bounded_pool)
            if self.is_sqlite
            else _postgres_engine(self.url, settings, self.shown_url, has_bounded_pool=has_bounded_pool)
        )
        self._limited = limited(self.engine)
        renew_after_limit(self.engine)
        self._listen_for_errors()
        self._autocommit = self.engine.execution_options(
            **({"jobrunner_begin": ""} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"})
        )

    def _listen_for_errors(self) -> None:
        @event.listens_for(self.engine, "handle_error")
        def _judge(context: ExceptionContext) -> DatabaseError | None:
            if is_session_lost(context.original_exception):
                context.is_disconnect = True  # the whole pool is renewed with it
            return refused_value(context.original_exception, self.shown_url)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection for statements that each stand alone."""
        with self.translated(), self._autocommit.connect() as connection, _thrown_away_amid(connection):
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection for one write: it stands when the block ends well, and else nothing does."""
        if not self.is_sqlite:
            with self.read() as connection:
                yield connection
            return
        with self.translated(), self.engine.begin() as connection, _thrown_away_amid(connection):
            yield connection

    def held(self, call_s: float | None = None) -> Connection:
        """Return a connection of the caller's own, to be kept and closed by him; the pool forgets it.

        `call_s`: how long a call on it may take on PostgreSQL, in place of `call_timeout_s`.
        """
        with self.translated():
            connection = self._autocommit.connect()
            connection.detach()
            driver = driver_connection(connection)
            if self.is_sqlite:
                # A beat lost in a power cut is replaced by the next one: it need not wait for the disk.
                connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
                return connection
            try:
                if call_s is not None:
                    driver.call_s = call_s
                if driver.session.is_ours_alone:  # behind a pooler it would stay set for others
                    connection.exec_driver_sql("SET synchronous_commit = off")
            except BaseException:
                driver.close()  # the pool does not know it any more
                raise
            return connection

    def session(self, limit: Limit | None = None) -> Session:
        """Return an ORM session for others' code.

        On SQLite its transactions are IMMEDIATE from their first write on; what they read before stands
        alone. `limit`: what they may hold; by default, on SQLite, the writer for a part of the time for which
        others wait.
        """
        if limit is None and self.is_sqlite:
            limit = Limit(write_s=self.settings.sqlite_busy_timeout_s * _SESSION_PART)
        if limit is None:
            return Session(self.engine, expire_on_commit=False)
        return Session(self._limited.execution_options(**{LIMIT_OPTION: limit}), expire_on_commit=False)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what SQLAlchemy raises within the block into our errors."""
        try:
            yield
        except SQLAlchemyError as error:
            raise translate(error, self.shown_url) from error

    def schema_version(self) -> str | None:
        """Return the version that the schema is at; None without one."""
        with self.translated(), self._autocommit.connect() as connection:
            try:
                return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            except DBAPIError as error:
                if is_missing_table(error):
                    return None
                raise

    def dispose(self) -> None:
        """Close the pool's connections."""
        self.engine.dispose()


@contextmanager
def _thrown_away_amid(connection: Connection) -> Iterator[None]:
    """Throw a connection away where Ctrl-C, or what it stands for, ends the block: a cursor may be open yet.

    The traceback holds it, and what it has read or locked stays so for whoever gets the connection next.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException:
        if not connection.closed:
            connection.invalidate()
        raise


def driver_connection(connection: Connection) -> Any:
    """Return the driver's own connection under one of SQLAlchemy's."""
    return connection.connection.dbapi_connection


_any_text = partial(str, encoding="utf-8", errors="backslashreplace")
"""Reads a text of SQLite: one that is no UTF-8 must not make every list an error."""


def _sqlite_engine(url: URL, settings: Settings, *, has_bounded_pool: bool) -> Engine:
    if sqlite3.sqlite_version_info < _MIN_SQLITE:
        raise SettingsError(f"SQLite {sqlite3.sqlite_version} is too old: jobrunner needs 3.35 or newer.")
    path = Path(url.database or "")
    if settings.is_embedded:
        try:
            make_private_directory(path.parent)
        except OSError as error:
            raise DatabaseUnavailable(
                f"The directory {path.parent} for the database cannot be made ({error.strerror}): "
                "set JOBRUNNER_DATA_DIR or JOBRUNNER_DATABASE_URL to a place you may write to."
            ) from error
    elif not is_directory(path.parent):
        raise DatabaseUnavailable(
            f"The directory {path.parent} of the database does not exist, or this user may not enter it: "
            "make it, or name another file by database_url."
        )
    prepare_sqlite_file(path, is_ours=settings.is_embedded)
    engine = create_engine(
        url,
        connect_args={"timeout": settings.sqlite_busy_timeout_s},
        json_deserializer=json_or_text,
        max_overflow=10 if has_bounded_pool else -1,
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself: see _begin
        connection.text_factory = _any_text
        for pragma in ("journal_mode = WAL", "foreign_keys = ON", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "close")
    def _close(connection: Any, _record: Any) -> None:
        # Ctrl-C amid a statement has it thrown away. Its cursor, which the traceback holds, keeps a closed
        # one open, and would keep the write lock from this process, and from all others.
        connection.rollback()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # IMMEDIATE: a deferred transaction that turns into a writer fails at once when another wrote.
        begin = connection.get_execution_options().get("jobrunner_begin", "BEGIN IMMEDIATE")
        if begin:
            connection.exec_driver_sql(begin)

    return engine


def _postgres_engine(url: URL, settings: Settings, shown_url: str, *, has_bounded_pool: bool) -> Engine:
    opener = Opener(settings, shown_url)
    try:
        engine = create_engine(
            url,
            json_deserializer=json_or_text,
            pool_size=5,
            max_overflow=10 if has_bounded_pool else -1,
            pool_timeout=settings.connect_timeout_s,
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise SettingsError(
            "PostgreSQL needs the extra `postgres`: run `pip install 'jobrunner[postgres]'`."
        ) from error

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, _record: Any, _arguments: Any, parameters: Any) -> Any:
        return opener.open(parameters)

    @event.listens_for(engine, "checkout")
    def _checkout(connection: Any, _record: Any, _fairy: Any) -> None:
        if is_closed(connection):
            raise DisconnectionError("the server closed the connection while it was idle")

    return engine


_lock = threading.RLock()
_current: tuple[int, Settings, Database] | None = None


def get_database() -> Database:
    """Return this process's database, as the settings name it, with its schema checked.

    Raises `SettingsError`, `DatabaseUnavailable` or `SchemaError`.
    """
    global _current  # noqa: PLW0603  # one pool a process; a fork gets its own
    settings = get_settings()
    with _lock:
        if _current is not None and _current[0] == os.getpid() and _current[1] is settings:
            return _current[2]
        database = Database(settings)
        try:
            _check_schema(database)
        except BaseException:
            database.dispose()
            raise
        if _current is not None and _current[0] == os.getpid():
            _current[2].dispose()
        _current = (os.getpid(), settings, database)
        return database


def _check_schema(database: Database) -> None:
    version = database.schema_version()
    # A newer schema is only ever additive within a major version: older code works on it.
    if version is not None and version >= SCHEMA_VERSION:
        return
    if database.settings.is_embedded:
        # By its path: the schema's module stands above, and is heavy; it is needed once in a lifetime.
        registry.load("jobrunner.schema:upgrade_embedded")(database)
        return
    what = (
        "has no tables of jobrunner"
        if version is None
        else f"is at version {version}, older than {SCHEMA_VERSION}"
    )
    raise SchemaError(f"The database {database.shown_url} {what}: run `jobrunner db upgrade`.")
