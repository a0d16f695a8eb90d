"""What all statements stand on: the tables, an owner, a claim, the fence, and a change with its event."""

import datetime as dt
import json
import math
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    RowMapping,
    Select,
    Table,
    Text,
    Update,
    and_,
    any_,
    bindparam,
    cast,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from jobrunner import identity, registry
from jobrunner.database import Base
from jobrunner.errors import JobNotFound
from jobrunner.sqltypes import IdArray, db_now
from jobrunner.statements.given import given_rows
from jobrunner.states import JobState

LIVE = (JobState.QUEUED, JobState.RUNNING)
"""The states in which a job has not ended."""

PROTOCOL = 2
"""The number of the rules that this version follows.

A row whose `needs` is higher was stored by a newer version: it is neither claimed here nor declared lost.
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who runs a job: what a claim writes beside the fence."""

    runner_id: str
    executor_class: str
    hostname: str
    unixname: str
    pid: int
    process_started_at: str
    host_id: str
    uid: int


def new_owner(executor_class: str) -> Owner:
    """Return this process as an owner, under a fresh runner_id: never a name that may come again."""
    me = identity.ProcessIdentity.of(os.getpid())
    return Owner(
        runner_id=new_runner_id(),
        executor_class=executor_class,
        hostname=identity.hostname(),
        unixname=identity.unixname(),
        pid=os.getpid(),
        process_started_at="" if me is None else me.started_at,
        host_id=identity.host_id(),
        uid=identity.uid(),
    )


def new_runner_id() -> str:
    """Return a fresh runner_id: a random UUID of version 8 (RFC 9562).

    jobrunner 0.1 makes them of version 4, by which the database refuses its claims on rows whose rules
    it does not know (migration 0005).
    """
    random = str(uuid.uuid4())
    return f"{random[:14]}8{random[15:]}"


@dataclass(frozen=True, slots=True)
class Claim:
    """The fence: the job, its owner, and how often it had been claimed by then."""

    job_id: int
    runner_id: str
    claims: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One submission of a job: the token it was made under, and what it became outside.

    A resubmission, or a renewed token, begins another attempt. A write that concerns one attempt
    must not reach the next one, which stands under the same claim.
    """

    token: str
    external_id: str | None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A running job as somebody else's, seen at one moment."""

    job_id: int
    runner_id: str | None
    claims: int
    latest_heartbeat: dt.datetime
    prompt_s: float = field(default=math.inf, compare=False)
    """Seconds for which a write that acts on it may wait: what holds it up holds up the owner's beat, too."""
    good_until_s: float = field(default=math.inf, compare=False)
    """Until when it may be acted on, on the monotonic clock of the process that made it."""


@cache
def tables() -> tuple[Table, Table]:
    """Return the tables (job, job_event); the models declare them."""
    if "job" not in Base.metadata.tables:  # the models stand above, and nobody imported them yet
        registry.load("jobrunner.models:BaseJob")
    return Base.metadata.tables["job"], Base.metadata.tables["job_event"]


def get(conn: Connection, job_id: int) -> RowMapping:
    """Return a job's whole row. Raises `JobNotFound`."""
    row = get_or_none(conn, job_id)
    if row is None:
        raise JobNotFound(f"There is no job {job_id}: `jobrunner list` shows those that there are.")
    return row


def get_or_none(conn: Connection, job_id: int) -> RowMapping | None:
    """Return a job's whole row, or None when there is none."""
    return conn.execute(_by_id(), {"id": job_id}).mappings().first()


@cache
def _by_id() -> Select[Any]:
    job, _ = tables()
    return select(job).where(job.c.id == bindparam("id"))


def get_many(conn: Connection, ids: Sequence[int]) -> list[RowMapping]:
    """Return the whole rows of those of these jobs that there are, in the order of their ids."""
    return list(conn.execute(_by_ids(conn.dialect.name), {"ids": id_list(conn, ids)}).mappings())


@cache
def _by_ids(dialect: str) -> Select[Any]:
    job, _ = tables()
    return select(job).where(in_ids(dialect)).order_by(job.c.id)


def now(conn: Connection) -> dt.datetime:
    """Return the database's time."""
    return conn.execute(select(db_now())).scalar_one()


def in_ids(dialect: str) -> Any:
    return _is_among(dialect, bindparam("ids", type_=_ids_type(dialect)))


