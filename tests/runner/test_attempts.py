"""What is requested of a job, and what concerns one of its attempts, while another attempt begins."""

import asyncio
from typing import Any

import pytest

from jobrunner import statements
from jobrunner.database import Database
from jobrunner.errors import ClaimLost
from jobrunner.statements import Attempt
from jobrunner.states import JobState, Phase
from jobrunner.testing import Fault, MemoryBackend, MemoryMonitorJob, Plan, use_backend
from tests.helpers import a_running_job, begin_cancel, plain_sql, row_of
from tests.runner.gates import Gate
from tests.runner.support import a_job, a_runner, an_outside, crash, look, soon, start, take_over, within
from tests.runner.test_cancelling import cleaning
from tests.runner.test_runner import watched

AGAIN = {"preempted": 3}
FLAG = "UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP"


def preempt(outside: MemoryBackend, external_id: str) -> None:
    outside.advance(external_id, Phase.FAILED, "taken away", cause="preempted")


async def only_work(outside: MemoryBackend) -> str:
    await soon(lambda: outside.jobs)
    (external_id,) = outside.jobs
    return external_id


async def second_work(outside: MemoryBackend) -> str:
    await soon(lambda: len(outside.jobs) == 2)
    return list(outside.jobs)[1]


async def resubmitted_before_its_start_timeout_is_recorded(
    runner: Any, outside: MemoryBackend, job: MemoryMonitorJob
) -> tuple[str, asyncio.Future[JobState], Gate]:
    """Bring a job to its second attempt while the start timeout of the first one is still to be recorded."""
    gate = Gate(runner, "write_cancels")
    end = start(runner, job)
    await gate.arrived()
    outside.plan = Plan()  # the new work starts at once
    preempt(outside, await only_work(outside))
    return await second_work(outside), end, gate


def test_a_start_timeout_that_is_recorded_late_spares_the_work_that_was_submitted_again(
    database: Database,
) -> None:
    async def main() -> None:
        outside = an_outside(Plan(wait_for_s=None))
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(start_timeout=0.2, resubmit=AGAIN)
                second, end, gate = await resubmitted_before_its_start_timeout_is_recorded(
                    runner, outside, job
                )
                gate.open()
                await soon(lambda: look(database, job.id, "external_state") == ("RUNNING",))
                assert look(database, job.id, "attempt", "cancel_cause") == (2, None)
                outside.succeed(second)
                assert await within(end) is JobState.SUCCESS
        assert outside.calls["cancel"] == 0

    asyncio.run(main())


@pytest.mark.parametrize("is_before", [True, False], ids=["before it is let go", "after it"])
def test_a_kill_ends_the_new_work_whatever_was_decided_on_about_the_old(
    database: Database, database_url: str, is_before: bool
) -> None:
    async def main() -> None:
        outside = an_outside(Plan(wait_for_s=None))
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = cleaning(start_timeout=0.2, resubmit=AGAIN)
                second, end, gate = await resubmitted_before_its_start_timeout_is_recorded(
                    runner, outside, job
                )
                if is_before:
                    plain_sql(database_url, FLAG)
                    await soon(lambda: runner.jobs[job.id].kill_seen)
                    gate.open()
                else:
                    gate.open()
                    await soon(lambda: look(database, job.id, "external_state") == ("RUNNING",))
                    plain_sql(database_url, FLAG)
                assert await within(end) is JobState.KILLED
                assert job.kills == 1
        assert outside.jobs[second].cancel_reasons == ["kill by jobrunner"]
        assert look(database, job.id, "cancel_cause") == ("kill",)

    asyncio.run(main())


