"""Connections that are swallowed without a word, while the database answers every new one: nobody is dead."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import make_url

from jobrunner.cli.live import Live
from jobrunner.database import Database, driver_connection, get_database
from jobrunner.errors import JobKilled
from jobrunner.executors.local import LocalExecutor
from jobrunner.heartbeat import Beater, BeatHealth, Pacer, warn_of_skew
from jobrunner.models.attendant import beating_on
from jobrunner.settings import configure
from jobrunner.states import JobState
from jobrunner.testing import use_backend
from tests.helpers import CodeJob, Run, a_running_job, beat_for_ever, plain_sql, row_of, until
from tests.postgres import Postgres
from tests.proxy import TcpProxy
from tests.runner.support import Thread, a_job, a_runner, an_outside, soon, within
from tests.runner.test_runner import watched

HEARTRATE = 1.0
_OTHERS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
SOON_S = 20.0  # half of `call_timeout_s`, after which an ordinary call gives a connection up


@pytest.fixture
def proxy(postgres: Postgres, postgres_url: str) -> Iterator[TcpProxy]:
    """A proxy before the database of this process, which has the timeouts that everybody has."""
    with TcpProxy(postgres.socket_dir) as proxy:
        configure(database_url=proxy.url(str(make_url(postgres_url).database)))
        yield proxy
        proxy.cut()
        get_database().dispose()


def beat_of(url: str) -> object:
    return plain_sql(url, "SELECT latest_heartbeat FROM job")


def until_beaten(url: str) -> None:
    before = beat_of(url)
    until(lambda: beat_of(url) != before, SOON_S)


def test_a_runner_beats_on_over_a_new_connection(
    proxy: TcpProxy, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(get_database()) as runner:
                external_id, end = await watched(runner, outside, a_job(heartrate=HEARTRATE))
                assert proxy.swallow()
                await asyncio.to_thread(until_beaten, postgres_url)
                outside.succeed(external_id)
                assert await within(end) is JobState.SUCCESS

    asyncio.run(main())
    assert caplog.text.count("does not answer: trying a new one") == 1


def test_a_kill_is_heard_over_a_new_connection(proxy: TcpProxy, postgres_url: str) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(get_database()) as runner:
                _, end = await watched(runner, outside, a_job(heartrate=HEARTRATE))
                assert proxy.swallow()
                plain_sql(postgres_url, "UPDATE job SET kill_requested_at = now()")
                await soon(lambda: all(owned.kill_seen for owned in runner.jobs.values()), SOON_S)
                assert await within(end) is JobState.KILLED

    asyncio.run(main())


def test_own_code_beats_on_over_a_new_connection(proxy: TcpProxy, postgres_url: str) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=HEARTRATE)) as run:
        until_beaten(postgres_url)
        assert proxy.swallow()
        until_beaten(postgres_url)
        plain_sql(postgres_url, "UPDATE job SET kill_requested_at = now()")
        run.join()
    assert plain_sql(postgres_url, "SELECT state FROM job") == [("killed",)]


def test_whoever_beats_while_an_outcome_is_written_takes_no_dead_connection_of_the_pool(
    proxy: TcpProxy, postgres_url: str
) -> None:
    database = get_database()
    claim, _ = a_running_job(database)  # leaves its connection in the pool
    assert proxy.swallow()
    with beating_on(database, claim, Pacer(HEARTRATE), BeatHealth(HEARTRATE, 2.1)):
        until_beaten(postgres_url)


def test_the_late_beat_of_a_connection_that_was_given_up_changes_nothing(
    proxy: TcpProxy, postgres_url: str
) -> None:
    claim, owner = a_running_job(get_database())
    with closing(Beater(get_database(), owner.runner_id, HEARTRATE)) as beater:
        beater.beat([claim.job_id])
        ((old,),) = plain_sql(postgres_url, _OTHERS)
        assert proxy.swallow() == 1
        assert [beaten.job_id for beaten in beater.beat([claim.job_id])] == [claim.job_id]
    plain_sql(postgres_url, "UPDATE job SET runner_id = 'another', claims = claims + 1")
    taken_over = row_of(get_database(), claim.job_id)
    proxy.disgorge()
    until(lambda: not plain_sql(postgres_url, f"SELECT 1 FROM pg_stat_activity WHERE pid = {old}"))
    assert row_of(get_database(), claim.job_id) == taken_over


# --- between the claim and the first beat -----------------------------------------------------------


@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_said_of_a_new_job_holds_up_none_of_its_beats(
    proxy: TcpProxy, postgres_url: str, *, as_json: bool
) -> None:
    outside, live = an_outside(), Live(as_json=as_json, quiet=True)

    def started(job_id: int) -> None:
        assert proxy.swallow()
        live.started(job_id)

    with use_backend(outside):
        job = Thread(a_job(heartrate=HEARTRATE, executor=LocalExecutor(on_started=started)).run)
        until(lambda: live.job_id is not None)
        until_beaten(postgres_url)
        proxy.cut()
        plain_sql(postgres_url, "UPDATE job SET kill_requested_at = now()")
        assert isinstance(job.ended(), JobKilled)


def test_a_look_at_the_clock_holds_up_no_beat_of_own_code(
    proxy: TcpProxy, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallow_then_warn(database: Database, heartrate: float) -> None:
        assert proxy.swallow()
        warn_of_skew(database, heartrate)

    monkeypatch.setattr("jobrunner.models.own_run.warn_of_skew", swallow_then_warn)
    run = Thread(CodeJob(beat_for_ever, heartrate=HEARTRATE).run)
    until(lambda: beat_of(postgres_url))
    until_beaten(postgres_url)
    proxy.cut()
    plain_sql(postgres_url, "UPDATE job SET kill_requested_at = now()")
    assert isinstance(run.ended(), JobKilled)


# --- a database that is slow, and works -------------------------------------------------------------


@contextmanager
def slow_beats(url: str, seconds: float) -> Iterator[None]:
    """Let each beat take so long in the database itself."""
    plain_sql(
        url,
        "CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$",
    )
    plain_sql(url, "CREATE TRIGGER be_slow BEFORE UPDATE ON job FOR EACH ROW EXECUTE FUNCTION be_slow()")
    try:
        yield
    finally:
        plain_sql(url, "DROP TRIGGER be_slow ON job")
        plain_sql(url, "DROP FUNCTION be_slow")


def test_a_slow_database_is_waited_for_and_is_not_asked_twice_with_each_beat(
    postgres_database: Database, postgres_url: str
) -> None:
    claim, owner = a_running_job(postgres_database)
    beater = Beater(postgres_database, owner.runner_id, HEARTRATE)
    with closing(beater), slow_beats(postgres_url, 1.2):
        assert beater.patience_s < 1
        until(lambda: beater.beat([claim.job_id]) and beater.patience_s > 1.2)

        def is_asked_once(_beat: int) -> bool:
            known = beater._connection
            return bool(beater.beat([claim.job_id])) and beater._connection is known

        until(lambda: all(map(is_asked_once, range(3))))


def test_what_counts_as_slow_is_forgotten_when_the_database_is_quick_again(
    postgres_database: Database, postgres_url: str
) -> None:
    claim, owner = a_running_job(postgres_database)
    with closing(Beater(postgres_database, owner.runner_id, HEARTRATE)) as beater:
        with slow_beats(postgres_url, 1.0):
            beater.beat([claim.job_id])
            assert beater.patience_s > HEARTRATE / 2
        until(lambda: beater.beat([claim.job_id]) and beater.patience_s == HEARTRATE / 2)


@pytest.mark.parametrize(("heartrate", "patience_s"), [(0.1, 0.5), (5.0, 2.5), (60.0, 10.0), (86400.0, 10.0)])
def test_a_connection_is_given_up_after_half_a_heartrate_within_bounds(
    sqlite_database: Database, heartrate: float, patience_s: float
) -> None:
    assert Beater(sqlite_database, "me", heartrate).patience_s == patience_s


def test_the_job_that_beats_most_often_sets_how_long_a_connection_may_be_silent(
    sqlite_database: Database,
) -> None:
    async def main() -> None:
        outside = an_outside()
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                beater = runner.beats._beater
                await watched(runner, outside, a_job(heartrate=30.0))
                assert beater.patience_s == 10.0
                external_id, end = await watched(runner, outside, a_job(heartrate=2.0))
                assert beater.patience_s == 1.0
                outside.succeed(external_id)
                await within(end)
                assert beater.patience_s == 10.0

    asyncio.run(main())


# --- what the kernel is asked for ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heartrate", "call_timeout_s", "unheard_ms"),
    [(5.0, 40.0, 5_000), (0.1, 40.0, 4_000), (3600.0, 40.0, 20_000), (5.0, 1.0, 1_000)],
)
def test_the_kernel_gives_up_a_peer_that_is_unheard_for_a_heartrate(
    postgres_url: str, heartrate: float, call_timeout_s: float, unheard_ms: int
) -> None:
    configure(database_url=postgres_url, heartrate=heartrate, call_timeout_s=call_timeout_s)
    with get_database().read() as connection:
        asked_for = driver_connection(connection).info.get_parameters()
    assert int(asked_for["tcp_user_timeout"]) == unheard_ms
    idle_s, interval_s = int(asked_for["keepalives_idle"]), int(asked_for["keepalives_interval"])
    assert 1 <= interval_s <= idle_s <= max(1, unheard_ms / 2000 + 0.5)
