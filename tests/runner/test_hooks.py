"""Hooks that hang, or raise anything, hold up no other hook, no kill, and not the end of the process."""

import asyncio
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from jobrunner import hooks as hooks_module
from jobrunner.database import Database, get_database
from jobrunner.due_queue import Due, DueQueue
from jobrunner.hooks import Hooks
from jobrunner.runner import Runner
from jobrunner.settings import configure
from jobrunner.states import JobState
from jobrunner.testing import MemoryMonitorJob, Plan, use_backend
from tests.helpers import an_owner, row_of
from tests.runner.support import a_job, a_runner, an_outside, in_loop, soon, start, take_over, within
from tests.runner.test_cancelling import cleaning
from tests.runner.test_runner import watched

QUICK: dict[str, Any] = {"heartrate": 0.1, "poll_interval": 0.05}


@pytest.fixture
def go() -> Iterator[threading.Event]:
    """What hooks hang on, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


_numbers = itertools.count(1)


def a_class(**attributes: Any) -> type[MemoryMonitorJob]:
    """Return a class of jobs of a name of its own, as the registry of the models wants it."""
    return type(f"Hooked{next(_numbers)}", (MemoryMonitorJob,), attributes)


def hanging(go: threading.Event, hook: str, names: tuple[str, ...] | None = None) -> type[MemoryMonitorJob]:
    """Return a class whose hook hangs, of all jobs or of those with these names; it counts the calls."""
    calls: list[str | None] = []

    def hang(self: MemoryMonitorJob, *_arguments: Any, **_options: Any) -> None:
        calls.append(self.name)
        if names is None or self.name in names:
            go.wait(60)

    return a_class(**{hook: hang, "calls": calls})


def test_callbacks_that_hang_keep_no_kill_from_being_carried_out(
    sqlite_database: Database, go: threading.Event
) -> None:
    hanging_class = hanging(go, "heartbeat_callback")

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                for _ in range(20):
                    start(runner, hanging_class(**QUICK))
                await soon(lambda: len(hanging_class.calls) >= 8)  # type: ignore[attr-defined]
                job = cleaning()
                _, end = await watched(runner, outside, job)
                job.request_kill()
                assert await within(end) is JobState.KILLED
                assert job.kills == 1

    asyncio.run(main())


def test_a_callback_that_hangs_takes_no_other_jobs_and_is_not_called_again(
    sqlite_database: Database,
    go: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("jobrunner.runner._CALLBACK_S", 0.2)
    names = tuple(f"bad {number}" for number in range(12))
    hanging_class = hanging(go, "heartbeat_callback", names)

    async def main() -> None:
        with use_backend(an_outside()):
            async with a_runner(sqlite_database) as runner:
                calls: list[str] = hanging_class.calls  # type: ignore[attr-defined]
                for name in (*names, "good"):
                    start(runner, hanging_class(name=name, **QUICK))
                await soon(lambda: set(calls) == {*names, "good"})
                await soon(lambda: caplog.text.count("heartbeat_callback takes long") == len(names))
                already = calls.count("good")
                await soon(lambda: calls.count("good") > already + 3)
                assert all(calls.count(name) == 1 for name in names)

    asyncio.run(main())
    assert caplog.text.count("heartbeat_callback takes long") == len(names)


def test_a_callback_that_hangs_in_a_transaction_keeps_nobody_from_writing(
    sqlite_url: str, go: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    configure(database_url=sqlite_url, sqlite_busy_timeout_s=6)
    database = get_database()

    def write_and_hang(self: MemoryMonitorJob, session: Session) -> None:
        session.execute(text("UPDATE job SET dag_id = 'half done' WHERE id = :id"), {"id": self.id})
        self.is_hanging.set()  # type: ignore[attr-defined]
        go.wait(60)
        session.execute(text("UPDATE job SET dag_id = 'too late' WHERE id = :id"), {"id": self.id})

    hanging_class = a_class(heartbeat_callback=write_and_hang, is_hanging=threading.Event())

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = cleaning()
                _, end = await watched(runner, outside, job)
                start(runner, writer := hanging_class(**QUICK))
                await soon(hanging_class.is_hanging.is_set)  # type: ignore[attr-defined]
                await asyncio.to_thread(job.request_kill)
                assert await within(end) is JobState.KILLED
                go.set()
                await soon(lambda: "heartbeat_callback failed" in caplog.text)
                assert row_of(database, writer.id)["dag_id"] is None

    asyncio.run(main())
    assert "a heartbeat_callback kept what it had written locked for 0.25 s" in caplog.text


@in_loop
async def test_callbacks_that_hang_take_no_session_from_another_class_and_no_kill(
    database: Database, go: threading.Event
) -> None:
    def read_and_hang(self: MemoryMonitorJob, session: Session) -> None:
        session.execute(text("SELECT 1"))
        self.hanging.append(self.id)  # type: ignore[attr-defined]
        go.wait(60)

    def read(self: MemoryMonitorJob, session: Session) -> None:
        self.answers.append(session.execute(text("SELECT 1")).scalar())  # type: ignore[attr-defined]

    hanging: list[int] = []
    answers: list[int] = []
    hanging_class = a_class(heartbeat_callback=read_and_hang, hanging=hanging)
    good_class = a_class(heartbeat_callback=read, answers=answers)
    outside = an_outside()
    with use_backend(outside):
        async with a_runner(database) as runner:
            for _ in range(20):
                start(runner, hanging_class(**QUICK))
            await soon(lambda: len(hanging) == 20)
            job = good_class(**QUICK)
            _, end = await watched(runner, outside, job)
            await soon(lambda: len(answers) >= 5)
            await asyncio.to_thread(job.request_kill)
            assert await within(end) is JobState.KILLED
            go.set()


@in_loop
async def test_a_callback_that_holds_its_row_refuses_no_kill_of_its_job(
    database: Database, go: threading.Event
) -> None:
    def write_and_hang(self: MemoryMonitorJob, session: Session) -> None:
        session.execute(text("UPDATE job SET dag_id = 'half done' WHERE id = :id"), {"id": self.id})
        self.is_hanging.set()  # type: ignore[attr-defined]
        go.wait(60)

    hanging_class = a_class(heartbeat_callback=write_and_hang, is_hanging=threading.Event())
    outside = an_outside()
    with use_backend(outside):
        async with a_runner(database) as runner:
            job = hanging_class(heartrate=0.5, poll_interval=0.05)
            _, end = await watched(runner, outside, job)
            await soon(hanging_class.is_hanging.is_set)  # type: ignore[attr-defined]
            await asyncio.to_thread(job.request_kill)
            assert await within(end) is JobState.KILLED
            go.set()
    assert row_of(database, job.id)["dag_id"] is None


def test_the_transaction_of_a_hook_that_ends_in_time_is_its_own(sqlite_url: str) -> None:
    configure(database_url=sqlite_url, sqlite_busy_timeout_s=0.6)
    database, job_id = get_database(), a_job().store().id
    over_s = time.monotonic() + 1.0
    while time.monotonic() < over_s:  # longer than one of them may take
        with database.session() as session:
            session.execute(text("UPDATE job SET dag_id = 'done' WHERE id = :id"), {"id": job_id})
            session.commit()
    assert row_of(database, job_id)["dag_id"] == "done"


def test_a_kill_waits_for_a_hanging_on_kill_as_long_as_its_runner_was_told(
    sqlite_database: Database, go: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    hanging_class = hanging(go, "on_kill")

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with Runner(sqlite_database, an_owner(), on_kill_s=0.2) as runner:
                started = [await watched(runner, outside, hanging_class(**QUICK)) for _ in range(6)]
                with sqlite_database.write() as connection:
                    connection.exec_driver_sql("UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP")
                assert {await within(end) for _, end in started} == {JobState.KILLED}

    asyncio.run(main())
    assert caplog.text.count("on_kill takes long: the kill goes on meanwhile") == 6
    assert len(hanging_class.calls) == 6  # type: ignore[attr-defined]


@pytest.mark.parametrize("hook", ["heartbeat_callback", "on_kill"])
@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), GeneratorExit()], ids=repr
)
def test_whatever_a_hook_raises_ends_no_job_and_is_told(
    sqlite_database: Database, hook: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_self: MemoryMonitorJob, *_arguments: Any, **_options: Any) -> None:
        raise error

    raising_class = a_class(**{hook: fail})

    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = raising_class(**QUICK)
                _, end = await watched(runner, outside, job)
                if hook == "heartbeat_callback":
                    await soon(lambda: f"{hook} failed" in caplog.text)
                job.request_kill()
                assert await within(end) is JobState.KILLED

    asyncio.run(main())
    assert f"{hook} failed" in caplog.text


def test_hooks_that_hang_take_a_bounded_number_of_threads(
    go: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks_module, "_NEW_S", 0.01)
    monkeypatch.setattr(hooks_module, "_MOST", 18)
    calls: list[int] = []

    def hang(number: int) -> None:
        calls.append(number)
        go.wait(60)

    async def main() -> None:
        hooks, job = Hooks(), a_job(name="one of many")
        begun = [
            hooks.call(job, "on_kill", lambda number=number: hang(number), 0.05)  # type: ignore[misc]
            for number in range(100)
        ]
        await soon(lambda: sum(call.why_not is not None for call in begun) == 100 - 18)
        assert len(calls) == 18
        assert "18 calls of it hang, each for more than 0.05 s" in {call.why_not for call in begun}
        others = [thread for thread in threading.enumerate() if thread.name == "jobrunner-hook"]
        assert len(others) <= 18
        assert all(thread.daemon for thread in others)
        go.set()
        await asyncio.gather(*(call.ended for call in begun))
        last = hooks.call(job, "on_kill", lambda: calls.append(-1), 5.0)
        assert await last.ended is None
        await hooks.close()

    asyncio.run(main())
    assert calls[-1] == -1, "once they have returned, it is called again"
    assert caplog.text.count("on_kill is not called: too many calls of it have not returned") == 1


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let so many calls of one hook of one class be under way."""
    monkeypatch.setattr(hooks_module, "_NEW_S", 0.01)
    monkeypatch.setattr(hooks_module, "_MOST", 4)
    return 4


