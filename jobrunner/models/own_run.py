"""What the process that runs a job's own code holds: its claim, its rhythm, its beats."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, NoReturn

from sqlalchemy import RowMapping
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm.attributes import set_committed_value

from jobrunner import statements
from jobrunner.aside import Late, within
from jobrunner.clock import monotonic_s
from jobrunner.database import Database, get_database
from jobrunner.errors import (
    ClaimLost,
    DatabaseError,
    JobEndedBadly,
    JobNotFound,
    JobrunnerError,
    error_of_end,
    words_of,
)
from jobrunner.heartbeat import Beater, BeatHealth, Pacer, lost_because, warn_of_skew
from jobrunner.hints import Hints
from jobrunner.hook_sessions import HookSessions
from jobrunner.log_limits import Seldom
from jobrunner.logs import get_logger
from jobrunner.models.attendant import Attendant, beating_on
from jobrunner.models.endings import TIMED_OUT, EarlyEnd, early_end
from jobrunner.models.forks import end_copy, ending_copies
from jobrunner.models.plain_code import call_plain, check_plain
from jobrunner.models.start import Start, owner_for
from jobrunner.retry import Retry
from jobrunner.statements import Beaten, Claim
from jobrunner.states import JobState

if TYPE_CHECKING:
    from jobrunner.models.base_job import BaseJob

log = get_logger(__name__)

OUTCOME_PATIENCE_S = 24 * 3600.0
"""How long a finished job goes on trying to write its outcome into a database that is away."""
_SKEW_S = 5.0  # for a look at the database's clock
_ON_KILL_S = 60.0
"""Seconds after which a job whose `on_kill` does not return ends without it."""
_PROMPT, _PROMPT_MOST_S = 0.25, 5.0
"""Heartrates, and seconds, between two tries to write an outcome at most: as for a beat."""


class Terminated(KeyboardInterrupt):
    """SIGTERM in a process that a worker has started for the job: sent by the worker, or by others."""


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
        self.seldom = Seldom()
        self.ended = False
        self.verdict: JobrunnerError | None = None
        """Why the run is over before its code is."""
        self.is_cleaning_up = False
        """Whether it is being ended before its code is: others beat meanwhile, and `heartbeat` only waits."""
        self._has_cleaned_up = False
        self.interrupt: KeyboardInterrupt | None = None
        """What was raised in the code as the process was told to stop, unless the code has gone on since."""
        self._pid = os.getpid()
        self.see_off: Callable[[], str] | None = None
        """Ends what the code has started, where the process is the job's alone; returns what is left."""
        self.database = database
        self.hook_sessions = HookSessions(database.settings, database)
        self._pacer = Pacer(heartrate)
        self._beater = Beater(database, claim.runner_id, heartrate)
        self._hints = Hints(database)

    @property
    def is_copy(self) -> bool:
        """Whether this process was forked by the job's code: then it has no part in the job."""
        return os.getpid() != self._pid

    @property
    def beats_elsewhere(self) -> bool:
        """Whether a call of `heartbeat` is to send no beat: in a forked copy, or within `on_kill`."""
        return self.is_copy or self.is_cleaning_up

    def pace(self, *, only_if_necessary: bool) -> None:
        """Keep the rhythm, without a beat: the connections are another's, or the beats are."""
        if only_if_necessary:
            return
        if not self.is_copy:
            time.sleep(self._pacer.heartrate)
            return
        time.sleep(self._pacer.remaining_s())
        self._pacer.restart()

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
            self._hints.ask_again()
            return False

    def go_on(self) -> None:
        """Take note that the code calls `heartbeat`: it swallowed an interrupt, and works on."""
        self.interrupt = None

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
        return lost_because(self.claim, self._beater.look([job_id]).get(job_id))

    def end(self, state: JobState, message: str, *, unless_cancelled: bool = False) -> bool:
        """Write the outcome, trying again while the database is away, and beating meanwhile.

        `unless_cancelled`: not where the job's worker ends its process for a kill or a timeout; then False is
        returned. One interrupt does not keep it from being written, a second one does. Raises `ClaimLost`.
        """
        if self.is_copy:
            end_copy()
        self.ended = True
        with beating_on(self.database, self.claim, self._pacer, self.health):
            row = self._written_once(state, message, unless_cancelled=unless_cancelled)
        ours = (state, self.claim.runner_id, self.claim.claims)
        if row is True or (row and (row["state"], row["runner_id"], row["claims"]) == ours):
            return True  # perhaps by an earlier try, of which only the answer was lost
        if unless_cancelled and lost_because(self.claim, row) is None:
            self.ended = False
            return False
        raise self._over(
            ClaimLost(f"{lost_because(self.claim, row)} Its outcome here, {state}, was not written.")
        )

    def _written_once(
        self, state: JobState, message: str, *, unless_cancelled: bool
    ) -> RowMapping | Literal[True] | None:
        """Write the outcome, once more after an interrupt; return as `_written`."""
        said = {"job": self.claim.job_id, "state": state}
        try:
            return self._written(state, message, unless_cancelled=unless_cancelled)
        except KeyboardInterrupt:
            log.warning("interrupted before the outcome was written: it is tried once more", **said)
        try:
            return self._written(state, message, unless_cancelled=unless_cancelled)
        except KeyboardInterrupt:
            log.error("interrupted again: the outcome is not written", **said)
            raise

    def _written(
        self, state: JobState, message: str, *, unless_cancelled: bool
    ) -> RowMapping | Literal[True] | None:
        """Write the outcome; return True, or the row that did not take it, None where there is none."""
        give_up_s = monotonic_s() + OUTCOME_PATIENCE_S
        retry = Retry(most_s=min(_PROMPT_MOST_S, _PROMPT * self._pacer.heartrate))
        while True:
            try:
                with self.database.write() as connection:
                    if statements.end(
                        connection, self.claim, state, message, unless_cancelled=unless_cancelled
                    ):
                        return True
                    return statements.look(connection, [self.claim.job_id]).get(self.claim.job_id)
            except DatabaseError as error:
                if monotonic_s() > give_up_s:
                    raise
                if retry.count == 0:
                    log.warning(
                        "outcome cannot be written yet", job=self.claim.job_id, state=state, error=error
                    )
            time.sleep(retry.next_s())

    def end_early(self, job: "BaseJob", state: JobState, message: str) -> NoReturn:
        """End a job before its code does: `on_kill`, then the state, then the error that says so.

        Beats go on meanwhile, however long a clean-up takes; one that does not return is not waited for.
        """
        if self.is_cleaning_up:  # `on_kill` itself asks for it
            raise self._error_of(state, message)
        if not self.ended:
            left = ""
            with self._cleaning_up(job, state, message):
                if not self._has_cleaned_up:
                    self._has_cleaned_up = True
                    call_on_kill(job)
                left = self._left_behind()
            if not self.ended:
                self._end_early(state, message, left)
        assert self.verdict is not None  # a job is ended early by a kill or its timeout
        raise self.verdict

    def seen_off(self, message: str) -> str:
        """End what the code has started; return the message, with what could not be ended."""
        if self.see_off is None:
            return message
        with beating_on(self.database, self.claim, self._pacer, self.health):
            left = self.see_off()
        return f"{message}; left behind: {left}" if left else message

    @contextmanager
    def _cleaning_up(self, job: "BaseJob", state: JobState, message: str) -> Iterator[None]:
        def end() -> None:
            log.error("on_kill does not return: the job ends without it", job=job.id, seconds=_ON_KILL_S)
            self._end_early(state, f"{message}; its on_kill did not return", self._left_behind())

        self.is_cleaning_up = True
        try:
            with Attendant(self._pacer, self.beat, end, _ON_KILL_S):
                yield
        finally:
            self.is_cleaning_up = False

    def _end_early(self, state: JobState, message: str, left: str) -> None:
        message = f"{message}; left behind: {left}" if left else message
        self.end(state, message)
        self.verdict = self._error_of(state, message)

    def _error_of(self, state: JobState, message: str) -> JobEndedBadly:
        error = error_of_end(self.claim.job_id, state, message)
        assert error is not None  # a job is ended early as killed or failed
        return error

    def _left_behind(self) -> str:
        """End what the code has started; return what could not be ended."""
        return "" if self.see_off is None else self.see_off()

    def due_end(self) -> EarlyEnd | None:
        """Return how the job has to end before its code does; None: it goes on, as far as can be told."""
        try:
            with self.database.read() as connection:
                return early_end(statements.get(connection, self.claim.job_id), statements.now(connection))
        except (DatabaseError, JobNotFound):
            return TIMED_OUT if self.is_past_deadline else None

    def obey(self, job: "BaseJob", *, kill_requested: bool) -> None:
        """End the job, and raise the error that says so, if a kill is requested or its timeout has passed."""
        if kill_requested and not self.is_past_deadline:
            job.kill()
        if self.is_past_deadline:
            end = (self.due_end() if kill_requested else None) or TIMED_OUT
            self.end_early(job, end.state, end.message)

    def close(self) -> None:
        """Give the connections back."""
        self._beater.close()
        self._hints.close()


