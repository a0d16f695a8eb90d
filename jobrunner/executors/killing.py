"""Seeing to the end of killed jobs, side by side: one whose outside does not answer holds up no other."""

import asyncio
import signal
from collections.abc import Callable, Collection
from contextlib import suppress

from jobrunner.database import Database
from jobrunner.errors import (
    DatabaseError,
    JobNotFound,
    JobrunnerError,
    Released,
    UsageError,
    WaitTimeout,
    error_of_end,
)
from jobrunner.executors.local import LocalExecutor, Watch, watchable
from jobrunner.executors.signals import heard
from jobrunner.models import BaseJob
from jobrunner.runner import Runner
from jobrunner.statements import new_owner
from jobrunner.states import JobState
from jobrunner.sweeper import SeeingOff


class Kills:
    """Sees to the end of jobs that carry the kill flag, and cancels the work of those that nobody watches.

    `within_s`: how long; None: until they have ended. `on_over` is called, in a thread, as soon as a job is
    over: with its id and what its end, or what kept it from ending, raises.
    """

    def __init__(
        self,
        database: Database,
        within_s: float | None = None,
        on_over: Callable[[int, JobrunnerError | None], None] = lambda _job_id, _error: None,
    ) -> None:
        self._database = database
        self._within_s = within_s
        self._on_over = on_over
        self._watches: list[Watch] = []
        self._why_stopped: JobrunnerError | None = None

    async def run(
        self, alone: Collection[int] = (), attended: Collection[int] = ()
    ) -> dict[int, JobrunnerError | None]:
        """Return what each job raises: `JobKilled` and its like as it ended, None where it succeeded.

        `alone`: those that nobody watches now; `attended`: those that are waited for, and seen to where that
        changes. `WaitTimeout`: the time was over; `Released`: a signal came; `UsageError` and others: it
        cannot be cancelled from here.
        """
        self._stop = asyncio.Event()
        owner = new_owner(LocalExecutor.__name__)
        with heard(self._on_signal):
            async with Runner(self._database, owner) as runner:
                if self._within_s is not None:
                    asyncio.get_running_loop().call_later(self._within_s, self._on_time_over)
                ids = [*alone, *attended]
                errors = await asyncio.gather(
                    *(self._finish(job_id, runner, is_alone=job_id in alone) for job_id in ids)
                )
        return dict(zip(ids, errors, strict=True))

    async def _finish(self, job_id: int, runner: Runner, *, is_alone: bool) -> JobrunnerError | None:
        error: JobrunnerError | None
        try:
            job = await asyncio.to_thread(BaseJob.get, job_id)
            state = await self._end_of(job, runner, is_alone=is_alone)
            with suppress(DatabaseError, JobNotFound):  # the state alone is known then
                await asyncio.to_thread(job.reload)
            error = error_of_end(job_id, state, job.message)
        except JobrunnerError as trouble:
            error = trouble
        await asyncio.to_thread(self._on_over, job_id, error)
        return error

    async def _end_of(self, job: BaseJob, runner: Runner, *, is_alone: bool) -> JobState:
        if not job.adoptable:
            return await self._seen_off(job.id, None)
        try:
            watched = watchable(job)
        except UsageError as refusal:
            if is_alone:
                raise
            return await self._seen_off(job.id, refusal)
        watch = Watch(
            self._database, runner.owner, watched, "release", on_started=lambda _job_id: None, runner=runner
        )
        self._watches.append(watch)
        if self._why_stopped is not None:
            raise self._why_stopped
        return await watch.follow(watch.come_to_own)

    async def _seen_off(self, job_id: int, refusal: JobrunnerError | None) -> JobState:
        seeing = SeeingOff(self._database, job_id, refusal)
        while (state := await asyncio.to_thread(seeing.look)) is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seeing.pause_s):
                    await self._stop.wait()
            if self._why_stopped is not None:
                raise self._why_stopped
        return state

    def _on_time_over(self) -> None:
        self._end_all(WaitTimeout(f"It has not ended within {self._within_s:g} s."))

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        self._end_all(Released(f"Stopped by {name}: the jobs stay marked to be killed.", signal=number))

    def _end_all(self, why: JobrunnerError) -> None:
        if self._why_stopped is None:
            self._why_stopped = why
            self._stop.set()
            for watch in self._watches:
                watch.stop(why)
