"""`LocalExecutor`: this process becomes the runner of one job, in the foreground."""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, Literal

from sqlalchemy import RowMapping

from jobrunner import identity, statements
from jobrunner.aside import Late, within
from jobrunner.daemon_threads import DaemonThreads
from jobrunner.database import Database, get_database
from jobrunner.errors import (
    DatabaseError,
    DatabaseUnavailable,
    JobNotFound,
    JobrunnerError,
    Released,
    UsageError,
    error_of_end,
)
from jobrunner.executors.signals import heard
from jobrunner.logs import get_logger
from jobrunner.models import BaseJob, MonitorJob, UnknownJob
from jobrunner.models.rows import is_stored
from jobrunner.models.start import Start, Taken, owner_for
from jobrunner.runner import Runner
from jobrunner.statements import Claim, Owner, Sighting, new_owner
from jobrunner.states import JobState
from jobrunner.sweeper import (
    LOOK_S,
    Acting,
    Lookout,
    acting,
    check_servable,
    claim,
    lose_with_its_host,
    why_lost,
)

log = get_logger(__name__)

OnExit = Literal["release", "kill"]
_THREADS = 8
_TAKE_S = 6.0  # for a claim under way, when told to stop
_RELOAD_S = 2.0  # for a last look at the row, when told to stop: the database may not answer
Ended = asyncio.Future[JobState]
"""How a job that a runner owns will have ended."""


class LocalExecutor:
    """Runs one monitor job in this process's event loop, from its claim to its end.

    `on_exit`: what SIGTERM, Ctrl-C or a closed terminal means for the work: `release` leaves it
    running, to be attached to; `kill` kills it and waits until it has ended; a second signal releases
    it at once.
    `on_started` is called with the job's id as soon as it stands in the database; nobody beats for a new job
    before it returns. `see_off` ends what the job's own code has started, where the process is the job's
    alone, and returns what still lives.
    """

    def __init__(
        self,
        *,
        on_exit: OnExit = "release",
        on_started: Callable[[int], None] | None = None,
        see_off: Callable[[], str] | None = None,
    ) -> None:
        self.on_started = on_started
        self.see_off = see_off
        self._on_exit = on_exit

    def run_monitor_job(self, job: MonitorJob) -> None:
        """Store and claim the job, submit it once, and watch it to its end.

        Raises `JobFailed`, `JobKilled` or `JobLost` as it ended, `Released` when told to stop first,
        `ClaimLost` when it was taken, ended or deleted, `UsageError` when it is not there to be run.
        """
        watch = self._watch(job, owner_for(job))
        self._run(watch, watch.claim_now)

    def attach(self, job_id: int) -> None:
        """Be there until the job's end: own it when nobody does, and follow it while its owner lives.

        An orphan is adopted after it has stood still for a whole grace. Raises as `run_monitor_job`,
        and `UsageError` for a job that only another host, or no other process, can serve.
        """
        watch = self._watch(watchable(BaseJob.get(job_id)), new_owner(type(self).__name__))
        self._run(watch, watch.come_to_own)

    def finish_kill(self, job_id: int) -> None:
        """See to the end of a job that carries the kill flag, doing the cancelling where nobody is home.

        An orphan that runs its own code cannot be cancelled, nor taken over: it ends as `lost`, after
        it has stood still for a whole grace. Raises as `attach`.
        """
        from jobrunner.executors.killing import Kills

        (error,) = asyncio.run(Kills(get_database()).run(alone=[job_id])).values()
        if error is not None:
            raise error

    def _watch(self, job: MonitorJob, owner: Owner) -> "Watch":
        started = self.on_started or (lambda _job_id: None)
        return Watch(get_database(), owner, job, self._on_exit, started)

    def _run(self, watch: "Watch", own: "Callable[[], Any]") -> None:
        try:
            state = asyncio.run(watch.run(own))
        finally:
            if is_stored(watch.job):
                with suppress(DatabaseError, JobNotFound, Late):  # it would hide how the watch itself ended
                    within(_RELOAD_S if watch.is_stopped else threading.TIMEOUT_MAX, watch.job.reload)
        error = error_of_end(watch.job.id, state, watch.job.message)
        if error is not None:
            raise error


