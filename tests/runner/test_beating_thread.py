"""The thread that beats waits for nothing but the beat, and nothing ends it for long."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import make_url

from jobrunner import beats as module
from jobrunner.beats import Beats
from jobrunner.database import Database, get_database
from jobrunner.errors import ClaimLost, DatabaseUnavailable
from jobrunner.heartbeat import Beater
from jobrunner.settings import configure
from jobrunner.states import JobState
from jobrunner.testing import use_backend
from tests.helpers import CodeJob, Run, a_running_job, beat_for_ever, plain_sql, row_of, until
from tests.postgres import Postgres
from tests.proxy import TcpProxy
from tests.runner.support import a_job, a_runner, an_outside, soon, within
from tests.runner.test_beats import beats
from tests.runner.test_runner import watched

KILL = "UPDATE job SET kill_requested_at = '2026-03-01 12:00:00'"
CUT_IDLE = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() "
    "AND application_name <> 'jobrunner listen' AND pid <> pg_backend_pid()"
)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While the event is set, whoever opens an ear hangs in the resolver."""
    hangs, free = threading.Event(), threading.Event()

    def resolve(self: Any, host: str, timeout_s: float) -> tuple[str, ...]:
        if hangs.is_set():
            free.wait()
        return ("127.0.0.1",)

    monkeypatch.setattr("jobrunner.resolver.Resolver.addresses", resolve)
    yield hangs
    free.set()


