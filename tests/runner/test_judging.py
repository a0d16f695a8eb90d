"""A job class whose own say in its watching is wrong: the job ends rightly, and its row says why."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobrunner.backends.base import Observation
from jobrunner.database import Database
from jobrunner.states import JobState, Phase
from jobrunner.testing import MemoryMonitorJob, Plan, use_backend
from jobrunner.testing.hostile import Panic, Unprintable
from tests.helpers import row_of
from tests.runner.support import a_job, a_runner, an_outside, in_loop, soon, start, take_over, within

_judge: list[Callable[[Observation], Any]] = []


class JudgedJob(MemoryMonitorJob):
    """A job whose judge is the test's."""

    def judge(self, observation: Observation) -> Observation:
        result: Observation = _judge[-1](observation)
        return result

    def look_interval_s(self, watched_s: float) -> float | None:
        result: float | None = _judge[-1](Observation(Phase.RUNNING, "", detail={"watched": watched_s}))
        return result


def _raises(error: BaseException) -> Callable[[Observation], Any]:
    def judge(_observation: Observation) -> Any:
        raise error

    return judge


WRONG = {
    "KeyError": _raises(KeyError("rows")),
    "SystemExit": _raises(SystemExit(3)),
    "GeneratorExit": _raises(GeneratorExit()),
    "CancelledError": _raises(asyncio.CancelledError()),
    "Panic": _raises(Panic("a panic")),
    "Unprintable": _raises(Unprintable()),
    "None": lambda _observation: None,
    "str": lambda _observation: "fine",
    "phase": lambda _observation: Observation("fine", ""),  # type: ignore[arg-type]
}


@pytest.fixture(params=WRONG)
def wrong(request: pytest.FixtureRequest) -> Any:
    _judge.append(WRONG[request.param])
    yield request.param
    _judge.pop()


@in_loop
async def test_a_kill_ends_a_job_whose_judge_is_wrong_and_the_row_says_so(
    sqlite_database: Database, wrong: str
) -> None:
    outside = an_outside(Plan())
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            job = JudgedJob(heartrate=0.3, poll_interval=0.05)
            end = start(runner, job)
            await soon(
                lambda: "judge of JudgedJob failed" in (row_of(sqlite_database, job.id)["message"] or "")
            )
            await asyncio.to_thread(job.request_kill)
            assert await within(end) is JobState.KILLED


