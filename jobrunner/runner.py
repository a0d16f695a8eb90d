"""The event loop that owns jobs: it beats for them, watches them, cancels them and ends them."""

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sqlalchemy import RowMapping

from jobrunner import statements
from jobrunner.backends.base import Gone, Observation, RemoteError
from jobrunner.beats import Beats
from jobrunner.channel import Channel
from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.errors import ClaimLost, DatabaseError
from jobrunner.logs import get_logger
from jobrunner.models.own_run import call_back, call_on_kill, has_callback
from jobrunner.owned import DEADLINE, KILL, OwnedJob, Verdict, is_lost, unreadable, verdict_of
from jobrunner.poller import Answer
from jobrunner.retry import Retry
from jobrunner.statements import Claim, Owner
from jobrunner.states import JobState, Phase
from jobrunner.submission import submit

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob

log = get_logger(__name__)

_T = TypeVar("_T")

_DATABASE_THREADS = 4
_CANCEL_FIRST_S = 0.5  # before the first asking is repeated
_FENCE_LOOK_S = 0.1
_NAP_MOST_S = 2.0  # asyncio's timers stand still while a laptop sleeps; deadlines do not
_ERRORS_BEFORE_SHOWN = 2  # one failed look is not worth a word in the row
_RELEASE_S = 10.0  # how long a runner that is told to stop tries to say so in the database