def wait_for(go: threading.Event) -> None:
    go.wait(60)


@in_loop
async def test_calls_wait_for_their_turn_while_others_are_slow(few_places: int) -> None:
    hooks, job = Hooks(), a_job(name="one of many")
    called: list[int] = []

    def be_slow(number: int) -> None:
        called.append(number)
        time.sleep(0.1)

    calls = [hooks.call(job, "judge", partial(be_slow, number), 60.0) for number in range(5 * few_places)]
    await asyncio.gather(*(call.ended for call in calls))
    assert sorted(called) == list(range(5 * few_places))
    # Those that are under way at the same time may come in any order.
    assert all(abs(number - place) <= 2 * few_places for place, number in enumerate(called)), called
    assert {call.why_not for call in calls} == {None}
    await hooks.close()


@in_loop
async def test_calls_that_hang_leave_their_places_to_nobody_but_the_others_go_on(
    few_places: int, go: threading.Event
) -> None:
    hooks, job = Hooks(), a_job()
    called: list[int] = []
    for _ in range(few_places - 1):
        hooks.call(job, "judge", partial(wait_for, go), 0.05)
    calls = [hooks.call(job, "judge", partial(called.append, number), 0.05) for number in range(50)]
    await asyncio.gather(*(call.ended for call in calls))
    assert called == list(range(50))
    go.set()
    await hooks.close()


