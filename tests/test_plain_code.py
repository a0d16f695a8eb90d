"""Methods whose code would never run, because calling them only makes an object."""

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from jobrunner.database import Database
from jobrunner.errors import JobKilled, UsageError
from jobrunner.models import BaseJob
from jobrunner.states import JobState
from jobrunner.testing import MemoryBackend, MemoryMonitorJob, Plan, use_backend
from tests.helpers import plain_sql


def _as_coroutine(done: list[str]) -> Callable[[Any], Any]:
    async def code(_self: BaseJob, **_options: Any) -> None:
        done.append("ran")

    return code


def _as_generator(done: list[str]) -> Callable[[Any], Any]:
    def code(_self: BaseJob, **_options: Any) -> Iterator[None]:
        done.append("ran")
        yield

    return code


def _as_async_generator(done: list[str]) -> Callable[[Any], Any]:
    async def code(_self: BaseJob, **_options: Any) -> AsyncIterator[None]:
        done.append("ran")
        yield

    return code


def _hidden(make: Callable[[list[str]], Callable[[Any], Any]]) -> Callable[[list[str]], Callable[[Any], Any]]:
    """Hide behind a decorator what the method is."""

    def made(done: list[str]) -> Callable[[Any], Any]:
        method = make(done)

        @functools.wraps(method)
        def decorated(self: BaseJob, **options: Any) -> Any:
            return method(self, **options)

        return decorated

    return made


OPEN = {"async": _as_coroutine, "yield": _as_generator, "async yield": _as_async_generator}
NAMES = ("_execute", "on_kill", "heartbeat_callback")


_number = itertools.count()


def _class(base: type[BaseJob], **methods: Any) -> type[BaseJob]:
    return type(f"Lazy{next(_number)}", (base,), {"_execute": lambda _self: None} | methods)


@pytest.mark.parametrize("make", OPEN.values(), ids=OPEN)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base", [BaseJob, MemoryMonitorJob])
@pytest.mark.parametrize("is_run", [False, True])
def test_a_job_of_which_a_method_would_never_run_is_not_stored(
    sqlite_database: Database,
    sqlite_url: str,
    make: Callable[[list[str]], Any],
    name: str,
    base: type[BaseJob],
    is_run: bool,
) -> None:
    job = _class(base, **{name: make([])})()
    with (
        use_backend(MemoryBackend()),
        pytest.raises(UsageError, match=rf"^Lazy\d+\.{name} .*would never run: make it a plain method"),
    ):
        job.run() if is_run else job.store()
    assert plain_sql(sqlite_url, "SELECT id FROM job") == []


@pytest.mark.parametrize("make", OPEN.values(), ids=OPEN)
@pytest.mark.parametrize("name", ["judge", "look_interval_s"])
def test_a_watched_job_whose_class_would_never_judge_is_not_stored(
    sqlite_database: Database, sqlite_url: str, make: Callable[[list[str]], Any], name: str
) -> None:
    job = _class(MemoryMonitorJob, **{name: make([])})()
    with (
        use_backend(MemoryBackend()),
        pytest.raises(UsageError, match=rf"^Lazy\d+\.{name} .*would never run"),
    ):
        job.run()
    assert plain_sql(sqlite_url, "SELECT id FROM job") == []


class _ToBeAwaited:
    def __await__(self) -> Iterator[None]:
        yield


HIDDEN = [*(_hidden(make) for make in OPEN.values()), lambda _done: lambda _self, **_options: _ToBeAwaited()]


@pytest.mark.parametrize("make", HIDDEN)
def test_a_callback_that_turns_out_not_to_have_run_fails_own_code_with_a_word(
    sqlite_database: Database, make: Callable[[list[str]], Any]
) -> None:
    done: list[str] = []
    job = _class(BaseJob, _execute=lambda job: job.heartbeat(), heartbeat_callback=make(done))(heartrate=0.2)
    with pytest.raises(UsageError, match=r"heartbeat_callback returned .*would never run"):
        job.run()
    assert (job.state, done) == (JobState.FAILED, [])


def test_a_callback_of_a_watched_job_that_turns_out_not_to_have_run_is_logged(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    callback = _hidden(_as_coroutine)([])
    job = _class(MemoryMonitorJob, heartbeat_callback=callback)(heartrate=0.2)
    outside = MemoryBackend(plan=Plan(run_for_s=1.0))
    with use_backend(outside):
        job.run()
    assert job.state is JobState.SUCCESS
    assert f"{type(job).__name__}.heartbeat_callback returned a coroutine" in caplog.text


@pytest.mark.parametrize("make", HIDDEN)
def test_code_that_turns_out_not_to_have_run_is_no_success(
    sqlite_database: Database, make: Callable[[list[str]], Any]
) -> None:
    done: list[str] = []
    job = _class(BaseJob, _execute=make(done))()
    with pytest.raises(UsageError, match="would never run"):
        job.run()
    assert (job.state, done) == (JobState.FAILED, [])
    assert "would never run" in str(job.message)


def test_a_row_that_was_stored_by_other_code_does_not_end_as_a_success(sqlite_database: Database) -> None:
    job = _class(BaseJob)().store()
    type(job)._execute = _as_coroutine([])  # type: ignore[assignment, method-assign]
    with pytest.raises(UsageError):
        job.run()
    assert (job.state, "is an `async def`" in str(job.message)) == (JobState.FAILED, True)


def test_a_clean_up_that_turns_out_not_to_have_run_is_logged_and_stops_no_kill(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def code(job: BaseJob) -> None:
        job.request_kill()
        while True:
            job.heartbeat()

    job = _class(BaseJob, _execute=code, on_kill=_hidden(_as_coroutine)([]))(heartrate=0.2)
    with pytest.raises(JobKilled):
        job.run()
    assert job.state is JobState.KILLED
    assert "on_kill failed" in caplog.text
    assert "would never run" in caplog.text


def test_a_plain_method_may_run_a_coroutine(sqlite_database: Database) -> None:
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append("ran")

    job = _class(BaseJob, _execute=lambda _self: asyncio.run(work()))()
    job.run()
    assert (job.state, done) == (JobState.SUCCESS, ["ran"])
