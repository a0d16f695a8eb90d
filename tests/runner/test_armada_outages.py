"""An outage of Armada, or of the database, while a job is watched: nothing fails and nothing is cancelled.

It lasts a few seconds, which are several graces and deadlines here; with JOBRUNNER_TEST_LONG=1 a minute.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from jobrunner.database import Database, get_database
from jobrunner.settings import configure
from jobrunner.states import JobState
from tests.helpers import IS_LONG, events_of, plain_connection, row_of
from tests.postgres import Postgres
from tests.proxy import Proxy
from tests.runner.support import a_runner, in_loop, within
from tests.runner.test_armada_job import a_job, connected, running, shown
from tests.stubs.armada_server import ArmadaStub, serving

OUTAGE_S = 60.0 if IS_LONG else 3.0

Outage = tuple[Callable[[], object], Callable[[], object]]
"""What begins one, and what ends it."""


@pytest.fixture
def armada() -> Iterator[ArmadaStub]:
    with serving() as stub:
        yield stub


async def check_outage(
    database: Database, url: str, armada: ArmadaStub, outage: Outage, *, is_seen: bool
) -> None:
    """Let a job be watched, let the outage begin, let the job end within it, and look what came of it.

    `is_seen`: the row can say what is the matter.
    """
    begin, end_it = outage
    async with a_runner(database) as runner:
        job = a_job()
        external_id, end = await running(runner, armada, job)
        before = row_of(database, job.id)
        await asyncio.to_thread(begin)
        try:
            if is_seen:
                await shown(database, job, "status unreadable since ")
            await asyncio.sleep(OUTAGE_S)  # its length is what is tested
            assert not end.done()
            armada.succeed(external_id)
        finally:
            await asyncio.to_thread(end_it)
        assert await within(end, 60) is JobState.SUCCESS
    row = row_of(database, job.id)
    assert (row["external_id"], row["external_state"]) == (external_id, "SUCCEEDED")
    assert (row["runner_id"] or before["runner_id"], row["claims"]) == (before["runner_id"], 1)
    assert events_of(url, job.id) == [(None, "running"), ("running", "success")]
    assert "CancelJobs" not in armada.calls_per_method()
    assert len(armada.jobs) == 1


@pytest.mark.parametrize("kind", ["gone", "silent", "broken"])
@in_loop
async def test_an_outage_of_armada(database_url: str, armada: ArmadaStub, kind: str) -> None:
    database = connected(database_url, armada, call_timeout_s=0.5)

    def fall_silent() -> None:
        armada.fault("*", hangs_s=2 * OUTAGE_S, times=None)

    def break_down() -> None:
        import grpc

        armada.fault("*", grpc.StatusCode.INTERNAL, "no database", times=None)

    outages: dict[str, Outage] = {
        "gone": (armada.stop, armada.start),
        "silent": (fall_silent, armada.clear_faults),
        "broken": (break_down, armada.clear_faults),
    }
    await check_outage(database, database_url, armada, outages[kind], is_seen=True)


@pytest.mark.parametrize("kind", ["refuses", "silent"])
@in_loop
async def test_an_outage_of_postgresql(
    postgres: Postgres, postgres_url: str, armada: ArmadaStub, kind: str
) -> None:
    with Proxy(postgres.socket_dir) as proxy:
        connection = {"kind": "armada", "url": armada.address, "call_timeout_s": 5}
        configure(
            database_url=postgres_url.replace(postgres.socket_dir, proxy.socket_dir),
            call_timeout_s=0.6,
            connect_timeout_s=2,
            connections={"armada_default": connection},
        )

        def refuse() -> None:
            proxy.is_refusing = True
            proxy.cut()

        def set_silent(is_silent: bool) -> None:
            proxy.is_silent = is_silent

        outages: dict[str, Outage] = {
            "refuses": (refuse, lambda: setattr(proxy, "is_refusing", False)),
            "silent": (lambda: set_silent(True), lambda: set_silent(False)),
        }
        await check_outage(get_database(), postgres_url, armada, outages[kind], is_seen=False)
        get_database().dispose()


@in_loop
async def test_an_outage_of_sqlite(sqlite_url: str, armada: ArmadaStub) -> None:
    connection = {"kind": "armada", "url": armada.address, "call_timeout_s": 5}
    configure(database_url=sqlite_url, sqlite_busy_timeout_s=0.05, connections={"armada_default": connection})
    with ExitStack() as stack:
        holder = plain_connection(sqlite_url)
        stack.callback(holder.close)
        locked: Outage = (lambda: holder.execute("BEGIN EXCLUSIVE"), lambda: holder.execute("ROLLBACK"))
        await check_outage(get_database(), sqlite_url, armada, locked, is_seen=False)
