"""What the process that runs a job's own code holds: its claim, its rhythm, its beats."""

import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from sqlalchemy import RowMapping
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm.attributes import set_committed_value

from jobrunner import statements
from jobrunner.clock import monotonic_s
from jobrunner.database import Database, get_database
from jobrunner.errors import (
    ClaimLost,
    DatabaseError,
    JobEndedBadly,
    JobNotFound,
    JobrunnerError,
    UsageError,
    error_of_end,
)
from jobrunner.heartbeat import Beater, BeatHealth, Pacer, lost_because, warn_of_skew
from jobrunner.hints import Hints
from jobrunner.logs import get_logger
from jobrunner.models.rows import is_stored, refresh, store
from jobrunner.statements import Beaten, Claim, Owner, new_owner
from jobrunner.states import JobState

if TYPE_CHECKING:
    from jobrunner.models.base_job import BaseJob

log = get_logger(__name__)

OUTCOME_PATIENCE_S = 24 * 3600.0
"""How long a finished job goes on trying to write its outcome into a database that is away."""


class OwnRun:
    """One run of a job's own code in this process, from its claim to its terminal state."""

    def __init__(
        self,
        database: Database,
        claim: Claim,
        heartrate: float,
        grace_multiplier: float,
        left_s: float | None = None,
    ) -> None:
        self.claim = claim
        self._deadline_s = None if left_s is None else monotonic_s() + left_s
        self.health = BeatHealth(heartrate, grace_multiplier)
        self.ended = False
        self.verdict: JobrunnerError | None = None
        """Why the run is over before its code is."""
        self.database = database
        self._pacer = Pacer(heartrate)
        self._beater = Beater(database, claim.runner_id)
        self._hints = Hints(database)

    def wait_for_turn(self, *, only_if_necessary: bool) -> bool:
        """Wait until the next beat is due, or a kill was set; False: not due, and no wait was wanted."""
        remaining_s = self._pacer.remaining_s()
        if remaining_s <= 0:
            self._pacer.restart()
            return True
        if only_if_necessary:
            return False
        due_s = monotonic_s() + remaining_s
        until_s = due_s if self._deadline_s is None else min(due_s, self._deadline_s)
        while (remaining_s := until_s - monotonic_s()) > 0:
            if self._hints.wait(remaining_s) and self._is_flagged():
                return True
        if until_s == due_s:
            self._pacer.keep_time()
        return True

    @property
    def is_past_deadline(self) -> bool:
        """Whether the job's timeout has passed."""
        return self._deadline_s is not None and monotonic_s() >= self._deadline_s

    def _is_flagged(self) -> bool:
        try:
            return self.claim.job_id in self._beater.flagged()
        except DatabaseError as error:
            self.health.failed(error)
            return False

    def beat(self) -> Beaten | None:
        """Send one beat; None: the database did not take it, or holds the row locked.

        Raises `ClaimLost` when the job was taken, ended or deleted.
        """
        sent_s = monotonic_s()
        try:
            beaten = self._beater.beat([self.claim.job_id], with_time=True)
            standing = None if beaten else self._look()
        except DatabaseError as error:
            self.health.failed(error)
            self._pacer.retry_soon()
            return None
        if standing is not None:
            raise self._over(ClaimLost(standing))
        if not beaten:  # locked by somebody: no verdict
            self._pacer.retry_soon()
            return None
        if beaten[0].claims != self.claim.claims:
            again = f"Job {self.claim.job_id} was claimed again: this run no longer owns it."
            raise self._over(ClaimLost(again))
        self.health.succeeded(sent_s)
        return beaten[0]

    def _over(self, verdict: JobrunnerError) -> JobrunnerError:
        self.ended, self.verdict = True, verdict
        return verdict

    def _look(self) -> str | None:
        job_id = self.claim.job_id
        with self.database.read() as connection:
            row = statements.look(connection, [job_id]).get(job_id)
        return lost_because(self.claim, row)

    def end(self, state: JobState, message: str) -> None:
        """Write the outcome, trying again while the database is away. Raises `ClaimLost`."""
        self.ended = True
        self._beater.close()  # no beat comes after the terminal write
        give_up_s = monotonic_s() + OUTCOME_PATIENCE_S
        pause_s, said = 0.05, False
        while True:
            try:
                with self.database.write() as connection:
                    if statements.end(connection, self.claim, state, message):
                        return
                    row = statements.look(connection, [self.claim.job_id]).get(self.claim.job_id)
                break
            except DatabaseError as error:
                if monotonic_s() > give_up_s:
                    raise
                if not said:
                    log.warning(
                        "outcome cannot be written yet", job=self.claim.job_id, state=state, error=error
                    )
                    said = True
            time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret
            pause_s = min(2 * pause_s, 5.0)
        ours = (state, self.claim.runner_id, self.claim.claims)
        if row is not None and (row["state"], row["runner_id"], row["claims"]) == ours:
            return  # an earlier try was written, and only its answer was lost
        raise self._over(
            ClaimLost(f"{lost_because(self.claim, row)} Its outcome here, {state}, was not written.")
        )

    def end_early(self, job: "BaseJob", state: JobState, message: str) -> NoReturn:
        """End a job before its code does: `on_kill`, then the state, then the error that says so."""
        if not self.ended:
            call_on_kill(job)
            self.end(state, message)
            self.verdict = error_of_end(self.claim.job_id, state, message)
        assert self.verdict is not None  # a job is ended early by a kill or its timeout
        raise self.verdict

    def close(self) -> None:
        """Give the connections back."""
        self._beater.close()
        self._hints.close()


