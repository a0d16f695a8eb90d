"""What there is for a worker to do: jobs that wait, jobs that may be orphans, and who else is at work.

These questions are asked again and again: while there is nothing, it is one statement a look.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, exists, func, literal, or_, select

from jobrunner.clock import monotonic_s
from jobrunner.resources import KEY
from jobrunner.sqltypes import BlobText, age_s, alive, at_most
from jobrunner.statements import (
    PROTOCOL,
    Owner,
    any_of,
    in_spec,
    is_worker,
    may_claim,
    may_judge,
    none_of,
    one_of,
    tables,
)
from jobrunner.states import JobState

LONGEST_RATE_S = 86_400.0
"""The heartrate in seconds by which a longer one is judged, and one that cannot be read."""
OF_SOME = "some"
"""What a worker's row says beside a reason that does not hold for all jobs of a type and a connection.

It holds for some of those of which `is_special` is true.
"""
_MISSED = 1.1  # heartrates, after which a beat is missed: no later, as the grace is counted from that look on


@dataclass(frozen=True, slots=True)
class Todo:
    """Whether there is anything to look at more closely."""

    has_queued: bool
    has_silent: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """Queued jobs that need the same: this type, this connection, this host and user, these rules."""

    job_type: str
    connection: str | None
    host_id: str | None
    host_uid: int | None
    needs: int | None
    is_held: bool
    is_watched: bool
    """Whether they watch work outside: a job that runs code has no token of a submission."""
    count: int

    @property
    def is_unreadable(self) -> bool:
        """Whether the columns that say what they need hold no text, as any client of SQLite may write."""
        return any(isinstance(held, BlobText) for held in (self.job_type, self.connection, self.host_id))


def todo(conn: Connection) -> Todo:
    """Ask whether any job waits, and whether any running one has missed a beat, in one statement."""
    job, _ = tables()
    queued = exists(select(literal(1)).where(job.c.state == JobState.QUEUED))
    silent = exists(select(literal(1)).where(_has_missed_a_beat()))
    row = conn.execute(select(queued, silent)).one()
    return Todo(*map(bool, row))


def _has_missed_a_beat() -> Any:
    """Return the condition that a running job may be an orphan; whether it is one, our own clock says."""
    job, _ = tables()
    age, rate = age_s(job.c.latest_heartbeat), at_most(job.c.heartrate, LONGEST_RATE_S)
    # Of a time that cannot be read there is no age: no owner has written it, so nobody beats.
    is_late = or_(age > _MISSED * rate, age < -rate, age.is_(None))
    return (job.c.state == JobState.RUNNING) & is_late & may_judge()


def waiting(conn: Connection) -> list[Waiting]:
    """Return what waits, by what it needs."""
    job, _ = tables()
    is_held = (job.c.held_at.is_not(None) & job.c.kill_requested_at.is_(None)).label("is_held")
    is_watched = job.c.submit_token.is_not(None).label("is_watched")
    where = (job.c.job_type, job.c.connection, job.c.host_id, job.c.host_uid)
    needs = (*where, job.c.needs, is_held, is_watched)
    statement = select(*needs, func.count()).where(job.c.state == JobState.QUEUED).group_by(*needs)
    return [Waiting(*row) for row in conn.execute(statement)]


def unreadable(conn: Connection, owner: Owner, without: Collection[int], most: int) -> list[int]:
    """Return the ids of queued jobs whose needs cannot be read: on SQLite, blobs may stand there.

    Only those that `owner` may claim, to end them; `without`: jobs that are left alone.
    """
    if conn.dialect.name != "sqlite":
        return []
    job, _ = tables()
    columns = (job.c.job_type, job.c.connection, job.c.host_id)
    is_blob = or_(*(func.typeof(column) == "blob" for column in columns))
    statement = select(job.c.id).where(*_claimable(conn, owner, (), without), is_blob)
    return list(conn.execute(statement.order_by(job.c.id).limit(most)).scalars())


def _claimable(
    conn: Connection, owner: Owner, host_ids: Iterable[str], without: Collection[int]
) -> list[Any]:
    """Return the conditions of what `owner` may claim of the queue, but for some jobs.

    They belong into every question that has a limit: what is left out after it keeps younger jobs waiting.
    """
    job, _ = tables()
    return [job.c.state == JobState.QUEUED, may_claim(owner, *host_ids), *none_of(conn, without)]


def bound(conn: Connection, host_ids: Collection[str], uid: int, most: int) -> list[RowMapping]:
    """Return queued jobs whose work has begun on one of these hosts for this user, oldest first.

    As far as one has to know them to tell whether their records can be seen.
    """
    job, _ = tables()
    columns = (job.c.id, job.c.job_type, job.c.connection, job.c.host_id)
    place = (job.c.external_id, job.c.submit_token, job.c.submit_started_at, job.c.submit_baseline)
    statement = select(*columns, *place).where(
        job.c.state == JobState.QUEUED,
        job.c.host_id.in_(host_ids),
        or_(job.c.host_uid.is_(None), job.c.host_uid == uid),
        or_(job.c.external_id.is_not(None), job.c.submit_started_at.is_not(None)),
    )
    return list(conn.execute(statement.order_by(job.c.id).limit(most)).mappings())


def candidates(
    conn: Connection,
    job_type: str,
    connection: str | None,
    owner: Owner,
    host_ids: Collection[str],
    without: Collection[int],
    most: int,
) -> list[tuple[int, str | None]]:
    """Return the oldest queued jobs of a type and a connection that `owner` may claim: (id, host_id).

    `host_ids`, `without`: as for `statements.claim_many`.
    """
    job, _ = tables()
    statement = select(job.c.id, job.c.host_id).where(
        *_claimable(conn, owner, host_ids, without),
        job.c.job_type == job_type,
        job.c.connection.is_not_distinct_from(connection),
    )
    return [(job_id, host_id) for job_id, host_id in conn.execute(statement.order_by(job.c.id).limit(most))]


def why_barred(needs: object, *, is_held: bool) -> str | None:
    """Return why nobody of this version may claim a job, wherever it runs; None: its rules are known.

    `is_held`: held after a restore, and not flagged to be killed.
    """
    if is_held:
        return "it is held since the database was restored: see `jobrunner db restored`"
    # On SQLite any client may have written a word there: that is no protocol that is known here.
    if needs is not None and not (isinstance(needs, int) and needs <= PROTOCOL):
        return (
            "a newer jobrunner stored it, with rules that this version does not know: upgrade jobrunner here"
        )
    return None


def why_barred_row(row: Mapping[Any, Any]) -> str | None:
    """Return, by a job's whole row, why nobody of this version may claim it; None: its rules are known."""
    return why_barred(row["needs"], is_held=row["held_at"] is not None and row["kill_requested_at"] is None)


