"""`LocalExecutor`: this process becomes the runner of one job, in the foreground."""

import asyncio
import signal
import threading
from collections.abc import Callable
from typing import Any, Literal

from sqlalchemy import RowMapping

from jobrunner import identity, statements
from jobrunner.database import Database, get_database
from jobrunner.errors import ENDED_BADLY, DatabaseError, Released, UsageError
from jobrunner.logs import get_logger
from jobrunner.models import MonitorJob
from jobrunner.models.base_job import object_of
from jobrunner.models.rows import is_stored, refresh, store
from jobrunner.runner import Runner
from jobrunner.statements import Claim, Owner, new_owner
from jobrunner.states import JobState
from jobrunner.sweeper import StandStill, claim

log = get_logger(__name__)

_LOOK_S = 0.5


class LocalExecutor:
    """Runs one monitor job in this process's event loop, from its claim to its end.

    `on_exit`: what SIGTERM or Ctrl-C means for the work: `release` leaves it running, to be attached
    to; `kill` kills it and waits until it has ended; a second signal releases it at once.
    `on_started` is called with the job's id as soon as it stands in the database.
    """

    def __init__(
        self,
        *,
        on_exit: Literal["release", "kill"] = "release",
        on_started: Callable[[int], None] | None = None,
    ) -> None:
        self.on_started = on_started
        self._on_exit = on_exit

    def run_monitor_job(self, job: MonitorJob) -> None:
        """Store and claim the job, submit it once, and watch it to its end.

        Raises `JobFailed`, `JobKilled` or `JobLost` as it ended, `Released` when told to stop first,
        `ClaimLost` when it was taken, ended or deleted, `UsageError` when it is not there to be run.
        """
        database, owner = get_database(), new_owner(job.executor_class or type(self).__name__)
        with database.write() as connection:
            if is_stored(job):
                claimed = statements.claim_queued(connection, job.id, owner)
                row = statements.get(connection, job.id)
            else:
                row = store(connection, job, owner)
                claimed = Claim(row["id"], owner.runner_id, row["claims"])
        refresh(job, row)
        if claimed is None:
            raise UsageError(f"Job {job.id} is {job.state}, not queued: only a queued job can be run.")
        self._started(job.id)
        self._run(_Watch(database, owner, job, self._on_exit, (claimed, row)))

    def attach(self, job_id: int) -> None:
        """Be there until the job's end: own it when nobody does, and follow it while its owner lives.

        An orphan is adopted after it has stood still for a whole grace. Raises as `run_monitor_job`,
        and `UsageError` for a job that only another host, or no other process, can serve.
        """
        database = get_database()
        with database.read() as connection:
            row = statements.get(connection, job_id)
        job = object_of(row)
        if not isinstance(job, MonitorJob):
            raise UsageError(
                f"Job {job_id} is a {row['job_type']}, which runs its own code: it cannot be attached to."
            )
        self._started(job_id)
        owner = new_owner(type(self).__name__)
        self._run(_Watch(database, owner, job, self._on_exit, None))

    def finish_kill(self, job_id: int) -> None:
        """See to the end of a job that carries the kill flag, doing the cancelling where nobody is home."""
        self.attach(job_id)

    def _started(self, job_id: int) -> None:
        if self.on_started is not None:
            self.on_started(job_id)

    def _run(self, watch: "_Watch") -> None:
        try:
            state = asyncio.run(watch.run())
        finally:
            watch.job.reload()
        error = ENDED_BADLY.get(state)
        if error is not None:
            raise error(f"Job {watch.job.id} was {state}: {watch.job.message}", job_id=watch.job.id)


class _Watch:
    """One job watched to its end, with the signals that may come meanwhile."""

    def __init__(
        self,
        database: Database,
        owner: Owner,
        job: MonitorJob,
        on_exit: Literal["release", "kill"],
        claimed: tuple[Claim, RowMapping] | None,
    ) -> None:
        self.job = job
        self._database = database
        self._owner = owner
        self._on_exit = on_exit
        self._claimed = claimed
        self._signals: list[int] = []
        self._stop = asyncio.Event()

    async def run(self) -> JobState:
        self._loop = asyncio.get_running_loop()
        restore = self._handle_signals()
        try:
            claimed = self._claimed or await self._come_to_own()
            if isinstance(claimed, JobState):
                return claimed
            async with Runner(self._database, self._owner) as runner:
                end = runner.take(*claimed, self.job)
                stop = asyncio.create_task(self._stop.wait())
                both: list[asyncio.Future[Any]] = [end, stop]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                stop.cancel()
                if end.done():
                    return end.result()
            raise self._released()
        finally:
            restore()

    def _released(self) -> Released:
        number = self._signals[-1]
        return Released(
            f"Stopped by {signal.Signals(number).name}: job {self.job.id} goes on without a monitor.",
            signal=number,
        )

    # --- waiting to own ----------------------------------------------------------------------------

    async def _come_to_own(self) -> tuple[Claim, RowMapping] | JobState:
        """Follow the row until it ended, or is ours."""
        count = StandStill(self._database.settings.grace_multiplier)
        while not self._stop.is_set():
            try:
                found = await asyncio.to_thread(self._look, count)
            except DatabaseError as error:
                count.restart()
                log.warning("the job cannot be looked at", job=self.job.id, error=error)
            else:
                if found is not None:
                    return found
            await self._pause(min(_LOOK_S, self.job.heartrate / 4))
        raise self._released()

    def _look(self, count: StandStill) -> tuple[Claim, RowMapping] | JobState | None:
        with self._database.write() as connection:
            row = statements.get(connection, self.job.id)
            state = row["state"]
            if state.is_terminal:
                return JobState(state)
            orphan = count.look(row) if state is JobState.RUNNING else None
            if state is JobState.RUNNING and orphan is None:
                return None
            if not identity.can_serve(row["host_id"]):
                raise UsageError(
                    f"Job {self.job.id} runs on {row['hostname']}, and only there can its process be seen: "
                    f"run `jobrunner attach {self.job.id}` on that host."
                )
            claimed = claim(connection, row, self._owner, orphan)
            return None if claimed is None else (claimed, statements.get(connection, self.job.id))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    # --- signals -----------------------------------------------------------------------------------

    def _handle_signals(self) -> Callable[[], None]:
        if threading.current_thread() is not threading.main_thread():
            return lambda: None  # signals are the main thread's: whoever it is handles them
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            self._loop.add_signal_handler(number, self._on_signal, number)

        def restore() -> None:
            for number, handler in before.items():
                self._loop.remove_signal_handler(number)
                signal.signal(number, handler)

        return restore

    def _on_signal(self, number: int) -> None:
        self._signals.append(number)
        if self._on_exit == "release" or len(self._signals) > 1:
            self._stop.set()
        else:
            self._killing = asyncio.create_task(self._request_kill(signal.Signals(number).name))

    async def _request_kill(self, name: str) -> None:
        try:
            await asyncio.to_thread(self.job.request_kill, reason=f"its monitor was stopped by {name}")
        except DatabaseError as error:
            log.error(
                "the kill flag cannot be set: stop again to release the job", job=self.job.id, error=error
            )