class Runner:
    """Owns any number of monitor jobs, from their claim to their terminal state.

    `async with Runner(database, owner) as runner:` beats for what is given to `take`, and releases
    on leaving what has not ended: only a recorded wish cancels.
    """

    def __init__(self, database: Database, owner: Owner) -> None:
        self.database = database
        self.owner = owner
        self._jobs: dict[int, OwnedJob] = {}
        self._ends: dict[int, asyncio.Future[JobState]] = {}
        self._channels: dict[tuple[type, str], Channel] = {}
        self._tasks: dict[asyncio.Task[None], OwnedJob | None] = {}
        self._steps: set[asyncio.Task[None]] = set()
        self._deadlines: list[tuple[float, int]] = []
        self._deadline_set = asyncio.Event()
        self._threads = ThreadPoolExecutor(_DATABASE_THREADS, thread_name_prefix="jobrunner-database")
        self.is_stopping = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self.beats = Beats(
            self.database,
            self.owner.runner_id,
            on_flagged=lambda ids: self._from_thread(self._on_flagged, ids),
            on_lost=lambda owned, why: self._from_thread(self._drop, owned, why),
            on_beaten=lambda jobs: self._from_thread(self._on_beaten, jobs),
        )
        self.beats.start()
        self._spawn(self._keep_deadlines())
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.is_stopping = True
        if self._steps:  # a submission under way, an outcome being written: better ended than cut off
            await asyncio.wait(self._steps, timeout=_RELEASE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._release_all()
        for channel in self._channels.values():
            await channel.close()
        await asyncio.to_thread(self.beats.stop)
        self._threads.shutdown()

    # --- taking and giving back ------------------------------------------------------------------

    def take(self, claim: Claim, row: RowMapping, job: "MonitorJob") -> asyncio.Future[JobState]:
        """Own a job that this runner has claimed; the future tells how it ended.

        Its `ClaimLost` says that the job was taken, ended or deleted: then nothing is done for it.
        """
        owned = OwnedJob(
            claim=claim,
            channel=self._channel(type(job), row["connection"]),
            heartrate=row["heartrate"],
            poll_interval=row["poll_interval"] or job.default_poll_interval,
            token=row["submit_token"],
            external_id=row["external_id"],
            job=job,
            cancel_cause=row["cancel_cause"],
        )
        self._jobs[owned.job_id] = owned
        future = self._ends[owned.job_id] = self._loop.create_future()
        if row["deadline_at"] is not None:
            # Both by the database's clock: the claim was stored as the latest heartbeat.
            left_s = (row["deadline_at"] - row["latest_heartbeat"]).total_seconds()
            owned.deadline_s = monotonic_s() + left_s
            heapq.heappush(self._deadlines, (owned.deadline_s, owned.job_id))
            self._deadline_set.set()
        self.beats.add(owned)
        self._spawn(self._begin(owned, row), owned, is_step=True)
        return future

    def _channel(self, job_class: "type[MonitorJob]", connection: str | None) -> Channel:
        name, behind = self.database.settings.connection(connection, job_class.backend_kind)
        key = (job_class, name)
        if key not in self._channels:
            backend = job_class.make_backend(behind)
            self._channels[key] = Channel(name, backend, self._on_answer, self._on_health)
        return self._channels[key]

    async def _release_all(self) -> None:
        give_up_s = monotonic_s() + _RELEASE_S
        reason = "released: its runner was stopped"
        for owned in list(self._jobs.values()):
            self._forget(owned)
            retry = Retry(most_s=1.0)
            while True:
                try:
                    await self.call(statements.release, owned.claim, reason)
                    break
                except DatabaseError as error:
                    if monotonic_s() > give_up_s:
                        log.warning("not released: others will find it silent", job=owned.job_id, error=error)
                        break
                await retry.pause()

    def _forget(self, owned: OwnedJob) -> None:
        owned.over = True
        self._jobs.pop(owned.job_id, None)
        owned.channel.poller.forget(owned.job_id)
        self.beats.remove(owned)

    def _drop(self, owned: OwnedJob, why: str) -> None:
        """Do nothing any more for a job that is no longer ours, neither in the database nor outside."""
        if not owned.over:
            self._forget(owned)
            log.warning("claim lost", job=owned.job_id, why=why)
            self._settle(owned, ClaimLost(why))

    def _settle(self, owned: OwnedJob, outcome: JobState | BaseException) -> None:
        future = self._ends.pop(owned.job_id, None)
        if future is None or future.done():
            return
        if isinstance(outcome, JobState):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)

    # --- from submission to watching -------------------------------------------------------------

    async def _begin(self, owned: OwnedJob, row: RowMapping) -> None:
        if row["kill_requested_at"] is not None:
            owned.kill_seen = True
        if owned.external_id is None:
            verdict = await submit(self, owned, row)
            if owned.over:
                return
            if verdict is not None:
                if verdict.state is JobState.KILLED:
                    await self._call_on_kill(owned)
                await self._end(owned, verdict)
                return
            if owned.external_id is None:
                return  # told to stop first: released, and submitted or found by the next owner
        owned.channel.poller.watch(owned.job_id, owned.external_id, owned.poll_interval)
        owned.progress_by_s = float("inf")  # from here on the poller's own promise counts
        if owned.cancel_cause is not None:
            self._spawn(self._cancel(owned, owned.cancel_cause), owned)
        elif owned.kill_seen:
            self._spawn(self._kill(owned), owned)
        elif monotonic_s() >= owned.deadline_s:
            self._spawn(self._cancel(owned, DEADLINE), owned)

    # --- answers of the backend ------------------------------------------------------------------

    def _on_answer(self, job_id: int, external_id: str, answer: Answer) -> None:
        owned = self._jobs.get(job_id)
        if owned is None or owned.concluding or owned.external_id != external_id:
            return
        if isinstance(answer, Observation):
            owned.seen, owned.gone_since_s, owned.errors, owned.unreadable_since = True, None, 0, None
            if answer.phase.is_final:
                owned.concluding = True
                self._spawn(self._conclude(owned, answer), owned, is_step=True)
            else:
                self._write_soon(owned, answer)
        elif isinstance(answer, Gone):
            verdict = is_lost(owned, answer, owned.channel.patience, monotonic_s())
            if verdict is not None:
                owned.concluding = True
                self._spawn(self._end(owned, verdict), owned, is_step=True)
        else:
            self._on_unreadable(owned, answer)

    def _on_unreadable(self, owned: OwnedJob, answer: RemoteError) -> None:
        owned.errors += 1
        if owned.errors >= _ERRORS_BEFORE_SHOWN:
            self._show_unreadable(owned, answer.message)

    def _on_health(self, channel: Channel, good: bool, message: str) -> None:
        if not good:
            for owned in [each for each in self._jobs.values() if each.channel is channel]:
                if owned.external_id is not None:
                    self._show_unreadable(owned, message)

    def _show_unreadable(self, owned: OwnedJob, message: str) -> None:
        if owned.unreadable_since is None:
            owned.unreadable_since, words = unreadable(None, message)
            state, _, detail = owned.written or (None, None, None)
            self._write_soon(
                owned,
                Observation(
                    phase=Phase.WAITING, external_state=state or "", message=words, detail=detail or {}
                ),
            )

    def _write_soon(self, owned: OwnedJob, observation: Observation) -> None:
        said = (observation.external_state, observation.message, dict(observation.detail))
        if said == owned.written and owned.pending is None:
            return
        owned.pending = observation
        if not owned.writing:
            owned.writing = True
            self._spawn(self._write(owned), owned)

    async def _write(self, owned: OwnedJob) -> None:
        try:
            while (latest := owned.pending) is not None and not owned.over and not owned.concluding:
                owned.pending = None
                said = (latest.external_state, latest.message, dict(latest.detail))
                await self._record(owned, *said)
                owned.written = said
        finally:
            owned.writing = False

    async def _record(
        self, owned: OwnedJob, external_state: str, message: str, detail: dict[str, Any]
    ) -> bool:
        return await self.persist(
            statements.observe,
            owned.claim,
            owned.external_id,
            external_state=external_state or None,
            message=message or external_state or None,
            detail=detail or None,
        )

    # --- the end ---------------------------------------------------------------------------------

    async def _conclude(self, owned: OwnedJob, last: Observation) -> None:
        owned.channel.poller.forget(owned.job_id)
        await self._record(owned, last.external_state, last.message, dict(last.detail))
        row = await self.persist(statements.get_or_none, owned.job_id)
        if row is None:
            self._drop(owned, f"Job {owned.job_id} was deleted.")
            return
        await self._end(owned, verdict_of(last, row["cancel_cause"], row))

    async def _end(self, owned: OwnedJob, verdict: Verdict) -> None:
        if owned.over:
            return
        self._forget(owned)  # no beat comes after the terminal write
        written = await self.persist(
            statements.end, owned.claim, verdict.state, verdict.message, external_id=owned.external_id
        )
        if written:
            self._settle(owned, verdict.state)
        else:
            why = (
                f"Job {owned.job_id} was taken, ended or deleted by others: {verdict.state} was not written."
            )
            log.warning("claim lost", job=owned.job_id, why=why)
            self._settle(owned, ClaimLost(why))

    # --- kill and deadline -----------------------------------------------------------------------

    def _on_flagged(self, ids: list[int]) -> None:
        for job_id in ids:
            owned = self._jobs.get(job_id)
            if owned is not None and not owned.kill_seen:
                owned.kill_seen = True
                if owned.external_id is not None:  # while it is submitted, the submission looks itself
                    self._spawn(self._kill(owned), owned)

    async def _kill(self, owned: OwnedJob) -> None:
        await self._call_on_kill(owned)
        await self._cancel(owned, KILL)

    async def _call_on_kill(self, owned: OwnedJob) -> None:
        await self._loop.run_in_executor(self._threads, call_on_kill, owned.job)

    async def _cancel(self, owned: OwnedJob, cause: str) -> None:
        """Ask for the end, and again with back-off, until the poller has seen it."""
        row = await self.persist(statements.begin_cancel, owned.claim, cause)
        if row is None:
            return  # no longer ours: the next beat says so
        owned.cancel_cause = row["cancel_cause"]
        reason = row["kill_reason"] or f"{owned.cancel_cause} by jobrunner"
        retry = Retry(first_s=_CANCEL_FIRST_S, most_s=max(2.0, min(30.0, owned.poll_interval)))
        while not (owned.over or owned.concluding):
            if self.beats.is_fenced(owned):
                await asyncio.sleep(_FENCE_LOOK_S)  # a good beat, or its loss, will tell whose it is
                continue
            await owned.channel.cancel(owned.external_id or "", reason)
            owned.channel.poller.hurry(owned.job_id)
            await retry.pause()
            owned.channel.poller.hurry(owned.job_id)

    async def _keep_deadlines(self) -> None:
        while True:
            left_s = self._deadlines[0][0] - monotonic_s() if self._deadlines else float("inf")
            if left_s > 0:
                self._deadline_set.clear()
                try:
                    async with asyncio.timeout(None if left_s == float("inf") else min(left_s, _NAP_MOST_S)):
                        await self._deadline_set.wait()
                except TimeoutError:
                    pass
                continue
            _, job_id = heapq.heappop(self._deadlines)
            owned = self._jobs.get(job_id)
            if owned is not None and owned.external_id is not None and owned.cancel_cause is None:
                self._spawn(self._cancel(owned, DEADLINE), owned)

    # --- helpers ---------------------------------------------------------------------------------

    def _on_beaten(self, jobs: list[OwnedJob]) -> None:
        for owned in jobs:
            if not owned.over and has_callback(owned.job):
                self._loop.run_in_executor(self._threads, call_back, owned.job, self.database)

    async def call(self, write: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Run one statement in a thread. Raises `DatabaseError`."""

        def _write() -> _T:
            with self.database.write() as connection:
                return write(connection, *args, **kwargs)

        return await self._loop.run_in_executor(self._threads, _write)

    async def persist(self, write: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Run one statement in a thread, again and again until the database has taken it.

        Every statement here is fenced, so that one which comes late, or twice, changes nothing.
        """
        retry = Retry(most_s=self.database.settings.heartrate)
        while True:
            try:
                return await self.call(write, *args, **kwargs)
            except DatabaseError as error:
                if retry.count == 0:
                    log.warning("the database does not take it yet", what=write.__name__, error=error)
            await retry.pause()

    def _spawn(
        self, coroutine: Coroutine[Any, Any, None], owned: OwnedJob | None = None, *, is_step: bool = False
    ) -> None:
        if self.is_stopping and not is_step:
            coroutine.close()
            return
        task = self._loop.create_task(coroutine)
        self._tasks[task] = owned
        if is_step:
            self._steps.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        owned = self._tasks.pop(task)
        self._steps.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        log.error("a step went wrong", job=owned and owned.job_id, error=error, exc_info=error)
        if owned is not None:
            # Not beaten for any more, it is found silent, and tried again by another runner.
            self._forget(owned)
            self._settle(owned, error)

    def _from_thread(self, do: Callable[..., None], *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(do, *args)
