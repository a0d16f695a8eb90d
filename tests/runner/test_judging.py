"""A job class whose own say in its watching is wrong: the job ends rightly, and its row says why."""

import asyncio
import threading
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
