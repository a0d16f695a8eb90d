"""The beats of a runner: honest, fenced, and forgiving."""

import asyncio
import logging
import threading
import time
from contextlib import closing
from typing import Any, ClassVar

import pytest
from sqlalchemy import make_url

from jobrunner.backends.base import Patience
from jobrunner.database import Database
from jobrunner.errors import ClaimLost, DatabaseUnavailable
from jobrunner.heartbeat import Beater
from jobrunner.runner import Runner
from jobrunner.settings import configure
from jobrunner.states import JobState
from jobrunner.testing import Fault, MemoryBackend, MemoryMonitorJob, Plan, use_backend
from tests.helpers import an_owner, plain_connection, plain_sql, row_of, rows_held
from tests.postgres import Postgres
from tests.proxy import Proxy
from tests.runner.support import a_job, a_runner, an_outside, look, soon, start, take_over, within
from tests.runner.test_runner import watched


def beat_of(database: Database, job_id: int) -> Any:
    try:
        return row_of(database, job_id)["latest_heartbeat"]
    except DatabaseUnavailable:  # the pool's own connection was cut, too: it takes a new one
        return row_of(database, job_id)["latest_heartbeat"]


async def beats(database: Database, job_id: int, timeout_s: float = 60.0) -> None:
    """Wait for the job's next beat."""
    before = beat_of(database, job_id)
    await soon(lambda: beat_of(database, job_id) > before, timeout_s)


async def is_silent(database: Database, job_id: int, seconds: float) -> bool:
    before = beat_of(database, job_id)
    await asyncio.sleep(seconds)
    return bool(beat_of(database, job_id) == before)


# --- fences --------------------------------------------------------------------------------------

TAKEN = {
    "taken": ("UPDATE job SET runner_id = 'another', claims = claims + 1", "taken over by runner another"),
    "deleted": ("DELETE FROM job", "was deleted"),
    "ended": ("UPDATE job SET state = 'failed', message = 'by hand'", "ended as failed by others"),
    "released": ("UPDATE job SET state = 'queued', runner_id = NULL", "ended as queued by others"),
}


@pytest.mark.parametrize("way", TAKEN)
def test_a_job_that_is_no_longer_ours_is_not_touched_any_more(
    database: Database, database_url: str, way: str
) -> None:
    statement, why = TAKEN[way]

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(timeout=0.6)
                external_id, end = await watched(runner, outside, job)
                plain_sql(database_url, "DELETE FROM job_event")
                plain_sql(database_url, statement)
                with closing(plain_connection(database_url)) as connection:
                    before = connection.execute("SELECT * FROM job").fetchall()
                with pytest.raises(ClaimLost, match=why):
                    await within(end)
                outside.succeed(external_id)
                await asyncio.sleep(1.0)  # past the timeout: it is the next owner's to see to
        with closing(plain_connection(database_url)) as connection:
            assert connection.execute("SELECT * FROM job").fetchall() == before
            assert connection.execute("SELECT * FROM job_event").fetchall() == []
        assert outside.calls["cancel"] == 0

    asyncio.run(main())


