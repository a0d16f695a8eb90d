"""The runner: watches, cancels and ends jobs; what trouble in watching may never do."""

import asyncio
import logging
import math
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import RowMapping

from jobrunner import statements
from jobrunner.answers import Answers
from jobrunner.backends.base import Patience
from jobrunner.database import Database
from jobrunner.errors import ClaimLost, DatabaseRefused, DatabaseUnavailable
from jobrunner.owned import OwnedJob
from jobrunner.runner import Runner
from jobrunner.states import JobState, Phase
from jobrunner.testing import Fault, MemoryBackend, MemoryMonitorJob, Plan, use_backend
from tests.helpers import events_of, row_of, statements_of
from tests.runner.support import (
    BRIEF,
    SOON,
    a_job,
    a_runner,
    an_outside,
    look,
    soon,
    start,
    take_over,
    within,
)


async def watched(runner: Runner, outside: MemoryBackend, job: MemoryMonitorJob) -> tuple[str, Any]:
    """Start a job and wait until it was seen to run."""
    end = start(runner, job)
    await soon(lambda: row_of(runner.database, job.id)["external_state"] == "RUNNING")
    return outside.job_of(job.submit_token).external_id, end  # type: ignore[arg-type]


# --- how jobs end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "state", "message"),
    [
        (Phase.SUCCEEDED, JobState.SUCCESS, "all is well"),
        (Phase.FAILED, JobState.FAILED, "all is well"),
        (Phase.CANCELLED, JobState.FAILED, "cancelled outside, without any wish of ours (all is well)"),
    ],
)
def test_a_job_ends_as_its_work_did_and_says_what_the_outside_said(
    database: Database, database_url: str, phase: Phase, state: JobState, message: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                external_id, end = await watched(runner, outside, job)
                assert look(database, job.id, "state", "external_id", "message") == (
                    JobState.RUNNING,
                    external_id,
                    "RUNNING",
                )
                outside.advance(external_id, phase, "all is well", {"exit_code": 7})
                assert await within(end) is state
        row = row_of(database, job.id)
        assert (row["state"], row["message"], row["external_state"]) == (state, message, phase.upper())
        assert row["detail"] == {"exit_code": 7}
        assert row["end_date"] is not None
        assert events_of(database_url, job.id) == [(None, "running"), ("running", state)]

    asyncio.run(main())


TROUBLES: list[tuple[Fault, dict[str, Any]]] = [
    (Fault.THROTTLE, {"retry_after_s": 0.01}),
    (Fault.ERROR, {}),
    (Fault.TIMEOUT, {}),
    (Fault.GARBAGE, {}),
    (Fault.GARBAGE, {"answer": None}),
    (Fault.SLOW, {"delay_s": 0.3}),
]


@pytest.mark.parametrize(("fault", "options"), TROUBLES)
def test_trouble_in_watching_never_ends_a_job(
    sqlite_database: Database, fault: Fault, options: dict[str, Any]
) -> None:
    async def main() -> None:
        outside = an_outside(patience=Patience(call_s=0.3, appear_s=0.1, vanish_s=0.1))
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                external_id, end = await watched(runner, outside, job)
                order = outside.order(fault, times=None, **options)
                await soon(lambda: order.served >= 2)
                await asyncio.sleep(0.2)
                assert row_of(sqlite_database, job.id)["state"] is JobState.RUNNING
                order.stop()
                outside.succeed(external_id)
                assert await within(end) is JobState.SUCCESS

    asyncio.run(main())


def test_that_a_status_cannot_be_read_is_shown_while_it_is_so_and_not_after(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job, other = a_job(), a_job()
                external_id, _ = await watched(runner, outside, job)
                other_id, _ = await watched(runner, outside, other)
                outside.advance(external_id, Phase.RUNNING, "half done", {"step": 5})
                await soon(lambda: row_of(database, job.id)["message"] == "half done")

                order = outside.order(Fault.ERROR, ids=[external_id], times=None, message="500 again")
                await soon(lambda: "unreadable" in row_of(database, job.id)["message"])
                message = row_of(database, job.id)["message"]
                assert message.startswith("status unreadable since ")
                assert message.endswith(" UTC: 500 again")
                assert look(database, job.id, "external_state", "detail") == ("RUNNING", {"step": 5})
                assert "unreadable" not in row_of(database, other.id)["message"]
                order.stop()
                await soon(lambda: row_of(database, job.id)["message"] == "half done")

                order = outside.order(Fault.ERROR, times=None, message="no route")
                for each in (job, other):
                    await soon(lambda each=each: "no route" in row_of(database, each.id)["message"])  # type: ignore[misc]
                order.stop()
                for each in (job, other):
                    await soon(lambda each=each: "no route" not in row_of(database, each.id)["message"])  # type: ignore[misc]
                assert other_id != external_id

    asyncio.run(main())


def test_one_failed_look_is_not_worth_a_word_in_the_row(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(poll_interval=0.3)
                await watched(runner, outside, job)
                order = outside.order(Fault.ERROR, times=1)
                await soon(lambda: order.served == 1)
                fetched = outside.calls["fetch"]
                with statements_of(sqlite_database) as sent:
                    await soon(lambda: outside.calls["fetch"] > fetched + 2)
                assert not [each for each in sent if "external_state" in each]

    asyncio.run(main())


# --- gone ----------------------------------------------------------------------------------------


def test_a_job_that_was_seen_and_vanished_is_lost_after_the_backends_patience(database: Database) -> None:
    async def main() -> None:
        outside = an_outside(patience=BRIEF)
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                _, end = await watched(runner, outside, job)
                outside.order(Fault.VANISH, times=None, message="no such job")
                gone_s = asyncio.get_running_loop().time()
                assert await within(end) is JobState.LOST
                assert asyncio.get_running_loop().time() - gone_s > BRIEF.vanish_s
        message = row_of(database, job.id)["message"]
        assert message.startswith("it was seen, and has been gone for")
        assert message.endswith("no such job")

    asyncio.run(main())


def test_a_job_that_never_appears_is_lost(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(Plan(appear_after_s=math.inf), BRIEF)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.LOST
        assert "never appeared" in row_of(sqlite_database, job.id)["message"]

    asyncio.run(main())


def test_a_job_that_appears_late_is_not_lost(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(
            Plan(appear_after_s=0.3, run_for_s=0.4), Patience(5.0, appear_s=5.0, vanish_s=0.1)
        )
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                assert await within(start(runner, a_job())) is JobState.SUCCESS

    asyncio.run(main())


def test_a_job_that_certainly_never_comes_back_is_lost_at_once(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                _, end = await watched(runner, outside, job)
                outside.order(Fault.VANISH, times=None, certain=True, message="the host restarted")
                assert await within(end) is JobState.LOST
        assert row_of(sqlite_database, job.id)["message"] == "the host restarted"

    asyncio.run(main())


def test_a_job_that_comes_and_goes_is_not_lost(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(patience=BRIEF)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                external_id, end = await watched(runner, outside, job)
                for _ in range(6):
                    order = outside.order(Fault.VANISH, times=2)
                    await soon(lambda order=order: order.served == 2)  # type: ignore[misc]
                    fetched = outside.calls["fetch"]
                    await soon(lambda fetched=fetched: outside.calls["fetch"] > fetched)  # type: ignore[misc]
                outside.succeed(external_id)
                assert await within(end) is JobState.SUCCESS

    asyncio.run(main())


def test_the_time_without_an_answer_does_not_count_as_gone(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(patience=BRIEF)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job, other = a_job(), a_job()
                external_id, end = await watched(runner, outside, job)
                await watched(runner, outside, other)
                gone = outside.order(Fault.VANISH, ids=[external_id], times=1)
                await soon(lambda: gone.served)
                errors = outside.order(Fault.ERROR, ids=[external_id], times=None)
                await asyncio.sleep(3 * BRIEF.vanish_s)
                again = outside.order(Fault.VANISH, ids=[external_id], times=1)
                errors.stop()
                await soon(lambda: again.served)
                outside.succeed(external_id)
                assert await within(end) is JobState.SUCCESS

    asyncio.run(main())


# --- many ----------------------------------------------------------------------------------------


def is_shown(owned: OwnedJob) -> bool:
    return owned.to_show is None and owned.shown is not None and owned.shown.external_state == "RUNNING"


def test_what_a_former_owner_saw_counts_as_seen(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(patience=Patience(call_s=5.0, appear_s=0.05, vanish_s=0.6))
        with use_backend(outside):
            job = a_job()
            async with a_runner(sqlite_database) as runner:
                await watched(runner, outside, job)
                await soon(lambda: row_of(sqlite_database, job.id)["external_state"])
            outside.order(Fault.VANISH, times=None)
            async with a_runner(sqlite_database) as runner:
                assert await within(take_over(runner, job)) is JobState.LOST
        assert row_of(sqlite_database, job.id)["message"].startswith("it was seen, and has been gone for")

    asyncio.run(main())


class _JobOfASubclass(MemoryMonitorJob):
    """Done by the same backend as its base."""


def test_jobs_of_a_class_and_its_subclass_share_the_way_to_a_backend(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside(SOON)
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                ends = [
                    start(runner, kind(heartrate=0.3, poll_interval=0.05))
                    for kind in (MemoryMonitorJob, _JobOfASubclass)
                ]
                assert [await within(end) for end in ends] == [JobState.SUCCESS] * 2
        assert outside.calls["close"] == 1

    asyncio.run(main())


def test_500_jobs_share_their_beats_and_their_looks(database: Database) -> None:
    async def main() -> None:
        count, bulk = 500, 100
        outside = an_outside(bulk_limit=bulk)
        with use_backend(outside):
            async with a_runner(database) as runner:
                ends = [start(runner, a_job(heartrate=2.0 + n % 2, poll_interval=1.0)) for n in range(count)]
                await soon(lambda: len(outside.jobs) == count)
                await soon(lambda: all(is_shown(owned) for owned in runner.jobs.values()))
                before, loop = outside.calls["fetch"], asyncio.get_running_loop()
                begun_s = loop.time()
                with statements_of(database) as sent:
                    await asyncio.sleep(3.5)
                rounds = (loop.time() - begun_s) / 1.0 + 2
                beats = [each for each in sent if "latest_heartbeat" in each and "external" not in each]
                assert 2 <= len(beats) <= 5, "one statement for all the jobs of a heartrate"
                assert outside.calls["fetch"] - before <= rounds * 2 * math.ceil(count / bulk)
                assert not [each for each in sent if "message" in each], "what stays as it is is not written"
                for external_id in list(outside.jobs):
                    outside.succeed(external_id)
                states = [await within(end, 60) for end in ends]
        assert set(states) == {JobState.SUCCESS}
        with database.read() as connection:
            counts = connection.exec_driver_sql("SELECT state, count(*) FROM job GROUP BY state").all()
        assert [tuple(row) for row in counts] == [("success", count)]

    asyncio.run(main())


# --- when the database or the step is at fault ---------------------------------------------------


def test_an_outcome_whose_first_write_was_answered_too_late_is_ours_all_the_same(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = statements.end_many
    lost: list[bool] = []

    def end_many(connection: Any, *arguments: Any, **options: Any) -> list[int]:
        written = real(connection, *arguments, **options)
        if not lost:
            lost.append(bool(written))
            if connection.in_transaction():
                connection.commit()
            raise DatabaseUnavailable("the connection broke before the answer came")
        return written

    async def main() -> None:
        with use_backend(an_outside(SOON)):
            async with a_runner(database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.SUCCESS
        assert lost == [True]
        assert row_of(database, job.id)["state"] is JobState.SUCCESS

    monkeypatch.setattr(statements, "end_many", end_many)
    asyncio.run(main())


def test_a_step_that_crashes_again_and_again_ends_its_job_with_its_error(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_arguments: Any, **_options: Any) -> None:
        raise ZeroDivisionError("a bug of ours")

    async def main() -> None:
        monkeypatch.setattr("jobrunner.runner.submit", broken)
        with use_backend(an_outside()):
            async with a_runner(sqlite_database) as runner:
                job = a_job(heartrate=0.1)
                assert await within(start(runner, job)) is JobState.FAILED
                state, message = look(sqlite_database, job.id, "state", "message")
                assert state is JobState.FAILED
                assert "ZeroDivisionError: a bug of ours" in message
        assert "a step of a job crashed" in caplog.text

    asyncio.run(main())


def test_a_beat_that_meets_the_end_of_a_crashed_job_is_no_lost_claim(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_arguments: Any, **_options: Any) -> None:
        raise DatabaseRefused("its content")

    async def main() -> None:
        monkeypatch.setattr("jobrunner.runner.submit", broken)
        with use_backend(an_outside()):
            async with a_runner(sqlite_database) as runner:
                persist, on_lost = runner.persist, runner._on_lost
                lost: list[str] = []

                async def slowly(write: Any, *args: Any, **options: Any) -> Any:
                    answer = await persist(write, *args, **options)
                    if write is statements.end:
                        await soon(lambda: lost)
                    return answer

                def note(owned: Any, why: str) -> None:
                    on_lost(owned, why)
                    lost.append(why)

                monkeypatch.setattr(runner, "persist", slowly)
                monkeypatch.setattr(runner, "_on_lost", note)
                assert await within(start(runner, a_job(heartrate=0.1))) is JobState.FAILED

    asyncio.run(main())


def test_a_step_that_is_cancelled_from_within_does_not_hang(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled(*_arguments: Any, **_options: Any) -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        monkeypatch.setattr("jobrunner.runner.submit", cancelled)
        with use_backend(an_outside()):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.FAILED
                assert "cancelled from within" in row_of(sqlite_database, job.id)["message"]

    asyncio.run(main())


def test_an_answer_that_is_not_taken_does_not_end_the_watching(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Answers.on_answer
    failed: list[bool] = []

    def on_answer(self: Answers, *arguments: Any) -> None:
        if not failed:
            failed.append(True)
            raise ZeroDivisionError
        real(self, *arguments)

    async def main() -> None:
        monkeypatch.setattr(Answers, "on_answer", on_answer)
        with use_backend(an_outside(SOON)):
            async with a_runner(sqlite_database) as runner:
                assert await within(start(runner, a_job())) is JobState.SUCCESS
        assert "an answer was not taken" in caplog.text

    asyncio.run(main())


def test_the_same_runner_may_claim_a_job_again_and_serves_only_the_later_claim(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job(heartrate=5)
                external_id, first = await watched(runner, outside, job)
                second = take_over(runner, job)
                with pytest.raises(ClaimLost, match="claimed again by this runner"):
                    await within(first)
                outside.succeed(external_id)
                assert await within(second) is JobState.SUCCESS
        assert look(database, job.id, "state", "claims") == (JobState.SUCCESS, 2)

    asyncio.run(main())


# --- releasing -----------------------------------------------------------------------------------


def test_leaving_a_runner_releases_its_jobs_and_touches_nothing_outside(
    database: Database, database_url: str
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                jobs = [a_job() for _ in range(10)]
                for job in jobs:
                    await watched(runner, outside, job)
            for job in jobs:
                row = row_of(database, job.id)
                assert (row["state"], row["runner_id"]) == (JobState.QUEUED, None)
                assert row["external_id"] in outside.jobs
                assert events_of(database_url, job.id)[-1] == ("running", "queued")
            assert outside.calls["cancel"] == 0
            async with a_runner(database) as runner:
                end = take_over(runner, jobs[0])
                outside.succeed(outside.job_of(jobs[0].submit_token).external_id)  # type: ignore[arg-type]
                assert await within(end) is JobState.SUCCESS
        assert outside.calls["submit"] == len(jobs)

    asyncio.run(main())


def test_an_outcome_seen_while_the_runner_leaves_is_written(database: Database) -> None:
    async def main() -> None:
        outside = an_outside(SOON)
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                end = start(runner, job)
                await soon(lambda: runner.jobs[job.id].concluding if job.id in runner.jobs else True)
            assert end.done()
        assert row_of(database, job.id)["state"] is JobState.SUCCESS

    asyncio.run(main())


def test_a_backend_that_hangs_does_not_keep_a_runner_from_leaving(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NeverCloses(MemoryBackend):
        async def close(self) -> None:
            await asyncio.get_running_loop().create_future()

    async def main() -> None:
        monkeypatch.setattr("jobrunner.channel._CLOSE_S", 0.2)
        outside = NeverCloses()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job()
                await watched(runner, outside, job)
        assert row_of(sqlite_database, job.id)["state"] is JobState.QUEUED

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_connection_that_cannot_be_used_is_an_error_and_the_job_is_not_kept(
    sqlite_database: Database,
) -> None:
    async def main() -> RowMapping | dict[str, Any]:
        with use_backend(an_outside()):
            job = a_job().store()
        from jobrunner.errors import SettingsError
        from jobrunner.executors.local import LocalExecutor

        with pytest.raises(SettingsError):
            await asyncio.to_thread(LocalExecutor().run_monitor_job, job)
        return row_of(sqlite_database, job.id)

    row = asyncio.run(main())
    assert (row["state"], row["runner_id"]) == (JobState.QUEUED, None)


# --- callbacks -----------------------------------------------------------------------------------


class CallingBack(MemoryMonitorJob):
    calls = 0

    def heartbeat_callback(self, session: Any = None) -> None:
        type(self).calls += 1
        if self.calls == 2:
            raise ValueError("a bug of the user's")


def test_the_heartbeat_callback_is_called_after_each_beat_and_its_bug_ends_nothing(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    CallingBack.calls = 0

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = CallingBack(heartrate=0.1, poll_interval=0.05)
                external_id, end = await watched(runner, outside, job)
                await soon(lambda: CallingBack.calls >= 4)
                outside.succeed(external_id)
                assert await within(end) is JobState.SUCCESS
        assert "heartbeat_callback failed" in caplog.text

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())


# --- nothing is left behind ----------------------------------------------------------------------


def test_many_runs_leave_no_thread_task_or_descriptor(database: Database) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def once() -> None:
        with use_backend(an_outside(Plan(run_for_s=0.0))):
            async with a_runner(database) as runner:
                assert await within(start(runner, a_job())) is JobState.SUCCESS
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(once())
    threads, open_files = threading.active_count(), descriptors()
    for _ in range(15):
        asyncio.run(once())
    assert threading.active_count() <= threads + 1
    assert descriptors() <= open_files + 2


def test_an_idle_runner_costs_next_to_nothing(database: Database) -> None:
    import time

    async def main() -> float:
        with use_backend(an_outside()):
            async with a_runner(database) as runner:
                start(runner, a_job(heartrate=5, poll_interval=10))
                await asyncio.sleep(1)
                before_s = time.process_time()
                await asyncio.sleep(2)
                return (time.process_time() - before_s) / 2

    assert asyncio.run(main()) < 0.05


class _JobWithAVoice(MemoryMonitorJob):
    def look_interval_s(self, watched_s: float) -> float | None:
        return None


def test_only_a_job_whose_class_has_a_say_in_the_watching_is_kept_as_an_object(database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job, voiced = a_job(), _JobWithAVoice()
                await watched(runner, outside, job)
                await watched(runner, outside, voiced)
                assert runner.jobs[job.id].job is None
                assert runner.jobs[voiced.id].job is voiced

    asyncio.run(main())
