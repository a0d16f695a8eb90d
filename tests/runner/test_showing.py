"""What rows show of their work: written in bulk, the latest alone, whatever the database does."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from jobrunner import answers
from jobrunner.backends.base import Patience
from jobrunner.database import Database
from jobrunner.errors import DatabaseError, DatabaseUnavailable
from jobrunner.states import JobState, Phase
from jobrunner.testing import Fault, MemoryBackend, use_backend
from tests.helpers import row_of, rows_held
from tests.runner.support import (
    a_job,
    a_runner,
    an_outside,
    bulks_of,
    look,
    soon,
    start,
    take_over,
    while_set,
    within,
)

Observe = Callable[..., set[int]]


def says(database: Database, job_id: int) -> Any:
    return row_of(database, job_id)["message"]


def attach_all(outside: MemoryBackend, count: int, **options: Any) -> list[Any]:
    """Return jobs for work that is there already."""
    made = [outside._make({}, f"token-{n}") for n in range(count)]
    return [a_job(external_id=each, **{"heartrate": 30, **options}) for each in made]


def test_what_is_seen_of_many_jobs_is_written_together(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        outside = an_outside(bulk_limit=50)
        bulks = bulks_of(monkeypatch, "observe_many")
        with use_backend(outside):
            async with a_runner(database) as runner:
                for job in attach_all(outside, 200, poll_interval=0.3):
                    start(runner, job)
                await soon(lambda: all(owned.shown is not None for owned in runner.jobs.values()))
                bulks.clear()
                for external_id in outside.jobs:
                    outside.advance(external_id, Phase.RUNNING, "half done")
                await soon(
                    lambda: all(owned.shown.message == "half done" for owned in runner.jobs.values())  # type: ignore[union-attr]
                )
        assert sum(bulks) == 200, "each job's change is written once"
        assert len(bulks) <= 8
        with database.read() as connection:
            said = connection.exec_driver_sql("SELECT DISTINCT external_state FROM job").scalars().all()
        assert said == ["RUNNING"]

    asyncio.run(main())


def test_a_bulk_is_bounded(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(answers, "_CHUNK", 7)
        bulks = bulks_of(monkeypatch, "observe_many")
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                for job in attach_all(outside, 20):
                    start(runner, job)
                await soon(lambda: all(owned.shown is not None for owned in runner.jobs.values()))
        assert max(bulks) == 7

    asyncio.run(main())


def test_while_a_write_is_under_way_only_the_latest_look_waits(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    held, go = threading.Event(), threading.Event()

    def instead(real: Observe) -> Observe:
        def observe_many(connection: Any, runner_id: str, sights: Any) -> set[int]:
            held.set()
            go.wait(20)
            written.extend(sight.message for sight in sights)
            return real(connection, runner_id, sights)

        return observe_many

    async def main() -> None:
        outside = an_outside()
        bulks_of(monkeypatch, "observe_many", instead)
        with use_backend(outside):
            async with a_runner(database) as runner:
                (job,) = attach_all(outside, 1, poll_interval=3600)
                start(runner, job)
                await soon(held.is_set)
                (external_id,) = outside.jobs
                for step in ("one", "two", "three"):
                    outside.advance(external_id, Phase.RUNNING, step)
                    runner.jobs[job.id].channel.poller.hurry(job.id)
                    await soon(lambda step=step: runner.jobs[job.id].to_show.message == step)  # type: ignore[misc,union-attr]
                go.set()
                await soon(lambda: says(database, job.id) == "three")
        assert written == ["RUNNING", "three"]

    asyncio.run(main())


def test_an_older_look_is_never_written_over_the_end_nor_does_it_keep_the_end_back(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go, written = threading.Event(), threading.Event(), threading.Event()

    def instead(real: Observe) -> Observe:
        def observe_many(connection: Any, runner_id: str, sights: Any) -> set[int]:
            held.set()
            go.wait(20)
            answer = real(connection, runner_id, sights)
            written.set()
            return answer

        return observe_many

    async def main() -> None:
        outside = an_outside()
        bulks_of(monkeypatch, "observe_many", instead)
        with use_backend(outside):
            async with a_runner(postgres_database) as runner:
                (job,) = attach_all(outside, 1)
                end = start(runner, job)
                await soon(held.is_set)
                (external_id,) = outside.jobs
                outside.succeed(external_id)
                assert await within(end) is JobState.SUCCESS
                go.set()
                await soon(written.is_set)
        assert look(postgres_database, job.id, "external_state", "message") == ("SUCCEEDED", "SUCCEEDED")

    asyncio.run(main())


def test_a_database_that_is_away_is_waited_for_and_takes_the_latest(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = threading.Event()

    async def main() -> None:
        outside = an_outside()
        bulks = bulks_of(monkeypatch, "observe_many", while_set(away, DatabaseUnavailable("away")))
        away.set()
        with use_backend(outside):
            async with a_runner(database) as runner:
                jobs = attach_all(outside, 10)
                for job in jobs:
                    start(runner, job)
                await soon(lambda: len(bulks) >= 3)
                for external_id in outside.jobs:
                    outside.advance(external_id, Phase.RUNNING, "later")
                await soon(lambda: all(owned.to_show.message == "later" for owned in runner.jobs.values()))  # type: ignore[union-attr]
                away.clear()
                await soon(lambda: all(says(database, job.id) == "later" for job in jobs))
        assert caplog.text.count("what jobs show cannot be written yet") == 1

    asyncio.run(main())


def test_a_row_that_the_database_refuses_keeps_back_no_other(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []

    def instead(real: Observe) -> Observe:
        def observe_many(connection: Any, runner_id: str, sights: Any) -> set[int]:
            if refused[0] in {sight.job_id for sight in sights}:
                raise DatabaseError("this one it never takes")
            return real(connection, runner_id, sights)

        return observe_many

    async def main() -> None:
        outside = an_outside()
        bulks_of(monkeypatch, "observe_many", instead)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                jobs = attach_all(outside, 8)
                for job in jobs:
                    start(runner, job)
                refused.append(jobs[0].id)
                await soon(lambda: all(says(sqlite_database, job.id) for job in jobs[1:]))
                assert says(sqlite_database, jobs[0].id) is None

    asyncio.run(main())


def test_a_row_that_somebody_holds_is_shown_later_and_keeps_back_no_other(
    postgres_database: Database, postgres_url: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(postgres_database) as runner:
                jobs = attach_all(outside, 5)
                for job in jobs:
                    start(runner, job)
                await soon(lambda: all(owned.shown is not None for owned in runner.jobs.values()))
                with rows_held(postgres_url, [jobs[0].id]) as let_go:
                    for external_id in outside.jobs:
                        outside.advance(external_id, Phase.RUNNING, "later")
                    await soon(lambda: all(says(postgres_database, job.id) == "later" for job in jobs[1:]))
                    assert says(postgres_database, jobs[0].id) == "RUNNING"
                    let_go()
                await soon(lambda: says(postgres_database, jobs[0].id) == "later")

    asyncio.run(main())


def test_what_was_seen_of_a_job_that_was_taken_is_let_go(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its former owner hears of the loss at its next beat only, and must not try for ever until then."""

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as first, a_runner(database) as second:
                (job,) = attach_all(outside, 1, heartrate=30)
                start(first, job)
                await soon(lambda: says(database, job.id) == "RUNNING")
                former = first.jobs[job.id]
                take_over(second, job)
                await soon(lambda: second.jobs[job.id].shown is not None)
                bulks = bulks_of(monkeypatch, "observe_many")
                (external_id,) = outside.jobs
                outside.advance(external_id, Phase.RUNNING, "later")
                await soon(lambda: former.to_show is None and former.shown.message == "later")  # type: ignore[union-attr]
                await soon(lambda: says(database, job.id) == "later")
                assert len(bulks) == 2, "one of each runner, and no more"

    asyncio.run(main())


