"""Taking monitor jobs: how many a worker takes in one round, and owning what it has claimed."""

import asyncio
from functools import cache, partial

from sqlalchemy import RowMapping

from jobrunner import statements, worklist
from jobrunner.clock import monotonic_s
from jobrunner.logs import get_logger
from jobrunner.models.base_job import class_of, object_of
from jobrunner.soundness import why_unreadable
from jobrunner.statements import WORKER, Claim
from jobrunner.states import JobState
from jobrunner.worker.means import Means
from jobrunner.worker.serving import Kind
from jobrunner.worker.share import least, share
from jobrunner.worker.telling import Telling
from jobrunner.worker.windows import Windows

log = get_logger(__name__)

PATIENT_LOOKS = 3
"""So often others may take their share, before what they left is taken."""

_STUCK_PART = 10  # of the capacity may be jobs of connections that take none, beyond it
_TYPES_S = 30.0  # so long the job types of workers stand: to look for them is to go through all running jobs


class Taking:
    """Takes a worker's share of monitor jobs, whether they were queued or are orphans."""

    def __init__(self, means: Means, telling: Telling) -> None:
        self._means = means
        self._telling = telling
        self._passed_over = 0
        self._worker_types: frozenset[str] = frozenset()
        self._worker_types_until_s = 0.0
        self.windows = Windows(means.capacity)

    async def share(self, waiting: int) -> int:
        """Return how many of the jobs that wait to take in this round. Raises `DatabaseError`."""
        means = self._means
        grace = means.runner.database.settings.grace_multiplier
        others = [
            (worklist.number_in(row["detail"], "jobs"), room)
            for row in await self._workers(grace)
            if row["id"] != means.itself.job_id and (room := worklist.number_in(row["spec"], "capacity"))
        ]
        # Of those that wait for a connection that takes nothing, some take no place from the others.
        stuck = min(self.windows.stuck, max(1, means.capacity // _STUCK_PART))
        mine = len(means.runner.jobs) - stuck
        most = share(mine, means.capacity, waiting, others)
        self._passed_over = self._passed_over + 1 if most == 0 else 0
        if self._passed_over >= PATIENT_LOOKS:
            most = least(mine, means.capacity, waiting, 1 + len(others))
        return most

    async def _workers(self, grace: float) -> list[RowMapping]:
        """Return the workers that are alive, of the types that workers had a little while ago."""
        if monotonic_s() < self._worker_types_until_s:
            return await self._means.read(worklist.workers, grace, self._worker_types)
        rows = await self._means.read(worklist.workers, grace)
        self._worker_types = frozenset({WORKER, *(row["job_type"] for row in rows)})
        self._worker_types_until_s = monotonic_s() + _TYPES_S
        return rows

    async def own(self, rows: list[RowMapping]) -> int:
        """Have the runner watch the jobs of these rows, just claimed; return how many they are.

        What cannot be served after all is given back by the runner; a row that cannot be read ends its job.
        Raises `DatabaseError`.
        """
        runner, serving = self._means.runner, self._means.serving
        unseen = await self._means.sight.unseen(rows)
        group_of = cache(serving.group_of)
        for number, row in enumerate(rows):
            claim = Claim(row["id"], runner.owner.runner_id, row["claims"])
            why = why_unreadable(row, is_monitored=True)
            if why is not None:
                runner.seldom.error(
                    log, "a job cannot be read: it ends", about=row["id"], job=row["id"], why=why
                )
                await self._means.write(statements.end, claim, JobState.FAILED, why)
                continue
            if row["id"] in unseen:  # it was released, or its disk vanished, only just now
                await runner.release(claim, f"released: {unseen[row['id']]}")
                continue
            kind = row["job_type"], row["connection"]
            job_class = class_of(row["job_type"])
            assert job_class is not None  # only such are claimed
            on_refused = partial(self._refuse, row["id"], kind)
            owned = runner.own(claim, row, job_class, partial(object_of, row), on_refused)
            self.windows.add(group_of(*kind), owned)
            if number % 100 == 99:  # noqa: PLR2004  # the loop has other things to do
                await asyncio.sleep(0)
        await self._telling.tell()
        return len(rows)

    def _refuse(self, job_id: int, kind: Kind, error: Exception) -> None:
        """Leave jobs of a kind alone for a while: there is no way to their backend here."""
        seldom = self._means.runner.seldom
        seldom.warning(log, "a job cannot be served here", about=kind, job=job_id, error=error)
        self._means.serving.refuse(*kind, str(error))
