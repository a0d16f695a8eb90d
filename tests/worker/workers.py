"""Workers in a test's own event loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from jobrunner.database import Database
from jobrunner.models import BaseJob
from jobrunner.models.start import Start
from jobrunner.statements import new_owner
from jobrunner.states import JobState
from jobrunner.worker import WorkerJob
from jobrunner.worker.loop import Worker
from tests.helpers import row_of
from tests.runner.support import soon


class Working:
    """A worker at work: the object, its task and its row."""

    def __init__(self, database: Database, **options: Any) -> None:
        self.job = WorkerJob(**{"heartrate": 0.3, "processes": 1, "drain_timeout": 5.0, **options})
        self.database = database
        owner = new_owner("LocalExecutor")
        claim = Start(database, self.job, owner).take().claim
        self.worker = Worker(database, owner, claim, self.job)
        self.runner_id = owner.runner_id
        self.task = asyncio.create_task(self.worker.run())

    @property
    def jobs(self) -> set[int]:
        """The monitor jobs that it owns."""
        runner = getattr(self.worker, "_runner", None)
        return set() if runner is None else set(runner.jobs)

    def row(self) -> dict[str, Any]:
        return row_of(self.database, self.job.id)

    async def end(self) -> JobState:
        """Wait for its end."""
        return await asyncio.wait_for(self.task, 30)


@asynccontextmanager
async def a_worker(database: Database, **options: Any) -> AsyncIterator[Working]:
    """Give a worker that works; at the end it is stopped, and what it has is given back."""
    working = Working(database, **options)
    try:
        yield working
    finally:
        working.worker.stop("the test is over")
        await working.end()


def store(*jobs: BaseJob) -> list[int]:
    """Store jobs, queued, and return their ids."""
    return [job.store().id for job in jobs]


async def until_state(database: Database, state: JobState, *job_ids: int) -> None:
    """Wait until all of these jobs are in this state."""
    await soon(lambda: all(row_of(database, job_id)["state"] is state for job_id in job_ids))