def test_a_writer_that_hangs_stops_no_beat(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    held, go = threading.Event(), threading.Event()

    def instead(real: Observe) -> Observe:
        def observe_many(connection: Any, runner_id: str, sights: Any) -> set[int]:
            if connection.in_transaction():
                connection.rollback()  # what hangs here is this side, not the database
            held.set()
            go.wait(20)
            return set()

        return observe_many

    async def main() -> None:
        outside = an_outside()
        bulks_of(monkeypatch, "observe_many", instead)
        with use_backend(outside):
            async with a_runner(database) as runner:
                (job,) = attach_all(outside, 1, heartrate=0.2)
                start(runner, job)
                await soon(held.is_set)
                (before,) = look(database, job.id, "latest_heartbeat")
                await soon(
                    lambda: (look(database, job.id, "latest_heartbeat")[0] - before).total_seconds() > 0.5
                )
                go.set()

    asyncio.run(main())


def test_a_broken_connection_is_shown_for_all_its_jobs_in_one_bulk(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                jobs = attach_all(outside, 150)
                for job in jobs:
                    start(runner, job)
                await soon(lambda: all(owned.shown is not None for owned in runner.jobs.values()))
                bulks = bulks_of(monkeypatch, "observe_many")
                order = outside.order(Fault.ERROR, times=None, message="no route")
                await soon(
                    lambda: all("no route" in (owned.shown.message or "") for owned in runner.jobs.values())  # type: ignore[union-attr]
                )
                assert sum(bulks) == 150
                assert len(bulks) <= 4
                message, state = look(database, jobs[0].id, "message", "external_state")
                assert message.startswith("status unreadable since ")
                assert state == "RUNNING"
                order.stop()
                await soon(lambda: all(says(database, job.id) == "RUNNING" for job in jobs[:3]))

    asyncio.run(main())


def test_work_that_is_not_found_is_shown_before_it_is_lost(database: Database) -> None:
    async def main() -> None:
        outside = an_outside(patience=Patience(call_s=5.0, appear_s=60.0, vanish_s=60.0))
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(external_id="memory-0000")
                start(runner, job)
                await soon(lambda: "not found outside: " in (look(database, job.id, "message")[0] or ""))
                assert look(database, job.id, "state") == (JobState.RUNNING,)

    asyncio.run(main())
