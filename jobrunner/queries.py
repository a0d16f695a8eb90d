"""Every question about jobs that changes nothing. They read rows, never entities."""

import datetime as dt
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, RowMapping, Select, false, select, union_all

from jobrunner.sqltypes import age_s, alive, decoded_text, readable_time
from jobrunner.statements import tables
from jobrunner.states import TERMINAL_STATES, JobState

_NEWEST = 3_000
"""Rows in which a list looks first, newest of all: reading them takes about a millisecond."""


def most_recent(conn: Connection, job_types: Collection[str] | None) -> RowMapping | None:
    """Return the row of the most recent job of these types (None: of any), or None.

    A running one before any other, by its latest heartbeat; else the one last ended, or one that
    waits and has the later heartbeat.
    """
    job, _ = tables()
    base = select(job.c.id, job.c.latest_heartbeat).limit(1)
    of_any = [] if job_types is None else [job.c.job_type.in_(job_types)]
    # A time that cannot be read must not come before those that beat.
    youngest = readable_time(job.c.latest_heartbeat).desc().nulls_last()
    running = base.where(job.c.state == JobState.RUNNING, *of_any).order_by(youngest)
    found = conn.execute(running).first()
    if found is None:
        # Each type by itself: no index is ordered by the end over several of them.
        of_each = [[]] if job_types is None else [[job.c.job_type == each] for each in job_types]
        ended = base.where(job.c.end_date.is_not(None)).order_by(job.c.end_date.desc())
        waiting = base.where(job.c.end_date.is_(None)).order_by(job.c.latest_heartbeat.desc())
        first = [select(query.where(*of).subquery()) for of in of_each for query in (ended, waiting)]
        rest = conn.execute(union_all(*first)).all() if first else []
        if not rest:
            return None
        found = max(rest, key=lambda row: row.latest_heartbeat)
    return conn.execute(select(job).where(job.c.id == found.id)).mappings().first()


def is_alive(conn: Connection, job_id: int, grace_multiplier: float) -> bool:
    """Judge one job by the database's clock (PROTOCOL 4). A job that is not there is not alive."""
    job, _ = tables()
    verdict = alive(job.c.state, job.c.latest_heartbeat, job.c.heartrate, grace_multiplier)
    return bool(conn.execute(select(verdict).where(job.c.id == job_id)).scalar())


def alive_ids(
    conn: Connection,
    grace_multiplier: float,
    *,
    job_types: Collection[str] | None = None,
    hostname: str | None = None,
    limit: int | None = None,
) -> list[int]:
    """Return the ids of the jobs that are alive, newest first: judged before any limit."""
    job, _ = tables()
    statement = select(job.c.id).where(job.c.state == JobState.RUNNING)
    if job_types is not None:
        statement = statement.where(job.c.job_type.in_(job_types))
    if hostname is not None:
        statement = statement.where(job.c.hostname == hostname)
    # The dearest condition last: SQLite takes them in this order.
    statement = statement.where(alive(job.c.state, job.c.latest_heartbeat, job.c.heartrate, grace_multiplier))
    return list(conn.execute(statement.order_by(job.c.id.desc()).limit(limit)).scalars().all())


def listed(
    conn: Connection,
    grace_multiplier: float,
    *,
    states: Collection[JobState] = (),
    job_types: Collection[str] = (),
    name: str | None = None,
    dag_id: str | None = None,
    key: str | None = None,
    since_s: float | None = None,
    since: dt.datetime | None = None,
    limit: int = 50,
) -> list[RowMapping]:
    """Return rows for a list, newest first, each with `alive`, `age_s` and `running_s`.

    `since_s`, `since`: only jobs created within so many seconds, or since that time.
    """
    job, _ = tables()
    of_states = [JobState(state) for state in sorted(set(states))]
    wish = _Wish(of_states, job_types, name, dag_id, key, since_s, since)
    ids: Any = None
    if job_types or since_s is not None or since is not None:
        ids = _ids_among_newest(conn, wish, limit)
    if ids is None:
        # The ids first, from an index alone where one serves; and each state by itself, because no
        # index is ordered by id over several of them: a million rows would be walked, or sorted.
        # SQLite would walk all rows by id for a type that the newest lack: `+ 0` sends it to the index.
        by_id = job.c.id + 0 if conn.dialect.name == "sqlite" and job_types else job.c.id
        newest = [
            select(job.c.id).where(*wish.of(job.c, each)).order_by(by_id.desc()).limit(limit).subquery()
            for each in ([[state] for state in of_states] or [[]])
        ]
        found = [select(each.c.id) for each in newest]
        ids = union_all(*found) if len(found) > 1 else found[0]
    statement = _judged(grace_multiplier).where(job.c.id.in_(ids)).order_by(job.c.id.desc()).limit(limit)
    return _readable(conn.execute(statement).mappings())


