"""From the INSERT of a job, or its claim, to whoever runs it in this process: one place owns that stretch."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from sqlalchemy import Connection, RowMapping
from sqlalchemy.orm.attributes import set_committed_value

from jobrunner import identity, record_places, statements, worklist
from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.doubt import WriteOnce
from jobrunner.errors import (
    ClaimLost,
    DatabaseError,
    DatabaseUnavailable,
    JobrunnerError,
    UsageError,
    words_of,
)
from jobrunner.heartbeat import lost_because
from jobrunner.logs import get_logger
from jobrunner.models.rows import is_stored, refresh, values_of
from jobrunner.models.storing import Unsettled, found, readable, unknown
from jobrunner.retry import Retry
from jobrunner.statements import Claim, Owner, new_owner
from jobrunner.states import JobState

if TYPE_CHECKING:
    from jobrunner.models.base_job import BaseJob

log = get_logger(__name__)

GIVE_UP_S = 10.0
"""Seconds for which a start that failed tries to say so in the job's row."""


class _HasConnection(Protocol):
    @property
    def connection(self) -> Connection:
        """The connection to write with."""
        ...


_Act = TypeVar("_Act", bound=_HasConnection)


@dataclass(frozen=True, slots=True)
class Taken:
    """A job that this process owns: its claim, and its row at that moment."""

    claim: Claim
    row: RowMapping


class NotTaken(Exception):  # what becomes of it is for the caller to say
    """The job is not there to be claimed: its row at that moment."""

    def __init__(self, row: RowMapping) -> None:
        super().__init__(f"job {row['id']} is {row['state']}")
        self.row = row


def owner_for(job: "BaseJob") -> Owner:
    """Return this process as an owner of the job.

    An earlier start of the same object may have claimed it, and its answer was lost: under this owner, too.
    """
    owner = new_owner(job.executor_class or "LocalExecutor")
    before = job._unsettled
    return owner if before is None or before.runner_id is None else replace(owner, runner_id=before.runner_id)


def claimed(
    connection: Connection, job_id: int, owner: Owner, claim: Callable[[Connection], Claim | None]
) -> Taken:
    """Claim a job by `claim`, and return it. Raises `NotTaken`."""
    claim(connection)
    row = readable(connection, job_id)
    # By the row: the claim may have been taken before, and somebody may have claimed it again since.
    if not is_of(row, owner):
        raise NotTaken(row)
    return Taken(Claim(job_id, owner.runner_id, row["claims"]), row)


def _why_not_taken(row: RowMapping) -> str:
    if row["state"] is not JobState.QUEUED:
        return f"Job {row['id']} is {row['state']}, not queued: only a queued job can be run."
    why = worklist.why_barred_row(row) or "it belongs to another host or user"
    return f"Job {row['id']} is queued, and cannot be run here: {why}."


def is_of(row: RowMapping, owner: Owner) -> bool:
    """Whether the owner has this job: a claim may have been taken of which no answer came."""
    return row["runner_id"] == owner.runner_id and row["state"] is JobState.RUNNING


def still_claimed(connection: Connection, job_id: int, owner: Owner) -> Taken | None:
    """Return a job whose claim was taken though its answer was lost, after a beat; None: it was not taken.

    Its heartbeat may be old by now. Raises `ClaimLost` where others have taken it meanwhile.
    """
    row = statements.look(connection, [job_id]).get(job_id)
    if row is None or not is_of(row, owner):
        return None
    claim = Claim(job_id, owner.runner_id, row["claims"])
    if not statements.beat(connection, owner.runner_id, [job_id]):
        why = lost_because(claim, statements.look(connection, [job_id]).get(job_id))
        if why is not None:
            raise ClaimLost(why)
    return Taken(claim, readable(connection, job_id))