def any_of(conn: Connection, ids: Collection[int]) -> Any:
    """Return the condition that a job is one of these, however many."""
    dialect = conn.dialect.name
    return _is_among(dialect, literal(id_list(conn, ids), _ids_type(dialect)))


def _is_among(dialect: str, listed: Any) -> Any:
    """Return the condition that a job is in a list as `id_list` makes it."""
    job, _ = tables()
    if dialect == "postgresql":
        # One array, not an expanded IN list: it is parsed once, however many there are.
        return job.c.id == any_(cast(listed, IdArray()))
    return job.c.id.in_(select(func.json_each(listed).table_valued("value").c.value))


def _ids_type(dialect: str) -> IdArray | Text:
    return IdArray() if dialect == "postgresql" else Text()


def none_of(conn: Connection, ids: Collection[int]) -> list[Any]:
    """Return the condition that a job is none of these, however many; nothing where there are none."""
    return [~any_of(conn, ids)] if ids else []


def one_of(conn: Connection, column: Any, texts: Collection[str]) -> Any:
    """Return the condition that a column holds one of these texts, however many they are."""
    if conn.dialect.name == "postgresql":
        return column == any_(literal(list(texts), ARRAY(Text)))
    listed = literal(json.dumps(list(texts)), Text)
    return column.in_(select(func.json_each(listed).table_valued("value").c.value))


def id_list(conn: Connection, ids: Iterable[int]) -> str:
    listed = ",".join(map(str, ids))
    return f"{{{listed}}}" if conn.dialect.name == "postgresql" else f"[{listed}]"


def of_given(
    dialect: str,
    names: Sequence[str],
    kinds: Mapping[str, Any],
    guard: Callable[[Mapping[str, Any]], Iterable[Any]],
    carried: Iterable[str] = (),
) -> tuple[Update, Mapping[str, Any]]:
    """Return an update of running jobs by the rows of the parameter `rows`, and what they carry by name.

    `names`, `kinds`: as for `given_rows`; `job_id` and `claims` are among them, and have to fit. `guard`
    returns what else has to.
    """
    job, _ = tables()
    each, said = given_rows(dialect, names, {**kinds, "job_id": BigInteger(), "claims": Integer()})
    # Not by an index on the state: SQLite would go through all running jobs for each of the rows.
    state = job.c.state if dialect == "postgresql" else job.c.state.op("||")(literal_column("''"))
    fits = and_(
        job.c.id == said["job_id"],
        state == JobState.RUNNING,
        job.c.claims == said["claims"],
        *guard(said),
    )
    if dialect != "postgresql":
        return update(job).where(fits), said
    # Ordered and SKIP LOCKED, as the beat is, and for the same reasons.
    mine = (
        select(job.c.id, *(said[name].label(f"said_{name}") for name in carried))
        .select_from(job, each)
        .where(fits)
        .order_by(job.c.id)
        .with_for_update(key_share=True, skip_locked=True, of=job)
        .cte("mine")
        .prefix_with("MATERIALIZED")
    )
    return update(job).where(job.c.id == mine.c.id), {name: mine.c[f"said_{name}"] for name in carried}


def may_claim(owner: Owner, *hosts: str | None) -> Any:
    """Return the condition that `owner` may claim a job, whatever its state: the rules are its own to follow.

    `hosts`: other hosts that the owner can serve, beside its own.
    """
    job, _ = tables()
    served = [owner.host_id, *(host for host in hosts if host is not None)]
    return and_(
        or_(job.c.host_id.is_(None), job.c.host_id.in_(served)),
        or_(job.c.host_uid.is_(None), job.c.host_uid == owner.uid),
        may_judge(),
    )


def may_judge() -> Any:
    """Return the condition that this version knows a job's rules, and that nothing holds the job.

    A hold bars no kill: what carries the flag is never submitted, only ended.
    """
    job, _ = tables()
    is_free = or_(job.c.held_at.is_(None), job.c.kill_requested_at.is_not(None))
    return and_(or_(job.c.needs.is_(None), job.c.needs <= PROTOCOL), is_free)


def fence(claim: Claim) -> list[Any]:
    return _fence(claim.job_id, claim.runner_id, claim.claims)


