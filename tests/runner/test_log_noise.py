"""What happens with each look, each beat or each try is logged seldom, whatever it is."""

import asyncio
import logging
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from jobrunner import registry, statements
from jobrunner.backends.base import RemoteError
from jobrunner.connection_health import ConnectionHealth
from jobrunner.database import Database
from jobrunner.errors import DatabaseUnavailable
from jobrunner.heartbeat import BeatHealth
from jobrunner.testing import Fault, MemoryMonitorJob, use_backend
from jobrunner.worker.probe_server import Answer, ProbeServer
from tests.runner.support import a_job, a_runner, an_outside, in_loop, soon, start
from tests.worker.workers import a_worker


def count(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.getMessage() for record in caplog.records)


class WrongJob(MemoryMonitorJob):
    """A job whose own code fails wherever it is called."""

    calls = 0

    def heartbeat_callback(self, session: Any = None) -> None:
        type(self).calls += 1
        raise RuntimeError("no callback")

    def judge(self, observation: Any) -> Any:
        raise RuntimeError("no judge")

    def look_interval_s(self, watched_s: float) -> float | None:
        raise RuntimeError("no interval")


@in_loop
async def test_code_that_fails_at_each_look_and_each_beat(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    WrongJob.calls = 0
    outside = an_outside()
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            start(runner, WrongJob(heartrate=0.1, poll_interval=0.02))
            await soon(lambda: outside.calls["fetch"] > 20 and WrongJob.calls > 3)
    events = ("judge failed", "look_interval_s failed", "heartbeat_callback failed")
    assert [count(caplog, event) for event in events] == [1, 1, 1]


@in_loop
async def test_a_submission_of_which_nothing_can_be_told_for_long(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.retry.random.uniform", lambda *_: 0.01)
    outside = an_outside()
    outside.order(Fault.ANSWER_LOST, call="submit")
    outside.order(Fault.ERROR, call="find", times=None)
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            start(runner, a_job())
            await soon(lambda: outside.calls["find"] > 5)
    assert count(caplog, "cannot tell yet what became of a submission") == 1
    assert count(caplog, "submission in doubt") == 1


@in_loop
async def test_work_that_is_taken_back_and_cannot_be_cancelled(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.retry.random.uniform", lambda *_: 0.01)
    outside = an_outside()
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            job = a_job()
            start(runner, job)
            await soon(lambda: outside.jobs)
            (owned,) = runner.jobs.values()
            outside.order(Fault.ERROR, call="cancel", times=None)
            taking = asyncio.create_task(owned.channel.take_back("another", "it is nobody's"))
            await soon(lambda: outside.calls["cancel"] > 5)
            taking.cancel()
    assert count(caplog, "cancel not taken") == 1


@in_loop
async def test_many_writes_that_wait_for_one_database(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_runner(sqlite_database) as runner:

        async def away(*_args: Any, **_options: Any) -> Any:
            raise DatabaseUnavailable("it is away")

        monkeypatch.setattr(runner, "call", away)
        writes = [asyncio.create_task(runner.persist(statements.now)) for _ in range(500)]
        await asyncio.wait(writes, timeout=0.3)
        monkeypatch.undo()
        await asyncio.gather(*writes)
    assert count(caplog, "the database does not take it yet") == 1


@in_loop
async def test_a_stream_of_events_that_breaks_with_each_event(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    async def events() -> AsyncIterator[str]:
        tries.append(True)
        if len(tries) % 2:
            yield "anything"
        raise ConnectionError("it broke")

    outside = an_outside()
    monkeypatch.setattr(outside, "events", events)
    monkeypatch.setattr("jobrunner.channel._EVENTS_AGAIN_S", 0.01)
    caplog.set_level(logging.INFO)
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            start(runner, a_job())
            await soon(lambda: len(tries) > 20)
    assert (count(caplog, "events are not heard"), count(caplog, "events are heard again")) == (1, 1)


def test_a_connection_and_a_database_that_fail_and_work_in_turn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    connection, beats = ConnectionHealth("flaky", Random(1), None), BeatHealth(1.0, 2.1)
    for number in range(50):
        connection.fail(
            connection.round, [RemoteError("no answer")], float(number), interval_s=0.1, throttled=False
        )
        connection.succeed(connection.round, number + 0.5)
        beats.failed(DatabaseUnavailable("it is away"))
        beats.succeeded(0.0)
    said = ("status unreadable", "status readable again", "heartbeat failing", "heartbeat recovered")
    assert [count(caplog, words) for words in said] == [1, 1, 1, 1]


@in_loop
async def test_a_part_of_a_worker_that_fails_every_other_round(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_worker(sqlite_database) as working:
        tries = []
        await soon(lambda: working.worker._rounds > 0)

        async def look() -> None:
            tries.append(True)
            if len(tries) % 2:
                raise RuntimeError("not this time")

        for _ in range(20):
            await working.worker._guarded("test", look)
    assert (count(caplog, "the test of a worker failed"), count(caplog, "the test of a worker works")) == (
        1,
        1,
    )


def test_a_probe_without_descriptors(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def accept(self) -> Any:
            raise OSError(24, "Too many open files")

    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    server = ProbeServer(listener, lambda _path: Answer(200, "OK", ""))
    try:
        for _ in range(20):
            monkeypatch.setattr(server, "_listener", Full())
            monkeypatch.setattr(server._selector, "unregister", lambda _listener: None)
            server._accept()
    finally:
        monkeypatch.undo()
        server._waker.send(b"x")
        server.serve()
    assert count(caplog, "the probe can accept no connection now") == 1


def test_a_job_type_whose_module_is_broken(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []

    def load(path: str) -> Any:
        loads.append(path)
        raise ImportError("its library is missing")

    monkeypatch.setitem(registry.JOB_TYPES, "BrokenJob", "nowhere:BrokenJob")
    monkeypatch.setattr(registry, "load", load)
    assert [registry.load_job_class("BrokenJob") for _ in range(100)] == [None] * 100
    assert count(caplog, "a job type cannot be imported") == 1
    assert len(loads) == 1
    monkeypatch.setattr(registry, "_AGAIN_S", 0.0)
    monkeypatch.setattr(registry, "_broken_until_s", {})
    registry.load_job_class("BrokenJob")
    registry.load_job_class("BrokenJob")
    assert len(loads) == 3, "it may be installed meanwhile"