def is_special(row: Mapping[Any, Any]) -> bool:
    """Whether a job is held, bound to a host or a user, or names the rules that it needs."""
    return any(row[name] is not None for name in ("held_at", "needs", "host_id", "host_uid"))


def asked(conn: Connection, job_types: list[str], owner: Owner) -> list[tuple[str, str | None]]:
    """Return what queued jobs with code, of these types, ask for: (type, resources as text) each once.

    Only of those that `owner` may claim.
    """
    job, _ = tables()
    statement = select(job.c.job_type, in_spec(conn, KEY)).distinct()
    statement = statement.where(*_claimable(conn, owner, (), ()), *_is_coded(conn, job_types))
    return [(job_type, text) for job_type, text in conn.execute(statement)]


def _is_coded(conn: Connection, job_types: list[str]) -> list[Any]:
    """Return the conditions of jobs that run code, of these types."""
    job, _ = tables()
    return [job.c.job_type.in_(job_types), job.c.submit_token.is_(None), ~is_worker(conn)]


def queued(
    conn: Connection,
    job_types: list[str],
    resources: Collection[str | None],
    owner: Owner,
    without: Collection[int],
    most: int,
) -> list[RowMapping]:
    """Return rows of the oldest queued jobs of these types that ask for one of these (see `asked`).

    Only of those that `owner` may claim; `without`: jobs that are left alone.
    """
    job, _ = tables()
    statement = select(job).where(
        *_claimable(conn, owner, (), without),
        *_is_coded(conn, job_types),
        func.coalesce(in_spec(conn, KEY), "").in_([text or "" for text in resources]),
    )
    return list(conn.execute(statement.order_by(job.c.id).limit(most)).mappings())


@dataclass(frozen=True, slots=True)
class SilentKind:
    """What silent jobs that can be adopted have in common: this type, this connection, this host and user.

    `is_watched`: as `Waiting.is_watched`.
    """

    job_type: str
    connection: str | None
    host_id: str | None
    host_uid: int | None
    is_watched: bool
    count: int


def silent_kinds(conn: Connection) -> list[SilentKind]:
    """Return of what kinds the silent jobs are that can be adopted."""
    job, _ = tables()
    is_watched = job.c.submit_token.is_not(None).label("is_watched")
    kind = (job.c.job_type, job.c.connection, job.c.host_id, job.c.host_uid, is_watched)
    is_adoptable = (job.c.state == JobState.RUNNING) & job.c.adoptable  # before the age, which is dear
    statement = select(*kind, func.count()).where(is_adoptable, _has_missed_a_beat()).group_by(*kind)
    return [SilentKind(*row) for row in conn.execute(statement)]