def test_an_outcome_that_was_seen_after_the_claim_was_lost_is_not_written(
    database: Database, database_url: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(heartrate=20)
                external_id, end = await watched(runner, outside, job)
                plain_sql(database_url, "UPDATE job SET runner_id = 'another', claims = claims + 1")
                outside.fail(external_id)
                with pytest.raises(ClaimLost, match="failed, was not written"):
                    await within(end)
        assert look(database, job.id, "state", "message") == (JobState.RUNNING, "RUNNING")

    asyncio.run(main())


def test_a_row_that_a_psql_session_holds_locked_stays_ours_and_silences_nobody(
    postgres_database: Database, postgres_url: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(postgres_database) as runner:
                held, other = a_job(), a_job()
                external_id, end = await watched(runner, outside, held)
                await watched(runner, outside, other)
                with rows_held(postgres_url, [held.id]):
                    before = beat_of(postgres_database, held.id)
                    for _ in range(4):
                        await beats(postgres_database, other.id, 3)
                    assert beat_of(postgres_database, held.id) == before
                    assert not end.done()
                    assert not runner.beats.is_fenced(runner.jobs[held.id])
                await beats(postgres_database, held.id)
                outside.succeed(external_id)
                assert await within(end) is JobState.SUCCESS

    asyncio.run(main())


def test_a_row_that_was_locked_for_a_moment_is_beaten_for_again_before_the_next_beat(
    postgres_database: Database, postgres_url: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(postgres_database) as runner:
                held, other = a_job(heartrate=3.0), a_job(heartrate=3.0)
                await watched(runner, outside, held)
                await watched(runner, outside, other)
                with rows_held(postgres_url, [held.id]):
                    before = beat_of(postgres_database, held.id)
                    await beats(postgres_database, other.id)
                    assert beat_of(postgres_database, held.id) == before
                then = beat_of(postgres_database, other.id)
                await beats(postgres_database, held.id)
                assert beat_of(postgres_database, other.id) == then

    asyncio.run(main())


def test_two_runners_never_both_act_for_one_job(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as first, a_runner(database) as second:
                job = a_job()
                external_id, first_end = await watched(first, outside, job)
                second_end = take_over(second, job)
                with pytest.raises(ClaimLost, match="taken over by runner"):
                    await within(first_end)
                outside.succeed(external_id)
                assert await within(second_end) is JobState.SUCCESS
        assert look(database, job.id, "runner_id", "claims") == (second.owner.runner_id, 2)
        assert outside.calls["submit"] == 1

    asyncio.run(main())


# --- progress ------------------------------------------------------------------------------------


class ElsewhereJob(MemoryMonitorJob):
    """A job of another connection."""

    backend_kind: ClassVar[str] = "elsewhere"


class Stuck(MemoryBackend):
    """Its calls, once told so, neither end nor heed that they are cancelled."""

    def __init__(self, call: str) -> None:
        super().__init__(patience=Patience(call_s=0.2))
        self.call, self.is_stuck = call, False
        self.free = asyncio.Event()

    async def _hang(self, call: str) -> None:
        while self.is_stuck and call == self.call and not self.free.is_set():
            try:
                await self.free.wait()
            except asyncio.CancelledError:
                continue

    async def fetch(self, ids: Any) -> Any:
        await self._hang("fetch")
        return await super().fetch(ids)

    async def submit(self, spec: Any, token: str) -> str:
        await self._hang("submit")
        return await super().submit(spec, token)


@pytest.mark.parametrize("call", ["fetch", "submit"])
def test_a_call_that_never_ends_is_given_up_and_keeps_no_job_from_its_beats(
    sqlite_database: Database, call: str
) -> None:
    said = {"fetch": "status unreadable", "submit": "submission in doubt"}[call]

    async def main() -> None:
        stuck, outside = Stuck(call), an_outside()
        async with a_runner(sqlite_database) as runner:
            with use_backend(outside):
                well = ElsewhereJob(heartrate=0.2, poll_interval=0.05)
                start(runner, well)
                await soon(lambda: runner.jobs[well.id].way is not None)
            with use_backend(stuck):
                job = a_job(heartrate=0.2)
                stuck.is_stuck = call == "submit"
                start(runner, job)
                await soon(lambda: runner.jobs[job.id].way is not None)
            if call == "fetch":
                await soon(lambda: row_of(sqlite_database, job.id)["external_state"] == "RUNNING")
                stuck.is_stuck = True
            await soon(lambda: said in (row_of(sqlite_database, job.id)["message"] or ""))
            for _ in range(2):
                await beats(sqlite_database, well.id)
                await beats(sqlite_database, job.id)
            stuck.free.set()
            await soon(lambda: row_of(sqlite_database, job.id)["external_state"] == "RUNNING")

    asyncio.run(main())


def test_an_event_loop_that_hangs_falls_silent(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.poller.SLACK_S", 0.3)

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(heartrate=0.2)
                await watched(runner, outside, job)
                time.sleep(1.2)  # noqa: ASYNC251  # this is the hanging
                before = beat_of(sqlite_database, job.id)
                time.sleep(0.8)  # noqa: ASYNC251
                assert beat_of(sqlite_database, job.id) == before
                await beats(sqlite_database, job.id)

    asyncio.run(main())


def test_an_outage_of_the_backend_silences_nobody(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(patience=Patience(call_s=0.3))
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(heartrate=0.2)
                external_id, end = await watched(runner, outside, job)
                faults = [outside.order(Fault.ERROR, times=None)]
                for _ in range(5):
                    await beats(sqlite_database, job.id, 1.0)
                faults[0].stop()
                faults = [outside.order(Fault.TIMEOUT, times=None)]
                for _ in range(5):
                    await beats(sqlite_database, job.id, 1.0)
                faults[0].stop()
                outside.succeed(external_id)
                assert await within(end) is JobState.SUCCESS

    asyncio.run(main())


def test_an_interval_longer_than_the_grace_silences_nobody(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(heartrate=0.1, poll_interval=30)
                await watched(runner, outside, job)
                for _ in range(6):
                    await beats(sqlite_database, job.id, 1.0)

    asyncio.run(main())


# --- the database is away ------------------------------------------------------------------------


def heartbeat_words(caplog: pytest.LogCaptureFixture) -> list[str]:
    words = [record.getMessage() for record in caplog.records if "heartbeat" in record.getMessage()]
    return [" ".join(each.split()[:2]) for each in words]


def test_a_postgresql_that_is_away_costs_a_job_nothing_and_is_told_once(
    postgres: Postgres, postgres_database: Database, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy(postgres.socket_dir) as proxy:
        name = make_url(postgres_url).database or ""
        configure(database_url=postgres.url(name, proxy.socket_dir), connect_timeout_s=2, call_timeout_s=2)
        database = Database(configure())

        async def main() -> None:
            outside = an_outside()
            with use_backend(outside):
                async with Runner(database, an_owner()) as runner:
                    job = a_job(heartrate=0.2)
                    external_id, end = await watched(runner, outside, job)
                    caplog.clear()
                    proxy.is_refusing = True
                    proxy.cut()
                    await asyncio.sleep(1.0)
                    outside.succeed(external_id)
                    await asyncio.sleep(0.5)
                    assert not end.done()
                    proxy.is_refusing = False
                    assert await within(end) is JobState.SUCCESS
            assert row_of(postgres_database, job.id)["state"] is JobState.SUCCESS

        asyncio.run(main())
        database.dispose()
    assert heartbeat_words(caplog).count("heartbeat failing") == 1
    assert len([each for each in caplog.records if "does not take it yet" in each.getMessage()]) <= 2


def test_a_postgresql_that_cut_every_connection_is_used_again(
    postgres: Postgres, postgres_database: Database, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(postgres_database) as runner:
                job = a_job(heartrate=0.2)
                external_id, end = await watched(runner, outside, job)
                for _ in range(3):
                    postgres.admin(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                        make_url(postgres_url).database or "",
                    )
                    await beats(postgres_database, job.id)
                outside.succeed(external_id)
                assert await within(end) is JobState.SUCCESS

    asyncio.run(main())
    assert row_of(postgres_database, 1)["state"] is JobState.SUCCESS


def test_a_sqlite_file_that_another_program_holds_locked_costs_a_job_nothing(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(configure(database_url=sqlite_url, sqlite_busy_timeout_s=0.2))

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with Runner(database, an_owner()) as runner:
                job = a_job(heartrate=0.2)
                external_id, end = await watched(runner, outside, job)
                caplog.clear()
                with closing(plain_connection(sqlite_url)) as connection:
                    connection.execute("BEGIN EXCLUSIVE")
                    await asyncio.sleep(0.7)
                    outside.succeed(external_id)
                    await asyncio.sleep(0.7)
                    assert not end.done()
                    connection.execute("ROLLBACK")
                assert await within(end) is JobState.SUCCESS

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert row_of(database, 1)["state"] is JobState.SUCCESS
    database.dispose()
    assert heartbeat_words(caplog).count("heartbeat failing") == 1


def test_a_round_of_beats_that_goes_wrong_by_a_bug_is_told_and_followed_by_the_next(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failed = Beater.beat, threading.Event()

    def beat(self: Any, *arguments: Any, **options: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError
        return real(self, *arguments, **options)

    async def main() -> None:
        monkeypatch.setattr("jobrunner.beats._CRASH_PAUSE_S", 0.05)
        monkeypatch.setattr(Beater, "beat", beat)
        outside = an_outside(Plan())
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(heartrate=0.2)
                await watched(runner, outside, job)
                await soon(failed.is_set)
                await beats(sqlite_database, job.id)

    asyncio.run(main())
    assert "a round of beats went wrong" in caplog.text
