"""Backends whose methods are async in name only: they block the event loop and all that runs there."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest

from jobrunner.backends import blocking
from jobrunner.backends.base import Patience
from jobrunner.backends.blocking import Blocking
from jobrunner.backends.guarded import GuardedBackend
from jobrunner.database import Database
from jobrunner.models import BaseJob
from jobrunner.states import JobState
from jobrunner.testing import MemoryBackend, Plan, use_backend
from tests.helpers import row_of
from tests.runner.support import SOON, a_job, a_runner, an_outside, in_loop, soon, start

JOBS = 12
_BLOCK_S = 0.2


class AsyncInNameOnly(MemoryBackend):
    """Each of its calls blocks; it notes which one, and how often others had their turn before it."""

    def __init__(self, calls: Sequence[str], plan: Plan = SOON) -> None:
        super().__init__(plan=plan, patience=Patience(call_s=30.0))
        self._calls = calls
        self.turns_of_others = 0
        self.blocked: list[tuple[str, int]] = []

    def _block(self, call: str) -> None:
        if call in self._calls:
            self.blocked.append((call, self.turns_of_others))
            time.sleep(_BLOCK_S)

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        self._block("submit")
        return await super().submit(spec, token)

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, Any]:
        self._block("fetch")
        return await super().fetch(ids)

    async def cancel(self, ids: Sequence[str], reason: str) -> Mapping[str, Any]:
        self._block("cancel")
        return await super().cancel(ids, reason)


async def others(outside: AsyncInNameOnly) -> None:
    while True:
        await asyncio.sleep(0)
        outside.turns_of_others += 1


@pytest.fixture(autouse=True)
def _soon_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "_BLOCKS_S", _BLOCK_S / 2)


@in_loop
async def test_calls_that_block_come_one_at_a_time_and_leave_turns_to_others(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    outside = AsyncInNameOnly(["submit", "fetch"])
    with use_backend(outside):
        jobs = [a_job(heartrate=5.0, poll_interval=0.5) for _ in range(JOBS)]
        async with a_runner(sqlite_database) as runner:
            ticking = asyncio.create_task(others(outside))
            ends = [start(runner, job) for job in jobs]
            for end in ends:
                assert await asyncio.wait_for(end, 120) is JobState.SUCCESS
            ticking.cancel()
    assert [outside.submissions(str(job.submit_token)) for job in jobs] == [1] * JOBS
    turns = [turn for _, turn in outside.blocked]
    assert len(turns) > JOBS
    assert all(later > before for before, later in pairwise(turns)), outside.blocked
    said = [each for each in caplog.messages if "submit blocks the event loop" in each]
    assert len(said) == 1
    assert "backend=AsyncInNameOnly" in said[0]


@in_loop
async def test_a_kill_reaches_its_job_though_the_calls_of_its_backend_block(
    sqlite_database: Database,
) -> None:
    outside = AsyncInNameOnly(["submit", "fetch", "cancel"], Plan())  # they go on until they are cancelled
    with use_backend(outside):
        jobs = [a_job(heartrate=5.0, poll_interval=0.5) for _ in range(JOBS)]
        async with a_runner(sqlite_database) as runner:
            ends = [start(runner, job) for job in jobs]
            await soon(lambda: bool(outside.blocked))
            await asyncio.to_thread(BaseJob.get(jobs[-1].id).request_kill, by="ana")
            assert await asyncio.wait_for(ends[-1], 60) is JobState.KILLED
            assert all(owned.is_making_progress() for owned in runner.jobs.values())
    states = {row_of(sqlite_database, job.id)["state"] for job in jobs[:-1]}
    assert states == {JobState.QUEUED}  # given back: nothing else was cancelled


@in_loop
async def test_a_backend_that_blocks_no_more_is_called_side_by_side_again(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "_WATCHED_S", 0.0)
    outside = AsyncInNameOnly(["submit"])
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            job = a_job()
            await start(runner, job)
            (channel,) = runner._ways._channels.values()
            assert channel.backend.blocks is False
            assert channel.backend.submissions_at_once > 1


class Stepwise:
    """What waits twice, and notes what reaches it."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __await__(self) -> Iterator[Any]:
        try:
            yield from asyncio.sleep(0).__await__()
            yield from asyncio.Event().wait().__await__()
        except asyncio.CancelledError:
            self.heard.append("cancelled")
            raise


@in_loop
async def test_what_a_watched_call_returns_and_raises_is_its_own() -> None:
    said: list[str] = []
    watch = Blocking(said.append)

    async def answers(value: str) -> str:
        await asyncio.sleep(0)
        return value

    async def raises() -> None:
        await asyncio.sleep(0)
        raise LookupError("no such thing")

    assert await watch.watched("fetch", answers, is_alone=False)("done") == "done"
    with pytest.raises(LookupError, match="no such thing"):
        await watch.watched("fetch", raises, is_alone=False)()
    assert watch.watched("fetch", lambda: 7, is_alone=False)() == 7
    stepwise = Stepwise()

    async def wait() -> None:
        await watch.watched("fetch", lambda: stepwise, is_alone=False)()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (stepwise.heard, said) == (["cancelled"], [])


def test_jobrunners_own_backends_are_not_watched() -> None:
    assert GuardedBackend(an_outside())._blocking is None
    assert GuardedBackend(AsyncInNameOnly([]))._blocking is not None
