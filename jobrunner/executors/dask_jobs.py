"""The code jobs of a worker on a Dask cluster, each a task there, and the workers on its machines."""

import asyncio
import math
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import RowMapping

from jobrunner import statements, worklist
from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.errors import DatabaseError
from jobrunner.executors.base import counted
from jobrunner.executors.dask_cluster import Cluster, Gone, Seat
from jobrunner.executors.dask_tasks import CodeOrder, Sender, ServeOrder, run_one, serve
from jobrunner.executors.resting import Resting
from jobrunner.log_limits import Seldom, Trouble
from jobrunner.logs import get_logger
from jobrunner.resources import NONE, words_of
from jobrunner.retry import Retry
from jobrunner.statements import Sighting
from jobrunner.states import JobState

log = get_logger(__name__)

_T = TypeVar("_T")

_STEP_S = 0.2
_REFRESH_S = 2.0  # so often the scheduler is asked who is there
_OVER = frozenset({"finished", "error", "cancelled", "lost"})


@dataclass(slots=True, eq=False)
class Task:
    """A job that was handed to Dask, and what it asks for."""

    future: Any
    orphan: Sighting | None = None
    resources: Mapping[str, float] = field(default_factory=dict)


class DaskJobs:
    """Hands jobs with code to a cluster, and keeps a worker for monitor jobs on each of its machines.

    Nothing here decides whose a job is: what was handed to Dask claims its job in the database, and what
    Dask forgets is found there again. `spec`: the worker's own.
    """

    def __init__(self, cluster: Cluster, database: Database, sender: Sender, spec: Mapping[str, Any]) -> None:
        self._cluster = cluster
        self._database = database
        self._sender = sender
        self._spec = spec
        self._seats: dict[str, Seat] = {}
        self._serving: dict[str, Any] = {}
        self._resting_jobs: Resting[int] = Resting()
        self._resting_seats: Resting[str] = Resting()
        self._retry = Retry(first_s=0.5, most_s=10.0)
        self._trouble: str | None = None
        self._scheduler = Trouble()
        self._seldom = Seldom()
        self._is_stopping = False
        self._refresh_at_s = 0.0
        self.by_job: dict[int, Task] = {}
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    # --- what a worker asks ------------------------------------------------------------------------

    @property
    def held(self) -> AbstractSet[int]:
        """The jobs whose processes are ours: none. A machine may be cut off, whatever Dask says."""
        return frozenset()

    @property
    def free(self) -> int:
        """How many more may be started now."""
        if not self.is_ready:
            return 0
        threads = sum(seat.threads for seat in self._seats.values())
        most = self._spec["processes"]
        return max(0, (threads if most is None else most) - len(self.by_job))

    @property
    def is_ready(self) -> bool:
        """Whether the scheduler is there."""
        return self._trouble is None and not self._is_stopping

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it runs on the cluster, as far as Dask tells."""
        return not self.by_job and not self._serving

    def why_not(self, resources: Mapping[str, float]) -> str | None:
        """Return why no job that asks for these resources can be run at present; None: it can."""
        if self._trouble is not None:
            return self._trouble
        if not self._seats:
            return "no Dask worker is there"
        if not any(_holds(seat.resources, resources) for seat in self._seats.values()):
            return f"no Dask worker has {words_of(resources)}"
        return None

    def has_room_for(self, resources: Mapping[str, float]) -> bool:
        """Whether one more job that asks for these can be started now, and will not wait in Dask for long.

        One that waits there would hold a place that others could use.
        """
        if self.free <= 0:
            return False
        for name, count in resources.items():
            have = sum(seat.resources.get(name, 0) for seat in self._seats.values())
            used = sum(task.resources.get(name, 0) for task in self.by_job.values())
            if used + count > have:
                return False
        return True

    def is_resting(self, job_id: int) -> bool:
        """Whether a job could not be started, and not long ago."""
        return self._resting_jobs.is_resting(job_id)

    def resting(self) -> list[int]:
        """Return the jobs that could not be started, and not long ago."""
        return self._resting_jobs.resting()

    def failed(self) -> list[int]:
        """Return the jobs that could not be started, also those that may be tried again."""
        return self._resting_jobs.failed()

    async def start(
        self, job_id: int, orphan: Sighting | None = None, resources: Mapping[str, float] = NONE
    ) -> None:
        """Hand a queued job, or an orphan, to Dask; what it has already, once."""
        known = self.by_job.get(job_id)
        if known is not None and known.orphan == orphan:
            return  # it has not come to claim it yet
        order = CodeOrder(self._sender, job_id, orphan)
        try:
            future = await _in_thread(
                self._cluster.submit, run_one, order, str(job_id), resources=dict(resources) or None
            )
        except Gone as error:
            self._lose(str(error))
        else:
            self.by_job[job_id] = Task(future, orphan, resources)

    async def look(self) -> None:
        """Do nothing: each task looks after its own child."""

    async def wait(self, timeout_s: float) -> bool:
        """Take back what has not begun, and wait for the rest; False: some goes on."""
        self._is_stopping = True
        with suppress(DatabaseError):  # then it is waited for
            await self._take_back()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.is_idle:  # noqa: ASYNC110  # what runs elsewhere is looked at in steps anyway
                    await asyncio.sleep(_STEP_S)
        return self.is_idle

    def leave(self) -> None:
        """Leave what still runs to itself: each child beats for its own job, and ends it."""
        self._keeper.cancel()

    def message(self, jobs: int) -> str:  # noqa: ARG002  # those that it watches itself: none
        """Return what the worker says of itself."""
        if self._trouble is not None:
            return self._trouble
        seats = counted(len(self._seats), "Dask worker")
        return f"spreading jobs over {seats}, running {counted(len(self.by_job), 'task')}"

    def detail(self) -> dict[str, Any]:
        """Return what the worker's row tells besides."""
        return {"dask_workers": len(self._seats)}

    # --- keeping up with the cluster ---------------------------------------------------------------

    async def _keep(self) -> None:
        failing = Trouble()
        while True:
            try:
                await self._step()
                failing.ends()
            except Exception as error:  # it must never end the worker
                if failing.begins():
                    log.error("a Dask cluster could not be seen to", error=error, exc_info=error)
                self._refresh_at_s = monotonic_s() + _REFRESH_S
            await asyncio.sleep(_STEP_S)

    async def _step(self) -> None:
        await self._settle()
        if monotonic_s() < self._refresh_at_s:
            return
        try:
            if self._trouble is not None:
                await _in_thread(self._cluster.reach_again)
            self._seats = await _in_thread(self._cluster.workers)
        except Gone as error:
            self._lose(str(error))
            self._refresh_at_s = monotonic_s() + self._retry.next_s()
            return
        if self._trouble is not None:
            if self._scheduler.ends():
                log.warning("the Dask scheduler is reached again", address=self._cluster.address)
            self._trouble = None
            self._retry = Retry(first_s=0.5, most_s=10.0)
        self._refresh_at_s = monotonic_s() + _REFRESH_S
        self._forget_the_gone()
        if not self._is_stopping:
            with suppress(DatabaseError):  # said by the worker's own beats; tried again at once
                await self._serve_everywhere()

    def _lose(self, why: str) -> None:
        """Take note that the scheduler is gone, and with it all that it knew."""
        if self._scheduler.begins():
            log.error("the Dask scheduler is gone", address=self._cluster.address, why=why)
        self._trouble = (
            f"the Dask scheduler at {self._cluster.address} cannot be reached: no code is started until it is"
        )
        self._seats, self._serving, self.by_job = {}, {}, {}

    async def _settle(self) -> None:
        """Take note of what has ended on the cluster; each stays where it is until that has answered why."""
        over = [(job_id, task) for job_id, task in self.by_job.items() if task.future.status in _OVER]
        served = [(at, future) for at, future in self._serving.items() if future.status in _OVER]
        whys = await asyncio.gather(
            *(_in_thread(_why, task.future) for _, task in over),
            *(_in_thread(_why, each) for _, each in served),
        )
        for (job_id, task), why in zip(over, whys, strict=False):
            if self.by_job.get(job_id) is task:
                del self.by_job[job_id]
            if why is not None:
                rest_s = self._resting_jobs.rest(job_id)
                known = {"job": job_id, "again_in_s": rest_s, "why": why}
                self._seldom.warning(log, "a job could not be run by Dask", about=job_id, **known)
        for (address, future), why in zip(served, whys[len(over) :], strict=True):
            if self._serving.get(address) is future:
                del self._serving[address]
            rest_s = self._resting_seats.rest(address)
            if not self._is_stopping:
                known = {"at": address, "again_in_s": rest_s, "why": why}
                self._seldom.warning(log, "no worker on a Dask worker", about=address, **known)

    def _forget_the_gone(self) -> None:
        """Take back the orders for Dask workers that are gone: Dask would wait for them for ever."""
        for address in self._serving.keys() - self._seats.keys():
            log.warning("a Dask worker is gone: its jobs are taken over", address=address)
            self._serving.pop(address).cancel()

    async def _serve_everywhere(self) -> None:
        """Start a worker on each Dask worker that has none."""
        bare = {
            address
            for address in self._seats.keys() - self._serving.keys()
            if not self._resting_seats.is_resting(address)
        }
        if not bare or not self._spec["each"]:
            return
        bare -= await asyncio.to_thread(self._served)
        for address in bare:
            order = ServeOrder(
                self._sender,
                heartrate=self._spec["heartrate"],
                capacity=self._spec["each"],
                job_types=tuple(self._spec["job_types"]),
                connections=tuple(self._spec["connections"]),
                address=address,
            )
            options = {"workers": [address], "allow_other_workers": False, "priority": 100}
            key = f"worker-{self._sender.claim.job_id}"
            self._serving[address] = await _in_thread(self._cluster.submit, serve, order, key, **options)

    def _served(self) -> set[str]:
        """Return the addresses at which workers of ours are alive, whether Dask knows of them or not."""
        with self._database.read() as connection:
            rows = worklist.workers(connection, self._database.settings.grace_multiplier)
        return {
            row["spec"]["dask_worker"]
            for row in rows
            if row["parent_id"] == self._sender.claim.job_id and "dask_worker" in (row["spec"] or {})
        }

    async def _take_back(self) -> None:
        """Take back the tasks whose jobs nobody has claimed: they stay as they were."""
        for row in await asyncio.to_thread(self._rows, list(self.by_job)):
            task = self.by_job.get(row["id"])
            if task is not None and _is_untouched(row, task.orphan):
                del self.by_job[row["id"]]
                await _in_thread(task.future.cancel)

    def _rows(self, ids: list[int]) -> list[RowMapping]:
        with self._database.read() as connection:
            return statements.get_many(connection, ids)


def _holds(have: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(have.get(name, 0) >= count for name, count in wanted.items())


def _is_untouched(row: RowMapping, orphan: Sighting | None) -> bool:
    if orphan is None:
        return row["state"] is JobState.QUEUED
    return (row["runner_id"], row["claims"]) == (orphan.runner_id, orphan.claims)


def _why(future: Any) -> str | None:
    """Return why an ended task did not do what it should; None: it did. It may wait for the cluster."""
    try:
        if future.status == "finished":
            return str(result) if (result := future.result(timeout=math.ceil(_REFRESH_S))) else None
        if future.status == "error":
            error = future.exception(timeout=math.ceil(_REFRESH_S))
            return f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001  # the scheduler went, and with it the answer
        return f"Dask does not say how it ended: {type(error).__name__}"
    return "Dask does not know it any more"


async def _in_thread(call: Callable[..., _T], *args: Any, **options: Any) -> _T:
    return await asyncio.to_thread(call, *args, **options)
