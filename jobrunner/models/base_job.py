"""`BaseJob`: something with state and duration, run by us, kept as a row with a heartbeat."""

import datetime as dt
import operator
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, Self, cast

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index, Integer, text, true
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, Session, mapped_column, object_session, validates
from sqlalchemy.orm.attributes import set_committed_value

from jobrunner import identity, queries, registry, statements
from jobrunner.clock import SECONDS_MOST, is_duration, monotonic_s, utcnow
from jobrunner.database import Base, get_database
from jobrunner.errors import (
    DatabaseError,
    JobNotFound,
    NotOwner,
    SpecError,
    UsageError,
    WaitTimeout,
    error_of_end,
)
from jobrunner.heartbeat import check_grace, check_rate
from jobrunner.log_limits import Trouble
from jobrunner.logs import get_logger
from jobrunner.models.endings import kill_message
from jobrunner.models.job_event import BigId, JobEvent
from jobrunner.models.kill_flag import request_kill
from jobrunner.models.own_run import OwnRun, call_back, has_callback, run_code
from jobrunner.models.plain_code import check_plain
from jobrunner.models.rows import from_row, is_stored, reading, refresh, writing
from jobrunner.models.storing import Unsettled, check_key, store_queued
from jobrunner.resources import NONE
from jobrunner.settings import get_settings
from jobrunner.sqltypes import StateType, StoredJson, StoredText, UtcDateTime, db_now
from jobrunner.states import JobState
from jobrunner.text import brief, flaw_in, text_of

log = get_logger(__name__)

LABEL_MOST = 250
"""The most characters of a name, and of other labels."""
FILLFACTOR = 50
"""Percent of a page that inserts fill on PostgreSQL: the rest lets a beat stay on its page (HOT)."""

_SUBMITTED = "submit_started_at IS NOT NULL AND external_id IS NOT NULL AND state IN ('queued', 'running')"
_FLAGGED = "kill_requested_at IS NOT NULL"

# NaN and the infinities fail these on PostgreSQL; text, which any SQLite client may write, fails them there.
NUMBERS = {
    "heartrate": "heartrate > 0 AND heartrate <= 1e9",
    "poll_interval": "poll_interval IS NULL OR (poll_interval > 0 AND poll_interval <= 1e9)",
    "start_timeout": "start_timeout IS NULL OR (start_timeout > 0 AND start_timeout <= 1e9)",
    "claims": "claims >= 0 AND claims <= 2147483647",
    "attempt": "attempt >= 0 AND attempt <= 2147483647",
}


ID_MOST = 2**63 - 1
"""The largest id that both databases can hold."""


def check_spec(spec: object) -> None:
    """Refuse a spec that is no JSON object, or that no database could hold. Raises `SpecError`."""
    if spec is not None and not isinstance(spec, Mapping):
        raise SpecError(
            f"The spec must be a JSON object, such as {{'a': 1}}, and not a {type(spec).__name__}."
        )
    check_exact("spec", spec)


def check_exact(key: str, value: object) -> None:
    """Refuse what no database could hold exactly as it is. Raises `SpecError`."""
    flaw = flaw_in(value)
    if flaw is not None:
        raise SpecError(f"The {key} cannot be stored as it is: it holds {flaw}. Remove that, or encode it.")


