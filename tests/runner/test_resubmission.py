"""Work that failed for a cause that its job's policy names is submitted again, under a new token."""

import asyncio
from typing import Any

import pytest

from jobrunner.database import Database
from jobrunner.errors import UsageError
from jobrunner.states import JobState, Phase
from jobrunner.testing import MemoryBackend, use_backend
from tests.helpers import events_of, row_of
from tests.runner.support import a_job, a_runner, an_outside, crash, look, soon, start, take_over, within


async def current(database: Database, outside: MemoryBackend, job: Any, attempt: int) -> str:
    """Wait until a job is at this attempt and seen outside, and return its external id."""
    await soon(lambda: look(database, job.id, "attempt", "external_state") == (attempt, "RUNNING"))
    return str(row_of(database, job.id)["external_id"])


def test_a_preempted_job_is_submitted_again_as_often_as_its_policy_says(
    database: Database, database_url: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(resubmit={"preempted": 2})
                end = start(runner, job)
                ids, tokens = [], []
                for attempt in (1, 2, 3):
                    ids.append(await current(database, outside, job, attempt))
                    tokens.append(row_of(database, job.id)["submit_token"])
                    outside.advance(ids[-1], Phase.FAILED, "taken away", cause="preempted")
                assert await within(end) is JobState.FAILED
        assert len(set(ids)) == len(set(tokens)) == 3
        row = row_of(database, job.id)
        assert (row["message"], row["resubmit"]) == ("taken away", {"preempted": 0})
        assert events_of(database_url, job.id) == [
            (None, "running"),
            ("running", "running"),
            ("running", "running"),
            ("running", "failed"),
        ]

    asyncio.run(main())


def test_what_the_policy_does_not_name_ends_the_job(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(resubmit={"preempted": 2})
                end = start(runner, job)
                external_id = await current(database, outside, job, 1)
                outside.advance(external_id, Phase.FAILED, "no memory", cause="oom")
                assert await within(end) is JobState.FAILED
        assert look(database, job.id, "attempt") == (1,)

    asyncio.run(main())


def test_a_job_that_is_to_be_killed_is_not_submitted_again(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(resubmit={"preempted": 2}, heartrate=5.0)
                end = start(runner, job)
                external_id = await current(database, outside, job, 1)
                with database.write() as connection:  # nobody is told: the row alone says so
                    connection.exec_driver_sql("UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP")
                outside.advance(external_id, Phase.FAILED, "taken away", cause="preempted")
                assert await within(end) in {JobState.FAILED, JobState.KILLED}
        assert look(database, job.id, "attempt") == (1,)
        assert len(outside.jobs) == 1

    asyncio.run(main())


def test_an_adopter_keeps_to_what_is_left_of_the_policy(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as first, a_runner(database) as second:
                job = a_job(resubmit={"preempted": 1})
                start(first, job)
                outside.advance(
                    await current(database, outside, job, 1), Phase.FAILED, "a", cause="preempted"
                )
                external_id = await current(database, outside, job, 2)
                await crash(first)
                end = take_over(second, job)
                outside.advance(external_id, Phase.FAILED, "taken away", cause="preempted")
                assert await within(end) is JobState.FAILED
        assert len(outside.jobs) == 2

    asyncio.run(main())


def test_the_new_work_succeeds_and_nothing_of_the_old_is_left(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(resubmit={"preempted": 1})
                end = start(runner, job)
                outside.advance(
                    await current(database, outside, job, 1),
                    Phase.FAILED,
                    "a",
                    {"node": "x"},
                    cause="preempted",
                )
                outside.succeed(await current(database, outside, job, 2))
                assert await within(end) is JobState.SUCCESS
        assert look(database, job.id, "attempt", "resubmit") == (2, {"preempted": 0})

    asyncio.run(main())


def test_a_policy_counts_from_nought() -> None:
    with pytest.raises(UsageError, match="After 'oom' it cannot be submitted again -1 times"):
        a_job(resubmit={"oom": -1})
