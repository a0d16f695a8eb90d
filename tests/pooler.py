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

import psycopg
import pytest

from tests.helpers import until
from tests.proxy import TcpProxy

IGNORES_OPTIONS = "ignore_startup_parameters = options"


def pgbouncer_program() -> str:
    """Return the path of PgBouncer; the test is skipped where it is not installed."""
    known = os.environ.get("PGBOUNCER", "pgbouncer"), "/usr/sbin/pgbouncer"
    found = next((path for path in map(shutil.which, known) if path), None)
    if found is None:
        pytest.skip("PgBouncer is not installed: `apt-get install pgbouncer`")
    return found


@contextmanager
def pgbouncer(postgres_socket_dir: str, *lines: str, pool_mode: str = "transaction") -> Iterator[int]:
    """Run a PgBouncer with two server connections a database, and yield its port."""
    program = pgbouncer_program()
    with tempfile.TemporaryDirectory(prefix="pgbouncer") as name, TcpProxy(postgres_socket_dir) as server:
        directory = Path(name)
        directory.chmod(0o777)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        users, config = directory / "users.txt", directory / "pgbouncer.ini"
        users.write_text('"postgres" ""\n')
        config.write_text(
            "\n".join(
                [
                    "[databases]",
                    f"* = host=127.0.0.1 port={server.port}",
                    "[pgbouncer]",
                    "listen_addr = 127.0.0.1",
                    f"listen_port = {port}",
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
        process = subprocess.Popen(
            [program, *as_other, str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(lambda: _answers(port))
            yield port
        finally:
            process.kill()
            process.wait()


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
