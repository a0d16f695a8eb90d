"""A real PgBouncer before a PostgreSQL, where it is installed."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psycopg
import pytest

from tests.helpers import until
from tests.proxy import TcpProxy

IGNORES_OPTIONS = "ignore_startup_parameters = options"


def find_pgbouncer() -> str | None:
    """Return the path of PgBouncer; None where it is not installed."""
    known = os.environ.get("PGBOUNCER", "pgbouncer"), "/usr/sbin/pgbouncer"
    return next((path for path in map(shutil.which, known) if path), None)


def pgbouncer_program() -> str:
    """Return the path of PgBouncer; the test is skipped where it is not installed."""
    found = find_pgbouncer()
    if found is None:
        pytest.skip("PgBouncer is not installed: `apt-get install pgbouncer`")
    return found


class PgBouncer:
    """A PgBouncer before the PostgreSQL on `server_port`; it can be killed and started at the same port."""

    def __init__(self, program: str, server_port: int, *lines: str, pool_mode: str = "transaction") -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="pgbouncer")
        directory = Path(self._directory.name)
        directory.chmod(0o777)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        users, config = directory / "users.txt", directory / "pgbouncer.ini"
        users.write_text('"postgres" ""\n')
        config.write_text(
            "\n".join(
                [
                    "[databases]",
                    f"* = host=127.0.0.1 port={server_port}",
                    "[pgbouncer]",
                    "listen_addr = 127.0.0.1",
                    f"listen_port = {self.port}",
                    "unix_socket_dir =",
                    "auth_type = trust",
                    f"auth_file = {users}",
                    f"pool_mode = {pool_mode}",
                    "default_pool_size = 2",
                    *lines,
                    "",
                ]
            )
        )
        as_other = ["-u", "nobody"] if os.geteuid() == 0 else []
        self._command = [program, *as_other, str(config)]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it; returns when it listens."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: _answers(self.port))

    def kill(self) -> None:
        """End it at once, with every connection through it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End it, and leave nothing behind."""
        self.kill()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


@contextmanager
def pgbouncer(postgres_socket_dir: str, *lines: str, pool_mode: str = "transaction") -> Iterator[int]:
    """Run a PgBouncer with two server connections a database, and yield its port."""
    program = pgbouncer_program()
    with (
        TcpProxy(postgres_socket_dir) as server,
        PgBouncer(program, server.port, *lines, pool_mode=pool_mode) as pooler,
    ):
        yield pooler.port


def seen_by_others(port: int, database: str, query: str, times: int = 10) -> set[object]:
    """Return what other clients of the pool see, on as many of its server connections as there are."""
    seen: set[object] = set()
    connections = [_client(port, database) for _ in range(2)]
    try:
        for _ in range(times):
            for connection in connections:  # each in a transaction of its own, both at a time
                connection.execute("BEGIN")
            for connection in connections:
                row = connection.execute(query).fetchone()
                assert row is not None
                seen.add(row[0])
            for connection in connections:
                connection.execute("COMMIT")
    finally:
        for connection in connections:
            connection.close()
    return seen


def _client(port: int, database: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host="127.0.0.1",
        port=port,
        dbname=database,
        user="postgres",
        autocommit=True,
        prepare_threshold=None,
        connect_timeout=20,
    )


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        time.sleep(0.05)
        return False
    return True