WRONG = {
    "several hosts that are not there": "postgresql://postgres@127.0.0.1:1,127.0.0.1:2/postgres",
    "a name that IDNA cannot encode": "postgresql://postgres@a..b/postgres",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_listen_url_that_cannot_be_used_stops_neither_beats_nor_kills(
    postgres_url: str, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    configure(database_url=postgres_url, listen_url=WRONG[what])
    database = get_database()

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(heartrate=0.5)
                _, end = await watched(runner, outside, job)
                await beats(database, job.id)
                await beats(database, job.id)
                plain_sql(postgres_url, KILL)
                assert await within(end) is JobState.KILLED

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert caplog.text.count("kill hints are not heard") == 1
    assert "Traceback" not in caplog.text


def test_own_code_runs_to_its_end_whatever_its_listen_url_is(postgres_url: str) -> None:
    configure(database_url=postgres_url, listen_url=WRONG["a name that IDNA cannot encode"])

    def code(job: CodeJob) -> None:
        for _ in range(3):
            job.heartbeat()

    job = CodeJob(code, heartrate=0.1)
    job.run()
    assert job.state is JobState.SUCCESS


class _Exit(BaseException):
    """What no library should raise, and some do."""


@pytest.mark.parametrize("error", [SystemExit(3), _Exit(), RuntimeError("from a driver")])
def test_whatever_an_ear_raises_the_beats_go_on(
    database: Database, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_args: object) -> None:
        raise error

    monkeypatch.setattr("jobrunner.hints.make_ear", fail)

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(heartrate=0.3)
                _, end = await watched(runner, outside, job)
                await beats(database, job.id)
                job.request_kill()
                assert await within(end) is JobState.KILLED

    asyncio.run(main())


def test_beats_and_kills_go_on_while_listening_hangs_in_the_resolver(
    postgres: Postgres, postgres_url: str, hanging: threading.Event
) -> None:
    with TcpProxy(postgres.socket_dir) as proxy:
        name = make_url(postgres_url).database
        configure(database_url=postgres_url, listen_url=f"postgresql://postgres@db.test:{proxy.port}/{name}")
        database = get_database()

        async def main() -> None:
            outside = an_outside()
            with use_backend(outside):
                async with a_runner(database) as runner:
                    job = a_job(heartrate=0.3)
                    _, end = await watched(runner, outside, job)
                    await soon(lambda: runner.beats._hints._listener and runner.beats._hints._listener.hears)
                    hanging.set()
                    proxy.cut()
                    for _ in range(5):
                        await beats(database, job.id)
                    plain_sql(postgres_url, KILL)
                    assert await within(end) is JobState.KILLED

        asyncio.run(main())


# --- a held connection that was ended ---------------------------------------------------------------


def test_a_held_connection_that_was_ended_while_idle_is_replaced_at_once(
    postgres_database: Database, postgres_url: str
) -> None:
    claim, owner = a_running_job(postgres_database)
    with closing(Beater(postgres_database, owner.runner_id, 5.0)) as beater:
        assert beater.beat([claim.job_id])
        for ask in (lambda: beater.beat([claim.job_id]), beater.flagged, lambda: beater.look([claim.job_id])):
            plain_sql(postgres_url, CUT_IDLE)
            ask()


def test_a_kill_does_not_wait_for_the_beat_where_the_held_connection_was_ended(
    postgres_database: Database, postgres_url: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(postgres_database) as runner:
                job = a_job(heartrate=600)
                _, end = await watched(runner, outside, job)
                await soon(lambda: runner.beats._beater._connection is not None)
                plain_sql(postgres_url, CUT_IDLE)
                plain_sql(postgres_url, KILL)
                assert await within(end) is JobState.KILLED

    asyncio.run(main())


@pytest.mark.usefixtures("postgres_database")
def test_a_kill_of_own_code_does_not_wait_for_the_beat_where_its_connection_was_ended(
    postgres_url: str,
) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=600)) as run:
        until(lambda: run.job._own is not None and run.job._own._beater._connection is not None)
        plain_sql(postgres_url, CUT_IDLE)
        plain_sql(postgres_url, KILL)
        run.join()
    assert run.job.state is JobState.KILLED


def test_a_question_for_kills_that_fails_is_asked_again_before_the_next_beat(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = Beater.flagged

    def fail_at_first(self: Beater) -> list[int]:
        asked.append(1)
        if fails.is_set():
            raise DatabaseUnavailable("away for a moment")
        return ask(self)

    fails = threading.Event()
    monkeypatch.setattr(Beater, "flagged", fail_at_first)

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(heartrate=600)
                _, end = await watched(runner, outside, job)
                await soon(lambda: asked)
                fails.set()
                asked.clear()
                plain_sql(database_url, KILL)
                await soon(lambda: len(asked) > 1)
                fails.clear()
                assert await within(end) is JobState.KILLED

    asyncio.run(main())


# --- a thread that beats, and ends ------------------------------------------------------------------


def test_what_callbacks_raise_silences_nobody(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:

                def fail(*_args: object) -> None:
                    raise SystemExit("from a callback")

                runner.beats._on_flagged = fail
                job = a_job(heartrate=0.2)
                await watched(runner, outside, job)
                job.request_kill()
                for _ in range(4):
                    await beats(database, job.id)

    asyncio.run(main())
    assert caplog.text.count("what a beat reports was not taken") == 1


def test_a_beating_thread_that_died_is_replaced_by_another(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_CRASH_PAUSE_S", 0.05)
    died = threading.Event()
    go_on = Beats._guarded_round

    def die_once(self: Beats) -> None:
        if not died.is_set():
            died.set()
            raise SystemExit("whatever no guard catches")
        go_on(self)

    monkeypatch.setattr(Beats, "_guarded_round", die_once)

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(heartrate=0.2)
                _, end = await watched(runner, outside, job)
                await beats(database, job.id)
                job.request_kill()
                assert await within(end) is JobState.KILLED

    asyncio.run(main())
    assert died.is_set()
    assert "the thread that beats has ended: another takes its place" in caplog.text


def test_where_no_thread_can_beat_any_more_the_process_lets_its_jobs_go(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_CRASH_PAUSE_S", 0.05)

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(heartrate=0.2)
                external_id, end = await watched(runner, outside, job)
                owned = runner.jobs[job.id]

                def cannot_start() -> None:
                    raise RuntimeError("can't start new thread")

                def die(_self: Beats) -> None:
                    raise SystemExit("whatever no guard catches")

                monkeypatch.setattr(runner.beats, "start", cannot_start)
                monkeypatch.setattr(Beats, "_guarded_round", die)
                with pytest.raises(ClaimLost, match="the thread that beats for it has ended"):
                    await within(end)
                assert runner.beats.is_fenced(owned)
                outside.succeed(external_id)
        assert row_of(database, job.id)["state"] is JobState.RUNNING
        assert outside.calls["cancel"] == 0

    asyncio.run(main())
    assert "this process lets its jobs go" in caplog.text
