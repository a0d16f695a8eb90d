"""Hints from a backend: they hurry the looks, and no trouble with them is trouble in the watching."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from jobrunner.database import Database
from jobrunner.states import JobState
from jobrunner.testing import MemoryBackend, use_backend
from tests.helpers import row_of
from tests.runner.support import a_job, a_runner, an_outside, soon, start, within


def seldom(**options: Any) -> Any:
    """Return a job that is looked at once, unless something is heard of it."""
    return a_job(poll_interval=3600, heartrate=30, **options)


async def is_watched(database: Database, outside: MemoryBackend, job: Any) -> str:
    await soon(lambda: row_of(database, job.id)["external_state"] == "RUNNING")
    (external_id,) = outside.jobs
    return external_id


def test_the_end_is_seen_when_it_is_heard_of(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = seldom()
                end = start(runner, job)
                external_id = await is_watched(database, outside, job)
                await soon(lambda: outside.listeners == 1)
                outside.succeed(external_id)
                outside.tell("no such job", external_id, external_id)
                assert await within(end, 5) is JobState.SUCCESS
        assert outside.listeners == 0, "the runner has left"

    asyncio.run(main())


def test_a_lie_ends_nothing(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = seldom()
                start(runner, job)
                external_id = await is_watched(sqlite_database, outside, job)
                await soon(lambda: outside.listeners == 1)
                looks = outside.calls["fetch"]
                outside.tell(external_id)
                await soon(lambda: outside.calls["fetch"] > looks)
                assert row_of(sqlite_database, job.id)["state"] is JobState.RUNNING

    asyncio.run(main())


def test_a_stream_that_breaks_is_said_once_and_heard_again(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        outside = an_outside()
        real, tries = outside.events, []

        async def events() -> AsyncIterator[str]:
            tries.append(True)
            if 1 < len(tries) < 4:
                raise ConnectionError("no such queue")
            async for heard in real():
                yield heard

        monkeypatch.setattr(outside, "events", events)
        monkeypatch.setattr("jobrunner.channel._EVENTS_AGAIN_S", 0.05)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = seldom()
                end = start(runner, job)
                external_id = await is_watched(sqlite_database, outside, job)
                await soon(lambda: outside.listeners == 1)
                outside.break_events(ConnectionError("the connection broke"))
                await soon(lambda: len(tries) == 4 and outside.listeners == 1)
                outside.succeed(external_id)
                outside.tell(external_id)
                assert await within(end, 5) is JobState.SUCCESS
        told = [record.getMessage() for record in caplog.records if "events are" in record.getMessage()]
        assert len(told) == 2
        assert "not heard" in told[0]
        assert "heard again" in told[1]

    caplog.set_level(logging.INFO)
    asyncio.run(main())


@pytest.mark.parametrize("events", [None, lambda: None, lambda: [1, 2]], ids=["none", "nothing", "a list"])
def test_a_stream_that_is_none_harms_no_job(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, events: Any
) -> None:
    async def main() -> None:
        outside = an_outside()
        monkeypatch.setattr(outside, "events", events)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                end = start(runner, job)
                outside.succeed(await is_watched(sqlite_database, outside, job))
                assert await within(end) is JobState.SUCCESS

    asyncio.run(main())


def test_a_stream_that_never_pauses_leaves_time_for_everything_else(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        outside = an_outside()

        async def events() -> AsyncIterator[str]:
            while True:
                yield "memory-1"

        monkeypatch.setattr(outside, "events", events)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = seldom()
                end = start(runner, job)
                external_id = await is_watched(sqlite_database, outside, job)
                looks = outside.calls["fetch"]
                await asyncio.sleep(2)
                assert outside.calls["fetch"] - looks <= 3, "one a rest, however much is told"
                outside.succeed(external_id)
                assert await within(end, 5) is JobState.SUCCESS

    asyncio.run(main())


def test_a_stream_that_hangs_at_its_end_does_not_keep_a_runner_from_leaving(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr("jobrunner.channel._CLOSE_S", 0.2)
        outside = an_outside()
        listening = asyncio.Event()

        async def events() -> AsyncIterator[str]:
            listening.set()
            try:
                await asyncio.Event().wait()
                yield "never"
            finally:
                await asyncio.sleep(1)

        monkeypatch.setattr(outside, "events", events)
        with use_backend(outside):
            async with asyncio.timeout(10), a_runner(sqlite_database) as runner:
                start(runner, seldom())
                await listening.wait()

    asyncio.run(main())