def test_a_kill_that_comes_before_the_resubmission_is_written_stops_it(
    database: Database, database_url: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(resubmit=AGAIN)
                external_id, end = await watched(runner, outside, job)
                gate = Gate(runner, "resubmit")
                preempt(outside, external_id)
                await gate.arrived()
                plain_sql(database_url, FLAG)
                gate.open()
                assert await within(end) is JobState.FAILED
        assert len(outside.jobs) == 1
        assert look(database, job.id, "message") == ("taken away",)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("write", "holds_answer"),
    [("resubmit", True), ("_begin", False)],
    ids=["before the answer of the resubmission", "before the submission begins"],
)
def test_a_kill_between_two_attempts_is_carried_out_once_and_nothing_is_submitted(
    database: Database, database_url: str, write: str, holds_answer: bool
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = cleaning(resubmit=AGAIN)
                external_id, end = await watched(runner, outside, job)
                gate = Gate(runner, write, holds_answer=holds_answer)
                preempt(outside, external_id)
                await gate.arrived()
                plain_sql(database_url, FLAG)
                await soon(lambda: runner.jobs[job.id].kill_seen)
                gate.open()
                assert await within(end) is JobState.KILLED
                assert job.kills == 1
        assert len(outside.jobs) == 1
        assert look(database, job.id, "attempt", "message") == (2, "killed before it was submitted")

    asyncio.run(main())


def test_a_kill_while_the_second_attempt_is_sent_ends_it(database: Database, database_url: str) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = cleaning(resubmit=AGAIN)
                external_id, end = await watched(runner, outside, job)
                late = outside.order(Fault.LATE, call="submit")
                preempt(outside, external_id)
                await soon(lambda: late.served)
                plain_sql(database_url, FLAG)
                await soon(lambda: runner.jobs[job.id].kill_seen)
                late.release()
                assert await within(end) is JobState.KILLED
                assert job.kills == 1
        assert [work.phase for work in outside.jobs.values()] == [Phase.FAILED, Phase.CANCELLED]

    asyncio.run(main())


def test_a_deadline_that_passes_between_two_attempts_submits_nothing_more(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(resubmit=AGAIN, timeout=3600)
                external_id, end = await watched(runner, outside, job)
                gate = Gate(runner, "resubmit", holds_answer=True)
                preempt(outside, external_id)
                await gate.arrived()
                runner.jobs[job.id].deadline_s = 0.0
                gate.open()
                assert await within(end) is JobState.FAILED
        assert len(outside.jobs) == 1
        assert "timeout has passed" in row_of(database, job.id)["message"]

    asyncio.run(main())


def test_a_kill_that_finds_the_row_at_other_work_gives_the_job_up_to_whoever_reads_the_row(
    database: Database, database_url: str
) -> None:
    """As after a failover that lost the record of a submission: this runner watches what the row does not."""

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner, a_runner(database) as second:
                job = a_job(heartrate=0.5)
                external_id, end = await watched(runner, outside, job)
                plain_sql(database_url, "UPDATE job SET external_id = NULL")
                plain_sql(database_url, FLAG)
                with pytest.raises(ClaimLost, match="is at another attempt"):
                    await within(end)
                assert not outside.jobs[external_id].cancel_reasons
                assert await within(take_over(second, job)) is JobState.KILLED
        assert outside.jobs[external_id].phase is Phase.CANCELLED
        assert len(outside.jobs) == 1

    asyncio.run(main())


def test_the_next_owner_of_a_killed_job_whose_start_timeout_stands_calls_on_kill(database: Database) -> None:
    async def main() -> None:
        outside = an_outside(Plan(wait_for_s=None, ignores_cancel=True))
        with use_backend(outside):
            async with a_runner(database) as first:
                job = cleaning(start_timeout=0.2, resubmit=AGAIN)
                start(first, job)
                external_id = await only_work(outside)
                await soon(lambda: outside.jobs[external_id].cancel_reasons)
                await crash(first)
            job.request_kill()
            async with a_runner(database) as second:
                take_over(second, job)
                owned = second.jobs[job.id]
                await soon(lambda: getattr(owned.job, "kills", 0) == 1)
                outside.advance(external_id, Phase.CANCELLED)
                await soon(lambda: look(database, job.id, "state") == (JobState.FAILED,))

    asyncio.run(main())


def test_what_is_written_late_of_the_old_work_does_not_hide_the_new(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(resubmit=AGAIN)
                gate = Gate(runner, "_observe", holds_answer=True)
                start(runner, job)
                external_id = await only_work(outside)
                await gate.arrived()
                preempt(outside, external_id)
                await second_work(outside)
                await soon(lambda: runner.jobs[job.id].is_watched)
                gate.open()
                await soon(lambda: look(database, job.id, "attempt", "external_state") == (2, "RUNNING"))

    asyncio.run(main())


# --- the statements --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", [Attempt("earlier", "ext-1"), Attempt("token", "ext-0"), Attempt("token", None)], ids=str
)
def test_a_cancellation_of_another_attempt_is_not_recorded(database: Database, other: Attempt) -> None:
    claim, _ = a_running_job(database, submit_token="token", external_id="ext-1")
    with database.write() as connection:
        assert begin_cancel(connection, claim, other, "start_timeout") is None
        assert begin_cancel(connection, claim, Attempt("token", "ext-1"), "kill") is not None
    assert look(database, claim.job_id, "cancel_cause") == ("kill",)


def test_a_renewed_token_leaves_the_cancellation_of_the_old_one_behind(
    database: Database, database_url: str
) -> None:
    claim, _ = a_running_job(database, submit_token="old")
    plain_sql(
        database_url, "UPDATE job SET cancel_cause = 'start_timeout', cancel_started_at = CURRENT_TIMESTAMP"
    )
    with database.write() as connection:
        assert statements.renew_token(connection, claim, "old", "new")
    assert look(database, claim.job_id, "submit_token", "cancel_cause", "cancel_started_at") == (
        "new",
        None,
        None,
    )
