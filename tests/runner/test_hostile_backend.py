"""Backends whose code is wrong in every way: jobs end as they should, a kill counts, nothing is left."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

from jobrunner import unexpected
from jobrunner.backends import calls
from jobrunner.backends.base import Gone, Observation, Patience, RemoteError
from jobrunner.backends.guarded import GuardedBackend
from jobrunner.database import Database
from jobrunner.errors import BackendDefect
from jobrunner.runner import Runner
from jobrunner.states import JobState, Phase
from jobrunner.testing import HostileBackend, MemoryBackend, MemoryMonitorJob, Misbehaviour, Plan, use_backend
from tests.helpers import row_of, until
from tests.runner.support import a_job, a_runner, in_loop, soon, start, within

QUICK = Patience(call_s=0.4, appear_s=5.0, vanish_s=5.0)


@pytest.fixture(autouse=True)
def _ends_of_calls_are_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "END_S", 0.2)


@contextlib.asynccontextmanager
async def hostile_runner(database: Database, **options: Any) -> AsyncIterator[tuple[Runner, HostileBackend]]:
    """Give a runner over a hostile backend, and see that it leaves nothing behind."""
    outside = HostileBackend(**{"plan": Plan(), "patience": QUICK, **options})
    others, crashes, left = asyncio.all_tasks(), unexpected.count(), calls.left_behind()
    with use_backend(outside):
        async with a_runner(database) as runner:
            yield runner, outside
    outside.behave()
    await soon(lambda: calls.left_behind() == left)
    assert asyncio.all_tasks() == others, "a task was left"
    assert unexpected.count() == crashes, "a catch-all was needed"


async def made(outside: HostileBackend, job: MemoryMonitorJob, database: Database) -> str:
    """Wait until a job speaks of its work outside."""
    await soon(lambda: row_of(database, job.id)["external_id"] is not None)
    return str(row_of(database, job.id)["external_id"])


@pytest.mark.parametrize("call", ["submit", "find", "fetch", "cancel"])
@in_loop
async def test_whatever_a_call_does_wrong_jobs_end_rightly_and_a_kill_counts(
    sqlite_database: Database, call: str
) -> None:
    async with hostile_runner(sqlite_database) as (runner, outside):
        for misbehaviour in Misbehaviour:
            outside.behave()
            if call == "find":  # which is asked only where an answer of `submit` is missing
                outside.misbehave(Misbehaviour.PANIC, "submit", times=2)
            outside.misbehave(misbehaviour, call, times=2)
            good, bad = a_job(), a_job()
            good_end, bad_end = start(runner, good), start(runner, bad)
            if call == "submit" and misbehaviour is Misbehaviour.ODD_TEXT:
                for end, job in ((good_end, good), (bad_end, bad)):
                    assert await within(end) is JobState.FAILED
                    message = row_of(sqlite_database, job.id)["message"]
                    assert "cannot be stored" in message
                    assert "its work was ended" in message
                continue
            outside.succeed(await made(outside, good, sqlite_database))
            await made(outside, bad, sqlite_database)
            await asyncio.to_thread(bad.request_kill, reason=str(misbehaviour))
            assert await within(good_end) is JobState.SUCCESS, misbehaviour
            assert await within(bad_end) is JobState.KILLED, misbehaviour
            assert outside.misbehaved[call, misbehaviour] >= 1
        assert not runner.jobs


@pytest.mark.parametrize("misbehaviour", Misbehaviour)
@in_loop
async def test_events_and_a_close_that_go_wrong_hinder_nothing(
    sqlite_database: Database, misbehaviour: Misbehaviour
) -> None:
    async with hostile_runner(sqlite_database) as (runner, outside):
        outside.misbehave(misbehaviour, "events", times=None)
        outside.misbehave(misbehaviour, "close")
        job = a_job()
        end = start(runner, job)
        outside.succeed(await made(outside, job, sqlite_database))
        assert await within(end) is JobState.SUCCESS


@in_loop
async def test_with_every_third_call_wrong_every_job_ends_as_it_should(database: Database) -> None:
    async with hostile_runner(database, seed=11, share=0.33) as (runner, outside):
        outside._choices = [each for each in Misbehaviour if each is not Misbehaviour.ODD_TEXT]
        ends = {}
        for number in range(12):
            job = a_job()
            ends[job] = (number, start(runner, job))
        for job, (number, end) in ends.items():
            external_id = await made(outside, job, database)
            if number % 3 == 0:
                outside.succeed(external_id)
                assert await within(end, 60) is JobState.SUCCESS
            elif number % 3 == 1:
                outside.fail(external_id, "broken")
                assert await within(end, 60) is JobState.FAILED
            else:
                await asyncio.to_thread(job.request_kill)
                assert await within(end, 60) is JobState.KILLED


@in_loop
async def test_calls_that_swallow_their_cancellation_hold_up_no_other_kill(sqlite_database: Database) -> None:
    async with hostile_runner(sqlite_database) as (runner, outside):
        jobs = [a_job() for _ in range(6)]
        ends = [start(runner, job) for job in jobs]
        for job in jobs:
            await made(outside, job, sqlite_database)
        outside.misbehave(Misbehaviour.CLINGS, "cancel", times=5)
        for number, job in enumerate(jobs[:5]):
            await asyncio.to_thread(
                job.request_kill, reason=f"reason {number}"
            )  # so each is a call of its own
        await soon(lambda: outside.misbehaved["cancel", Misbehaviour.CLINGS] == 5)
        await asyncio.to_thread(jobs[5].request_kill, reason="sound")
        assert await within(ends[5]) is JobState.KILLED


@in_loop
async def test_what_never_ends_is_not_called_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "END_S", 0.01)
    outside = HostileBackend(patience=Patience(call_s=0.05))
    backend = GuardedBackend(outside)
    outside.misbehave(Misbehaviour.CLINGS, "fetch", times=None)
    for _ in range(3):
        with pytest.raises(BackendDefect, match="nor when it was cancelled"):
            await backend.fetch(["memory-1"])
    with pytest.raises(BackendDefect, match="have never ended"):
        await backend.fetch(["memory-1"])
    assert outside.misbehaved["fetch", Misbehaviour.CLINGS] == 3
    outside.behave()
    await soon(lambda: calls.left_behind() == 0)
    assert await backend.fetch(["memory-1"]), "once they have ended, it is asked again"


@in_loop
async def test_a_job_whose_submission_cannot_be_proven_by_wrong_code_can_still_be_killed(
    sqlite_database: Database,
) -> None:
    async with hostile_runner(sqlite_database) as (runner, outside):
        outside.misbehave(Misbehaviour.PANIC, "submit")
        outside.misbehave(Misbehaviour.WRONG_TYPES, "find", times=None)
        job = a_job()
        end = start(runner, job)
        await soon(lambda: "in doubt" in (row_of(sqlite_database, job.id)["message"] or ""))
        await asyncio.to_thread(job.request_kill, reason="enough")
        assert await within(end, 60) is JobState.FAILED
        message = row_of(sqlite_database, job.id)["message"]
        assert "a kill was requested" in message
        assert "Found(external_id=None)" in message
        assert str(row_of(sqlite_database, job.id)["submit_token"]) in message


@pytest.mark.parametrize(
    ("limit", "call_s"), [(None, float("nan")), (0, -1.0), ("many", "soon"), (2.5, None)], ids=str
)
@in_loop
async def test_an_odd_limit_or_patience_does_not_stop_the_watching(
    sqlite_database: Database, limit: Any, call_s: Any
) -> None:
    async with hostile_runner(sqlite_database, patience=Patience(call_s=call_s)) as (runner, outside):
        real, outside.bulk_limit = outside.bulk_limit, limit
        outside._arrive = _without_limit(outside, real)  # type: ignore[method-assign]
        assert await within(start(runner, a_job(spec={"run_for_s": 0.0}))) is JobState.SUCCESS


def _without_limit(outside: HostileBackend, real: int) -> Any:
    """Return how calls arrive at it where its limit is only shown to runners."""
    arrive = outside._arrive

    async def arrive_by_the_real_limit(*args: Any) -> Any:
        shown, outside.bulk_limit = outside.bulk_limit, real
        try:
            return await arrive(*args)
        finally:
            outside.bulk_limit = shown

    return arrive_by_the_real_limit


@in_loop
async def test_a_poller_that_crashes_is_started_again(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = HostileBackend(plan=Plan(), patience=QUICK)
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            job = a_job()
            end = start(runner, job)
            external_id = await made(outside, job, sqlite_database)
            (channel,) = runner._ways._channels.values()
            await soon(lambda: len(channel.poller) == 1)
            before, real = unexpected.count(), channel.poller._wait_s

            def crash_once() -> float:
                channel.poller._wait_s = real  # type: ignore[method-assign]
                raise RuntimeError("a fault of the poller")

            channel.poller._wait_s = crash_once  # type: ignore[method-assign]
            outside.advance(external_id, Phase.SUCCEEDED)
            assert await within(end) is JobState.SUCCESS
            assert unexpected.count() == before + 1


class Blocking(MemoryBackend):
    """Its `fetch` blocks the event loop until the test is over."""

    def __init__(self, go: threading.Event) -> None:
        super().__init__(plan=Plan())
        self._go = go

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, Observation | Gone | RemoteError]:
        self._go.wait(30)  # what it should have awaited
        return await super().fetch(ids)


def test_a_backend_that_blocks_the_event_loop_is_named(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("jobrunner.loop_watch._EVERY_S", 0.05)
    monkeypatch.setattr("jobrunner.loop_watch._HANGS_S", 1.0)
    go = threading.Event()

    def let_go() -> None:
        with contextlib.suppress(AssertionError):
            until(lambda: "fetch (test_hostile_backend.py" in caplog.text)
        go.set()

    async def main() -> None:
        with use_backend(Blocking(go)):
            async with a_runner(sqlite_database) as runner:
                end = start(runner, job := a_job())
                await asyncio.to_thread(until, lambda: "the event loop goes on" in caplog.text)
                await asyncio.to_thread(job.request_kill)
                assert await within(end) is JobState.KILLED

    with caplog.at_level(logging.WARNING):
        threading.Thread(target=let_go, daemon=True).start()
        asyncio.run(main())
    assert "where=wait (threading.py" in caplog.text
    assert "called by fetch (test_hostile_backend.py" in caplog.text