def call_on_kill(job: "BaseJob") -> None:
    """Call `on_kill`; whatever it raises is logged: a clean-up that fails or exits does not stop the kill."""
    try:
        with ending_copies():
            call_plain(job, "on_kill")
    except BaseException as error:  # sys.exit() and Ctrl-C, too: the job ends here in any case
        log.error("on_kill failed", job=job.id, error=error, exc_info=True)


def has_callback(job: "BaseJob") -> bool:
    """Whether the job's class gives a `heartbeat_callback` of its own."""
    from jobrunner.models.base_job import BaseJob

    return type(job).heartbeat_callback is not BaseJob.heartbeat_callback


def has_on_kill(job: "BaseJob") -> bool:
    """Whether the job's class gives an `on_kill` of its own."""
    from jobrunner.models.base_job import BaseJob

    return type(job).on_kill is not BaseJob.on_kill


def call_back(job: "BaseJob", sessions: HookSessions, seldom: Seldom) -> None:
    """Call `heartbeat_callback` with a session; what the database refuses it is logged and forgiven.

    It is not called while its class rests: see `HookSessions`.
    """
    if sessions.is_resting(job):
        return
    try:
        with sessions.session(job) as session:
            with ending_copies():  # the session is the job's
                call_plain(job, "heartbeat_callback", session=session)
            session.commit()
    except (SQLAlchemyError, DatabaseError) as error:
        seldom.warning(log, "heartbeat_callback failed", about=job.id, job=job.id, error=error)


