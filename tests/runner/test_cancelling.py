"""Kill and timeout: only a recorded wish cancels, and the end is written when it was seen."""

import asyncio
import threading
from typing import Any

import pytest

from jobrunner import statements
from jobrunner.backends.base import Patience
from jobrunner.clock import monotonic_s
from jobrunner.database import Database
from jobrunner.errors import DatabaseUnavailable
from jobrunner.heartbeat import Beater
from jobrunner.states import JobState, Phase
from jobrunner.testing import Fault, MemoryMonitorJob, Plan, use_backend
from tests.helpers import plain_sql, row_of
from tests.runner.support import a_job, a_runner, an_outside, crash, look, soon, start, take_over, within
from tests.runner.test_runner import watched


class Cleaning(MemoryMonitorJob):
    """Counts its kills."""

    kills = 0

    def on_kill(self) -> None:
        self.kills += 1
        if self.name == "broken":
            raise RuntimeError("the scratch directory is gone")


def cleaning(**options: Any) -> Cleaning:
    return Cleaning(**{"heartrate": 0.3, "poll_interval": 0.05, **options})


@pytest.mark.parametrize("way", ["by request_kill", "by plain sql"])
def test_a_kill_calls_on_kill_once_and_stands_when_the_backend_confirms_it(
    database: Database, database_url: str, way: str
) -> None:
    async def main() -> None:
        outside = an_outside(Plan(cancel_takes_s=0.6))
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = cleaning(heartrate=5)
                external_id, end = await watched(runner, outside, job)
                if way == "by plain sql":
                    plain_sql(
                        database_url,
                        f"UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP WHERE id = {job.id}",
                    )
                else:
                    job.request_kill(by="anna", reason="too dear")
                await soon(lambda: outside.jobs[external_id].cancel_reasons, 3)
                row = row_of(database, job.id)
                assert (row["state"], row["cancel_cause"]) == (JobState.RUNNING, "kill")
                assert row["cancel_started_at"] is not None
                assert await within(end) is JobState.KILLED
                assert job.kills == 1
        message = row_of(database, job.id)["message"]
        assert message.startswith("killed by anna: too dear" if way == "by request_kill" else "killed (")

    asyncio.run(main())


def test_the_cause_is_written_before_the_backend_is_asked(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        outside = an_outside()
        causes: list[Any] = []
        real = outside.cancel

        async def cancel(ids: Any, reason: str) -> Any:
            causes.append(row_of(database, job.id)["cancel_cause"])
            return await real(ids, reason)

        monkeypatch.setattr(outside, "cancel", cancel)
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                _, end = await watched(runner, outside, job)
                job.request_kill()
                assert await within(end) is JobState.KILLED
        assert causes
        assert set(causes) == {"kill"}

    asyncio.run(main())


@pytest.mark.parametrize("ended_as", [Phase.SUCCEEDED, Phase.FAILED])
def test_work_that_ended_by_itself_before_the_kill_has_its_true_outcome(
    sqlite_database: Database, ended_as: Phase
) -> None:
    async def main() -> JobState:
        outside = an_outside(Plan(cancel_ends_as=ended_as))
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                _, end = await watched(runner, outside, job)
                job.request_kill()
                return await within(end)

    expected = {Phase.SUCCEEDED: JobState.SUCCESS, Phase.FAILED: JobState.FAILED}
    assert asyncio.run(main()) is expected[ended_as]


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        (Fault.ERROR, {}),
        (Fault.THROTTLE, {}),
        (Fault.TIMEOUT, {}),
        (Fault.GARBAGE, {}),
        (Fault.ANSWER_LOST, {}),
    ],
)
def test_a_cancel_that_fails_is_repeated_until_it_stands(
    sqlite_database: Database, fault: Fault, options: dict[str, Any]
) -> None:
    async def main() -> None:
        outside = an_outside(patience=Patience(call_s=0.3))
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                _, end = await watched(runner, outside, job)
                order = outside.order(fault, call="cancel", times=2, **options)
                job.request_kill()
                assert await within(end) is JobState.KILLED
                assert order.served >= 1

    asyncio.run(main())


