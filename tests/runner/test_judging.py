"""A job class whose own say in its watching is wrong: the job ends rightly, and its row says why."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from jobrunner.backends.base import Observation
from jobrunner.database import Database
from jobrunner.states import JobState, Phase
from jobrunner.testing import MemoryMonitorJob, Plan, use_backend
from jobrunner.testing.hostile import Panic, Unprintable
from tests.helpers import row_of
from tests.runner.support import a_runner, an_outside, in_loop, soon, start, within

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
async def test_a_success_that_was_not_judged_is_a_failure(sqlite_database: Database, wrong: str) -> None:
    with use_backend(an_outside(Plan(run_for_s=0.0, message="42 rows"))):
        async with a_runner(sqlite_database) as runner:
            job = JudgedJob(heartrate=0.3, poll_interval=0.05)
            assert await within(start(runner, job)) is JobState.FAILED
    message = row_of(sqlite_database, job.id)["message"]
    assert "judge of JudgedJob failed" in message
    assert "42 rows" in message
