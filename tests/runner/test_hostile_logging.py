"""A program whose logging raises or hangs: its jobs are watched, killed and ended as if it did not."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from jobrunner import logs
from jobrunner.database import Database
from jobrunner.errors import ClaimLost
from jobrunner.settings import configure
from jobrunner.states import JobState
from jobrunner.testing import Fault, use_backend
from tests.helpers import CodeJob, plain_connection, plain_sql, row_of
from tests.runner.support import a_job, a_runner, an_outside, in_loop, soon, start, within


class Raising(logging.Handler):
    """A log shipper that is away, in a hurry to end the process or with a bug."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        raise self.error


class Hanging(logging.Handler):
    """A pipe that nobody reads any more."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.hangs = threading.Event(), threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.hangs.set()
        self.free.wait(120)


@pytest.fixture(params=[ConnectionError("away"), SystemExit(3)], ids=["error", "exit"])
def raising(request: pytest.FixtureRequest) -> Iterator[Raising]:
    handler = Raising(request.param)
    logging.getLogger("jobrunner").addHandler(handler)
    yield handler
    logging.getLogger("jobrunner").removeHandler(handler)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    handler = Hanging()
    logging.getLogger("jobrunner").addHandler(handler)
    yield handler
    handler.free.set()
    logging.getLogger("jobrunner").removeHandler(handler)
    assert logs.writer.flush(60)


@pytest.mark.parametrize(
    ("fault", "call"),
    [(Fault.ERROR, "submit"), (Fault.ANSWER_LOST, "submit"), (Fault.ERROR, "fetch"), (Fault.ERROR, "cancel")],
)
@in_loop
async def test_a_kill_arrives_though_each_line_of_the_log_raises(
    sqlite_database: Database, raising: Raising, fault: Fault, call: str
) -> None:
    outside = an_outside()
    outside.order(fault, call=call, times=1)
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            job = a_job()
            end = start(runner, job)
            await soon(lambda: row_of(sqlite_database, job.id)["external_id"] is not None)
            await asyncio.to_thread(job.request_kill)
            assert await within(end) is JobState.KILLED
    assert raising.count


@in_loop
async def test_a_lost_claim_is_reported_though_each_line_of_the_log_raises(
    sqlite_database: Database, sqlite_url: str, raising: Raising
) -> None:
    with use_backend(an_outside()):
        async with a_runner(sqlite_database) as runner:
            job = a_job()
            end = start(runner, job)
            plain_sql(sqlite_url, f"UPDATE job SET claims = claims + 1 WHERE id = {job.id}")
            with pytest.raises(ClaimLost):
                await within(end)
    assert raising.count


@in_loop
async def test_a_kill_arrives_though_the_log_hangs(sqlite_database: Database, hanging: Hanging) -> None:
    outside = an_outside()
    outside.order(Fault.ERROR, call="fetch", times=2)
    outside.order(Fault.ERROR, call="cancel", times=1)
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            job = a_job()
            end = start(runner, job)
            await soon(hanging.hangs.is_set)
            await asyncio.to_thread(job.request_kill)
            assert await within(end) is JobState.KILLED
    assert not hanging.free.is_set()


def test_own_code_beats_on_though_the_log_hangs(sqlite_url: str, hanging: Hanging) -> None:
    configure(database_url=sqlite_url, sqlite_busy_timeout_s=0.1)

    def code(job: CodeJob) -> None:
        with closing(plain_connection(sqlite_url)) as lock:
            lock.execute("BEGIN IMMEDIATE")  # the beats fail, which the log has to say
            while not hanging.hangs.is_set():
                job.heartbeat()
        before = job.latest_heartbeat
        while job.latest_heartbeat == before:
            job.heartbeat()

    job = CodeJob(code, heartrate=0.1)
    job.run()
    assert job.state is JobState.SUCCESS
    assert not hanging.free.is_set()
