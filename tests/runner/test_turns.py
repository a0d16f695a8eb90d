"""Many jobs of one connection are to be submitted, or looked for, at once: each has its turn."""

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from jobrunner.backends.base import Absent, Found, Patience, Unsure
from jobrunner.backends.checks import SUBMISSIONS_AT_ONCE, submissions_at_once_of
from jobrunner.database import Database
from jobrunner.states import JobState
from jobrunner.testing import Fault, MemoryBackend, use_backend
from tests.helpers import row_of, rows_held
from tests.runner.gates import Gate
from tests.runner.support import SOON, a_job, a_runner, crash, in_loop, soon, start, take_over, within

JOBS = 150
_EACH_S, _CALL_S = 0.02, 1.5  # all of them at once would take longer than a call may


class OneAtATime(MemoryBackend):
    """An outside that does one thing after the other, and counts who waits for it."""

    def __init__(self) -> None:
        super().__init__(plan=SOON, patience=Patience(call_s=_CALL_S))
        self.waiting = self.most_waiting = 0
        self._free = asyncio.Lock()

    async def _wait(self) -> None:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            async with self._free:
                await asyncio.sleep(_EACH_S)
        finally:
            self.waiting -= 1

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        await self._wait()
        return await super().submit(spec, token)

    async def find(self, spec: Mapping[str, Any], token: str, since: dt.datetime) -> Found | Absent | Unsure:
        await self._wait()
        return await super().find(spec, token, since)


def _without_an_answer(caplog: pytest.LogCaptureFixture) -> Sequence[str]:
    return [record.getMessage() for record in caplog.records if "no answer within" in record.getMessage()]


@in_loop
async def test_no_call_waits_among_the_others_for_longer_than_it_may(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    outside = OneAtATime()
    with use_backend(outside):
        jobs = [a_job(heartrate=5.0) for _ in range(JOBS)]
        async with a_runner(sqlite_database) as first:
            for job in jobs:
                start(first, job)
            await soon(lambda: outside.calls["submit"] >= SUBMISSIONS_AT_ONCE)
            await crash(first)
        async with a_runner(sqlite_database) as second:
            left = [job for job in jobs if row_of(sqlite_database, job.id)["state"] is JobState.RUNNING]
            assert len(left) > 2 * SUBMISSIONS_AT_ONCE
            ends = [take_over(second, job) for job in left]
            assert [await within(end) for end in ends] == [JobState.SUCCESS] * len(left)
    assert outside.most_waiting <= 2 * SUBMISSIONS_AT_ONCE  # those of two runners
    assert not _without_an_answer(caplog)
    assert len(outside.jobs) == JOBS


@in_loop
async def test_who_waits_for_its_turn_can_be_killed(sqlite_database: Database) -> None:
    outside = MemoryBackend(plan=SOON, patience=Patience(call_s=60.0))
    outside.order(Fault.TIMEOUT, call="submit", times=None)
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            jobs = [a_job() for _ in range(SUBMISSIONS_AT_ONCE + 1)]
            ends = [start(runner, job) for job in jobs]
            await soon(lambda: outside.calls["submit"] == SUBMISSIONS_AT_ONCE)
            jobs[-1].request_kill()
            assert await within(ends[-1]) is JobState.KILLED
    assert outside.calls["submit"] == SUBMISSIONS_AT_ONCE
    assert "killed before it was submitted" in row_of(sqlite_database, jobs[-1].id)["message"]


@in_loop
async def test_the_intent_of_a_job_is_stored_when_its_turn_has_come(sqlite_database: Database) -> None:
    outside = MemoryBackend(plan=SOON, patience=Patience(call_s=60.0))
    outside.submissions_at_once = 2  # type: ignore[attr-defined]  # a backend may have it
    outside.order(Fault.TIMEOUT, call="submit", times=None)
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            jobs = [a_job() for _ in range(6)]
            for job in jobs:
                start(runner, job)
            await soon(lambda: outside.calls["submit"] == 2)
            begun = [row_of(sqlite_database, job.id)["submit_started_at"] is not None for job in jobs]
    assert sum(begun) == 2


@pytest.mark.parametrize("odd", [0, -1, True, "many", 2.5, float("nan"), []])
def test_an_odd_number_of_submissions_at_once_counts_as_the_default(odd: object) -> None:
    outside = MemoryBackend()
    outside.submissions_at_once = odd  # type: ignore[attr-defined]  # it is anybody's
    said: list[str] = []
    assert submissions_at_once_of(outside, said.append) == SUBMISSIONS_AT_ONCE
    assert "submissions_at_once is" in said[0]


def test_a_backend_need_not_say_how_many_are_submitted_at_once() -> None:
    said: list[str] = []
    assert submissions_at_once_of(object(), said.append) == SUBMISSIONS_AT_ONCE
    assert not said


@in_loop
async def test_a_job_whose_row_is_held_as_it_begins_keeps_no_turn(
    postgres_database: Database, postgres_url: str
) -> None:
    outside = MemoryBackend(plan=SOON)
    outside.submissions_at_once = 1  # type: ignore[attr-defined]  # a backend may have it
    with use_backend(outside):
        async with a_runner(postgres_database) as runner:
            gate = Gate(runner, "_begin")
            job = a_job(heartrate=30.0)
            end = start(runner, job)
            await gate.arrived()
            with rows_held(postgres_url, [job.id]):
                gate.open()
                assert await within(start(runner, a_job())) is JobState.SUCCESS
                assert not end.done()
            assert await within(end) is JobState.SUCCESS
