"""Work that never starts: cancelled when its time is over, and the row says what it waited for."""

import asyncio
from typing import Any

import pytest

from jobrunner.backends.base import Patience
from jobrunner.database import Database
from jobrunner.errors import UsageError
from jobrunner.states import JobState, Phase
from jobrunner.testing import Fault, MemoryBackend, Plan, use_backend
from tests.helpers import plain_sql, row_of
from tests.runner.support import a_job, a_runner, an_outside, crash, look, soon, start, take_over, within

WAITS = Plan(wait_for_s=None)
TIME_TO_START_S = 2.0
"""Enough, on a busy machine, for what is to happen before the time is over."""


def until_it_waits(outside: MemoryBackend, message: str) -> Any:
    """Let the one job say why it waits, as soon as it is there."""

    async def wait() -> str:
        await soon(lambda: outside.jobs)
        (external_id,) = outside.jobs
        outside.advance(external_id, Phase.WAITING, message)
        return external_id

    return wait()


@pytest.mark.parametrize("wrong", [0, -1, float("inf"), float("nan")])
def test_a_start_timeout_that_leaves_no_time_is_refused(sqlite_database: Database, wrong: float) -> None:
    with pytest.raises(UsageError, match=r"A start timeout of .* s cannot be kept"):
        a_job(start_timeout=wrong)


def test_work_that_does_not_start_is_cancelled_and_the_row_says_what_it_waited_for(
    database: Database,
) -> None:
    async def main() -> None:
        outside = an_outside(WAITS)
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(start_timeout=0.6)
                end = start(runner, job)
                external_id = await until_it_waits(outside, "MISCONFIGURATION: 900 vCPU")
                await soon(lambda: row_of(database, job.id)["message"] == "MISCONFIGURATION: 900 vCPU")
                assert not outside.jobs[external_id].cancel_reasons
                assert await within(end) is JobState.FAILED
        said = "WAITING: MISCONFIGURATION: 900 vCPU"
        assert outside.jobs[external_id].cancel_reasons[0] == f"start_timeout by jobrunner after 0.6s: {said}"
        row = row_of(database, job.id)
        assert (row["cancel_cause"], row["message"]) == (
            "start_timeout",
            f"it did not start within 0.6s: {said}",
        )
        assert (row["end_date"] - row["submit_started_at"]).total_seconds() >= 0.6

    asyncio.run(main())


@pytest.mark.parametrize("is_seen", [True, False], ids=["seen to run", "never looked at while it ran"])
def test_work_that_started_in_time_runs_on(sqlite_database: Database, is_seen: bool) -> None:
    async def main() -> None:
        outside = an_outside(Plan(wait_for_s=0.1), patience=Patience(call_s=5.0, appear_s=60, vanish_s=60))
        gone = outside.order(Fault.ERROR, times=None)
        if is_seen:
            gone.stop()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(start_timeout=TIME_TO_START_S)
                end = start(runner, job)
                await asyncio.sleep(TIME_TO_START_S + 0.4)
                gone.stop()
                await soon(lambda: row_of(sqlite_database, job.id)["external_state"] == "RUNNING")
                (external_id,) = outside.jobs
                outside.succeed(external_id)
                assert await within(end) is JobState.SUCCESS
        assert look(sqlite_database, job.id, "cancel_cause") == (None,)
        assert outside.calls["cancel"] == 0

    asyncio.run(main())


