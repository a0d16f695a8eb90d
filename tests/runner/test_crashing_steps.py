"""Steps of a runner that crash: the job is tried again, and after a few times it ends and says why."""

from typing import Any

import pytest

from jobrunner import runner as runner_module
from jobrunner import submission, unexpected
from jobrunner.database import Database
from jobrunner.errors import DatabaseRefused
from jobrunner.states import JobState
from jobrunner.testing import Plan, use_backend
from tests.helpers import row_of
from tests.runner.support import a_job, a_runner, an_outside, in_loop, start, within


def crashing(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[int]:
    """Let the submission of a job crash so often; return the crashes so far."""
    crashes = [0]

    async def submit(*args: Any, **kwargs: Any) -> Any:
        if crashes[0] < times:
            crashes[0] += 1
            raise error
        return await submission.submit(*args, **kwargs)

    monkeypatch.setattr(runner_module, "submit", submit)
    return crashes


@in_loop
async def test_a_step_that_crashes_once_is_tried_again(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashes, before = crashing(monkeypatch, RuntimeError("a fault"), 1), unexpected.count()
    with use_backend(an_outside(Plan(run_for_s=0.0))):
        async with a_runner(sqlite_database) as runner:
            assert await within(start(runner, a_job())) is JobState.SUCCESS
    assert crashes == [1]
    assert unexpected.count() == before + 1


@in_loop
async def test_a_step_that_crashes_again_and_again_ends_its_job_and_no_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashes = crashing(monkeypatch, RuntimeError("a fault of jobrunner"), 5)
    with use_backend(an_outside(Plan(run_for_s=0.0))):
        async with a_runner(database) as runner:
            bad = a_job()
            assert await within(start(runner, bad)) is JobState.FAILED
            assert await within(start(runner, a_job())) is JobState.SUCCESS
    assert "a fault of jobrunner" in row_of(database, bad.id)["message"]
    assert crashes == [5]


@in_loop
async def test_a_write_that_is_refused_for_its_content_ends_the_job_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashes = crashing(monkeypatch, DatabaseRefused("this value is refused"), 5)
    with use_backend(an_outside(Plan())):
        async with a_runner(database) as runner:
            job = a_job()
            assert await within(start(runner, job)) is JobState.FAILED
    assert "is refused" in row_of(database, job.id)["message"]
    assert crashes == [1]