@in_loop
async def test_a_call_that_waits_can_be_withdrawn_and_one_that_has_begun_cannot(
    few_places: int, go: threading.Event
) -> None:
    hooks, job = Hooks(), a_job()
    called: list[int] = []
    begun = [hooks.call(job, "judge", partial(wait_for, go), 60.0) for _ in range(few_places)]
    waiting = hooks.call(job, "judge", partial(called.append, 1), 60.0)
    await soon(lambda: all(call.begun_s is not None for call in begun))
    for call in (*begun, waiting):
        hooks.withdraw(call, "it is no longer wanted")
    assert await waiting.ended is None
    assert [call.why_not for call in (*begun, waiting)] == [None] * few_places + ["it is no longer wanted"]
    go.set()
    await asyncio.gather(*(call.ended for call in begun))
    await hooks.close()
    assert called == []


@in_loop
async def test_in_a_mass_kill_each_on_kill_is_called(sqlite_database: Database, few_places: int) -> None:
    called: list[int] = []

    def be_slow(self: MemoryMonitorJob) -> None:
        called.append(self.id)
        time.sleep(0.1)

    slow_class = a_class(on_kill=be_slow)
    with use_backend(an_outside()):
        async with a_runner(sqlite_database) as runner:
            ends = [start(runner, slow_class(**QUICK)) for _ in range(5 * few_places)]
            await soon(lambda: all(owned.is_watched for owned in runner.jobs.values()))
            with sqlite_database.write() as connection:
                connection.exec_driver_sql("UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP")
            assert {await within(end) for end in ends} == {JobState.KILLED}
    assert len(called) == len(set(called)) == 5 * few_places


