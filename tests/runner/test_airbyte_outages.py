"""A minute without Airbyte's API, its tokens, or the database: nothing fails, and nothing is cancelled.

In the short form it is a few seconds; JOBRUNNER_TEST_LONG=1 gives the minute.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from jobrunner.clock import monotonic_s
from jobrunner.database import get_database
from jobrunner.settings import configure
from jobrunner.states import JobState
from tests.backends.airbyte_help import in_loop
from tests.helpers import IS_LONG, plain_sql
from tests.postgres import Postgres
from tests.proxy import Proxy
from tests.runner.airbyte_jobs import QuickAirbyteJob
from tests.runner.support import a_runner, soon, start, within
from tests.stubs.airbyte_server import AirbyteStub, serving

OUTAGE_S = 60.0 if IS_LONG else 3.0
AFTER_S = 180.0  # in which all is well again: what was tried in vain is tried less and less often

Outage = Literal["the API", "the token endpoint", "the database"]

CONNECTIONS = [f"11111111-1111-4111-8111-{number:012d}" for number in range(3)]


@pytest.fixture
def stub() -> Iterator[AirbyteStub]:
    with serving() as served:
        yield served


@pytest.fixture
def proxy(postgres: Postgres, postgres_url: str, stub: AirbyteStub) -> Iterator[Proxy]:
    """A proxy before the database of this process, whose jobs are at the stub."""
    airbyte = {
        "kind": "airbyte",
        "url": stub.url,
        "client_id": stub.client_id,
        "client_secret": stub.client_secret,
    }
    with Proxy(postgres.socket_dir) as proxy:
        configure(
            database_url=postgres_url.replace(postgres.socket_dir, proxy.socket_dir),
            call_timeout_s=0.6,
            connect_timeout_s=2,
            connections={"airbyte_default": airbyte},
        )
        yield proxy
        proxy.is_refusing = False
        get_database().dispose()


def begin(outage: Outage, stub: AirbyteStub, proxy: Proxy) -> None:
    if outage == "the API":
        stub.fault("*", "bad_gateway", times=10)
        stub.fault("*", "dropped", times=None)
    elif outage == "the token endpoint":
        stub.expire_tokens()
        stub.fault("token", "bad_gateway", times=10)
        stub.fault("token", "dropped", times=None)
    else:
        proxy.is_refusing = True
        proxy.cut()


def end(stub: AirbyteStub, proxy: Proxy) -> None:
    stub.clear_faults()
    proxy.is_refusing = False


async def stays(condition: Callable[[], object], seconds: float) -> None:
    """See that a condition holds for so long."""
    until_s = monotonic_s() + seconds
    while monotonic_s() < until_s:
        assert condition()
        await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("others", [0, 6])
@pytest.mark.parametrize("outage", ["the API", "the token endpoint", "the database"])
@in_loop
async def test_an_outage_fails_nothing_and_cancels_nothing(
    stub: AirbyteStub, proxy: Proxy, postgres_url: str, outage: Outage, others: int
) -> None:
    """One job is watched, one is on its way, one is started meanwhile; the others let lists be read."""

    def states() -> set[str]:
        return {state for (state,) in plain_sql(postgres_url, "SELECT state FROM job")}

    def external_ids() -> list[str]:
        return [found for (found,) in plain_sql(postgres_url, "SELECT external_id FROM job") if found]

    def a_job(number: int) -> QuickAirbyteJob:
        return QuickAirbyteJob(CONNECTIONS[number], heartrate=0.5, poll_interval=0.1)

    async with a_runner(get_database()) as runner:
        attached = [
            QuickAirbyteJob.attach(each, heartrate=0.5, poll_interval=0.1) for each in stub.seed(others)
        ]
        ends = [start(runner, job) for job in [*attached, a_job(0)]]
        await soon(lambda: len(external_ids()) == others + 1)
        await soon(lambda: all(owned.seen for owned in runner.jobs.values()))

        stub.post_takes_s = 0.3
        ends.append(start(runner, a_job(1)))
        await soon(lambda: stub.counts()["post"] == 2)
        begin(outage, stub, proxy)
        if outage != "the database":
            ends.append(start(runner, a_job(2)))
        await stays(lambda: states() == {"running"} and not any(each.done() for each in ends), OUTAGE_S)
        end(stub, proxy)

        await soon(lambda: len(external_ids()) == len(ends), AFTER_S)
        for job_id in stub.job_ids():
            stub.succeed(job_id)
        for each in ends:
            assert await within(each, AFTER_S) is JobState.SUCCESS
    made = [call for call in stub.calls if call.operation == "post" and call.status == 200]
    assert len(made) == len(ends) - others
    assert len(stub.job_ids()) == len(ends)
    assert sorted(external_ids()) == sorted(map(str, stub.job_ids()))
    assert "delete" not in stub.counts()
    assert plain_sql(postgres_url, "SELECT count(*) FROM job WHERE cancel_cause IS NOT NULL") == [(0,)]