def _fence(job_id: Any, runner_id: Any, claims: Any) -> list[Any]:
    job, _ = tables()
    return [
        job.c.id == job_id,
        job.c.runner_id == runner_id,
        job.c.claims == claims,
        job.c.state == JobState.RUNNING,
    ]


_PROMPT = "jobrunner_prompt"


def promptly(conn: Connection) -> Connection:
    """Let the writes of one row over this connection fail at once where somebody holds the row locked.

    That is `DatabaseUnavailable`, for who tries again: meanwhile nothing waits in the database, and no
    thread with it. On SQLite nobody locks a row.
    """
    return conn.execution_options(**{_PROMPT: True})


def change(conn: Connection, *guard: Any) -> Update:
    """Return an update of the one job for which `guard` holds: see `promptly` for when it is locked."""
    return changing(manner(conn), *guard)


@dataclass(frozen=True, slots=True)
class Manner:
    """What a statement about one row depends on, beside its values: by it, it can be built once."""

    dialect: str
    is_prompt: bool


def manner(conn: Connection) -> Manner:
    return Manner(conn.dialect.name, bool(conn.get_execution_options().get(_PROMPT)))


def changing(how: Manner, *guard: Any) -> Update:
    """Return an update of the one job for which `guard` holds, as `change` does."""
    job, _ = tables()
    if how.dialect != "postgresql" or not how.is_prompt:
        return update(job).where(*guard)
    free = select(job.c.id).where(*guard).with_for_update(key_share=True, nowait=True)
    mine = free.cte("mine").prefix_with("MATERIALIZED")
    return update(job).where(job.c.id == mine.c.id)


def bound_fence() -> list[Any]:
    """Return the fence of a claim that is given as parameters: see `fence_of`."""
    return _fence(*map(bindparam, ("claimed_job", "claimed_by", "claimed_times")))


def fence_of(claim: Claim) -> dict[str, Any]:
    """Return the parameters of `bound_fence`."""
    return {"claimed_job": claim.job_id, "claimed_by": claim.runner_id, "claimed_times": claim.claims}


def owned(conn: Connection, claim: Claim) -> Update:
    return change(conn, *fence(claim))


def is_one(conn: Connection, statement: Update) -> bool:
    return conn.execute(statement).rowcount == 1


def with_event(
    conn: Connection, statement: Any, before: JobState | None, after: JobState, actor: str, reason: str
) -> int | None:
    """Run a change of one job together with its event, and return the job's id; None: no row changed."""
    return next(iter(with_events(conn, statement, before, after, actor, reason)), None)


def with_events(
    conn: Connection,
    statement: Any,
    before: JobState | None,
    after: JobState | None,
    actor: str,
    reason: str | None,
    **parameters: Any,
) -> list[int]:
    """Run a change of jobs together with an event for each, and return the ids of those that changed.

    `reason`: of all of them; None: what each one's message says now. `after`: the state of all of them;
    None: the one that each is in now. `parameters`: the statement's own.
    """
    job, job_event = tables()
    columns = ["job_id", "at", "from_state", "to_state", "actor", "reason"]
    changed = statement.returning(job.c.id, job.c.message, job.c.state)
    if conn.dialect.name == "postgresql":
        # One statement: a process paused between two would hold a row lock that stops sweeps and kills.
        facts = _event_facts(changed.cte("changed").c, before, after, actor, reason)
        appended = insert(job_event).from_select(columns, select(*facts)).returning(job_event.c.job_id)
        return list(conn.execute(appended, parameters).scalars())
    ids = list(conn.execute(changed, parameters).scalars())
    if ids:
        told = select(*_event_facts(job.c, before, after, actor, reason)).where(in_ids(conn.dialect.name))
        conn.execute(insert(job_event).from_select(columns, told), {"ids": id_list(conn, ids)})
    return ids


def _event_facts(
    changed: Any, before: JobState | None, after: JobState | None, actor: str, reason: str | None
) -> list[Any]:
    _, job_event = tables()
    state, words = job_event.c.from_state.type, job_event.c.reason.type
    why = changed.message if reason is None else literal(reason, words)
    now_in = changed.state if after is None else literal(after, state)
    return [changed.id, db_now(), literal(before, state), now_in, literal(actor, words), why]


def actor_of(runner_id: str) -> str:
    return f"runner {runner_id}"