def test_work_that_ran_and_waits_again_has_started(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(WAITS)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(start_timeout=TIME_TO_START_S)
                start(runner, job)
                await soon(lambda: outside.jobs)
                (external_id,) = outside.jobs
                outside.advance(external_id, Phase.RUNNING)
                await soon(lambda: row_of(sqlite_database, job.id)["external_state"] == "RUNNING")
                outside.advance(external_id, Phase.WAITING, "the next attempt")
                await asyncio.sleep(TIME_TO_START_S + 0.4)
                assert look(sqlite_database, job.id, "message", "cancel_cause") == ("the next attempt", None)

    asyncio.run(main())


def test_an_adopter_believes_the_backend_that_waiting_work_has_run_before(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(WAITS)
        with use_backend(outside):
            async with a_runner(sqlite_database) as first:
                job = a_job(start_timeout=TIME_TO_START_S)
                start(first, job)
                await soon(lambda: outside.jobs)
                (external_id,) = outside.jobs
                outside.advance(external_id, Phase.RUNNING)
                await soon(lambda: row_of(sqlite_database, job.id)["external_state"] == "RUNNING")
            outside.advance(external_id, Phase.WAITING, "the next attempt")
            outside.jobs[external_id].has_run = True
            await asyncio.sleep(TIME_TO_START_S + 0.1)
            async with a_runner(sqlite_database) as second:
                take_over(second, job)
                await soon(lambda: row_of(sqlite_database, job.id)["message"] == "the next attempt")
                looks = outside.calls["fetch"]
                await soon(lambda: outside.calls["fetch"] > looks + 2)
                assert look(sqlite_database, job.id, "cancel_cause") == (None,)

    asyncio.run(main())


def test_the_time_to_start_is_not_given_anew_by_a_hand_over(database: Database) -> None:
    async def main() -> None:
        outside = an_outside(WAITS)
        with use_backend(outside):
            async with a_runner(database) as first:
                job = a_job(start_timeout=1.0)
                start(first, job)
                await soon(lambda: row_of(database, job.id)["external_state"] == "WAITING")
            (begun,) = look(database, job.id, "submit_started_at")
            await asyncio.sleep(1.0)
            async with a_runner(database) as second:
                end = take_over(second, job)
                (claimed,) = look(database, job.id, "latest_heartbeat")
                assert await within(end) is JobState.FAILED
        row = row_of(database, job.id)
        assert row["submit_started_at"] == begun
        assert (row["cancel_started_at"] - claimed).total_seconds() < 0.9
        assert row["message"] == "it did not start within 1s: WAITING"

    asyncio.run(main())


def test_work_that_the_next_owner_finds_running_is_let_run(database: Database) -> None:
    """It started after the last look of its former owner, and before its time was over."""

    async def main() -> None:
        outside = an_outside(WAITS)
        with use_backend(outside):
            async with a_runner(database) as first:
                job = a_job(start_timeout=TIME_TO_START_S)
                start(first, job)
                await soon(lambda: row_of(database, job.id)["external_state"] == "WAITING")
            (external_id,) = outside.jobs
            outside.advance(external_id, Phase.RUNNING)
            await asyncio.sleep(TIME_TO_START_S + 0.1)
            async with a_runner(database) as second:
                end = take_over(second, job)
                await soon(lambda: row_of(database, job.id)["external_state"] == "RUNNING")
                outside.succeed(external_id)
                assert await within(end) is JobState.SUCCESS
        assert outside.calls["cancel"] == 0

    asyncio.run(main())


def test_the_next_owner_goes_on_with_the_cancelling_and_quotes_the_same_words(database: Database) -> None:
    async def main() -> None:
        outside = an_outside(Plan(wait_for_s=None, ignores_cancel=True))
        with use_backend(outside):
            async with a_runner(database) as first:
                job = a_job(start_timeout=0.4)
                start(first, job)
                external_id = await until_it_waits(outside, "no capacity")
                await soon(lambda: outside.jobs[external_id].cancel_reasons)
                await soon(lambda: row_of(database, job.id)["message"] == "no capacity")
                await crash(first)
            asked = len(outside.jobs[external_id].cancel_reasons)
            async with a_runner(database) as second:
                end = take_over(second, job)
                await soon(lambda: len(outside.jobs[external_id].cancel_reasons) > asked)
                outside.advance(external_id, Phase.CANCELLED, "terminated")
                assert await within(end) is JobState.FAILED
        assert len(set(outside.jobs[external_id].cancel_reasons)) == 1
        assert row_of(database, job.id)["message"] == "it did not start within 0.4s: WAITING: no capacity"

    asyncio.run(main())


@pytest.mark.parametrize("ended_as", [Phase.SUCCEEDED, Phase.FAILED])
def test_work_that_came_before_the_cancel_has_its_true_outcome(
    sqlite_database: Database, ended_as: Phase
) -> None:
    async def main() -> JobState:
        outside = an_outside(Plan(wait_for_s=None, cancel_ends_as=ended_as))
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(start_timeout=0.2)
                end = await within(start(runner, job))
        assert row_of(sqlite_database, job.id)["cancel_cause"] == "start_timeout"
        return end

    assert asyncio.run(main()) is {Phase.SUCCEEDED: JobState.SUCCESS, Phase.FAILED: JobState.FAILED}[ended_as]


def test_work_that_the_backend_never_knew_is_cancelled_too(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(Plan(appear_after_s=3600))
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(start_timeout=0.3)
                start(runner, job)
                await soon(lambda: outside.calls["cancel"])
                (external_id,) = outside.jobs
                (reason, *_) = outside.jobs[external_id].cancel_reasons
        assert reason == "start_timeout by jobrunner after 0.3s: the outside system does not know it"

    asyncio.run(main())


def test_work_that_vanished_after_it_was_seen_is_not_said_to_have_never_started(
    sqlite_database: Database,
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as first:
                job = a_job(start_timeout=TIME_TO_START_S)
                start(first, job)
                await soon(lambda: row_of(sqlite_database, job.id)["external_state"] == "RUNNING")
            await asyncio.sleep(TIME_TO_START_S)
            order = outside.order(Fault.VANISH, times=None)
            async with a_runner(sqlite_database) as second:
                take_over(second, job)
                await soon(lambda: order.served >= 4)
                assert look(sqlite_database, job.id, "cancel_cause") == (None,)

    asyncio.run(main())


def test_a_kill_that_was_first_stands(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(Plan(wait_for_s=None, cancel_takes_s=TIME_TO_START_S + 0.3))
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(start_timeout=TIME_TO_START_S)
                end = start(runner, job)
                await soon(lambda: row_of(sqlite_database, job.id)["external_state"] == "WAITING")
                job.request_kill(by="anna", reason="too dear")
                assert await within(end) is JobState.KILLED
        assert look(sqlite_database, job.id, "cancel_cause") == ("kill",)

    asyncio.run(main())


def test_the_time_counts_from_the_submission_that_stands(sqlite_database: Database) -> None:
    """Throttled for longer than that, the work has all its time when it is submitted at last."""

    async def main() -> None:
        outside = an_outside(WAITS)
        outside.order(Fault.THROTTLE, call="submit", retry_after_s=0.8)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(start_timeout=0.7)
                assert await within(start(runner, job)) is JobState.FAILED
        row = row_of(sqlite_database, job.id)
        assert (row["submit_started_at"] - row["start_date"]).total_seconds() >= 0.8
        assert (row["cancel_started_at"] - row["submit_started_at"]).total_seconds() >= 0.65

    asyncio.run(main())


def test_of_work_that_was_attached_to_it_counts_from_the_claim(database: Database) -> None:
    async def main() -> None:
        outside = an_outside(WAITS)
        external_id = await outside.submit({}, "somebody else's")
        await asyncio.sleep(0.6)
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(external_id=external_id, start_timeout=0.5)
                end = start(runner, job)
                assert await within(end) is JobState.FAILED
        row = row_of(database, job.id)
        assert row["submit_started_at"] is None
        assert (row["cancel_started_at"] - row["start_date"]).total_seconds() >= 0.5
        assert outside.calls["submit"] == 1, "only somebody else's"

    asyncio.run(main())


def test_the_start_timeout_is_in_the_row(database: Database, database_url: str) -> None:
    job = a_job(start_timeout=90).store()
    plain = a_job().store()
    assert plain_sql(database_url, "SELECT start_timeout FROM job ORDER BY id") == [(90.0,), (None,)]
    assert job.start_timeout == 90
    assert plain.start_timeout is None