@dataclass(frozen=True, slots=True)
class _Wish:
    """Which jobs a list is of."""

    states: Sequence[JobState]
    job_types: Collection[str]
    name: str | None
    dag_id: str | None
    key: str | None
    since_s: float | None
    since: dt.datetime | None

    def of(self, columns: Any, states: Sequence[JobState]) -> list[Any]:
        """Return the conditions on the table's columns, or on those of a subquery."""
        wishes = [
            (columns.state.in_(states), states),
            (columns.job_type.in_(self.job_types), self.job_types),
            (columns.name == self.name, self.name is not None),
            (columns.dag_id == self.dag_id, self.dag_id is not None),
            (columns.key == self.key, self.key is not None),
            (~self.is_older(columns), True),
        ]
        return [condition for condition, is_wished in wishes if is_wished]

    def is_older(self, columns: Any) -> Any:
        """Return the condition that a job was created before the time from which on they are listed."""
        if self.since_s is not None:
            return age_s(columns.created_at) > self.since_s
        return columns.created_at < self.since if self.since is not None else false()


def _ids_among_newest(conn: Connection, wish: _Wish, limit: int) -> list[int] | None:
    """Return the ids where the newest rows hold the whole answer; else None.

    What is asked for is mostly there, and nothing indexes `created_at`, nor a type's ids.
    """
    job, _ = tables()
    newest = select(job).order_by(job.c.id.desc()).limit(_NEWEST).subquery()
    reaches_back = select(newest.c.id).where(wish.is_older(newest.c)).limit(1)
    ids = (
        conn.execute(
            select(newest.c.id)
            .where(*wish.of(newest.c, wish.states))
            .order_by(newest.c.id.desc())
            .limit(limit)
        )
        .scalars()
        .all()
    )
    # Ids follow creation: beyond a row that is too old there are only older ones.
    return list(ids) if len(ids) == limit or conn.execute(reaches_back).first() is not None else None


def shown(conn: Connection, job_id: int, grace_multiplier: float) -> RowMapping | None:
    """Return one job's whole row with `alive`, `age_s` and `running_s`; None when there is none."""
    job, _ = tables()
    rows = _readable(conn.execute(_judged(grace_multiplier).where(job.c.id == job_id)).mappings())
    return rows[0] if rows else None


def _judged(grace_multiplier: float) -> Select[Any]:
    job, _ = tables()
    return select(
        job,
        alive(job.c.state, job.c.latest_heartbeat, job.c.heartrate, grace_multiplier).label("alive"),
        age_s(job.c.latest_heartbeat).label("age_s"),
        age_s(job.c.start_date).label("running_s"),
    )


def shown_all(conn: Connection, job_ids: Collection[int], grace_multiplier: float) -> dict[int, RowMapping]:
    """Return the rows of those of `job_ids` that there are, by id, as `shown` has them."""
    job, _ = tables()
    rows = conn.execute(_judged(grace_multiplier).where(job.c.id.in_(job_ids))).mappings()
    return {row["id"]: row for row in _readable(rows)}


def has_type(conn: Connection, job_type: str) -> bool:
    """Whether there is any job of this type."""
    job, _ = tables()
    return conn.execute(select(job.c.id).where(job.c.job_type == job_type).limit(1)).first() is not None


def types(conn: Connection) -> list[str]:
    """Return the types of the jobs that there are."""
    job, _ = tables()
    found = conn.execute(select(job.c.job_type).distinct().order_by(job.c.job_type)).scalars()
    return [decoded_text(job_type) for job_type in found]


def events(conn: Connection, job_id: int) -> list[RowMapping]:
    """Return a job's events, oldest first."""
    _, job_event = tables()
    statement = select(job_event).where(job_event.c.job_id == job_id).order_by(job_event.c.id)
    return _readable(conn.execute(statement).mappings())


def children(conn: Connection, job_id: int) -> list[RowMapping]:
    """Return the rows of the jobs that this one enqueued, oldest first."""
    job, _ = tables()
    statement = select(job).where(job.c.parent_id == job_id).order_by(job.c.id)
    return _readable(conn.execute(statement).mappings())


def _readable(rows: Iterable[RowMapping]) -> list[RowMapping]:
    """Return rows for people: a blob in a column of text, which SQLite takes, as text."""
    return [
        cast(
            "RowMapping",
            {key: decoded_text(held) if isinstance(held, bytes) else held for key, held in row.items()},
        )
        if any(isinstance(held, bytes) for held in row.values())
        else row
        for row in rows
    ]


def any_live(conn: Connection) -> bool:
    """Whether any job is queued or running: its runner may be of another version."""
    job, _ = tables()
    live = [state for state in JobState if state not in TERMINAL_STATES]
    return conn.execute(select(job.c.id).where(job.c.state.in_(live)).limit(1)).first() is not None