def call_on_kill(job: "BaseJob") -> None:
    """Call `on_kill`; what it raises is logged: a clean-up that fails must not stop the kill."""
    try:
        job.on_kill()
    except Exception as error:  # whatever the job's own code raises
        log.error("on_kill failed", job=job.id, error=error, exc_info=True)


def has_callback(job: "BaseJob") -> bool:
    """Whether the job's class gives a `heartbeat_callback` of its own."""
    from jobrunner.models.base_job import BaseJob

    return type(job).heartbeat_callback is not BaseJob.heartbeat_callback


def has_on_kill(job: "BaseJob") -> bool:
    """Whether the job's class gives an `on_kill` of its own."""
    from jobrunner.models.base_job import BaseJob

    return type(job).on_kill is not BaseJob.on_kill


def call_back(job: "BaseJob", database: Database) -> None:
    """Call `heartbeat_callback` with a session; what the database refuses it is logged and forgiven."""
    try:
        with database.session() as session:
            job.heartbeat_callback(session=session)
            session.commit()
    except (SQLAlchemyError, DatabaseError) as error:
        log.warning("heartbeat_callback failed", job=job.id, error=error)


def run_code(job: "BaseJob") -> None:
    """Run a job's own code in this process, from its claim to its terminal state: see `BaseJob.run`."""
    database, claim = claim_here(job, new_owner(job.executor_class or "LocalExecutor"))
    run_claimed(job, database, claim)


def claim_here(job: "BaseJob", owner: Owner) -> tuple[Database, Claim]:
    """Store the job as this process's own, or claim it where it is queued. Raises `UsageError`."""
    database = get_database()
    with database.write() as connection:
        if is_stored(job):
            claim = statements.claim_queued(connection, job.id, owner)
            row = statements.get(connection, job.id)
        else:
            row = store(connection, job, owner)
            claim = Claim(row["id"], owner.runner_id, row["claims"])
    refresh(job, row)
    if claim is None:
        raise UsageError(f"Job {job.id} is {job.state}, not queued: only a queued job can be run.")
    return database, claim


def run_claimed(job: "BaseJob", database: Database, claim: Claim) -> None:
    """Run the own code of a job that this process has just claimed, to its terminal state."""
    with suppress(DatabaseError):  # it is only a warning; the beats will say that the database is away
        warn_of_skew(database, job.heartrate)
    left_s = None
    if job.deadline_at is not None:
        left_s = (job.deadline_at - job.latest_heartbeat).total_seconds()
    own = OwnRun(database, claim, job.heartrate, database.settings.grace_multiplier, left_s)
    job._own = own
    on_started = getattr(job.executor, "on_started", None)
    try:
        if on_started is not None:
            on_started(job.id)
        if job.kill_requested_at is not None:
            job.kill()
        job._execute()
    except SystemExit as error:
        if error.code is None or error.code == 0:
            _finish(job, own, JobState.SUCCESS, "done")
        else:
            _finish_after(job, own, JobState.FAILED, f"exited with code {error.code}")
            raise
    except KeyboardInterrupt as error:
        _finish_after(job, own, JobState.KILLED, str(error) or "interrupted from the keyboard")
        raise
    except BaseException as error:
        _finish_after(job, own, JobState.FAILED, f"{type(error).__name__}: {error}")
        raise
    else:
        _finish(job, own, JobState.SUCCESS, "done")
    finally:
        own.close()
        job._own = None


def _finish(job: "BaseJob", own: OwnRun, state: JobState, message: str) -> None:
    if not own.ended:
        own.end(state, message)
        set_committed_value(job, "state", state)
    with suppress(DatabaseError, JobNotFound):  # the outcome stands, whether it can be read now or not
        job.reload()
    if own.verdict is not None:  # the code swallowed the error that said so
        raise own.verdict


def _finish_after(job: "BaseJob", own: OwnRun, state: JobState, message: str) -> None:
    """Write the outcome that an error means; the error itself is what the caller shall see."""
    known = own.verdict
    try:
        _finish(job, own, state, message)
    except (ClaimLost, DatabaseError, JobEndedBadly) as trouble:
        if trouble is not known:
            log.warning("outcome not written", job=own.claim.job_id, state=state, error=trouble)


def kill_message(row: RowMapping) -> str:
    """Return what a killed job says: by whom and why, as far as the flag tells."""
    by = f" by {row['kill_requested_by']}" if row["kill_requested_by"] else ""
    why = f": {row['kill_reason']}" if row["kill_reason"] else ""
    return f"killed{by}{why}"
