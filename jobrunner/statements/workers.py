"""Which rows are workers' own: also those of subclasses that this process does not know."""

from collections.abc import Mapping
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, and_, case, func, or_

from jobrunner.statements.table import tables

WORKER = "WorkerJob"
"""The job type of workers, unless their class is one of your own."""
WORKER_KEYS = ("capacity", "imports", "drain_timeout")
"""What the `spec` of every worker holds, since 0.1, and no other job's holds together.

By these a worker is known whose job type is its own class's, also to those who cannot load that class.
"""


def in_spec(conn: Connection, key: str) -> ColumnElement[str | None]:
    """Return what a job's `spec` holds under a key, as text; NULL where the spec cannot be read."""
    job, _ = tables()
    held = cast("ColumnElement[str | None]", job.c.spec[key].as_string())
    # SQLite ends the whole statement where one row holds no JSON.
    return held if conn.dialect.name != "sqlite" else case((func.json_valid(job.c.spec), held))


def is_worker(conn: Connection) -> ColumnElement[bool]:
    """Return the condition that a row is a worker's own."""
    job, _ = tables()
    # The spec of work outside may be long, and is not looked into.
    is_of_its_own_class = and_(
        job.c.submit_token.is_(None), *(in_spec(conn, key).is_not(None) for key in WORKER_KEYS)
    )
    return or_(job.c.job_type == WORKER, is_of_its_own_class)


def is_worker_row(row: Mapping[Any, Any]) -> bool:
    """Whether a whole row is a worker's own."""
    spec = row["spec"]
    is_like_one = isinstance(spec, Mapping) and all(spec.get(key) is not None for key in WORKER_KEYS)
    return row["job_type"] == WORKER or (row["submit_token"] is None and is_like_one)
