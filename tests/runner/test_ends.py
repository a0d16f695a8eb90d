"""Ends that come together are written together, and count as their runner's until they are written."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from jobrunner import statements
from jobrunner.backends.base import Observation
from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.errors import ClaimLost, DatabaseError, DatabaseUnavailable
from jobrunner.outcome import Ending, write_ends
from jobrunner.owned import KILL
from jobrunner.runner import Runner
from jobrunner.statements import Attempt, End
from jobrunner.states import JobState, Phase
from jobrunner.testing import MemoryBackend, use_backend
from tests.helpers import (
    a_running_job,
    begin_cancel,
    events_of,
    insert_job,
    plain_sql,
    row_of,
    rows_held,
    statements_of,
)
from tests.runner.gates import Gate
from tests.runner.support import (
    SOON,
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
from tests.runner.test_showing import attach_all

EndMany = Callable[..., list[int]]


async def all_watched(
    runner: Runner, outside: MemoryBackend, count: int, **options: Any
) -> tuple[list[Any], list[asyncio.Future[JobState]]]:
    """Start jobs for work that is there already, and wait until all were seen to run."""
    jobs = attach_all(outside, count, **options)
    ends = [start(runner, job) for job in jobs]
    await soon(lambda: all(owned.shown is not None for owned in runner.jobs.values()))
    return jobs, ends


def beats_of(database: Database) -> dict[int, Any]:
    with database.read() as connection:
        query = "SELECT id, latest_heartbeat FROM job"
        return dict(map(tuple, connection.exec_driver_sql(query).all()))


async def beaten_again(database: Database) -> None:
    """Wait until all jobs have been beaten for once more."""
    before = beats_of(database)
    await soon(lambda: all(at > before[job_id] for job_id, at in beats_of(database).items()))


def test_jobs_that_end_together_are_beaten_for_until_their_ends_are_written_and_take_few_statements(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        outside = an_outside(bulk_limit=1000)
        bulks = bulks_of(monkeypatch, "end_many")
        with use_backend(outside):
            async with a_runner(database) as runner:
                jobs, ends = await all_watched(runner, outside, 100, heartrate=0.2)
                gate = Gate(runner, "write_ends")
                for external_id in outside.jobs:
                    outside.succeed(external_id)
                await soon(lambda: all(owned.is_ending for owned in runner.jobs.values()))
                assert len(runner.jobs) == 100, "a sweep of this process passes them over"
                for _ in range(4):  # for longer than the grace of 2.1 heartrates
                    await beaten_again(database)
                gate.open()
                assert {await within(end) for end in ends} == {JobState.SUCCESS}
        assert sum(bulks) == len(jobs)
        assert len(bulks) <= 3, "what came while the first write was under way is one statement"
        assert {row_of(database, job.id)["claims"] for job in jobs} == {1}

    asyncio.run(main())


def test_a_beat_that_finds_the_end_written_leaves_the_outcome_to_that_write(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                (job,), (end,) = await all_watched(runner, outside, 1, heartrate=0.1)
                gate = Gate(runner, "write_ends", holds_answer=True)
                lost: list[str] = []
                real = runner._on_lost

                def on_lost(owned: Any, why: str) -> None:
                    lost.append(why)
                    real(owned, why)

                runner._on_lost = on_lost  # type: ignore[method-assign]
                outside.succeed(job.external_id)
                await soon(lambda: lost)
                assert not end.done()
                gate.open()
                assert await within(end) is JobState.SUCCESS

    asyncio.run(main())


def test_one_that_was_taken_over_is_lost_alone(database: Database, database_url: str) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                jobs, ends = await all_watched(runner, outside, 5)
                gate = Gate(runner, "write_ends")
                for external_id in outside.jobs:
                    outside.fail(external_id)
                await gate.arrived()
                plain_sql(
                    database_url, f"UPDATE job SET runner_id = 'another', claims = 2 WHERE id = {jobs[3].id}"
                )
                gate.open()
                with pytest.raises(
                    ClaimLost, match=r"taken over by runner another\. Its outcome here, failed"
                ):
                    await within(ends.pop(3))
                assert {await within(end) for end in ends} == {JobState.FAILED}
        assert look(database, jobs[3].id, "state", "message") == (JobState.RUNNING, "RUNNING")

    asyncio.run(main())


def test_one_that_this_runner_claimed_again_meanwhile_ends_under_its_later_claim(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                (job,), (end,) = await all_watched(runner, outside, 1)
                gate = Gate(runner, "write_ends")
                outside.succeed(job.external_id)
                await gate.arrived()
                again = take_over(runner, job)
                gate.open()
                with pytest.raises(ClaimLost, match="claimed again by this runner"):
                    await within(end)
                assert await within(again) is JobState.SUCCESS
        assert look(database, job.id, "claims") == (2,)

    asyncio.run(main())


def test_a_row_that_somebody_holds_ends_later_and_keeps_back_no_other(
    postgres_database: Database, postgres_url: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(postgres_database) as runner:
                jobs, ends = await all_watched(runner, outside, 5)
                with rows_held(postgres_url, [jobs[0].id]) as let_go:
                    for external_id in outside.jobs:
                        outside.succeed(external_id)
                    assert {await within(end) for end in ends[1:]} == {JobState.SUCCESS}
                    assert not ends[0].done()
                    let_go()
                assert await within(ends[0]) is JobState.SUCCESS

    asyncio.run(main())


def test_an_end_that_the_database_refuses_is_told_without_what_the_outside_said(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def instead(real: EndMany) -> EndMany:
        def end_many(connection: Any, runner_id: str, ends: Sequence[End]) -> list[int]:
            if any("poison" in each.message for each in ends):
                raise DatabaseError("this it never takes")
            return real(connection, runner_id, ends)

        return end_many

    async def main() -> None:
        outside = an_outside()
        bulks_of(monkeypatch, "end_many", instead)
        with use_backend(outside):
            async with a_runner(database) as runner:
                jobs, ends = await all_watched(runner, outside, 8)
                for number, external_id in enumerate(outside.jobs):
                    outside.succeed(external_id, "poison" if number == 5 else "well")
                assert {await within(end) for end in ends} == {JobState.SUCCESS}
        messages = [row_of(database, job.id)["message"] for job in jobs]
        assert messages.pop(5) == "success; what the outside said of it could not be stored"
        assert set(messages) == {"well"}
        assert caplog.text.count("an end was refused as it was seen") == 1

    asyncio.run(main())


def test_a_burst_whose_answer_was_lost_is_found_written(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []

    def instead(real: EndMany) -> EndMany:
        def end_many(connection: Any, runner_id: str, ends: Sequence[End]) -> list[int]:
            written = real(connection, runner_id, ends)
            if not lost and len(ends) > 1:
                lost.extend(written)
                if connection.in_transaction():
                    connection.commit()
                raise DatabaseUnavailable("the connection broke before the answer came")
            return written

        return end_many

    async def main() -> None:
        outside = an_outside()
        bulks_of(monkeypatch, "end_many", instead)
        with use_backend(outside):
            async with a_runner(database) as runner:
                jobs, ends = await all_watched(runner, outside, 10)
                gate = Gate(runner, "write_ends")
                for external_id in outside.jobs:
                    outside.fail(external_id)
                await soon(lambda: all(owned.is_ending for owned in runner.jobs.values()))
                gate.open()
                assert {await within(end) for end in ends} == {JobState.FAILED}
        assert lost
        for job in jobs:
            assert events_of(database_url, job.id) == [(None, "running"), ("running", "failed")]

    asyncio.run(main())


def test_ends_wait_for_a_database_that_is_away_and_that_is_said_once(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = threading.Event()

    async def main() -> None:
        outside = an_outside()
        bulks = bulks_of(monkeypatch, "end_many", while_set(away, DatabaseUnavailable("away")))
        away.set()
        with use_backend(outside):
            async with a_runner(database) as runner:
                _, ends = await all_watched(runner, outside, 10)
                for external_id in outside.jobs:
                    outside.succeed(external_id)
                await soon(lambda: len(bulks) >= 4)
                away.clear()
                assert {await within(end) for end in ends} == {JobState.SUCCESS}
        assert caplog.text.count("ends cannot be written yet") == 1

    asyncio.run(main())


# --- one statement ---------------------------------------------------------------------------------


def test_many_ends_and_their_events_are_written_together(database: Database, database_url: str) -> None:
    claim, owner = a_running_job(database, external_id="ext-0")
    ids = [claim.job_id] + [insert_job(database, owner, external_id=f"ext-{n}") for n in range(1, 4)]
    states = [JobState.SUCCESS, JobState.FAILED, JobState.KILLED, JobState.LOST]
    ends = [
        End(each, 1, f"ext-{n}", state, f"end {n}\0", None, "DONE", {"n": n, "odd": "\ud800"})
        for n, (each, state) in enumerate(zip(ids, states, strict=True))
    ]
    with database.write() as connection, statements_of(database) as sent:
        assert sorted(statements.end_many(connection, owner.runner_id, ends)) == ids
    assert len([each for each in sent if "job" in each]) == (2 if database.is_sqlite else 1)
    for number, (job_id, state) in enumerate(zip(ids, states, strict=True)):
        row = row_of(database, job_id)
        assert (row["state"], row["external_state"], row["detail"]["n"]) == (state, "DONE", number)
        assert row["end_date"] is not None
        assert events_of(database_url, job_id)[-1] == ("running", str(state))
        query = f"SELECT reason FROM job_event WHERE job_id = {job_id} ORDER BY id DESC LIMIT 1"
        assert plain_sql(database_url, query) == [(row["message"],)]


@pytest.mark.parametrize(
    "other",
    [{"claims": 2}, {"external_id": "ext-0"}, {"external_id": None}, {"cause": ""}, {"cause": "deadline"}],
    ids=str,
)
def test_an_end_that_does_not_fit_its_row_is_not_written(database: Database, other: dict[str, Any]) -> None:
    claim, _ = a_running_job(database, submit_token="token", external_id="ext-1")
    end = End(claim.job_id, 1, "ext-1", JobState.KILLED, "killed", KILL)
    with database.write() as connection:
        begin_cancel(connection, claim, Attempt("token", "ext-1"), KILL)
    with database.write() as connection:
        assert statements.end_many(connection, "another", [end]) == []
        assert statements.end_many(connection, claim.runner_id, [end._replace(**other)]) == []
        assert statements.end_many(connection, claim.runner_id, [end]) == [claim.job_id]


def test_an_end_that_was_judged_before_a_kill_was_recorded_is_judged_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, _ = a_running_job(database, submit_token="token", external_id="ext-1")
    ending = Ending(claim, "ext-1", Observation(Phase.CANCELLED, "CANCELLED"))
    real = statements.end_many

    def end_many(connection: Any, runner_id: str, ends: Sequence[End]) -> list[int]:
        monkeypatch.setattr(statements, "end_many", real)
        statements.request_kill(connection, claim.job_id, "anna", None)
        begin_cancel(connection, claim, Attempt("token", "ext-1"), KILL)
        return real(connection, runner_id, ends)

    monkeypatch.setattr(statements, "end_many", end_many)
    with database.write() as connection:
        assert write_ends(connection, claim.runner_id, [ending]) == {claim.job_id: None}
    with database.write() as connection:
        assert write_ends(connection, claim.runner_id, [ending]) == {claim.job_id: JobState.KILLED}
    assert look(database, claim.job_id, "message") == ("killed by anna (CANCELLED)",)


# --- waiting is not being stuck ----------------------------------------------------------------------


def test_a_job_that_waits_its_turn_at_the_database_is_beaten_for_however_long_that_takes(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    real = statements.begin_submit

    def begin_submit(*arguments: Any) -> Any:
        go.wait(30)
        return real(*arguments)

    async def main() -> None:
        monkeypatch.setattr(statements, "begin_submit", begin_submit)
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(postgres_database) as runner:
                ends = [start(runner, a_job(heartrate=0.2)) for _ in range(12)]
                await soon(lambda: all(owned.attempt for owned in runner.jobs.values()))
                for owned in runner.jobs.values():
                    owned.progress_by_s = 0.0  # as after many who were there before
                for _ in range(3):
                    await beaten_again(postgres_database)
                go.set()
                await soon(lambda: len(outside.jobs) == len(ends))
                for external_id in list(outside.jobs):
                    outside.succeed(external_id)
                assert {await within(end) for end in ends} == {JobState.SUCCESS}

    asyncio.run(main())


def test_a_job_whose_write_is_tried_again_after_an_outage_is_beaten_for_however_long_that_takes(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_away = True
    tries: list[int] = []
    real = statements.begin_submit

    def begin_submit(*arguments: Any) -> Any:
        tries.append(1)
        if is_away:
            raise DatabaseUnavailable("the database is away")
        return real(*arguments)

    async def main() -> None:
        nonlocal is_away
        monkeypatch.setattr(statements, "begin_submit", begin_submit)
        outside = an_outside(SOON)
        with use_backend(outside):
            async with a_runner(database) as runner:
                end = start(runner, a_job(heartrate=0.2))
                (owned,) = runner.jobs.values()
                await soon(lambda: tries)
                owned.progress_by_s = 0.0  # as after an outage that was longer than its step may take
                for _ in range(3):
                    await beaten_again(database)
                is_away = False
                assert await within(end) is JobState.SUCCESS

    asyncio.run(main())


def test_waits_at_the_same_time_count_once(database: Database) -> None:
    async def main() -> None:
        with use_backend(outside := an_outside()):
            async with a_runner(database) as runner:
                await all_watched(runner, outside, 1)
                (owned,) = runner.jobs.values()
                owned.progress_by_s, begun_s = 0.0, monotonic_s()
                with owned.waiting(), owned.waiting():
                    await asyncio.sleep(0.1)
                assert 0.1 <= owned.progress_by_s <= monotonic_s() - begun_s

    asyncio.run(main())


def test_a_burst_of_kills_silences_nobody_and_each_is_carried_out(database: Database) -> None:
    async def main() -> None:
        outside = an_outside(bulk_limit=1000)
        with use_backend(outside):
            async with a_runner(database) as runner:
                jobs, ends = await all_watched(runner, outside, 200, heartrate=1.0)
                with database.write() as connection:
                    connection.exec_driver_sql("UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP")
                assert {await within(end, 60) for end in ends} == {JobState.KILLED}
        assert {row_of(database, job.id)["claims"] for job in jobs} == {1}
        assert outside.calls["cancel"] < len(jobs)

    asyncio.run(main())
