"""Rows that somebody holds locked keep back nothing of any other job: no kill, no end, no submission."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Connection

from jobrunner import retry as retry_module
from jobrunner import runner as runner_module
from jobrunner import statements
from jobrunner.database import Database
from jobrunner.driver_errors import is_held
from jobrunner.errors import DatabaseError, DatabaseRefused, DatabaseUnavailable
from jobrunner.log_limits import Seldom
from jobrunner.retry import until_taken
from jobrunner.runner import Runner
from jobrunner.statements import Cancel, Claim
from jobrunner.states import JobState, Phase
from jobrunner.testing import Fault, MemoryBackend, MemoryMonitorJob, use_backend
from tests.helpers import a_running_job, plain_sql, row_of, rows_held
from tests.runner.gates import Gate
from tests.runner.support import a_job, a_runner, an_outside, bulks_of, look, soon, start, within
from tests.runner.test_runner import watched

MANY = 40
"""Rows: each that is waited for takes one of a runner's four threads for five seconds."""
SOON_S = 20.0
"""Less than half of what waiting for all of them would take."""
TOKEN = "token"


async def lives_and_is_killed(runner: Runner, outside: MemoryBackend) -> None:
    """Have a job submitted, killed and ended by a runner, while others cannot be written."""
    job = a_job()
    end = start(runner, job)
    await soon(lambda: row_of(runner.database, job.id)["external_state"] == "RUNNING", SOON_S)
    await asyncio.to_thread(job.request_kill)
    assert await within(end, SOON_S) is JobState.KILLED


def started(runner: Runner, **options: Any) -> list[MemoryMonitorJob]:
    jobs = [a_job(**options) for _ in range(MANY)]
    for job in jobs:
        start(runner, job)
    return jobs


async def until_all_watched(runner: Runner) -> None:
    await soon(lambda: all(owned.is_watched and owned.shown for owned in runner.jobs.values()))


