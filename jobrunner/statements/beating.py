"""Beats, and what is asked beside them: where jobs stand, and which are to be killed."""

import datetime as dt
from collections.abc import Sequence
from functools import cache
from itertools import starmap
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    RowMapping,
    and_,
    bindparam,
    select,
    update,
)

from jobrunner.sqltypes import db_now, is_set
from jobrunner.statements.table import (
    id_list,
    in_ids,
    tables,
)
from jobrunner.states import JobState


class Beaten(NamedTuple):
    """A row that came back from a beat: it is still ours, and its kill flag is fresh.

    A named tuple: making 10,000 of them takes 2 ms, and of dataclasses a fifth of their whole beat.
    """

    job_id: int
    claims: int
    kill_requested: bool
    latest_heartbeat: dt.datetime | None = None


def beat(conn: Connection, runner_id: str, ids: Sequence[int], *, with_time: bool = False) -> list[Beaten]:
    """Write one heartbeat for each of `ids` that is this runner's, running, and not locked.

    A row that does not come back is no verdict: `look` tells. `with_time`: the time of the beat too,
    which costs a conversion for each row.
    """
    answer = conn.execute(
        beat_statement(conn.dialect.name, with_time), {"me": runner_id, "ids": id_list(conn, ids)}
    )
    if with_time or conn.dialect.name == "sqlite" or answer.cursor is None:
        return list(starmap(Beaten, answer.all()))
    # psycopg's own rows are in memory by now, and need no conversion: SQLAlchemy's would cost a tenth
    # of a large beat. SQLite commits while it fetches, and its error must come through SQLAlchemy.
    return list(starmap(Beaten, answer.cursor.fetchall()))


@cache
def beat_statement(dialect: str, with_time: bool) -> Any:
    job, _ = tables()
    ours = and_(job.c.runner_id == bindparam("me"), job.c.state == JobState.RUNNING)
    statement = update(job).values(latest_heartbeat=db_now())
    if dialect == "postgresql":
        # SKIP LOCKED: one row held by an open psql session must not silence all the others.
        # Ordered: two multi-row writers must not deadlock.
        mine = (
            select(job.c.id)
            .where(in_ids(dialect), ours)
            .order_by(job.c.id)
            .with_for_update(key_share=True, skip_locked=True)
            .cte("mine")
            .prefix_with("MATERIALIZED")
        )
        statement = statement.where(job.c.id == mine.c.id)
    else:
        statement = statement.where(in_ids(dialect), ours)
    told = [job.c.id, job.c.claims, is_flagged()]
    return statement.returning(*told, *([job.c.latest_heartbeat] if with_time else []))


def is_flagged() -> Any:
    job, _ = tables()
    return is_set(job.c.kill_requested_at)


def look(conn: Connection, ids: Sequence[int]) -> dict[int, RowMapping]:
    """Read where jobs stand: (id, state, runner_id, claims, submit_token, external_id, kill_requested).

    A missing id was deleted.
    """
    rows = conn.execute(_look(conn.dialect.name), {"ids": id_list(conn, ids)}).mappings().all()
    return {row["id"]: row for row in rows}


@cache
def _look(dialect: str) -> Any:
    job, _ = tables()
    flag = is_flagged().label("kill_requested")
    stands = (job.c.id, job.c.state, job.c.runner_id, job.c.claims, job.c.submit_token, job.c.external_id)
    return select(*stands, flag).where(in_ids(dialect))


def flagged(conn: Connection, runner_id: str) -> list[int]:
    """Return the ids of this runner's jobs that carry the kill flag."""
    return list(conn.execute(_flagged(), {"me": runner_id}).scalars().all())


@cache
def _flagged() -> Any:
    job, _ = tables()
    return select(job.c.id).where(
        job.c.state == JobState.RUNNING,
        job.c.runner_id == bindparam("me"),
        job.c.kill_requested_at.is_not(None),
    )
