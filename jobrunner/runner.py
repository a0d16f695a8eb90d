"""The event loop that owns jobs: it beats for them, watches them, cancels them and ends them."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sqlalchemy import Connection, RowMapping

from jobrunner import statements, unexpected
from jobrunner.answers import Answers
from jobrunner.backends.base import Observation
from jobrunner.beats import Beats
from jobrunner.cancelling import Cancelling
from jobrunner.clock import monotonic_s
from jobrunner.crashes import Crashes
from jobrunner.database import Database
from jobrunner.database_threads import DatabaseThreads
from jobrunner.ends import Ends
from jobrunner.errors import ClaimLost, DatabaseError
from jobrunner.heartbeat import lost_because, warn_of_skew
from jobrunner.hook_sessions import HookSessions
from jobrunner.hooks import Hooks
from jobrunner.log_limits import Seldom
from jobrunner.logs import get_logger
from jobrunner.loop_watch import LoopWatch
from jobrunner.models.own_run import call_back
from jobrunner.outcome import Verdict
from jobrunner.owned import START_TIMEOUT, Cancellation, OwnedJob, OwnedRow, OwnProcess, Shown, Source
from jobrunner.resubmission import resubmit, shall_be_resubmitted
from jobrunner.retry import Retry, until_taken
from jobrunner.statements import Claim, Owner
from jobrunner.states import JobState
from jobrunner.submission import submit
from jobrunner.ways import Ways

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob

log = get_logger(__name__)

_T = TypeVar("_T")

_CALLBACK_S = 60.0  # after which a `heartbeat_callback` counts as hanging
_STEP_S = 15.0  # how long a job that was taken may wait for its first step
_RELEASE_MANY = 500  # in one statement
STOP_S = 8.0
"""Seconds within which a runner that is told to stop ends what is under way, and gives its jobs back."""
_RELEASE_S = 10.0  # how long it tries to give back a single job
_STEPS_S = 6.0  # of that, for steps under way
_LEAST_S = 2.0  # for what is still to be written when that time is over
_SKEW_S = 5.0  # for a look at the database's clock
_BEATS_S = 1.0  # for a last beat that is under way


class Runner:
    """Owns any number of monitor jobs, from their claim to their terminal state.

    `async with Runner(database, owner) as runner:` beats for what is given to `take`, and releases
    on leaving what has not ended: only a recorded wish cancels.

    `on_kill_s`: seconds for which a kill waits for the job's own `on_kill`; by default a minute.
    """

    def __init__(self, database: Database, owner: Owner, *, on_kill_s: float | None = None) -> None:
        self.database = database
        self.owner = owner
        self.jobs: dict[int, OwnedJob] = {}
        self.seldom = Seldom()
        """What is said of its jobs again and again."""
        self._itself: OwnProcess | None = None
        self._tasks: dict[asyncio.Task[None], OwnedJob | None] = {}
        self._steps: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._threads = DatabaseThreads(database.settings)
        self._hooks = Hooks()
        self._hook_sessions = HookSessions(database.settings)
        self._answers = Answers(self, self._hooks)
        self._ways = Ways(self, self._answers)
        self._ends = Ends(self)
        self._crashes = Crashes(self)
        self.cancelling = Cancelling(self, self._hooks, on_kill_s)
        self.beats = Beats(
            database,
            owner.runner_id,
            on_flagged=lambda ids: self._from_thread(self._on_flagged, ids),
            on_lost=lambda owned, why: self._from_thread(self._on_lost, owned, why),
            on_beaten=lambda jobs: self._from_thread(self._call_back, jobs),
        )

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._loop_watch = LoopWatch()
        self.beats.start()
        # It is only a warning; the beats will say that the database is away.
        with suppress(DatabaseError, TimeoutError):
            async with asyncio.timeout(_SKEW_S):
                await asyncio.to_thread(warn_of_skew, self.database, self.database.settings.heartrate)
        self.spawn(self.cancelling.keep_time())
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.stop()
        await self._ways.close()
        self._loop_watch.stop()
        # Where the database does not answer, a beat hangs, and is left behind.
        await asyncio.wait([asyncio.ensure_future(asyncio.to_thread(self.beats.stop))], timeout=_BEATS_S)
        await asyncio.to_thread(self._threads.close)
        await self._hooks.close()
        self._hook_sessions.close()

    async def stop(self, reason: str = "released: its runner was stopped") -> None:
        """Begin nothing any more, end what is under way, and give all jobs back."""
        self._stopping.set()
        until_s = monotonic_s() + STOP_S
        if self._steps:  # a submission under way, an outcome being written: better ended than cut off
            await asyncio.wait(self._steps, timeout=_STEPS_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        left = len(self.jobs)
        try:
            async with asyncio.timeout(max(_LEAST_S, until_s - monotonic_s())):
                while self.jobs:
                    left -= await self._release_some(list(self.jobs.values())[:_RELEASE_MANY], reason)
        except TimeoutError:
            log.warning("not released: others will find them silent", jobs=left)
            for owned in list(self.jobs.values()):
                self._forget(owned)

    @property
    def steps(self) -> int:
        """How many jobs are being submitted, or ended, right now."""
        return len(self._steps)

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop: nothing is begun any more."""
        return self._stopping.is_set()

    async def pause(self, seconds: float) -> None:
        """Wait, but not for longer than until it is told to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    # --- taking and giving back ------------------------------------------------------------------

    async def prepare(self, job: "MonitorJob") -> None:
        """Have the way to a job's backend before anything is stored or claimed. Raises `JobrunnerError`."""
        await self._ways.prepare(job)

    def take(self, claim: Claim, row: RowMapping, job: "MonitorJob") -> asyncio.Future[JobState]:
        """Own a job that this runner has claimed; the future tells how it ended.

        Its `ClaimLost` says that the job was taken, ended or deleted: then nothing is done for it. Any other
        error says why there is no way to its backend: then it was given back.
        """
        owned = self.own(claim, row, type(job), lambda: job)
        owned.ended = self._loop.create_future()
        return owned.ended

    def own(
        self,
        claim: Claim,
        row: RowMapping,
        job_class: type,
        make: Callable[[], object],
        on_refused: Callable[[Exception], None] | None = None,
    ) -> OwnedJob:
        """Do as `take` does, for who does not wait for the end.

        `make`: return the job, of this class. `on_refused`: called where it is given back because it cannot
        be watched here.
        """
        former = self.jobs.get(claim.job_id)
        if former is not None:
            self.drop(former, f"Job {claim.job_id} was claimed again by this runner.")
        now_s = monotonic_s()
        owned = OwnedJob(
            claim=claim,
            source=Source(job_class, make, row["connection"], row["poll_interval"], on_refused),
            threads=self._threads,
            heartrate=row["heartrate"],
            token=row["submit_token"],
            external_id=row["external_id"],
            taken_s=now_s,
            good_s=now_s,
            progress_by_s=now_s + _STEP_S,
            kill_seen=row["kill_requested_at"] is not None,
            start_timeout=row["start_timeout"],
            cancellation=Cancellation(cause=row["cancel_cause"]),
            seen=row["external_state"] is not None,  # by a former owner, perhaps
        )
        if row["resubmit"]:
            owned.resubmit = row["resubmit"]
        self.jobs[owned.job_id] = owned
        self._set_times(owned, row, now_s)
        self.beats.add(owned)
        self.spawn(self._begin(owned, row), owned, is_step=True)
        return owned

    def _set_times(self, owned: OwnedJob, row: RowMapping, now_s: float) -> None:
        """Set the moments at which a job claimed at `now_s` is out of time."""
        # All by the database's clock: the claim was stored as the latest heartbeat.
        if row["deadline_at"] is not None:
            left_s = (row["deadline_at"] - row["latest_heartbeat"]).total_seconds()
            owned.deadline_s = now_s + left_s
            self.cancelling.set_time(owned)
        if owned.start_timeout is not None:
            # Of a job that was attached to, nobody here knows when it was submitted.
            since = row["submit_started_at"] or row["start_date"]
            left_s = (since - row["latest_heartbeat"]).total_seconds() + owned.start_timeout
            owned.cancellation.start_by_s = now_s + left_s
        if owned.cancellation.cause == START_TIMEOUT:
            owned.cancellation.waited = Shown(row["external_state"], row["message"])

    async def give_back(self, owned: OwnedJob, reason: str) -> None:
        """Own a job no longer, and let another have it."""
        self._forget(owned)
        await self.release(owned.claim, reason)

    async def release(self, claim: Claim, reason: str = "released: its runner was stopped") -> None:
        """Give a job back, trying for a while where the database is away."""
        give_up_s = monotonic_s() + _RELEASE_S
        retry = Retry(most_s=1.0)
        while True:
            try:
                await self.call(statements.release, claim, reason)
                return
            except DatabaseError as error:
                if monotonic_s() > give_up_s:
                    log.warning("not released: others will find it silent", job=claim.job_id, error=error)
                    return
            await retry.pause()

    async def _release_some(self, jobs: list[OwnedJob], reason: str) -> int:
        """Give jobs back, trying again while the database is away, and return how many."""
        for owned in jobs:  # the others are beaten for until it is their turn
            self._forget(owned)
        claims = [owned.claim for owned in jobs]
        retry = Retry(most_s=1.0)
        while True:
            with suppress(DatabaseError):  # it is tried again, as for jobs that somebody holds locked
                claims = await self.call(_release, self.owner.runner_id, claims, reason)
            if not claims:
                return len(jobs)
            await retry.pause()

    def _forget(self, owned: OwnedJob) -> None:
        owned.over = True
        if self.jobs.get(owned.job_id) is owned:
            del self.jobs[owned.job_id]
            if owned.way is not None:
                owned.way.poller.forget(owned.job_id)
        self.cancelling.forget(owned)
        self._crashes.forget(owned)
        self.beats.remove(owned)

    def drop(self, owned: OwnedJob, why: str) -> None:
        """Do nothing any more for a job that is no longer ours, neither in the database nor outside."""
        if not owned.over:
            self._forget(owned)
            self._say_lost(owned, why)

    # --- from the claim to the end ---------------------------------------------------------------

    async def _begin(self, owned: OwnedJob, row: RowMapping, *, is_new: bool = False) -> None:
        verdict = await self._ways.find(owned, row) if owned.way is None else None
        if owned.way is not None and owned.external_id is None and not owned.over:
            verdict = await submit(self, owned, row, is_new=is_new)
        if verdict is not None and not owned.over:
            if verdict.state is JobState.KILLED:
                await self.cancelling.call_on_kill(owned)
            owned.concluding = True
            await self._end(owned, verdict)
            return
        if owned.over or owned.way is None or owned.external_id is None:
            return  # lost, ended, given back, or told to stop first: submitted or found by the next owner
        owned.channel.poller.watch(owned.job_id, owned.external_id, owned.poll_interval)
        owned.progress_by_s = float("inf")  # from here on the poller's own promise counts
        owned.is_watched = True
        self.cancelling.set_time(owned)  # where its time to start is over, the first look decides
        self.cancelling.heed(owned)

    async def begin_again(self, owned: OwnedJob, row: RowMapping) -> None:
        """Go on with a job after one of its steps crashed, from what its row says."""
        owned.token, owned.external_id = row["submit_token"], row["external_id"]
        owned.kill_seen = owned.kill_seen or row["kill_requested_at"] is not None
        owned.cancellation.is_begun = owned.concluding = owned.is_watched = owned.is_ending = False
        owned.cancellation.cause = row["cancel_cause"]
        await self._begin(owned, row)

    def finish(self, owned: OwnedJob, outcome: JobState | ClaimLost) -> None:
        """Do nothing more for a job whose end was written, or is no longer ours to write."""
        self._forget(owned)
        owned.settle(outcome)

    def conclude(self, owned: OwnedJob, last: Observation | Verdict) -> None:
        """End a job by what was seen of it last, or submit it again where its policy wants that."""
        owned.concluding = True
        owned.channel.poller.forget(owned.job_id)
        if isinstance(last, Observation) and shall_be_resubmitted(owned, last):
            self.spawn(self._resubmit(owned, last), owned, is_step=True)
        else:
            self.spawn(self._end(owned, last), owned, is_step=True)

    async def _resubmit(self, owned: OwnedJob, last: Observation) -> None:
        row = await resubmit(self, owned, last)
        if row is None:  # it is no longer wanted
            await self._end(owned, last)
            return
        owned.concluding = False
        await self._begin(owned, row, is_new=True)

    async def _end(self, owned: OwnedJob, last: Observation | Verdict) -> None:
        if owned.over:
            return
        outcome = await self._ends.write(owned, last)
        if self.jobs.get(owned.job_id) is not owned:  # claimed again by this runner meanwhile
            return
        self._forget(owned)
        if isinstance(outcome, JobState):
            owned.settle(outcome)
        else:
            self._say_lost(owned, outcome)

    def _say_lost(self, owned: OwnedJob, why: str) -> None:
        self.seldom.warning(log, "claim lost", about=owned.job_id, job=owned.job_id, why=why)
        owned.settle(ClaimLost(why))

    # --- what the beats tell ---------------------------------------------------------------------

    def beat_for(self, itself: OwnProcess) -> None:
        """Beat for the row of this process itself, too; it was claimed under this runner's id."""
        self._itself = itself
        self.beats.add(itself)

    def _on_flagged(self, ids: list[int]) -> None:
        if self._itself is not None and self._itself.job_id in ids:
            self._itself.on_flagged()
        self.cancelling.on_flagged(ids)

    def _on_lost(self, owned: OwnedRow, why: str) -> None:
        if isinstance(owned, OwnedJob):
            if not owned.is_ending:  # else the write of its end says what stands
                self.drop(owned, why)
        elif isinstance(owned, OwnProcess) and not owned.over:
            owned.over = True
            self.beats.remove(owned)
            owned.on_lost(why)

    # --- what its parts need ---------------------------------------------------------------------

    def _call_back(self, jobs: list[OwnedRow]) -> None:
        if self.is_stopping:
            return
        for owned in jobs:
            if not isinstance(owned, OwnedJob) or owned.job is None:
                continue
            if not (owned.over or owned.is_called_back):  # one that is slow misses a beat
                owned.is_called_back = True  # at once: the next beat may come before the call begins
                call = partial(self._call_back_one, owned, owned.job)
                ended = self._hooks.call(owned.job, "heartbeat_callback", call, _CALLBACK_S).ended
                ended.add_done_callback(partial(self._on_called_back, owned))

    def _call_back_one(self, owned: OwnedJob, job: "MonitorJob") -> None:
        if not owned.over:  # else it has ended while this waited for its turn
            call_back(job, self._hook_sessions, self.seldom)

    def _on_called_back(self, owned: OwnedJob, ended: asyncio.Future[BaseException | None]) -> None:
        owned.is_called_back = False
        error = ended.result()
        if error is not None:
            self.seldom.error(
                log,
                "heartbeat_callback failed",
                about=owned.job_id,
                job=owned.job_id,
                error=error,
                exc_info=error,
            )

    async def call(self, write: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Run a write in a thread, once. Raises `DatabaseError`, also where somebody holds its row locked.

        So rows that are held keep no thread waiting: whoever calls this tries again, and waits elsewhere.
        """

        def _write() -> _T:
            with self.database.write() as connection:
                return write(statements.promptly(connection), *args, **kwargs)

        with self._waiting():
            return await self._threads.run(_write)

    def _waiting(self) -> AbstractContextManager[None]:
        """Wait for the database, within it, for the job whose step or other task calls this, if any."""
        task = asyncio.current_task()
        owned = None if task is None else self._tasks.get(task)
        return nullcontext() if owned is None else owned.waiting()

    async def persist(self, write: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Run a write in a thread, again and again until the database has taken it.

        Every statement here is fenced, so that one which comes late, or twice, changes nothing.
        """
        most_s = self.database.settings.heartrate
        with self._waiting():  # also between two tries: an outage is no step that is stuck
            return await until_taken(
                lambda: self.call(write, *args, **kwargs), write.__name__, most_s, self.seldom
            )

    def spawn(
        self, work: Coroutine[Any, Any, None], owned: OwnedJob | None = None, *, is_step: bool = False
    ) -> asyncio.Task[None] | None:
        """Start what is to be done beside; a step is waited for when the runner is told to stop."""
        if self.is_stopping and not is_step:
            work.close()
            return None
        task = self._loop.create_task(work)
        self._tasks[task] = owned
        if is_step:
            self._steps.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        owned = self._tasks.pop(task)
        self._steps.discard(task)
        if task.cancelled():
            if self.is_stopping:
                return
            error: BaseException | None = RuntimeError("it was cancelled from within")
        else:
            error = task.exception()
        if error is None:
            return
        if owned is None:
            unexpected.note("a task of the runner crashed", error, self.seldom)
        else:
            self._crashes.after(owned, error)

    def _from_thread(self, do: Callable[..., None], *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(do, *args)


def _release(connection: Connection, runner_id: str, claims: list[Claim], reason: str) -> list[Claim]:
    """Give jobs of a runner back, and return those that it still has, because somebody holds them locked."""
    done = set(statements.release_many(connection, runner_id, claims, reason))
    left = [claim for claim in claims if claim.job_id not in done]
    rows = statements.look(connection, [claim.job_id for claim in left]) if left else {}
    return [claim for claim in left if lost_because(claim, rows.get(claim.job_id)) is None]