class BaseJob(Base):
    """Something with state and duration, kept as a row with a heartbeat. Abstract: derive from it.

    A subclass gives `_execute`, calls `heartbeat()` in its loop, and is started by `run()`. Its
    `job_type` is its class's name, or `class MyJob(BaseJob, job_type="etl.MyJob")`.

    `executor`: what runs it; its class's name is kept. `heartrate`: seconds between beats, kept in
    the row; without it the settings say. `name`, `dag_id`, `parent_id`: labels, and the job that
    enqueued this one. `timeout`: seconds from being stored to the deadline. `key`: 1 to 250 characters,
    unique over all jobs; without it a random one. However often an object is stored, its key stands in one
    row. A class whose code stands
    running twice says `adoptable = True`: another runner may then run it again after its own died.
    Raises `UsageError` on a heartrate that cannot be kept, and on a key that no row could carry.
    """

    __tablename__ = "job"
    __allow_unmapped__ = True
    __table_args__ = (
        Index(None, "state", "id"),
        Index(None, "job_type", "end_date"),
        Index(None, "end_date"),
        Index(None, "name", "id"),
        Index(None, "dag_id"),
        Index(None, "parent_id"),
        Index(None, "key", unique=True),
        # Two that live must not take the same work for their own; of those that only watch it, there may
        # be many, and a system that was set up anew begins to count anew.
        Index(
            None,
            "connection",
            "external_id",
            unique=True,
            postgresql_where=text(_SUBMITTED),
            sqlite_where=text(_SUBMITTED),
        ),
        # Who asks which of its jobs are to be killed, asks often: on SQLite after each commit of anybody.
        Index(None, "runner_id", postgresql_where=text(_FLAGGED), sqlite_where=text(_FLAGGED)),
        *(CheckConstraint(rule, name=name) for name, rule in NUMBERS.items()),
        CheckConstraint(
            "state IN ('queued', 'running', 'success', 'failed', 'killed', 'lost')", name="state"
        ),
        # AUTOINCREMENT: a reused id would receive the kill that was meant for somebody else.
        {"sqlite_autoincrement": True, "postgresql_with": {"fillfactor": FILLFACTOR}},
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    job_type: Mapped[str] = mapped_column(StoredText(250))
    key: Mapped[str | None] = mapped_column(StoredText(250))
    name: Mapped[str | None] = mapped_column(StoredText(250))
    dag_id: Mapped[str | None] = mapped_column(StoredText(250))
    parent_id: Mapped[int | None] = mapped_column(BigId, ForeignKey("job.id", ondelete="SET NULL"))

    state: Mapped[JobState] = mapped_column(StateType, server_default=JobState.QUEUED)
    message: Mapped[str | None] = mapped_column(StoredText())

    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime, server_default=db_now())
    start_date: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    end_date: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    latest_heartbeat: Mapped[dt.datetime] = mapped_column(UtcDateTime, server_default=db_now())
    heartrate: Mapped[float] = mapped_column(Float(53))

    executor_class: Mapped[str | None] = mapped_column(StoredText(250))
    hostname: Mapped[str | None] = mapped_column(StoredText(250))
    unixname: Mapped[str | None] = mapped_column(StoredText(250))
    pid: Mapped[int | None] = mapped_column(Integer)
    process_started_at: Mapped[str | None] = mapped_column(StoredText(250))

    runner_id: Mapped[str | None] = mapped_column(StoredText(36))
    runner_host_id: Mapped[str | None] = mapped_column(StoredText(250))
    claims: Mapped[int] = mapped_column(Integer, server_default="0")
    needs: Mapped[int | None] = mapped_column(Integer)
    held_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    host_id: Mapped[str | None] = mapped_column(StoredText(250))
    host_uid: Mapped[int | None] = mapped_column(BigId)
    adoptable: Mapped[bool] = mapped_column(server_default=true())

    kill_requested_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    kill_requested_by: Mapped[str | None] = mapped_column(StoredText())
    kill_reason: Mapped[str | None] = mapped_column(StoredText())

    connection: Mapped[str | None] = mapped_column(StoredText(250))
    spec: Mapped[dict[str, Any] | None] = mapped_column(StoredJson())
    submit_token: Mapped[str | None] = mapped_column(StoredText(64))
    submit_started_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    attempt: Mapped[int] = mapped_column(Integer, server_default="1")
    cancel_cause: Mapped[str | None] = mapped_column(StoredText(32))
    cancel_started_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    external_id: Mapped[str | None] = mapped_column(StoredText())
    external_state: Mapped[str | None] = mapped_column(StoredText())
    detail: Mapped[dict[str, Any] | None] = mapped_column(StoredJson(is_detail=True))
    deadline_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    poll_interval: Mapped[float | None] = mapped_column(Float(53))
    start_timeout: Mapped[float | None] = mapped_column(Float(53))
    submit_baseline: Mapped[str | None] = mapped_column(StoredText())
    resubmit: Mapped[dict[str, int] | None] = mapped_column(StoredJson())

    __mapper_args__ = {"polymorphic_on": "job_type", "polymorphic_abstract": True}  # noqa: RUF012  # SQLAlchemy's form

    resources: ClassVar[Mapping[str, float]] = NONE
    """What its code asks of the machine that runs it, such as `{"GPU": 1}`: only a Dask cluster gives it."""

    _is_adoptable: ClassVar[bool] = False
    executor: Any = None
    timeout: float | None = None
    _own: OwnRun | None = None
    _has_made_its_key: bool = False
    _unsettled: Unsettled | None = None

    def __init_subclass__(
        cls,
        *,
        abstract: bool = False,
        job_type: str | None = None,
        adoptable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Map the subclass to the job type of its name; `abstract`: only its own subclasses have jobs.

        `adoptable`: another runner may run such a job again after its own died, because its code
        stands running twice. `adoptable = True` in the class's body says the same. Raises `UsageError` on
        a job type that no row could carry.
        """
        named: object = job_type
        if named is not None and (not isinstance(named, str) or flaw_in(named)):
            # Stored under another name, its rows would be nobody's.
            raise UsageError(
                f"The job_type {brief(job_type, 100)} of {cls.__name__} cannot be stored as it is."
            )
        in_body = cls.__dict__.get("adoptable")
        if isinstance(in_body, bool):
            del cls.adoptable  # there it would hide the column
            adoptable = in_body
        if adoptable is not None:
            cls._is_adoptable = adoptable
        if "__mapper_args__" not in cls.__dict__:
            identity_ = (
                {"polymorphic_abstract": True}
                if abstract
                else {"polymorphic_identity": job_type or cls.__name__}
            )
            cls.__mapper_args__ = identity_
        super().__init_subclass__(**kwargs)

    def __init__(
        self, executor: Any = None, heartrate: float | None = None, *args: Any, **kwargs: Any
    ) -> None:
        settings = get_settings()
        timeout = kwargs.pop("timeout", None)
        key = kwargs.pop("key", None)
        self._has_made_its_key = key is None
        kwargs["key"] = uuid.uuid4().hex if key is None else check_key(key)
        job_type = type(self).__mapper__.polymorphic_identity or type(self).__name__
        for key, value in {
            "state": JobState.QUEUED,
            "latest_heartbeat": utcnow(),
            "heartrate": settings.heartrate_for(job_type) if heartrate is None else heartrate,
            "executor_class": "LocalExecutor" if executor is None else type(executor).__name__,
            "hostname": identity.hostname(),
            "unixname": identity.unixname(),
            "adoptable": self._is_adoptable,
            "claims": 0,
        }.items():
            kwargs.setdefault(key, value)
        super().__init__(*args, **kwargs)
        check_rate(self.heartrate, settings.grace_multiplier)
        if timeout is not None and not is_duration(timeout):
            raise UsageError(
                f"A timeout of {brief(timeout, 100)} s cannot be kept: give seconds, more than 0 and at most "
                f"{SECONDS_MOST:g}."
            )
        self.timeout = timeout
        self.executor = executor

    @validates("created_at", "start_date", "end_date", "latest_heartbeat", "kill_requested_at", "deadline_at")
    def _is_aware(self, key: str, value: Any) -> Any:
        if isinstance(value, dt.datetime) and value.tzinfo is None:
            raise UsageError(f"The {key} {value} has no time zone: give an aware datetime, such as in UTC.")
        return value

    @validates("job_type", "name", "dag_id", "connection", "key")
    def _fits(self, key: str, value: Any) -> Any:
        if isinstance(value, str) and len(value) > LABEL_MOST:
            raise UsageError(f"A {key} of {len(value)} characters is too long: give at most {LABEL_MOST}.")
        return value

    @validates("spec", "external_id")
    def _is_exact(self, key: str, value: Any) -> Any:
        if key == "spec":
            check_spec(value)
        else:
            check_exact(key, value)
        return value

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__dict__.get('id')} {self.__dict__.get('state')}>"

    # --- what a subclass gives -------------------------------------------------------------------

    def _execute(self) -> None:
        """Do the job's work. A subclass gives it, and calls `heartbeat()` on the way."""
        raise NotImplementedError(f"{type(self).__name__} has no _execute")

    def heartbeat_callback(self, session: Session | None = None) -> None:
        """Do something after each beat: for subclasses. A database error in it is logged and forgiven."""

    def on_kill(self) -> None:
        """Clean up when the job is killed: for subclasses. What it raises is logged."""

    # --- running, in the process that owns it ------------------------------------------------------

    def run(self) -> None:
        """Store the job, claim it, and do its work in this process until it ends.

        Ends as `success` on return or `sys.exit(0)`, `killed` on a kill or Ctrl-C, and `failed` on
        anything else, which is raised again. Raises `JobKilled` after a kill, `JobFailed` past the
        timeout, `ClaimLost` when the job was taken, ended or deleted under it (nothing is written
        then), `UsageError` when it is not there to be run, `DatabaseError` when it cannot be stored.
        """
        run_code(self)

    def heartbeat(self, only_if_necessary: bool = False) -> None:  # Airflow's signature
        """Keep the steady rate: wait for what is left of it, write the beat, and obey a kill.

        Called late, it does not wait. `only_if_necessary`: not yet due, it does nothing at all. A
        database error is logged on the change and forgiven. Raises `JobKilled` when the kill flag
        is set, `JobFailed` past the timeout, `ClaimLost` when the job is no longer this run's.
        """
        own = self._owned()
        if own.beats_elsewhere:
            own.pace(only_if_necessary=only_if_necessary)
            return
        if own.verdict is not None:  # the code swallowed the error that said so
            raise own.verdict
        own.go_on()
        if not own.wait_for_turn(only_if_necessary=only_if_necessary):
            return
        beaten = own.beat()
        if beaten is not None:
            set_committed_value(self, "latest_heartbeat", beaten.latest_heartbeat)
        own.obey(self, kill_requested=beaten is not None and beaten.kill_requested)
        if beaten is not None and has_callback(self):
            call_back(self, own.hook_sessions, own.seldom)

    @property
    def is_fenced(self) -> bool:
        """Whether no beat succeeded for longer than the grace: another runner may own the job by now."""
        return self._owned().health.is_fenced

    def kill(self, session: Session | None = None) -> None:
        """End the job that this process runs: `on_kill`, then the state `killed`. Always raises.

        Raises `JobKilled`, or `NotOwner` where the job runs elsewhere: use `request_kill` then.
        """
        own = self._owned()
        if own.is_copy:
            raise NotOwner(f"{self!r} is run by the process that forked this one: only that one can end it.")
        message = "killed"
        with suppress(DatabaseError, SQLAlchemyError, JobNotFound), reading(session) as connection:
            message = kill_message(statements.get(connection, self.id))
        own.end_early(self, JobState.KILLED, message)

    def _owned(self) -> OwnRun:
        if self._own is None:
            raise NotOwner(
                f"{self!r} is not run by this process: call `run()` first, "
                "or `request_kill()` to end it elsewhere."
            )
        return self._own

    # --- asking, from anywhere ---------------------------------------------------------------------

    def store(self, session: Session | None = None) -> Self:
        """Insert the job as `queued`, to be run later, and return it.

        Called again it makes no second job: not after an error that left open whether the first was taken,
        and not after a transaction of the caller's own `session`, which decides. Raises `DatabaseError`, and
        `UsageError` when the `key` is that of another job.
        """
        store_queued(self, session)
        return self

    def _check_before_storing(self) -> None:
        """Refuse what would fail for certain once it is stored. Raises `UsageError`."""
        check_plain(type(self))

    def request_kill(
        self, by: object = None, reason: object = None, session: Session | None = None
    ) -> JobState:
        """Set the kill flag, from any machine, and return the state that the job is in now.

        The owner sees it within milliseconds, or at its next beat. `by`: who asks; without it, this
        user and host. It and `reason` may be anything, such as an error: its text counts. A job that has
        ended is left as it is. Raises `JobNotFound`, `DatabaseError`.
        """
        asker = None if by is None else text_of(by)
        if session is None:
            state = request_kill(get_database(), self._id(), asker, reason)
        else:
            with writing(session) as connection:
                state = statements.request_kill(connection, self._id(), asker or identity.who(), reason)
        if state is None:
            raise JobNotFound(f"There is no job {self.id} any more.")
        return state

    def is_alive(self, grace_multiplier: float = 2.1, session: Session | None = None) -> bool:
        """Whether the job is running and has beaten within `grace_multiplier` heartrates.

        Judged by the row and the database's clock; an object that was never stored, by what it
        holds and this host's clock. A beat from the future is not alive. Raises `UsageError` on a
        grace of 1 or less, `DatabaseError` when the database cannot be asked.
        """
        check_grace(grace_multiplier)
        if is_stored(self):
            with reading(session or object_session(self)) as connection:
                return queries.is_alive(connection, self.id, grace_multiplier)
        age = (utcnow() - self.latest_heartbeat).total_seconds()
        return self.state == JobState.RUNNING and -self.heartrate <= age < self.heartrate * grace_multiplier

    @classmethod
    def most_recent_job(cls, session: Session | None = None) -> "BaseJob | None":
        """Return the most recent job of this type (on `BaseJob`: of any), or None.

        A running one before any other, by latest heartbeat. Raises `DatabaseError`.
        """
        with reading(session) as connection:
            row = queries.most_recent(connection, None if cls is BaseJob else _types_of(cls))
        return None if row is None else object_of(row, session)

    @classmethod
    def get(cls, job_id: int, session: Session | None = None) -> "BaseJob":
        """Return the job with this id, as an object of its own type. Raises `JobNotFound`."""
        with reading(session) as connection:
            return object_of(statements.get(connection, _known_id(job_id)), session)

    def reload(self, session: Session | None = None) -> Self:
        """Read the row again into this object. Raises `JobNotFound` when it was deleted."""
        with reading(session) as connection:
            refresh(self, statements.get(connection, self._id()))
        return self

    def wait(self, timeout: float | None = None) -> JobState:
        """Wait until the job has ended and return its state. `timeout`: seconds; None: for ever.

        A database that goes away meanwhile is waited for. Raises `WaitTimeout`, `JobNotFound` when the
        job is deleted meanwhile, and `DatabaseError` when the first look fails.
        """
        until_s = None if timeout is None else monotonic_s() + timeout
        pause_s, trouble = 0.02, Trouble()
        self.reload()
        while not self.state.is_terminal:
            left_s = pause_s if until_s is None else min(pause_s, until_s - monotonic_s())
            if left_s <= 0:
                raise WaitTimeout(f"Job {self.id} is still {self.state} after {timeout:g} s.")
            time.sleep(left_s)
            pause_s = min(1.5 * pause_s, 1.0)
            try:
                self.reload()
                trouble.ends()
            except DatabaseError as error:
                if trouble.begins():
                    log.warning("waiting for the database", job=self.id, error=error)
        return self.state

    def result(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Wait for the end and return what the backend kept of it (`detail`).

        Raises `JobFailed`, `JobKilled` or `JobLost` as the job ended, and what `wait` raises.
        """
        error = error_of_end(self.id, self.wait(timeout), self.message)
        if error is not None:
            raise error
        return self.detail

    @property
    def events(self) -> list[JobEvent]:
        """The job's transitions, oldest first."""
        with reading(object_session(self)) as connection:
            return [JobEvent(**row) for row in queries.events(connection, self._id())]

    @property
    def enqueued(self) -> "list[BaseJob]":
        """The jobs that this one enqueued (their `parent_id` is this one's id), oldest first."""
        with reading(object_session(self)) as connection:
            return [object_of(row) for row in queries.children(connection, self._id())]

    def _id(self) -> int:
        if not is_stored(self):
            raise UsageError(f"{self!r} was never stored: call `run()` or `store()` first.")
        return self.id


class UnknownJob(BaseJob):
    """A job of a type that this installation does not know: it can be read and killed, not run."""


def class_of(job_type: str) -> type[BaseJob] | None:
    """Return the class of a job type, where this process knows it or can load it by its name."""
    mapper = BaseJob.__mapper__.polymorphic_map.get(job_type)
    return registry.load_job_class(job_type) if mapper is None else mapper.class_


def object_of(row: Any, session: Session | None = None) -> BaseJob:
    """Return the object of a row, as its own type; of a type nobody knows, an `UnknownJob`."""
    job_class = class_of(row["job_type"])
    if job_class is None:
        return from_row(UnknownJob, row)
    if session is not None:
        return cast("BaseJob", session.get(job_class, row["id"]))
    return from_row(job_class, row)


def _known_id(given: Any) -> int:
    """Return an id that a row may have. Raises `JobNotFound`, where a driver would refuse the question."""
    try:
        job_id = int(given) if isinstance(given, str) else operator.index(given)
    except (TypeError, ValueError):
        job_id = 0
    if not 0 < job_id <= ID_MOST:
        raise JobNotFound(
            f"There is no job {brief(given, 100)}: `jobrunner list` shows those that there are."
        )
    return job_id


def _types_of(job_class: type[BaseJob]) -> list[str]:
    for name in registry.job_type_names():  # a subclass that is not imported yet has jobs, too
        registry.load_job_class(name)
    names = (mapper.polymorphic_identity for mapper in job_class.__mapper__.self_and_descendants)
    return [name for name in names if name is not None]
