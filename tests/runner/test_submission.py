"""Submit once: one job outside, or a failed row that names the doubt, whatever dies or pauses when."""

import asyncio
import datetime as dt
import threading
from typing import Any

import pytest

from jobrunner import statements, submission
from jobrunner.backends.base import Patience
from jobrunner.clock import monotonic_s, utcnow
from jobrunner.database import Database
from jobrunner.errors import ClaimLost, DatabaseUnavailable
from jobrunner.states import JobState, Phase
from jobrunner.testing import Fault, MemoryBackend, Plan, use_backend
from tests.helpers import row_of
from tests.runner.support import (
    SOON,
    a_job,
    a_runner,
    an_outside,
    crash,
    look,
    methods,
    soon,
    start,
    take_over,
    within,
)


def live(outside: MemoryBackend) -> list[str]:
    """Return the external jobs that are not cancelled: never more than one."""
    return [each.external_id for each in outside.jobs.values() if each.phase is not Phase.CANCELLED]


def test_the_intent_is_stored_before_the_backend_is_asked(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        outside = an_outside(SOON)
        rows: list[dict[str, Any]] = []
        real = outside.submit

        async def submit(spec: Any, token: str) -> str:
            rows.append(row_of(database, job.id))
            return await real(spec, token)

        monkeypatch.setattr(outside, "submit", submit)
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.SUCCESS
        (seen,) = rows
        assert seen["submit_started_at"] is not None
        assert (seen["submit_token"], seen["external_id"], seen["attempt"]) == (job.submit_token, None, 1)
        assert methods(outside) == ["submit", "fetch"]

    asyncio.run(main())


def test_a_submission_whose_answer_was_lost_is_found_again(database: Database) -> None:
    async def main() -> None:
        outside = an_outside(SOON)
        outside.order(Fault.ANSWER_LOST, call="submit")
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.SUCCESS
        assert len(outside.jobs) == 1
        assert methods(outside) == ["submit", "find", "fetch"]
        assert look(database, job.id, "submit_token", "attempt") == (job.submit_token, 1)

    asyncio.run(main())


@pytest.mark.parametrize("fault", [Fault.NOT_MADE, Fault.TIMEOUT, Fault.GARBAGE])
def test_a_submission_that_was_not_made_is_made_anew_under_a_new_token(
    database: Database, fault: Fault
) -> None:
    async def main() -> None:
        outside = an_outside(SOON, Patience(call_s=0.3))
        outside.order(fault, call="submit")
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.SUCCESS
        assert len(outside.jobs) == 1
        assert methods(outside) == ["submit", "find", "submit", "fetch"]
        token, attempt = look(database, job.id, "submit_token", "attempt")
        assert attempt == 2
        assert token != job.submit_token
        assert outside.submissions(token) == 1

    asyncio.run(main())


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.TIMEOUT, Fault.GARBAGE, Fault.THROTTLE])
def test_while_it_cannot_be_proven_what_happened_nothing_is_submitted_again(
    sqlite_database: Database, fault: Fault
) -> None:
    async def main() -> None:
        outside = an_outside(SOON, Patience(call_s=0.2))
        outside.order(Fault.ANSWER_LOST, call="submit")
        outside.order(fault, call="find", times=2)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                assert await within(start(runner, a_job())) is JobState.SUCCESS
        assert outside.calls["submit"] == 1
        assert outside.calls["find"] == 3

    asyncio.run(main())