@in_loop
async def test_a_judge_that_fails_again_and_again_is_logged_once(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[Observation] = []

    def fail(observation: Observation) -> Observation:
        looks.append(observation)
        raise KeyError("rows")

    _judge.append(fail)
    try:
        with use_backend(an_outside(Plan())):
            async with a_runner(sqlite_database) as runner:
                start(runner, JudgedJob(heartrate=0.3, poll_interval=0.05))
                await soon(lambda: len(looks) > 10)
    finally:
        _judge.pop()
    assert caplog.text.count("judge failed") == 1
    assert caplog.text.count("look_interval_s failed") == 1


@in_loop
async def test_a_success_that_was_not_judged_is_a_failure(sqlite_database: Database, wrong: str) -> None:
    with use_backend(an_outside(Plan(run_for_s=0.0, message="42 rows"))):
        async with a_runner(sqlite_database) as runner:
            job = JudgedJob(heartrate=0.3, poll_interval=0.05)
            assert await within(start(runner, job)) is JobState.FAILED
    message = row_of(sqlite_database, job.id)["message"]
    assert "judge of JudgedJob failed" in message
    assert "42 rows" in message


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """A judge that does not return until the test is over."""
    go = threading.Event()

    def hang(observation: Observation) -> Observation:
        go.wait(60)
        return observation

    _judge.append(hang)
    yield go
    go.set()
    _judge.pop()


@in_loop
async def test_a_judge_that_does_not_return_keeps_no_kill_from_being_carried_out(
    sqlite_database: Database, hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.judges._WANTED_S", 0.2)
    with use_backend(an_outside(Plan())):
        async with a_runner(sqlite_database) as runner:
            judged, other = JudgedJob(heartrate=0.3, poll_interval=0.05), a_job()
            ends = [start(runner, judged), start(runner, other)]
            await soon(lambda: "jobrunner-hook" in {thread.name for thread in threading.enumerate()})
            for job in (judged, other):
                await asyncio.to_thread(job.request_kill)
            assert [await within(end) for end in ends] == [JobState.KILLED, JobState.KILLED]
    assert "judge of JudgedJob failed" in row_of(sqlite_database, judged.id)["message"]


@in_loop
async def test_a_success_whose_judge_does_not_return_is_a_failure(
    sqlite_database: Database, hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.judges._JUDGE_S", 0.2)
    with use_backend(an_outside(Plan(run_for_s=0.0, message="42 rows"))):
        async with a_runner(sqlite_database) as runner:
            job = JudgedJob(heartrate=0.3, poll_interval=0.05)
            assert await within(start(runner, job)) is JobState.FAILED
    assert (
        "it has not returned; the work itself had succeeded (42 rows)"
        in (row_of(sqlite_database, job.id)["message"])
    )


@in_loop
async def test_a_runner_that_stops_while_a_success_is_judged_leaves_the_judgement_to_the_next(
    sqlite_database: Database, hanging: threading.Event
) -> None:
    with use_backend(an_outside(Plan(run_for_s=0.0))):
        async with a_runner(sqlite_database) as runner:
            start(runner, job := JudgedJob(heartrate=0.3, poll_interval=0.05))
            await soon(lambda: "jobrunner-hook" in {thread.name for thread in threading.enumerate()})
        assert row_of(sqlite_database, job.id)["state"] is JobState.QUEUED
        hanging.set()
        async with a_runner(sqlite_database) as runner:
            assert await within(take_over(runner, job)) is JobState.SUCCESS


@in_loop
async def test_observations_are_judged_in_their_order(sqlite_database: Database) -> None:
    judged: list[Phase] = []

    def judge(observation: Observation) -> Observation:
        judged.append(observation.phase)
        return observation

    _judge.append(judge)
    try:
        with use_backend(an_outside(Plan(run_for_s=0.5))):
            async with a_runner(sqlite_database) as runner:
                end = start(runner, JudgedJob(heartrate=0.3, poll_interval=0.05))
                assert await within(end) is JobState.SUCCESS
    finally:
        _judge.pop()
    assert judged.count(Phase.SUCCEEDED) == 1
    assert judged[-1] is Phase.SUCCEEDED


# --- many at once ------------------------------------------------------------------------------------


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let so many calls of one hook of one class be under way."""
    monkeypatch.setattr("jobrunner.hooks._NEW_S", 0.01)
    monkeypatch.setattr("jobrunner.hooks._MOST", 4)
    return 4


@in_loop
async def test_successes_that_come_together_wait_until_a_slow_judge_has_time_for_each(
    sqlite_database: Database, few_places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.judges._LOOK_S", 0.05)
    monkeypatch.setattr("jobrunner.judges._JUDGE_S", 2.0)
    judged: list[int] = []

    def judge(observation: Observation) -> Observation:
        if observation.phase.is_final:
            judged.append(1)
            time.sleep(0.3)
        return observation

    _judge.append(judge)
    outside, count = an_outside(), 12 * few_places  # which takes longer than one call of it may
    try:
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                ends = [start(runner, JudgedJob(heartrate=0.5, poll_interval=0.1)) for _ in range(count)]
                await soon(lambda: all(owned.is_watched for owned in runner.jobs.values()))
                for external_id in list(outside.jobs):
                    outside.succeed(external_id)
                assert {await within(end) for end in ends} == {JobState.SUCCESS}
                assert len(runner._answers._judges._cases) == 0
    finally:
        _judge.pop()
    assert len(judged) == count, "each was judged once"


@in_loop
async def test_where_every_call_of_a_judge_hangs_the_others_end_with_a_word(
    sqlite_database: Database,
    hanging: threading.Event,
    few_places: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("jobrunner.judges._LOOK_S", 0.05)
    monkeypatch.setattr("jobrunner.judges._JUDGE_S", 1.0)
    with use_backend(an_outside(Plan(run_for_s=0.0, message="42 rows"))):
        async with a_runner(sqlite_database) as runner:
            jobs = [JudgedJob(heartrate=0.5, poll_interval=0.05) for _ in range(few_places + 3)]
            ends = [start(runner, job) for job in jobs]
            assert {await within(end) for end in ends} == {JobState.FAILED}
            other = a_job()
            assert await within(start(runner, other)) is JobState.SUCCESS
    messages = [row_of(sqlite_database, job.id)["message"] for job in jobs]
    assert sum("it has not returned; the work itself had succeeded" in message for message in messages) == 4
    refused = "it was not called: 4 calls of it hang, each for more than 1 s"
    assert sum(refused in message for message in messages) == 3
    assert caplog.text.count("judge is not called: too many calls of it have not returned") == 1


@in_loop
async def test_a_kill_does_not_wait_until_it_is_its_jobs_turn_to_be_judged(
    sqlite_database: Database, hanging: threading.Event, few_places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.judges._LOOK_S", 0.05)
    monkeypatch.setattr("jobrunner.judges._WANTED_S", 0.2)
    with use_backend(an_outside(Plan())):
        async with a_runner(sqlite_database) as runner:
            jobs = [JudgedJob(heartrate=0.3, poll_interval=0.05) for _ in range(few_places + 1)]
            ends = [start(runner, job) for job in jobs]
            await soon(lambda: len(runner._answers._judges._cases) == few_places + 1)
            for job in jobs:
                await asyncio.to_thread(job.request_kill)
            assert {await within(end) for end in ends} == {JobState.KILLED}
    messages = [row_of(sqlite_database, job.id)["message"] for job in jobs]
    assert sum("it was not called: 4 other calls of it were under way" in message for message in messages)


@in_loop
async def test_a_job_that_was_lost_while_its_judgement_waited_is_forgotten(
    sqlite_database: Database, hanging: threading.Event, few_places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.judges._LOOK_S", 0.05)
    with use_backend(an_outside(Plan())):
        async with a_runner(sqlite_database) as runner:
            for _ in range(few_places + 1):
                start(runner, JudgedJob(heartrate=0.3, poll_interval=0.05))
            await soon(lambda: len(runner._answers._judges._cases) == few_places + 1)
            for owned in list(runner.jobs.values()):
                runner.drop(owned, "it was taken over")
            await soon(lambda: not runner._answers._judges._cases)