@dataclass(frozen=True, slots=True)
class Judgeable:
    """Which silent jobs a worker can judge, as far as the database can tell; the others are for others.

    It is lost to everybody (not adoptable, or bound to a host that has been silent for `host_grace_s`), or
    bound to none but these hosts and this user, and of these types. `coded`: those that run code; `watched`:
    those that are watched, over these `connections` (None: that of no name).
    """

    uid: int
    host_grace_s: float
    host_ids: Collection[str] = ()
    coded: Collection[str] = ()
    watched: Collection[str] = ()
    connections: Collection[str | None] = ()

    def condition(self, conn: Connection) -> Any:
        """Return it as a condition on a running job."""
        job, _ = tables()
        age = age_s(job.c.latest_heartbeat)
        is_here = or_(job.c.host_id.is_(None), one_of(conn, job.c.host_id, self.host_ids))
        named = one_of(conn, job.c.connection, [name for name in self.connections if name is not None])
        connected = or_(named, job.c.connection.is_(None)) if None in self.connections else named
        is_served = or_(
            one_of(conn, job.c.job_type, self.coded), one_of(conn, job.c.job_type, self.watched) & connected
        )
        return or_(
            ~job.c.adoptable,
            is_here & or_(job.c.host_uid.is_(None), job.c.host_uid == self.uid) & is_served,
            ~is_here & or_(age.is_(None), age >= self.host_grace_s),
        )


@dataclass(frozen=True, slots=True)
class Silent:
    """Some silent jobs, by their ids."""

    rows: list[RowMapping]
    answered_s: float
    """When the database had answered, on the monotonic clock: to read thousands of rows takes time, too."""


def silent(conn: Connection, judgeable: Judgeable, after: int, most: int) -> Silent:
    """Return running jobs that have missed a beat, as far as `sweeper.StandStill` has to know them.

    The first of those behind the id `after`, and not those whose rows somebody holds locked: their owners
    live, perhaps, and cannot beat.
    """
    job, _ = tables()
    statement = select(job.c.id, job.c.runner_id, job.c.claims, job.c.latest_heartbeat, job.c.heartrate)
    # The cheap conditions first: SQLite takes them in this order, and an age is dear.
    are = (job.c.state == JobState.RUNNING, job.c.id > after, judgeable.condition(conn), _has_missed_a_beat())
    statement = statement.where(*are)
    found = conn.execute(_unless_locked(conn, statement.order_by(job.c.id).limit(most)))
    answered_s = monotonic_s()
    return Silent(list(found.mappings()), answered_s)


def orphans(conn: Connection, ids: Collection[int]) -> list[RowMapping]:
    """Return what orphans are judged by, of those of these jobs that there are, in any order."""
    job, _ = tables()
    columns = (
        *(job.c.id, job.c.job_type, job.c.connection, job.c.adoptable, job.c.host_id, job.c.hostname),
        *(job.c.host_uid, job.c.external_id, job.c.submit_token),
        *(job.c.submit_started_at, job.c.submit_baseline),
    )
    age, of_worker = age_s(job.c.latest_heartbeat).label("age_s"), is_worker(conn).label("is_worker")
    statement = select(*columns, age, of_worker).where(any_of(conn, ids))
    return list(conn.execute(statement).mappings())


def is_silent(conn: Connection, job_id: int) -> bool:
    """Whether a running job has missed a beat."""
    job, _ = tables()
    return conn.execute(select(job.c.id).where(job.c.id == job_id, _has_missed_a_beat())).first() is not None


def is_locked(conn: Connection, job_id: int) -> bool:
    """Whether a running job is none of the `silent`, though it has missed a beat, as its row is held locked.

    Not for a job that beats: asking locks the row, and its next beat would pass over it.
    """
    if conn.dialect.name != "postgresql":
        return False
    job, _ = tables()
    one = select(job.c.id).where(job.c.id == job_id)
    return conn.execute(_unless_locked(conn, one)).first() is None


def _unless_locked(conn: Connection, statement: Select[Any]) -> Select[Any]:
    """Leave out the rows that somebody holds locked; SQLite has no locks of single rows."""
    if conn.dialect.name != "postgresql":
        return statement
    return statement.with_for_update(read=True, skip_locked=True)


def workers(
    conn: Connection, grace_multiplier: float, job_types: Collection[str] | None = None
) -> list[RowMapping]:
    """Return the rows of the workers that are alive: (id, job_type, parent_id, hostname, pid, spec, detail).

    `job_types`: only those of these types; None: of any, for which all running jobs are gone through.
    """
    job, _ = tables()
    columns = (
        *(job.c.id, job.c.job_type, job.c.parent_id, job.c.hostname, job.c.pid),
        job.c.spec,
        job.c.detail,
    )
    statement = select(*columns).where(
        job.c.state == JobState.RUNNING,
        is_worker(conn) if job_types is None else job.c.job_type.in_(job_types),
        alive(job.c.state, job.c.latest_heartbeat, job.c.heartrate, grace_multiplier),
    )
    return list(conn.execute(statement.order_by(job.c.id)).mappings())


def number_in(held: Any, key: str) -> int:
    """Return a count that a worker's row tells of itself; 0 where it says nothing that can be read."""
    count = held.get(key) if isinstance(held, Mapping) else None
    return count if isinstance(count, int) and count >= 0 else 0
