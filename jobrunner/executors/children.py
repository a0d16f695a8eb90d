"""Child processes for jobs that run their own code: started, heard to the end, and ended where they hang.

A child claims its job itself and beats for it; only after it was seen to be dead is its outcome written
for it, under its own claim.
"""

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping

from jobrunner import statements
from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.executors.base import counted
from jobrunner.executors.child import ENDED, NOT_BEGUN, NOT_OURS, Order
from jobrunner.executors.family import Family
from jobrunner.executors.resting import Resting
from jobrunner.heartbeat import lost_because
from jobrunner.identity import CHILD_VARIABLE
from jobrunner.log_limits import Seldom
from jobrunner.logs import get_logger
from jobrunner.models.endings import EarlyEnd, early_end
from jobrunner.owned import DEADLINE, KILL
from jobrunner.resources import NONE, words_of
from jobrunner.settings import configured
from jobrunner.statements import Cancel, Claim, Sighting, new_runner_id
from jobrunner.states import JobState

log = get_logger(__name__)

OBEY_S = 10.0
"""Seconds for which a child may go on after a kill or its deadline, beyond its next beat."""
TERMINATE_S = 10.0
"""Seconds between SIGTERM and SIGKILL."""
_RECORD_S, _RECORD_AGAIN_S = 10.0, 0.2
LINGER_S = 60.0
"""Seconds for which a child may go on after it has written its job's outcome: threads, `atexit` hooks."""
LINGER_IN_DRAIN_S = 10.0
"""The same, once its worker takes nothing more."""


@dataclass(slots=True, eq=False)
class Child:
    """One child process, and the job that it was started for."""

    job_id: int
    runner_id: str
    process: "subprocess.Popen[bytes]"
    """Not asyncio's: that would kill it where the loop ends first."""
    family: Family
    """The processes that it starts, and itself."""
    ended: asyncio.Future[int]
    over_since_s: float | None = None
    """Since when it should have ended: a kill is wished, or its deadline has passed."""
    why: EarlyEnd | None = None
    """What its job ends as, if it has to be ended by us."""
    done_since_s: float | None = None
    """Since when its job was seen to have ended by its own outcome: only its process goes on."""
    claim: Claim | None = None
    """Its claim, once that was seen."""
    lost_since_s: float | None = None
    """Since when its job was seen to be taken from it, ended or deleted by others; inf: that was said."""
    ending: asyncio.Task[None] | None = None