class Start:
    """One job on its way into this process.

        with Start(database, job, owner) as start:
            taken = start.take()
            ...
            start.hand_over()

    An error that ends the block before `hand_over` leaves nothing behind that somebody else would run: a job
    that was stored here ends as `failed` (by Ctrl-C: `killed`), and one that was there before is given back.
    `is_wanted`: whether to go on waiting for a database that is away.
    """

    def __init__(
        self,
        database: Database,
        job: "BaseJob",
        owner: Owner,
        *,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self.database = database
        self.owner = owner
        self._job = job
        self._is_wanted = is_wanted
        # What a transaction of the caller's own stored stands only if that was committed.
        self._is_new = not is_stored(job) or job._unsettled is not None
        self._is_to_be_adoptable = self._is_new and bool(job.adoptable)
        self._is_settled = True
        """Whether nothing of this start is left to be ended or given back."""
        self._is_begun = False
        self._claim: Claim | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.give_up(error)

    def take(self) -> Taken:
        """Store a new object as this owner's, or claim the queued job that it stands for.

        Raises `UsageError` when it is not there to be run, `ClaimLost` when others took it before the
        answer came, and `DatabaseError`.
        """
        before = self._job._unsettled
        if before is not None and before.is_undecided:
            raise UsageError(
                f"{self._job!r} was stored in a transaction that has not ended: commit it before the job "
                "is run."
            )
        if self._is_new:
            self._job._check_before_storing()
        write, look = (
            (self._insert, self._look_by_key) if self._is_new else (self._claim_queued, self._look_by_id)
        )
        try:
            taken = self._written(write, look)
        except NotTaken as error:
            self._is_settled = True
            refresh(self._job, error.row)
            raise UsageError(_why_not_taken(error.row)) from None
        refresh(self._job, taken.row)
        self._job._unsettled = None
        return taken

    def adopt(
        self, begin: Callable[[], AbstractContextManager[_Act]], claim: Callable[[_Act], Claim | None]
    ) -> Taken | None:
        """Claim by `claim`, in what `begin` gives, a job that was seen to be there; None: it no longer is.

        Raises `DatabaseError`.
        """
        job_id = self._job.id

        def write(act: _Act) -> Taken:
            return self._claimed_by(act.connection, job_id, lambda _connection: claim(act))

        try:
            return self._written(write, self._look_by_id, begin)
        except (NotTaken, ClaimLost):
            self._is_settled = True
            return None

    def has_begun(self) -> None:
        """The job's work begins now: an error after this is how it ended, and not why it never started."""
        self._is_begun = True

    def confirm(self) -> None:
        """Let others take the job over when this process dies: it is known to be stored, and begins.

        Where the database goes away at this moment, nobody can take it over: it would end as `lost`. The
        work itself need not wait for that. Raises `ClaimLost`.
        """
        job, claim = self._job, self._claim
        assert claim is not None
        if job.adoptable or not self._is_to_be_adoptable:
            return
        try:
            with self.database.write() as connection:
                if not statements.confirm(connection, claim):
                    why = lost_because(claim, statements.look(connection, [job.id]).get(job.id))
                    raise ClaimLost(why)
        except DatabaseError as error:
            log.warning("nobody can take the job over when this process dies", job=job.id, error=error)
        else:
            set_committed_value(job, "adoptable", True)

    def hand_over(self) -> None:
        """The job has somebody now who beats for it, and who ends or releases it."""
        self._is_settled = True

    def give_up(self, why: BaseException) -> None:
        """End the job, or give it back, because of this error, which is the caller's to raise."""
        if self._is_settled:
            return
        self._is_settled = True
        give_up_s, retry = monotonic_s() + GIVE_UP_S, Retry(most_s=1.0)
        while True:
            try:
                with self.database.write() as connection:
                    self._leave(connection, why)
                return
            except DatabaseError as error:
                if monotonic_s() >= give_up_s or not isinstance(error, DatabaseUnavailable):
                    where = self._job.key if self._claim is None else self._claim.job_id
                    said = "the job was not given up in the database: a worker may run it"
                    log.error(said, job=where, error=error)
                    return
            time.sleep(retry.next_s())

    # --- taking --------------------------------------------------------------------------------------

    def _written(
        self,
        write: Callable[[Any], Taken],
        look: Callable[[Connection], Taken | None],
        begin: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> Taken:
        once = WriteOnce(self.database, write, look, self._unknown, is_wanted=self._is_wanted, begin=begin)
        taken = once.do()
        self._claim = taken.claim
        return taken

    def _insert(self, connection: Connection) -> Taken:
        job, is_sent_before = self._job, self._job._unsettled is not None
        self._is_settled = False
        job._unsettled = Unsettled(runner_id=self.owner.runner_id)
        values = values_of(job)
        if connection.dialect.name == "postgresql":  # SQLite's answer cannot get lost on the way
            values["adoptable"] = False  # until `confirm`
        job_id = statements.store_once(connection, values, self.owner, identity.who())
        if job_id is None:
            taken = self._look_by_key(connection, is_sent_before=is_sent_before)
            return taken or self._insert(connection)  # deleted since
        self._claim = Claim(job_id, self.owner.runner_id, 1)
        return Taken(self._claim, readable(connection, job_id))

    def _look_by_key(self, connection: Connection, *, is_sent_before: bool = True) -> Taken | None:
        row = found(connection, self._job, is_sent_before=is_sent_before)
        if row is None:
            return None
        if row["state"] is JobState.QUEUED:  # by an earlier `store`, or given back by whoever took it
            return self._claimed(connection, row)
        taken = still_claimed(connection, row["id"], self.owner)
        if taken is None:
            refresh(self._job, row)
            raise ClaimLost(lost_because(Claim(row["id"], self.owner.runner_id, 1), row))
        return taken

    def _claim_queued(self, connection: Connection) -> Taken:
        row = statements.get(connection, self._job.id)
        if row["state"] is not JobState.QUEUED:
            raise NotTaken(row)
        return self._claimed(connection, row)

    def _claimed(self, connection: Connection, row: RowMapping) -> Taken:
        why = record_places.why_unseen(row)
        if why is not None:
            raise UsageError(
                f"Job {row['id']} cannot be run from here: {why}. Run it where that directory is mounted."
            )
        host_id = row["host_id"] if identity.can_serve(row["host_id"]) else None
        return self._claimed_by(
            connection,
            row["id"],
            lambda connection: statements.claim_queued(connection, row["id"], self.owner, host_id),
        )

    def _claimed_by(
        self, connection: Connection, job_id: int, claim: Callable[[Connection], Claim | None]
    ) -> Taken:
        self._is_settled, self._is_new = False, False
        return claimed(connection, job_id, self.owner, claim)

    def _look_by_id(self, connection: Connection) -> Taken | None:
        return still_claimed(connection, self._job.id, self.owner)

    def _unknown(self, error: DatabaseError) -> DatabaseError:
        self._is_settled = True  # nothing can be done about it from here
        if self._is_new:
            return unknown(self._job, error, "nobody runs it")
        return DatabaseUnavailable(
            f"{error} Job {self._job.id} may have been claimed all the same: "
            f"`jobrunner show {self._job.id}` shows it, once the database can be reached."
        )

    # --- giving up -----------------------------------------------------------------------------------

    def _leave(self, connection: Connection, why: BaseException) -> None:
        claim = self._claim or self._claim_in_row(connection)
        if claim is None:
            return
        if not self._is_new:
            statements.release(connection, claim, f"released: {_words(why)}")
            return
        state = JobState.KILLED if isinstance(why, KeyboardInterrupt) else JobState.FAILED
        words = _words(why) if self._is_begun else f"not started: {_words(why)}"
        statements.end(connection, claim, state, words)

    def _claim_in_row(self, connection: Connection) -> Claim | None:
        """Return our claim, by as little of the row as can be read: the error may be about the rest."""
        job = self._job
        if not is_stored(job):
            row = None if job.key is None else statements.find(connection, job.key)
        else:
            row = statements.look(connection, [job.id]).get(job.id)
        if row is None or not is_of(row, self.owner):
            return None
        return Claim(row["id"], self.owner.runner_id, row["claims"])


def _words(why: BaseException) -> str:
    if isinstance(why, KeyboardInterrupt):
        return str(why) or "interrupted from the keyboard"
    if isinstance(why, JobrunnerError):
        return str(why)
    return words_of(why)
