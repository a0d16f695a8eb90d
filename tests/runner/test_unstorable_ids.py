"""External ids that no row can hold: the work is ended outside, and the job says why."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from jobrunner.backends.base import Absent, Found, Unsure
from jobrunner.database import Database
from jobrunner.states import JobState, Phase
from jobrunner.testing import MemoryBackend, Plan, use_backend
from tests.helpers import row_of
from tests.runner.support import a_job, a_runner, in_loop, soon, start, within

IDS = {"nul": "job\0 1", "surrogate": "job \ud83d", "long": "é" * 5_000}


class _OddIds(MemoryBackend):
    """Gives its jobs ids of its own choice, or loses the answer and lets them be found."""

    def __init__(self, external_id: str, *, is_lost: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self._id, self._is_lost = external_id, is_lost

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        made = await super().submit(spec, token)
        self.jobs[self._id] = self.jobs[made]
        if self._is_lost:
            raise ConnectionError("the answer was lost")
        return self._id

    async def find(self, spec: Any, token: str, since: Any) -> Found | Absent | Unsure:
        return Found(self._id)


@pytest.mark.parametrize("is_lost", [False, True], ids=["answered", "found"])
@pytest.mark.parametrize("kind", IDS)
@in_loop
async def test_work_whose_id_cannot_be_stored_is_ended_and_its_job_fails(
    database: Database, kind: str, is_lost: bool
) -> None:
    outside = _OddIds(IDS[kind], is_lost=is_lost, plan=Plan())
    with use_backend(outside):
        async with a_runner(database) as runner:
            job = a_job()
            assert await within(start(runner, job)) is JobState.FAILED
    message = row_of(database, job.id)["message"]
    assert "which cannot be stored" in message
    assert "its work was ended" in message
    assert outside.jobs[IDS[kind]].phase is Phase.CANCELLED
    assert outside.calls["submit"] == 1


@in_loop
async def test_a_kill_of_such_a_job_counts(sqlite_database: Database) -> None:
    outside = _OddIds(IDS["nul"], plan=Plan(cancel_takes_s=1.0))
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            job = a_job()
            end = start(runner, job)
            await soon(lambda: outside.calls["cancel"])
            await asyncio.to_thread(job.request_kill, reason="enough")
            assert await within(end) is JobState.KILLED