class Children:
    """Child processes on the running event loop: the code jobs of a worker, or the one of a Dask task.

    `persist` runs a write until the database has taken it. `most`: how many may run at once.
    """

    def __init__(
        self,
        database: Database,
        executor_class: str,
        persist: Callable[..., Awaitable[Any]],
        imports: Iterable[str] = (),
        most: int = 1,
    ) -> None:
        self._database = database
        self._executor_class = executor_class
        self._persist = persist
        self._imports = tuple(imports)
        self._most = most
        self._linger_s: float | None = None
        self.by_job: dict[int, Child] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._resting: Resting[int] = Resting()
        self._seldom = Seldom()

    @property
    def held(self) -> AbstractSet[int]:
        """The jobs whose processes are ours: all of them."""
        return self.by_job.keys()

    @property
    def free(self) -> int:
        """How many more may be started now."""
        return max(0, self._most - len(self.by_job))

    @property
    def is_ready(self) -> bool:
        """Whether any can be started here: always."""
        return True

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self.by_job

    def why_not(self, resources: Mapping[str, float]) -> str | None:
        """Return why a job that asks for these resources is not run here; None: it is."""
        return f"it asks for {words_of(resources)}, which only a Dask cluster gives" if resources else None

    def has_room_for(self, resources: Mapping[str, float]) -> bool:
        """Whether one more job that asks for these can be started now."""
        return self.free > 0 and not resources

    def message(self, jobs: int) -> str:
        """Return what the worker that watches so many jobs says of itself."""
        running = counted(len(self.by_job), "process", "processes")
        return f"watching {counted(jobs, 'job')}, running {running}"

    def detail(self) -> dict[str, Any]:
        """Return what the worker's row tells besides."""
        return {}

    async def start(
        self,
        job_id: int,
        orphan: Sighting | None = None,
        resources: Mapping[str, float] = NONE,  # noqa: ARG002  # a child has what its worker has
    ) -> None:
        """Start a child for a queued job, or for an orphan. Raises OSError where there can be none."""
        runner_id = new_runner_id()
        seen = None
        if orphan is not None:
            seen = (orphan.runner_id, orphan.claims, orphan.latest_heartbeat.isoformat())
        order = Order(job_id, runner_id, self._executor_class, configured(), self._imports, seen)
        process, family = await asyncio.to_thread(_begun, order)
        loop = asyncio.get_running_loop()
        child = self.by_job[job_id] = Child(job_id, runner_id, process, family, loop.create_future())
        threading.Thread(target=_wait_for, args=(child, loop), name="jobrunner-child", daemon=True).start()
        self._spawn(self._see_to(child))

    async def look(self) -> None:
        """See that children whose jobs shall end do so, and those whose jobs have. Raises `DatabaseError`."""
        for child in self.by_job.values():
            self._bound_lingering(child)
        asked = [child for child in self.by_job.values() if child.done_since_s is None]
        if not asked:
            return
        rows = await asyncio.to_thread(self._rows, [child.job_id for child in asked])
        for child in asked:
            row, why = rows.get(child.job_id, (None, None))
            if row is not None and row["runner_id"] == child.runner_id:
                child.claim = Claim(child.job_id, child.runner_id, row["claims"])
                self._look_at(child, row, why)
            self._name_lost(child, row)

    def _look_at(self, child: Child, row: RowMapping, why: EarlyEnd | None) -> None:
        # A kill reaches it whatever its row says, except that it has succeeded.
        if row["state"] is not JobState.RUNNING and (why is None or row["state"] is JobState.SUCCESS):
            if row["state"] is not JobState.LOST:  # that was written by others, and its code may still run
                child.done_since_s = monotonic_s()
        elif why is None:
            child.over_since_s = None
        elif child.over_since_s is None:
            child.over_since_s = monotonic_s()
        elif child.ending is None and monotonic_s() > child.over_since_s + row["heartrate"] + OBEY_S:
            child.why = why
            log.warning("a child does not end by itself: it is being ended", job=child.job_id)
            child.ending = self._spawn(self._end(child))

    def _name_lost(self, child: Child, row: RowMapping | None) -> None:
        """Say of code that goes on without its job where it is: only a person may know whether to end it."""
        is_lost = row is None or row["runner_id"] != child.runner_id or row["state"] is JobState.LOST
        if child.claim is None or not is_lost or child.over_since_s is not None:
            child.lost_since_s = None
        elif child.lost_since_s is None:
            child.lost_since_s = monotonic_s()
        elif monotonic_s() > child.lost_since_s + LINGER_S:
            child.lost_since_s = math.inf
            log.warning(
                "a process goes on without its job, and keeps its place: if it hangs, end it by its pid",
                job=child.job_id,
                pid=child.process.pid,
                why=lost_because(child.claim, row),
            )

    def _bound_lingering(self, child: Child) -> None:
        """End a process whose job has ended, and which goes on for too long: it keeps a place from others."""
        if child.done_since_s is None or child.ending is not None:
            return
        linger_s = LINGER_S if self._linger_s is None else self._linger_s
        if monotonic_s() > child.done_since_s + linger_s:
            log.warning(
                "a job has ended, and its process has not: it is being ended, and the outcome stands",
                job=child.job_id,
                pid=child.process.pid,
                after_s=linger_s,
            )
            child.ending = self._spawn(self._end(child))

    def _rows(self, ids: list[int]) -> dict[int, tuple[RowMapping, EarlyEnd | None]]:
        """Return the rows by their ids, and how their jobs have to end if that is before their code does."""
        with self._database.read() as connection:
            now = statements.now(connection)
            return {row["id"]: (row, early_end(row, now)) for row in statements.get_many(connection, ids)}

    async def wait(self, timeout_s: float) -> bool:
        """Start nothing more, and wait until all children have ended; False: some go on."""
        self._linger_s = min(LINGER_S, LINGER_IN_DRAIN_S)
        return await self.until_idle(timeout_s)

    async def until_idle(self, timeout_s: float) -> bool:
        """Wait until all children have ended; False: some go on."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        return not self.by_job

    def leave(self) -> None:
        """Leave the children that still run to themselves: each beats for its own job, and ends it."""
        for task in self._tasks:
            task.cancel()

    # --- one child ---------------------------------------------------------------------------------

    async def _see_to(self, child: Child) -> None:
        code = await child.ended
        try:
            if code != NOT_OURS and not await self._conclude(child, code):
                self._rest(child.job_id, code)
        finally:
            self.by_job.pop(child.job_id, None)

    def is_resting(self, job_id: int) -> bool:
        """Whether the last child for a job failed before it claimed it, and not long ago."""
        return self._resting.is_resting(job_id)

    def resting(self) -> list[int]:
        """Return those whose last child failed before it claimed them, and not long ago."""
        return self._resting.resting()

    def failed(self) -> list[int]:
        """Return those whose last child failed before it claimed them."""
        return self._resting.failed()

    def _rest(self, job_id: int, code: int) -> None:
        rest_s = self._resting.rest(job_id)
        why = _words_of(code)
        known = {"job": job_id, "again_in_s": rest_s, "why": why}
        self._seldom.warning(log, "a child could not claim its job", about=job_id, **known)

    async def _conclude(self, child: Child, code: int) -> bool:
        """Write the end of a job whose process is proven dead, if that did not write it itself.

        False: it never had the job.
        """
        row = await self._persist(statements.get_or_none, child.job_id)
        if row is None or row["runner_id"] != child.runner_id:
            return row is None or code == ENDED
        claim = Claim(child.job_id, child.runner_id, row["claims"])
        if code == NOT_BEGUN:
            await self._persist(
                statements.release, claim, "released: the database went away as it was claimed"
            )
            return False
        self._resting.forget(child.job_id)
        if row["state"] is not JobState.RUNNING:
            return True
        if child.ending is not None:  # what it started may outlive it
            await child.ending
        end = child.why or early_end(row, await self._persist(statements.now))
        end = end or EarlyEnd(JobState.FAILED, _words_of(code))
        if child.ending is not None and (left := await asyncio.to_thread(child.family.left)):
            end = EarlyEnd(end.state, f"{end.message}; left behind: {left}")
        if await self._persist(statements.end, claim, end.state, end.message):
            log.warning(
                "a child ended without a word", job=child.job_id, state=end.state, why=_words_of(code)
            )
        return True

    async def _end(self, child: Child) -> None:
        if child.why is not None and child.claim is not None:
            await self._record(child.claim, KILL if child.why.state is JobState.KILLED else DEADLINE)
        await asyncio.to_thread(child.family.signal, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(TERMINATE_S):
                await asyncio.shield(child.ended)
        await asyncio.to_thread(child.family.kill)

    async def _record(self, claim: Claim, cause: str) -> None:
        """Record why a child is being ended: what its code makes of SIGTERM is no outcome then."""
        cancel = Cancel(claim.job_id, claim.claims, None, None, cause)
        try:
            async with asyncio.timeout(_RECORD_S):
                while not await self._persist(statements.begin_cancel_many, claim.runner_id, [cancel]):
                    row = await self._persist(statements.get_or_none, claim.job_id)
                    if lost_because(claim, row) is not None:
                        return
                    await asyncio.sleep(_RECORD_AGAIN_S)  # somebody holds the row locked
        except TimeoutError:
            log.warning("a child is being ended, and its row does not say so", job=claim.job_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a child could not be seen to", error=task.exception(), exc_info=task.exception())


def _words_of(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process was ended by signal {-code}"
    return f"its process ended with code {code} and wrote no outcome"


def _begun(order: Order) -> tuple["subprocess.Popen[bytes]", Family]:
    process = subprocess.Popen(
        [sys.executable, "-m", "jobrunner.executors.child"],
        stdin=subprocess.PIPE,
        env={**os.environ, CHILD_VARIABLE: order.runner_id},
        start_new_session=True,  # Ctrl-C at the worker's terminal is not meant for it
    )
    assert process.stdin is not None
    try:
        family = Family.of(process.pid, order.runner_id)
    except OSError:  # nobody could end it: it gets no order
        process.kill()
        process.communicate()
        raise
    with suppress(BrokenPipeError), process.stdin:  # it died at once: its end says so
        process.stdin.write(order.to_line())
    return process, family


def _wait_for(child: Child, loop: asyncio.AbstractEventLoop) -> None:
    code = child.process.wait()
    with suppress(RuntimeError):  # the loop has ended: the child was left to itself
        loop.call_soon_threadsafe(_tell_of_end, child, code)


def _tell_of_end(child: Child, code: int) -> None:
    if not child.ended.done():
        child.ended.set_result(code)
