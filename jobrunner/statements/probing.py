"""Proof that the database takes writes: a look that only reads sees silence also while nobody can beat."""

from functools import cache
from typing import Any

from sqlalchemy import Connection, Update, false, update

from jobrunner.statements.table import tables


def prove_writable(conn: Connection, within_s: float) -> None:
    """Write something that changes nothing, as an owner's beat would have to be written.

    On SQLite it takes the one write lock and commits, within `within_s` seconds; on PostgreSQL it takes the
    lock on the table that every beat takes. Raises what the database raises where that cannot be.
    """
    if conn.dialect.name == "postgresql":
        conn.execute(_nothing())
        return
    if getattr(conn.connection.driver_connection, "in_transaction", False):
        return  # in an IMMEDIATE one: the lock is this connection's
    pragmas = {"busy_timeout": round(within_s * 1000), "synchronous": "NORMAL"}  # not to wait for the disk
    before = {name: conn.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in pragmas}
    try:
        _set(conn, pragmas)
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = version_num")
    finally:
        _set(conn, before)


@cache
def _nothing() -> Update:
    job, _ = tables()
    return update(job).values(claims=job.c.claims).where(false())


def _set(conn: Connection, pragmas: dict[str, Any]) -> None:
    for name, value in pragmas.items():
        conn.exec_driver_sql(f"PRAGMA {name} = {value}")