def test_a_cancel_that_is_ignored_is_repeated_and_the_job_is_not_called_killed(
    sqlite_database: Database,
) -> None:
    async def main() -> None:
        outside = an_outside(Plan(ignores_cancel=True))
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                external_id, _ = await watched(runner, outside, job)
                job.request_kill()
                await soon(lambda: len(outside.jobs[external_id].cancel_reasons) >= 3)
                assert row_of(sqlite_database, job.id)["state"] is JobState.RUNNING

    asyncio.run(main())


def test_a_job_killed_before_it_was_submitted_is_never_submitted(
    database: Database, database_url: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            job = cleaning().store()
            plain_sql(
                database_url, f"UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP WHERE id = {job.id}"
            )
            async with a_runner(database) as runner:
                end = take_over(runner, job)
                owned = runner.jobs[job.id]
                assert await within(end) is JobState.KILLED
                assert owned.job.kills == 1  # type: ignore[union-attr]
        assert outside.calls["submit"] == 0
        assert row_of(database, job.id)["message"] == "killed before it was submitted"

    asyncio.run(main())


def test_a_flag_that_is_set_before_the_intent_is_stored_stops_the_submission(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = statements.begin_submit

    def begin_submit(connection: Any, claim: Any, *rest: Any) -> Any:
        statements.request_kill(connection, claim.job_id, "anna", None)
        return real(connection, claim, *rest)

    async def main() -> None:
        monkeypatch.setattr(statements, "begin_submit", begin_submit)
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                assert await within(start(runner, a_job(heartrate=20))) is JobState.KILLED
        assert outside.calls["submit"] == 0

    asyncio.run(main())


def test_a_job_killed_while_it_is_submitted_is_cancelled_after(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        order = outside.order(Fault.LATE, call="submit")
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = cleaning()
                end = start(runner, job)
                await soon(lambda: order.served)
                job.request_kill()
                await soon(lambda: runner.jobs[job.id].kill_seen)
                order.release()
                assert await within(end) is JobState.KILLED
                assert job.kills == 1
        (made,) = outside.jobs.values()
        assert made.phase is Phase.CANCELLED

    asyncio.run(main())


def test_an_on_kill_that_raises_or_hangs_does_not_stop_the_kill(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()

    class Hanging(MemoryMonitorJob):
        def on_kill(self) -> None:
            go.wait(30)

    async def main() -> None:
        monkeypatch.setattr("jobrunner.cancelling._ON_KILL_S", 0.2)
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                for job in (cleaning(name="broken"), Hanging(heartrate=0.3, poll_interval=0.05)):
                    _, end = await watched(runner, outside, job)
                    job.request_kill()
                    assert await within(end) is JobState.KILLED
                go.set()
        assert "on_kill failed" in caplog.text
        assert "on_kill takes long" in caplog.text

    asyncio.run(main())


def test_many_kills_travel_together(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                started = [await watched(runner, outside, a_job(heartrate=10)) for _ in range(20)]
                with sqlite_database.write() as connection:
                    connection.exec_driver_sql("UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP")
                states = [await within(end) for _, end in started]
        assert set(states) == {JobState.KILLED}
        assert outside.calls["cancel"] <= 20

    asyncio.run(main())


def test_a_killed_jobs_next_owner_goes_on_with_the_cancelling(database: Database) -> None:
    async def main() -> None:
        outside = an_outside(Plan(ignores_cancel=True))
        with use_backend(outside):
            async with a_runner(database) as first:
                job = cleaning()
                external_id, _ = await watched(first, outside, job)
                job.request_kill(by="anna")
                await soon(lambda: outside.jobs[external_id].cancel_reasons)
                await crash(first)
            async with a_runner(database) as second:
                end = take_over(second, job)
                successor = second.jobs[job.id]
                asked = len(outside.jobs[external_id].cancel_reasons)
                await soon(lambda: len(outside.jobs[external_id].cancel_reasons) > asked)
                outside.advance(external_id, Phase.CANCELLED, "ended at last")
                assert await within(end) is JobState.KILLED
                assert successor.job.kills == 0, "the first owner has called on_kill"  # type: ignore[union-attr]
        assert row_of(database, job.id)["message"] == "killed by anna (ended at last)"

    asyncio.run(main())


# --- timeout -------------------------------------------------------------------------------------


def test_past_its_timeout_the_work_is_cancelled_and_the_job_failed_saying_so(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(timeout=1.0)
                external_id, end = await watched(runner, outside, job)
                assert not outside.jobs[external_id].cancel_reasons
                assert await within(end) is JobState.FAILED
        row = row_of(database, job.id)
        assert row["message"].startswith("the timeout has passed, and the work was cancelled")
        assert row["cancel_cause"] == "deadline"
        assert (row["end_date"] - row["created_at"]).total_seconds() >= 1.0

    asyncio.run(main())


def test_a_deadline_survives_a_hand_over_and_passes_while_nobody_watches(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as first:
                job = a_job(timeout=1.0)
                external_id, _ = await watched(first, outside, job)
                deadline = row_of(database, job.id)["deadline_at"]
            await asyncio.sleep(1.0)
            assert not outside.jobs[external_id].cancel_reasons
            async with a_runner(database) as second:
                end = take_over(second, job)
                assert await within(end) is JobState.FAILED
        assert look(database, job.id, "deadline_at", "cancel_cause") == (deadline, "deadline")

    asyncio.run(main())


def test_a_deadline_that_passed_before_the_submission_submits_nothing(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            job = a_job(timeout=0.01).store()
            await asyncio.sleep(0.05)
            async with a_runner(sqlite_database) as runner:
                assert await within(take_over(runner, job)) is JobState.FAILED
        assert outside.calls["submit"] == 0
        assert "timeout has passed" in row_of(sqlite_database, job.id)["message"]

    asyncio.run(main())


def test_the_first_cause_of_a_cancellation_stands_and_one_alone_asks(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = statements.begin_cancel_many
    begun: list[str] = []

    def begin_cancel_many(connection: Any, runner_id: str, cancels: Any) -> Any:
        begun.extend(each.cause for each in cancels)
        return real(connection, runner_id, cancels)

    async def main() -> None:
        monkeypatch.setattr(statements, "begin_cancel_many", begin_cancel_many)
        outside = an_outside(Plan(ignores_cancel=True))
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(timeout=5.0)
                external_id, end = await watched(runner, outside, job)
                job.request_kill()
                await soon(lambda: outside.jobs[external_id].cancel_reasons)
                deadline_s = runner.jobs[job.id].deadline_s
                await soon(lambda: monotonic_s() > deadline_s + 0.5)
                outside.advance(external_id, Phase.CANCELLED)
                assert await within(end) is JobState.KILLED
        assert begun == ["kill"]

    asyncio.run(main())


# --- the self-fence ------------------------------------------------------------------------------


def test_while_its_beats_fail_for_longer_than_the_grace_a_runner_cancels_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = threading.Event()
    real = Beater.beat

    def beat(self: Beater, *arguments: Any, **options: Any) -> Any:
        if away.is_set():
            raise DatabaseUnavailable("away")
        return real(self, *arguments, **options)

    async def main() -> None:
        monkeypatch.setattr(Beater, "beat", beat)
        outside = an_outside(Plan(ignores_cancel=True))
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(heartrate=0.2)
                external_id, end = await watched(runner, outside, job)
                job.request_kill()
                await soon(lambda: outside.jobs[external_id].cancel_reasons)
                away.set()
                await soon(lambda: runner.beats.is_fenced(runner.jobs[job.id]))
                await asyncio.sleep(0.1)  # one that was under way
                asked = len(outside.jobs[external_id].cancel_reasons)
                await asyncio.sleep(2.5)
                assert len(outside.jobs[external_id].cancel_reasons) == asked
                away.clear()
                await soon(lambda: len(outside.jobs[external_id].cancel_reasons) > asked)
                outside.advance(external_id, Phase.CANCELLED)
                assert await within(end) is JobState.KILLED

    asyncio.run(main())