def watchable(job: BaseJob) -> MonitorJob:
    """Return a job that another process may take over. Raises `UsageError` where it may not."""
    if isinstance(job, UnknownJob) and job.adoptable:
        raise UsageError(
            f"Job {job.id} is of the type {job.job_type!r}, which is not installed here: install what "
            "registers it under `jobrunner.jobs`."
        )
    if not isinstance(job, MonitorJob):
        raise UsageError(
            f"Job {job.id} is a {job.job_type}, which runs its own code and cannot be taken over: "
            f"`jobrunner wait {job.id}` waits for its end."
        )
    return job


class Watch:
    """One job watched to its end, with the signals that may come meanwhile.

    `runner`: one that several of them share, and that somebody else ends.
    """

    def __init__(
        self,
        database: Database,
        owner: Owner,
        job: MonitorJob,
        on_exit: OnExit,
        on_started: Callable[[int], None],
        runner: Runner | None = None,
    ) -> None:
        self.job = job
        self._database = database
        self._owner = owner
        self._on_exit = on_exit
        self._on_started = on_started
        self._signals: list[int] = []
        self._runner = runner
        self._why_stopped: JobrunnerError | None = None
        self._stop = asyncio.Event()
        self._stored = asyncio.Event()

    async def run(self, own: "Callable[[], Awaitable[Ended | JobState]]") -> JobState:
        """Watch to the end. `own` comes to own the job, or returns how it ended."""
        # An event loop, and the interpreter at its exit, would wait for other threads without a bound.
        asyncio.get_running_loop().set_default_executor(DaemonThreads(_THREADS, "jobrunner-io"))
        with heard(self._on_signal):
            return await self.follow(own)

    async def follow(self, own: "Callable[[], Awaitable[Ended | JobState]]") -> JobState:
        """Watch to the end, or until `stop` is called: somebody else hears the signals."""
        async with AsyncExitStack() as self._stack:
            end = await own()
            if isinstance(end, JobState):
                return end
            stop = asyncio.create_task(self._stop.wait())
            await asyncio.wait((end, stop), return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
        if end.done():  # perhaps only while the runner was leaving
            return end.result()
        raise self._released()

    def stop(self, why: JobrunnerError) -> None:
        """Watch no longer, and raise this."""
        self._why_stopped = why
        self._stop.set()

    def _unknown(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            "Told to stop while the database did not answer: whether the job was stored, or claimed, is not "
            f"known. `jobrunner list --key {self.job.key}` shows it, once the database can be reached."
        )

    @property
    def is_stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    def _released(self) -> JobrunnerError:
        if self._why_stopped is not None:
            return self._why_stopped
        number = self._signals[-1]
        return Released(
            f"Stopped by {signal.Signals(number).name}: job {self.job.id} goes on without a monitor.",
            signal=number,
        )

    # --- coming to own ------------------------------------------------------------------------------

    async def claim_now(self) -> Ended:
        """Store the job as ours, or claim it where it is queued."""
        check_servable(self.job)
        await self._make_ready()  # so that nothing is stored where it cannot be watched
        start = Start(self._database, self.job, self._owner, is_wanted=lambda: not self._stop.is_set())
        end = await self._hand_over(start, start.take, self._has_started)
        assert end is not None  # what is not there to be run raises
        return end

    async def come_to_own(self) -> Ended | JobState:
        """Follow the row until it ended, or is ours."""
        self._has_started()
        lookout = Lookout(self.job.id, self._database.settings.grace_multiplier)
        while not self._stop.is_set():
            with lookout.trying():
                looking = asyncio.ensure_future(asyncio.to_thread(self._look, lookout))
                await self._until_stopped(looking)
                found = looking.result() if looking.done() else None
                if isinstance(found, JobState):
                    return found
                if found is not None:
                    end = await self._adopt(*found)
                    if end is not None:
                        return end
                    lookout.restart()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(LOOK_S, self.job.heartrate / 4)):
                    await self._stop.wait()
        raise self._released()

    async def _until_stopped(self, doing: "asyncio.Future[Any]", end_s: float = 0.0) -> None:
        """Wait for something that is done; when told to stop, for so long at most."""
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait((doing, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not doing.done():
            await asyncio.wait((doing,), timeout=end_s)

    def _look(self, lookout: Lookout) -> tuple[RowMapping, Sighting | None] | JobState | None:
        """Return the row of a job that is there to be claimed, or how it ended; None: it is not yet."""
        with self._database.read() as connection:
            row, orphan = lookout.look(connection)
        state = JobState(row["state"])
        if state.is_terminal:
            return state
        if state is JobState.RUNNING and orphan is None:
            return None
        if orphan is not None:
            with acting(self._database) as act:
                if not act.still_good([orphan]):
                    lookout.restart()
                    return None
                if lose_with_its_host(act.connection, row, orphan):
                    return JobState.LOST
                if not row["adoptable"]:  # nor may anybody else take it over
                    is_lost = statements.lose(
                        act.connection, orphan, identity.who(), why_lost(row, is_worker=False)
                    )
                    return JobState.LOST if is_lost else None
        check_servable(self.job, row)
        return row, orphan

    async def _adopt(self, row: RowMapping, orphan: Sighting | None) -> Ended | None:
        """Claim a job as it was seen; None: it does not stand so any more."""
        await self._make_ready()
        start = Start(self._database, self.job, self._owner, is_wanted=lambda: not self._stop.is_set())

        def claim_it(act: Acting) -> Claim | None:
            is_good = orphan is None or act.still_good([orphan])
            return claim(act.connection, row, self._owner, orphan) if is_good else None

        return await self._hand_over(start, lambda: start.adopt(lambda: acting(self._database), claim_it))

    async def _make_ready(self) -> None:
        """Have a runner, and in it a way to the job's backend. Raises what its connection raises."""
        if self._runner is None:
            self._runner = await self._stack.enter_async_context(Runner(self._database, self._owner))
        await self._runner.prepare(self.job)

    async def _hand_over(
        self, start: Start, take: "Callable[[], Taken | None]", on_taken: Callable[[], None] = lambda: None
    ) -> Ended | None:
        """Take the job, and give it to the runner; None: it was not there to be taken."""
        assert self._runner is not None
        taking = asyncio.create_task(asyncio.to_thread(take))
        try:
            await self._until_stopped(taking, _TAKE_S)
            if not taking.done():
                raise self._unknown()  # noqa: TRY301  # below, what was begun is given up
            taken = taking.result()
            if taken is None:
                return None
            await asyncio.to_thread(start.confirm)
            on_taken()
            end = self._runner.take(taken.claim, taken.row, self.job)
            start.hand_over()
        except BaseException as error:
            # A thread cannot be cancelled, and may take it yet; one that hangs is left behind.
            await asyncio.wait([taking], timeout=_TAKE_S)
            if taking.done():
                await asyncio.wait([asyncio.create_task(asyncio.to_thread(start.give_up, error))])
            raise
        return end

    def _has_started(self) -> None:
        self._on_started(self.job.id)
        self._stored.set()

    # --- signals -----------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        self._signals.append(number)
        if self._on_exit == "release" or len(self._signals) > 1:
            self._stop.set()
        else:
            self._killing = asyncio.create_task(self._request_kill(signal.Signals(number).name))

    async def _request_kill(self, name: str) -> None:
        await self._stored.wait()
        try:
            await asyncio.to_thread(self.job.request_kill, reason=f"its monitor was stopped by {name}")
        except (DatabaseError, JobNotFound) as error:
            log.error(
                "the kill flag cannot be set: stop again to release the job", job=self.job.id, error=error
            )