def test_a_throttled_submission_is_tried_again_under_its_token(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(SOON)
        outside.order(Fault.THROTTLE, call="submit", times=2, retry_after_s=0.1)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.SUCCESS
        assert (outside.calls["submit"], outside.calls["find"]) == (3, 0)
        assert look(sqlite_database, job.id, "attempt", "submit_token") == (1, job.submit_token)

    asyncio.run(main())


def test_a_rejected_submission_fails_the_job_and_is_not_tried_again(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        outside.order(Fault.REJECT, call="submit", message="no such queue")
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.FAILED
        assert outside.calls["submit"] == 1
        assert row_of(database, job.id)["message"] == "not accepted: no such queue"

    asyncio.run(main())


def test_a_doubt_that_can_never_be_settled_fails_the_job_and_names_it(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        outside.order(Fault.NOT_MADE, call="submit")
        outside.order(Fault.UNSURE, call="find", message="the listing has no tokens")
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.FAILED
        message = row_of(database, job.id)["message"]
        assert message.startswith("the listing has no tokens: look for it outside")
        assert job.submit_token in message
        assert outside.calls["submit"] == 1

    asyncio.run(main())


def test_a_doubt_that_will_be_settled_is_waited_for(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(Plan(run_for_s=3))
        outside.order(Fault.ANSWER_LOST, call="submit")
        outside.order(Fault.UNSURE, call="find", retry_at=utcnow() + dt.timedelta(seconds=1.2))
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                begun_s = asyncio.get_running_loop().time()
                start(runner, job)
                await soon(lambda: row_of(sqlite_database, job.id)["external_id"])
                assert asyncio.get_running_loop().time() - begun_s > 1.0
        assert outside.calls["find"] == 2
        assert len(outside.jobs) == 1

    asyncio.run(main())


def test_a_job_released_while_its_submission_is_in_doubt_is_settled_by_the_next_owner(
    database: Database,
) -> None:
    async def main() -> None:
        outside = an_outside(SOON)
        outside.order(Fault.ANSWER_LOST, call="submit")
        order = outside.order(Fault.ERROR, call="find", times=None)
        with use_backend(outside):
            async with a_runner(database) as first:
                job = a_job()
                start(first, job)
                await soon(lambda: order.served)
            assert row_of(database, job.id)["state"] is JobState.QUEUED
            order.stop()
            async with a_runner(database) as second:
                assert await within(take_over(second, job)) is JobState.SUCCESS
        assert len(outside.jobs) == 1

    asyncio.run(main())


def test_a_submission_that_was_not_sent_is_sent_again_and_nothing_is_in_doubt(database: Database) -> None:
    async def main() -> None:
        outside = an_outside(SOON)
        order = outside.order(Fault.NOT_SENT, call="submit", times=2)
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.SUCCESS
        assert order.served == 2
        assert (outside.calls["submit"], outside.calls["find"]) == (3, 0)
        assert look(database, job.id, "attempt", "submit_token") == (1, job.submit_token)

    asyncio.run(main())


def test_a_submission_that_is_too_late_to_send_begins_anew(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr(submission, "SEND_WITHIN_S", 0.1)
        outside = an_outside(SOON)
        outside.order(Fault.SLOW, call="submit", delay_s=0.3)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                assert await within(start(runner, a_job())) is JobState.SUCCESS
        assert (outside.calls["submit"], outside.calls["find"]) == (2, 0)

    asyncio.run(main())


# --- what the row says meanwhile -----------------------------------------------------------------


def sayings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what is written of a submission."""
    real, said = statements.say_unsubmitted, []

    def say_unsubmitted(connection: Any, claim: Any, message: str) -> bool:
        said.append(message)
        return real(connection, claim, message)

    monkeypatch.setattr(statements, "say_unsubmitted", say_unsubmitted)
    return said


@pytest.mark.parametrize("fault", [Fault.NOT_SENT, Fault.THROTTLE])
def test_the_row_says_why_nothing_is_submitted_yet(
    database: Database, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    async def main() -> None:
        said = sayings(monkeypatch)
        outside = an_outside(Plan(run_for_s=3))
        order = outside.order(fault, call="submit", times=None, message="no route to the endpoint")
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                start(runner, job)
                await soon(lambda: order.served >= 3)
                words = "not submitted yet: no route to the endpoint"
                assert look(database, job.id, "message", "external_id") == (words, None)
                order.stop()
                await soon(lambda: row_of(database, job.id)["message"] == "RUNNING")
        assert said == [words], "it is written when it changes"

    asyncio.run(main())


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.THROTTLE, Fault.UNSURE])
def test_the_row_says_what_is_in_doubt(database: Database, fault: Fault) -> None:
    async def main() -> None:
        outside = an_outside(Plan(run_for_s=3))
        outside.order(Fault.ANSWER_LOST, call="submit")
        later = utcnow() + dt.timedelta(seconds=0.1)
        order = outside.order(fault, call="find", times=None, message="the listing lags", retry_at=later)
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                start(runner, job)
                await soon(lambda: order.served >= 2)
                await soon(lambda: "the listing lags" in row_of(database, job.id)["message"])
                message, started_at = look(database, job.id, "message", "submit_started_at")
                assert message.startswith(f"submission in doubt since {started_at:%H:%M} UTC: ")
                assert message.endswith("the listing lags; asking until it is proven")
                order.stop()
                await soon(lambda: row_of(database, job.id)["message"] == "RUNNING")

    asyncio.run(main())


def test_a_kill_does_not_wait_for_what_a_throttled_submission_waits_for(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        order = outside.order(Fault.THROTTLE, call="submit", times=None, retry_after_s=1000)
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                end = start(runner, job)
                await soon(lambda: order.served)
                job.request_kill()
                assert await within(end, 10) is JobState.KILLED
        assert outside.calls["submit"] == 1, "it was asked for patience"
        assert row_of(database, job.id)["message"] == "killed before it was submitted"

    asyncio.run(main())


def test_a_job_whose_submission_waits_for_long_goes_on_beating(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(patience=Patience(call_s=0.1))
        order = outside.order(Fault.THROTTLE, call="submit", times=None, retry_after_s=1000)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                start(runner, job)
                await soon(lambda: order.served)
                await soon(lambda: runner.jobs[job.id].progress_by_s > monotonic_s() + 900)

    asyncio.run(main())


# --- work that is there already ------------------------------------------------------------------


def test_work_that_is_there_already_is_watched_and_not_submitted(database: Database) -> None:
    async def main() -> str:
        return await outside.submit({}, "somebody else's")

    outside = an_outside()
    external_id = asyncio.run(main())
    outside.jobs[external_id].plan = SOON
    with use_backend(outside):
        job = a_job(external_id=external_id)
        job.run()
    assert (job.state, job.external_id, job.submit_started_at) == (JobState.SUCCESS, external_id, None)
    assert outside.calls["submit"] == 1, "only somebody else's"
    assert outside.calls["find"] == 0


def test_work_that_is_there_already_is_killed_by_the_flag(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        external_id = await outside.submit({}, "somebody else's")
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(external_id=external_id)
                end = start(runner, job)
                await soon(lambda: row_of(database, job.id)["external_state"] == "RUNNING")
                job.request_kill()
                assert await within(end) is JobState.KILLED
        assert outside.jobs[external_id].phase is Phase.CANCELLED

    asyncio.run(main())


def test_a_kill_of_queued_work_that_is_there_already_cancels_it(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        external_id = await outside.submit({}, "somebody else's")
        with use_backend(outside):
            job = a_job(external_id=external_id).store()
            assert job.request_kill() is JobState.QUEUED, "there is something to cancel"
            async with a_runner(database) as runner:
                assert await within(take_over(runner, job)) is JobState.KILLED
        assert outside.jobs[external_id].phase is Phase.CANCELLED
        assert outside.calls["submit"] == 1, "only somebody else's"

    asyncio.run(main())


# --- paused and overtaken ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "absent", ["blocks a late one", "does not block a late one", "is no proof", "and one token makes one job"]
)
def test_a_submission_that_comes_late_never_makes_two(database: Database, absent: str) -> None:
    """The first runner's request hangs; another takes the job over; then the request goes through."""

    async def main() -> None:
        outside = an_outside(
            patience=Patience(call_s=30),
            absent_blocks=absent == "blocks a late one",
            absent_is_sure=absent != "is no proof",
            idempotent=absent == "and one token makes one job",
        )
        late = outside.order(Fault.LATE, call="submit")
        with use_backend(outside):
            async with a_runner(database) as first, a_runner(database) as second:
                job = a_job()
                first_end = start(first, job)
                await soon(lambda: late.served)
                second_end = take_over(second, job)
                if absent == "is no proof":
                    assert await within(second_end) is JobState.FAILED
                    assert "look for it outside" in row_of(database, job.id)["message"]
                else:
                    await soon(lambda: row_of(database, job.id)["external_state"] == "RUNNING")
                late.release()
                with pytest.raises(ClaimLost):
                    await within(first_end)
                await soon(lambda: not first._steps)
                assert first.jobs == {}
                if absent == "is no proof":
                    assert live(outside) == [], "the row names a doubt: what comes late is taken back"
                    return
                assert len(live(outside)) == 1
                external_id = row_of(database, job.id)["external_id"]
                assert live(outside) == [external_id]
                outside.succeed(external_id)
                assert await within(second_end) is JobState.SUCCESS

    asyncio.run(main())


def test_a_late_submission_is_cancelled_by_id_until_it_has_ended(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(Plan(cancel_takes_s=0.5), patience=Patience(call_s=30), absent_blocks=False)
        late = outside.order(Fault.LATE, call="submit")
        failing = outside.order(Fault.ERROR, call="cancel", times=2)
        with use_backend(outside):
            async with a_runner(sqlite_database) as first, a_runner(sqlite_database) as second:
                job = a_job()
                start(first, job)
                await soon(lambda: late.served)
                take_over(second, job)
                await soon(lambda: row_of(sqlite_database, job.id)["external_state"] == "RUNNING")
                late.release()
                await soon(lambda: not first._steps and len(outside.jobs) == 2)
                assert failing.served == 2
                for made in outside.jobs.values():
                    made.settle(asyncio.get_running_loop().time() + 1e9)
                assert live(outside) == [row_of(sqlite_database, job.id)["external_id"]]

    asyncio.run(main())


def test_a_late_answer_for_the_very_job_that_the_row_speaks_of_cancels_nothing(
    sqlite_database: Database,
) -> None:
    """The request went through, its answer came late: by then another had found the job and ended it."""

    async def main() -> None:
        outside = an_outside(patience=Patience(call_s=30), idempotent=True)
        late = outside.order(Fault.LATE, call="submit")
        with use_backend(outside):
            async with a_runner(sqlite_database) as first, a_runner(sqlite_database) as second:
                job = a_job()
                first_end = start(first, job)
                await soon(lambda: late.served)
                # What was sent did arrive.
                await MemoryBackend.submit(outside, {}, job.submit_token)  # type: ignore[arg-type]
                second_end = take_over(second, job)
                await soon(lambda: row_of(sqlite_database, job.id)["external_id"])
                outside.order(Fault.VANISH, times=None, certain=True)
                assert await within(second_end) is JobState.LOST
                late.release()
                with pytest.raises(ClaimLost):
                    await within(first_end)
                await soon(lambda: not first._steps)
        assert outside.calls["cancel"] == 0

    asyncio.run(main())


def test_a_slow_answer_is_recorded_whoever_owns_the_job_by_then(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next owner cannot tell yet; then the first one's answer comes, and stands."""

    async def main() -> None:
        outside = an_outside(patience=Patience(call_s=30))
        late = outside.order(Fault.LATE, call="submit")
        outside.order(Fault.ERROR, call="find", times=3)
        with use_backend(outside):
            async with a_runner(database) as first, a_runner(database) as second:
                job = a_job()
                start(first, job)
                await soon(lambda: late.served)
                second_end = take_over(second, job)
                await soon(lambda: outside.calls["find"] >= 1)
                late.release()
                await soon(lambda: second.jobs[job.id].is_watched)
                (made,) = outside.jobs
                outside.succeed(made)
                assert await within(second_end) is JobState.SUCCESS
        assert outside.calls["cancel"] == 0

    asyncio.run(main())


# --- crashes between the steps -------------------------------------------------------------------


def hold(
    monkeypatch: pytest.MonkeyPatch, name: str, *, after: bool
) -> tuple[threading.Event, threading.Event]:
    """Let the first call of a statement hang, before or after it did its work."""
    real, arrived, go = getattr(statements, name), threading.Event(), threading.Event()

    def held(connection: Any, *arguments: Any) -> Any:
        first = not arrived.is_set()
        if first and not after:
            arrived.set()
            go.wait(20)
            raise DatabaseUnavailable("the process died before")
        answer = real(connection, *arguments)
        if first:
            if connection.in_transaction():
                connection.commit()
            arrived.set()
            go.wait(20)
            raise DatabaseUnavailable("the process died after")
        return answer

    monkeypatch.setattr(statements, name, held)
    return arrived, go


@pytest.mark.parametrize("name", ["begin_submit", "record_submitted"])
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_statement_of_a_submission_leaves_one_job(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    async def main() -> None:
        arrived, go = hold(monkeypatch, name, after=after)
        outside = an_outside(SOON)
        with use_backend(outside):
            async with a_runner(postgres_database) as first:
                job = a_job()
                start(first, job)
                await soon(arrived.is_set)
                await crash(first)
                async with a_runner(postgres_database) as second:
                    assert await within(take_over(second, job)) is JobState.SUCCESS
                go.set()
        assert len(outside.jobs) == 1
        assert row_of(postgres_database, job.id)["external_id"] in outside.jobs

    asyncio.run(main())


@pytest.mark.parametrize("name", ["begin_submit", "record_submitted", "renew_token"])
def test_a_write_whose_answer_was_lost_is_made_again_and_does_no_harm(
    database: Database, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = getattr(statements, name)
    lost: list[Any] = []

    def answer_lost(connection: Any, *arguments: Any) -> Any:
        answer = real(connection, *arguments)
        if not lost:
            lost.append(answer)
            if connection.in_transaction():
                connection.commit()
            raise DatabaseUnavailable("the connection broke before the answer came")
        return answer

    async def main() -> None:
        monkeypatch.setattr(statements, name, answer_lost)
        outside = an_outside(SOON)
        if name == "renew_token":
            outside.order(Fault.NOT_MADE, call="submit")
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.SUCCESS
        assert lost
        assert len(outside.jobs) == 1

    asyncio.run(main())


def test_the_time_to_send_counts_from_the_intent_that_was_stored_at_last(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is away for long before it takes the intent puts nothing in doubt."""
    real = statements.begin_submit
    failed: list[bool] = []

    def begin_submit(*arguments: Any) -> Any:
        if len(failed) < 3:
            failed.append(True)
            raise DatabaseUnavailable("away")
        return real(*arguments)

    async def main() -> None:
        monkeypatch.setattr(submission, "SEND_WITHIN_S", 0.1)
        monkeypatch.setattr(statements, "begin_submit", begin_submit)
        outside = an_outside(SOON)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.SUCCESS
        assert methods(outside) == ["submit", "fetch"]
        assert row_of(sqlite_database, job.id)["attempt"] == 1

    asyncio.run(main())