def test_jobs_that_are_held_as_their_time_is_over_delay_no_kill_and_end_when_they_are_free(
    postgres_database: Database, postgres_url: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(postgres_database) as runner:
                jobs = started(runner, timeout=3600)
                await until_all_watched(runner)
                with rows_held(postgres_url, [job.id for job in jobs]) as let_go:
                    for job in jobs:
                        runner.jobs[job.id].deadline_s = 0.0
                        runner.cancelling.heed(runner.jobs[job.id])
                    await lives_and_is_killed(runner, outside)
                    assert not any(work.cancel_reasons for work in list(outside.jobs.values())[:MANY])
                    let_go()
                await soon(lambda: not runner.jobs)
        assert {look(postgres_database, job.id, "state", "cancel_cause") for job in jobs} == {
            (JobState.FAILED, "deadline")
        }

    asyncio.run(main())


@asynccontextmanager
async def at_their_write(
    runner: Runner, outside: MemoryBackend, write: str, url: str
) -> AsyncIterator[Callable[[], None]]:
    """Bring many jobs to one and the same write, and hold their rows as it is sent."""
    if write == "resubmit":
        jobs = started(runner, resubmit={"preempted": 1})
        await until_all_watched(runner)
        gate = Gate(runner, write)
        for external_id in list(outside.jobs):
            outside.advance(external_id, Phase.FAILED, "taken away", cause="preempted")
    else:
        gate = Gate(runner, write)
        if write == "say_unsubmitted":
            outside.order(Fault.THROTTLE, call="submit", times=MANY)
        elif write == "renew_token":
            outside.order(Fault.NOT_MADE, call="submit", times=MANY)
        jobs = started(runner)
    await soon(lambda: gate.calls >= MANY)
    with rows_held(url, [job.id for job in jobs]) as let_go:
        gate.open()
        yield let_go


@pytest.mark.parametrize(
    "write", ["_begin", "record_submitted", "say_unsubmitted", "renew_token", "resubmit"]
)
def test_jobs_that_are_held_at_one_of_their_writes_delay_no_other_and_go_on_when_they_are_free(
    postgres_database: Database, postgres_url: str, write: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        outside.submissions_at_once = MANY + 1  # type: ignore[attr-defined]  # a backend may have it
        with use_backend(outside):
            async with a_runner(postgres_database) as runner:
                async with at_their_write(runner, outside, write, postgres_url) as let_go:
                    await lives_and_is_killed(runner, outside)
                    assert len(runner.jobs) == MANY
                    let_go()
                await until_all_watched(runner)

    asyncio.run(main())


# --- cancellations in bulk --------------------------------------------------------------------------


def test_jobs_that_are_killed_together_take_few_statements(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                jobs = started(runner)
                await until_all_watched(runner)
                bulks = bulks_of(monkeypatch, "begin_cancel_many")
                gate = Gate(runner, "write_cancels")
                plain_sql(database_url, "UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP")
                await soon(lambda: all(owned.cancellation.is_begun for owned in runner.jobs.values()))
                gate.open()
                await soon(lambda: not runner.jobs)
        assert sum(bulks) == MANY
        assert len(bulks) <= 3, "what came while the first write was under way is one statement"
        assert {look(database, job.id, "state", "cancel_cause") for job in jobs} == {
            (JobState.KILLED, "kill")
        }

    asyncio.run(main())


def refusing(job_id: int, error: Exception, until_set: threading.Event) -> Any:
    """Return what refuses the cancellations of one job in place of the statement."""

    def instead(real: Callable[..., Any]) -> Callable[..., Any]:
        def begin_cancel_many(connection: Connection, runner_id: str, cancels: Sequence[Cancel]) -> Any:
            if not until_set.is_set() and any(each.job_id == job_id for each in cancels):
                raise error
            return real(connection, runner_id, cancels)

        return begin_cancel_many

    return instead


@pytest.mark.parametrize("is_for_good", [False, True])
def test_a_cancellation_that_is_refused_fails_alone(
    database: Database,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    is_for_good: bool,
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                jobs = [a_job() for _ in range(8)]
                ends = [start(runner, job) for job in jobs]
                await until_all_watched(runner)
                error = (DatabaseRefused if is_for_good else DatabaseError)("this it does not take")
                taken = threading.Event()
                bulks_of(monkeypatch, "begin_cancel_many", refusing(jobs[5].id, error, taken))
                plain_sql(database_url, "UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP")
                odd = ends.pop(5)
                assert {await within(end) for end in ends} == {JobState.KILLED}
                if is_for_good:
                    assert await within(odd) is JobState.FAILED
                    return
                await soon(lambda: "a cancellation is refused: trying it again" in caplog.text)
                assert not odd.done()
                taken.set()
                assert await within(odd) is JobState.KILLED

    asyncio.run(main())


# --- giving back ------------------------------------------------------------------------------------


def test_a_job_that_is_held_as_its_runner_stops_is_given_back_when_it_is_free_and_the_others_at_once(
    postgres_database: Database, postgres_url: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(postgres_database) as runner:
                jobs = [a_job(heartrate=30.0) for _ in range(3)]
                for job in jobs:
                    await watched(runner, outside, job)
                with rows_held(postgres_url, [jobs[0].id]) as let_go:
                    stopping = asyncio.create_task(runner.stop())
                    for job in jobs[1:]:
                        await soon(lambda job=job: look(postgres_database, job.id, "state") == ("queued",))  # type: ignore[misc]
                    assert not stopping.done()
                    let_go()
                await stopping
        assert look(postgres_database, jobs[0].id, "state", "runner_id") == (JobState.QUEUED, None)

    asyncio.run(main())


def test_a_job_that_stays_held_as_its_runner_stops_is_left_to_others_which_is_said(
    postgres_database: Database,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(runner_module, "STOP_S", 0.3)
    monkeypatch.setattr(runner_module, "_LEAST_S", 0.3)

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(postgres_database) as runner:
                job = a_job(heartrate=30.0)
                await watched(runner, outside, job)
                with rows_held(postgres_url, [job.id]):
                    await runner.stop()
        assert look(postgres_database, job.id, "state") == (JobState.RUNNING,)

    asyncio.run(main())
    assert "not released: others will find them silent" in caplog.text


# --- one row, promptly ------------------------------------------------------------------------------


ONE_ROW: dict[str, Callable[[Connection, Claim], object]] = {
    "end": lambda conn, claim: statements.end(conn, claim, JobState.SUCCESS, "done"),
    "release": lambda conn, claim: statements.release(conn, claim, "told to stop"),
    "confirm": statements.confirm,
    "tell": lambda conn, claim: statements.tell(conn, claim, "words", {}),
    "begin_submit": lambda conn, claim: statements.begin_submit(conn, claim, TOKEN, "this host"),
    "say_unsubmitted": lambda conn, claim: statements.say_unsubmitted(conn, claim, "not yet"),
    "renew_token": lambda conn, claim: statements.renew_token(conn, claim, TOKEN, "another"),
    "record_submitted": lambda conn, claim: statements.record_submitted(conn, claim.job_id, TOKEN, "ext-1"),
    "resubmit": lambda conn, claim: statements.resubmit(conn, claim, TOKEN, "another", "ext-1", {}, "again"),
}


@pytest.mark.parametrize("write", ONE_ROW)
def test_a_prompt_write_of_a_row_that_is_held_fails_at_once_and_else_does_what_it_does(
    postgres_database: Database, postgres_url: str, write: str
) -> None:
    external_id = "ext-1" if write == "resubmit" else None
    claim, _ = a_running_job(postgres_database, submit_token=TOKEN, external_id=external_id, adoptable=False)
    before = row_of(postgres_database, claim.job_id)

    def do(claim: Claim) -> object:
        with postgres_database.write() as connection:
            connection.exec_driver_sql("SET lock_timeout = 0")  # it would wait for ever
            return ONE_ROW[write](statements.promptly(connection), claim)

    with rows_held(postgres_url, [claim.job_id]), pytest.raises(DatabaseUnavailable) as trouble:
        do(claim)
    assert is_held(trouble.value)
    if write != "record_submitted":  # it is for whoever holds the claim
        assert not do(Claim(claim.job_id, claim.runner_id, 7))
    assert row_of(postgres_database, claim.job_id) == before
    assert do(claim)
    assert row_of(postgres_database, claim.job_id) != before


@pytest.mark.parametrize("is_long", [False, True])
def test_that_a_row_is_held_is_said_once_it_lasts(
    postgres_database: Database,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    is_long: bool,
) -> None:
    claim, _ = a_running_job(postgres_database)
    tries = 0
    if is_long:
        monkeypatch.setattr(retry_module, "_HELD_SAID_S", 0.0)

    async def main() -> None:
        async def write() -> bool:
            nonlocal tries
            tries += 1
            with postgres_database.write() as connection:
                return statements.confirm(statements.promptly(connection), claim)

        with rows_held(postgres_url, [claim.job_id]) as let_go:
            written = asyncio.create_task(until_taken(write, "confirm", 5.0, Seldom()))
            await soon(lambda: tries >= 4)
            let_go()
            assert await written

    asyncio.run(main())
    assert caplog.text.count("the database does not take it yet") == is_long