def run_code(job: "BaseJob") -> None:
    """Run a job's own code in this process, from its claim to its terminal state: see `BaseJob.run`."""
    with Start(get_database(), job, owner_for(job)) as start:
        taken = start.take()
        start.confirm()
        see_off = getattr(job.executor, "see_off", None)
        run_claimed(job, start.database, taken.claim, see_off, hand_over=start.hand_over)


def run_claimed(
    job: "BaseJob",
    database: Database,
    claim: Claim,
    see_off: Callable[[], str] | None = None,
    *,
    hand_over: Callable[[], None] = lambda: None,
) -> None:
    """Run the own code of a job that this process has just claimed, to its terminal state.

    `see_off`: ends what the code has started, before the job counts as killed or out of time.
    `hand_over`: called once this sees to the end of the job, whatever happens.
    """
    # It is only a warning, which no beat waits for; the beats will say that the database is away.
    with suppress(DatabaseError, Late):
        within(min(_SKEW_S, job.heartrate / 2), lambda: warn_of_skew(database, job.heartrate))
    left_s = None
    if job.deadline_at is not None:
        left_s = (job.deadline_at - job.latest_heartbeat).total_seconds()
    own = OwnRun(database, claim, job.heartrate, database.settings.grace_multiplier, left_s)
    own.see_off = see_off
    job._own = own
    on_started = getattr(job.executor, "on_started", None)
    try:
        hand_over()
        if on_started is not None:
            on_started(job.id)
        own.obey(job, kill_requested=job.kill_requested_at is not None)  # it may have waited for long
        check_plain(type(job))
        call_plain(job, "_execute")
    except BaseException as error:
        _end_after(job, own, error)
        if not _is_success(error):
            raise
    else:
        _end_after(job, own, None)
    finally:
        own.close()
        job._own = None