@in_loop
async def test_an_on_kill_whose_turn_does_not_come_is_named_in_the_message_of_the_end(
    sqlite_database: Database, few_places: int, go: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    hanging_class = hanging(go, "on_kill")
    with use_backend(an_outside()):
        async with Runner(sqlite_database, an_owner(), on_kill_s=1.0) as runner:
            jobs = [hanging_class(**QUICK) for _ in range(few_places + 2)]
            ends = [start(runner, job) for job in jobs]
            await soon(lambda: all(owned.is_watched for owned in runner.jobs.values()))
            with sqlite_database.write() as connection:
                connection.exec_driver_sql("UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP")
            assert {await within(end) for end in ends} == {JobState.KILLED}
    messages = [row_of(sqlite_database, job.id)["message"] for job in jobs]
    assert sum("its on_kill was not called: 4 " in message for message in messages) == 2
    assert len(hanging_class.calls) == few_places  # type: ignore[attr-defined]
    assert "on_kill was not called" in caplog.text


@in_loop
async def test_a_runner_that_stops_calls_no_on_kill_that_still_waits(
    sqlite_database: Database, few_places: int, go: threading.Event
) -> None:
    hanging_class = hanging(go, "on_kill")
    calls: list[str] = hanging_class.calls  # type: ignore[attr-defined]
    with use_backend(an_outside()):
        async with a_runner(sqlite_database) as runner:
            jobs = [hanging_class(**QUICK) for _ in range(few_places + 1)]
            for job in jobs:
                start(runner, job)
            await soon(lambda: all(owned.is_watched for owned in runner.jobs.values()))
            with sqlite_database.write() as connection:
                connection.exec_driver_sql("UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP")
            await soon(lambda: len(calls) == few_places)
            await soon(lambda: sum(owned.on_kill is not None for owned in runner.jobs.values()) == len(jobs))
            await runner.stop()
            go.set()
    assert len(calls) == few_places
    assert {row_of(sqlite_database, job.id)["state"] for job in jobs} == {JobState.QUEUED}


@pytest.mark.parametrize("hook", ["heartbeat_callback", "on_kill"])
def test_a_hook_that_hangs_does_not_keep_its_process_from_ending(hook: str, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(f"""
import threading, time
from jobrunner.testing import MemoryBackend, MemoryMonitorJob, Plan, use_backend
import jobrunner.cancelling
jobrunner.cancelling._ON_KILL_S = 0.5
hangs = threading.Event()
class Mine(MemoryMonitorJob):
    def {hook}(self, *args, **kwargs):
        hangs.set()
        threading.Event().wait()
outside = MemoryBackend(plan=Plan(run_for_s=None))
def end(job):
    while not outside.jobs:
        time.sleep(0.01)
    if {hook == "on_kill"}:
        job.request_kill()
    else:
        hangs.wait()
        outside.succeed("memory-1")
with use_backend(outside):
    job = Mine(heartrate=0.2, poll_interval=0.1).store()
    threading.Thread(target=end, args=(Mine.get(job.id),)).start()
    try:
        job.run()
    finally:
        print("it ended as", job.state, "hanging", hangs.is_set(), flush=True)
""")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JOBRUNNER_")}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment
        | {"JOBRUNNER_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    state = "killed" if hook == "on_kill" else "success"
    assert f"it ended as {state} hanging True" in done.stdout, done.stderr


# --- moments ---------------------------------------------------------------------------------------


def test_a_runner_forgets_the_moments_of_jobs_that_have_ended_or_were_given_back(
    sqlite_database: Database,
) -> None:
    async def main() -> None:
        with use_backend(an_outside(Plan(run_for_s=0.0))):
            async with a_runner(sqlite_database) as runner:
                for _ in range(3):
                    ends = [start(runner, a_job(timeout=30 * 86400, start_timeout=86400)) for _ in range(20)]
                    assert {await within(end) for end in ends} == {JobState.SUCCESS}
                assert len(runner.cancelling._moments) == 0

    asyncio.run(main())


def test_a_job_that_is_claimed_again_has_one_moment(sqlite_database: Database) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                job = a_job(timeout=3600)
                await watched(runner, outside, job)
                for _ in range(5):
                    take_over(runner, job)
                assert len(runner.cancelling._moments) == 1

    asyncio.run(main())


def test_what_was_dropped_from_the_queue_does_not_pile_up() -> None:
    queue: DueQueue[Due] = DueQueue()
    for number in range(50_000):
        due = Due(number)
        queue.put(due, 1e9 + number)
        if number % 100:
            queue.drop(due)
    assert len(queue) == 500
    assert len(queue._heap) < 3_000
