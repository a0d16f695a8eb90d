"""What rows show of their external jobs, written in bulk."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, func
from sqlalchemy.dialects.postgresql import JSONB

from jobrunner.statements.given import json_of
from jobrunner.statements.table import Claim, is_one, of_given, owned, tables


class Sight(NamedTuple):
    """What a row shall show of its external job; a column that is None keeps what it holds."""

    job_id: int
    claims: int
    external_id: str
    external_state: str | None = None
    message: str | None = None
    detail: Mapping[str, Any] | None = None


def observe_many(conn: Connection, runner_id: str, sights: Sequence[Sight]) -> set[int]:
    """Write what the backend said of many of this runner's jobs, and return the ids of those written.

    One sight a job, in one statement. An answer about an earlier id, or under an earlier claim, changes
    nothing. A row that does not come back is no verdict, as after a beat: `look` tells.
    """
    rows = json_of([list(sight) for sight in sights])
    written = conn.execute(_observe_many(conn.dialect.name), {"me": runner_id, "rows": rows})
    return set(written.scalars().all())


@cache
def _observe_many(dialect: str) -> Any:
    job, _ = tables()
    shown = ("external_state", "message", "detail")
    statement, said = of_given(
        dialect,
        Sight._fields,
        {"detail": JSONB()},
        lambda said: [job.c.runner_id == bindparam("me"), job.c.external_id == said["external_id"]],
        shown,
    )
    values = {name: func.coalesce(said[name], job.c[name]) for name in shown}
    return statement.values(values).returning(job.c.id)


def tell(conn: Connection, claim: Claim, message: str, detail: Mapping[str, Any]) -> bool:
    """Write what a running job says of itself; False when the claim no longer stands."""
    return is_one(conn, owned(conn, claim).values(message=message, detail=dict(detail)))