def _end_after(job: "BaseJob", own: OwnRun, error: BaseException | None) -> None:
    """Write the outcome that the end of a job's code means.

    Where the code returned, or exited with 0, it raises what ended the job before that. What the code
    raised is for the caller to see.
    """
    if own.is_copy:
        end_copy(error)
    if isinstance(error, KeyboardInterrupt):
        own.interrupt = error
    # The kill or the timeout for which it was interrupted is the reason, whatever the code made of it.
    early = own.due_end() if own.interrupt is not None and not own.ended else None
    if early is not None:
        with suppress(JobEndedBadly, ClaimLost):
            own.end_early(job, early.state, early.message)
    swallowed = own.interrupt if error is None or isinstance(error, SystemExit) else None
    if swallowed is not None and not own.ended:  # the work was cut short, and its code says nothing of that
        error = swallowed
    outcome = _outcome_of(error)
    if _is_success(error):
        _finish(job, own, outcome.state, outcome.message)
    else:
        # Interrupted by its terminal, or by a signal: that is a kill as well.
        is_killed = outcome.state is JobState.KILLED and not own.ended
        message = own.seen_off(outcome.message) if is_killed else outcome.message
        _finish_after(job, own, outcome.state, message)
        if swallowed is not None and error is swallowed:
            raise swallowed


def _is_success(error: BaseException | None) -> bool:
    return error is None or (isinstance(error, SystemExit) and (error.code is None or error.code == 0))


def _outcome_of(error: BaseException | None) -> EarlyEnd:
    """Return what the end of a job's code means, where nothing else had ended the job."""
    if _is_success(error):
        return EarlyEnd(JobState.SUCCESS, "done")
    if isinstance(error, Terminated):
        return EarlyEnd(JobState.FAILED, "its process was ended by SIGTERM")
    if isinstance(error, KeyboardInterrupt):
        return EarlyEnd(JobState.KILLED, str(error) or "interrupted from the keyboard")
    if isinstance(error, SystemExit):
        return EarlyEnd(JobState.FAILED, f"exited with code {words_of(error).removeprefix('SystemExit: ')}")
    assert error is not None  # that would be a success
    return EarlyEnd(JobState.FAILED, words_of(error))


def _finish(job: "BaseJob", own: OwnRun, state: JobState, message: str) -> None:
    if not own.ended:
        if own.end(state, message, unless_cancelled=True):
            set_committed_value(job, "state", state)
        else:
            _end_cancelled(job, own)
    with suppress(DatabaseError, JobNotFound):  # the outcome stands, whether it can be read now or not
        job.reload()
    if own.verdict is not None:  # the code swallowed the error that said so
        raise own.verdict


def _end_cancelled(job: "BaseJob", own: OwnRun) -> None:
    """End a job whose code has ended while its worker was ending it: its own word is no outcome any more."""
    early = own.due_end() or TIMED_OUT  # the row says which of the two, as long as it can be read
    with suppress(JobEndedBadly):
        own.end_early(job, early.state, early.message)


def _finish_after(job: "BaseJob", own: OwnRun, state: JobState, message: str) -> None:
    """Write the outcome that an error means; the error itself is what the caller shall see."""
    known = own.verdict
    try:
        _finish(job, own, state, message)
    except (ClaimLost, DatabaseError, JobEndedBadly) as trouble:
        if trouble is not known:
            log.warning("outcome not written", job=own.claim.job_id, state=state, error=trouble)
