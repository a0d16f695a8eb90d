"""Whoever had to wait for a lock adopts nobody: what held it up has held up the owner's beat, too."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from jobrunner import statements, sweeper
from jobrunner.database import Database
from jobrunner.errors import DatabaseError
from jobrunner.executors.child import Order, _claimed
from jobrunner.executors.local import Watch
from jobrunner.models import BaseJob
from jobrunner.statements import Sighting, new_owner
from jobrunner.states import JobState
from jobrunner.sweeper import Lookout, StandStill, acting, confirmed, prompt_s
from tests.helpers import a_running_job, an_owner, plain_connection, plain_sql, row_of, until
from tests.runner.support import a_job, soon

GRACE = 2.1
TABLE_LOCKS = ["EXCLUSIVE", "SHARE ROW EXCLUSIVE", "SHARE", "ACCESS EXCLUSIVE"]


def a_silent_job(database: Database, url: str, **values: Any) -> int:
    claim, _ = a_running_job(database, **{"heartrate": 1.0, **values})
    plain_sql(url, f"UPDATE job SET latest_heartbeat = '2026-01-01 00:00:00+00:00' WHERE id = {claim.job_id}")
    return claim.job_id


def sighted(database: Database, job_id: int, **values: Any) -> Sighting:
    row = row_of(database, job_id)
    return Sighting(job_id, row["runner_id"], row["claims"], row["latest_heartbeat"], **values)


@contextmanager
def held(url: str, mode: str = "SHARE") -> Iterator[Callable[[], None]]:
    """Hold what every write waits for; gives what lets go of it."""
    with closing(plain_connection(url)) as holder:
        if url.startswith("sqlite"):
            holder.execute("BEGIN IMMEDIATE")
        else:
            holder.execute("BEGIN")
            holder.execute(f"LOCK TABLE job IN {mode} MODE")
        yield lambda: holder.execute("COMMIT")
        if holder.in_transaction if url.startswith("sqlite") else holder.info.transaction_status != 0:
            holder.execute("COMMIT")


def test_a_look_while_nobody_can_write_counts_no_silence(database: Database, database_url: str) -> None:
    job_id = a_silent_job(database, database_url)
    lookout = Lookout(job_id, 0.2)

    def look() -> Any:
        found: list[Any] = [None]
        with lookout.trying(), database.read() as connection:
            found.append(lookout.look(connection)[1])
        return found[-1]

    assert look() is None
    with held(database_url) as let_go:
        looks = threading.Timer(1.2, let_go)  # sooner than any timeout of ours on PostgreSQL
        looks.start()
        try:
            assert look() is None
        finally:
            looks.join()
    assert look() is None, "the count did not begin anew"
    until(lambda: look() is not None)


@pytest.mark.parametrize("mode", TABLE_LOCKS)
def test_an_act_that_waited_for_a_lock_on_the_table_takes_nothing(
    postgres_database: Database, postgres_url: str, mode: str
) -> None:
    # The statement itself measures it: it may be sent the very moment before somebody locks the table.
    adopted = a_silent_job(postgres_database, postgres_url)
    lost = a_silent_job(postgres_database, postgres_url, adoptable=False)
    seen = [sighted(postgres_database, each, prompt_s=0.25) for each in (adopted, lost)]
    for job_id, act in (
        (adopted, lambda connection: statements.adopt(connection, seen[0], an_owner())),
        (lost, lambda connection: statements.lose(connection, seen[1], "test", "silent")),
    ):
        before = row_of(postgres_database, job_id)
        with held(postgres_url, mode) as let_go:
            timer = threading.Timer(0.6, let_go)
            timer.start()
            with postgres_database.write() as connection:
                assert not act(connection)
            timer.join()
        assert row_of(postgres_database, job_id) == before
        with postgres_database.write() as connection:
            assert act(connection)


def test_an_act_that_waited_for_the_only_writer_takes_nothing(
    sqlite_database: Database, sqlite_url: str
) -> None:
    job_id = a_silent_job(sqlite_database, sqlite_url)
    seen = sighted(sqlite_database, job_id, prompt_s=0.25)
    with held(sqlite_url) as let_go:
        timer = threading.Timer(0.6, let_go)
        timer.start()
        with acting(sqlite_database) as act:
            assert act.still_good([seen]) == []
        timer.join()
    with acting(sqlite_database) as act:
        assert act.still_good([seen]) == [seen]


def test_what_was_seen_too_long_ago_is_not_acted_on(database: Database, database_url: str) -> None:
    job_id = a_silent_job(database, database_url)
    with acting(database) as act:
        assert act.still_good([sighted(database, job_id, good_until_s=act.asked_s - 1)]) == []


def test_one_gap_between_two_looks_is_no_proof() -> None:
    now_s = 0.0
    count = StandStill(GRACE, lambda: now_s)
    row: Any = {"id": 1, "runner_id": "r", "claims": 1, "latest_heartbeat": None, "heartrate": 1.0}
    assert count.look(row) is None
    now_s = 2.5
    assert count.look(row) is None
    now_s = 4.0
    assert count.look(row) is not None


@pytest.mark.parametrize("heartrate", [0.3, 1.0, 5.0, 60.0])
def test_a_look_that_took_long_for_its_jobs_heartrate_restarts_the_count(heartrate: float) -> None:
    now_s = 0.0
    count = StandStill(GRACE, lambda: now_s)
    row: Any = {"id": 1, "runner_id": "r", "claims": 1, "latest_heartbeat": None, "heartrate": heartrate}
    found = None
    for _ in range(200):
        now_s += heartrate / 4
        found = found or count.look(row, prompt_s(heartrate) + 0.01)
    assert found is None


def test_a_silent_owner_that_could_beat_is_adopted_and_its_job_ends(
    database: Database, database_url: str
) -> None:
    job_id = a_silent_job(database, database_url, adoptable=False, heartrate=0.2)
    assert sweeper.see_off(database, job_id) is JobState.LOST


def test_an_orphan_that_was_handed_on_is_watched_once_more(database: Database, database_url: str) -> None:
    job_id = a_silent_job(database, database_url)
    seen = sighted(database, job_id)
    orphan = confirmed(database, seen, 20.0)
    assert orphan == seen
    owner_id = seen.runner_id
    assert owner_id is not None

    def beat() -> None:
        with database.write() as connection:
            statements.beat(connection, owner_id, [job_id])

    timer = threading.Timer(0.2, beat)  # it was kept from beating until now
    timer.start()
    assert confirmed(database, seen, 20.0) is None
    timer.join()


def test_a_child_that_finds_the_owner_beating_leaves_the_job(database: Database, database_url: str) -> None:
    job_id = a_silent_job(database, database_url, heartrate=0.4)
    seen = sighted(database, job_id)
    stale = (seen.runner_id, seen.claims, "2025-01-01T00:00:00+00:00")
    for orphan, is_taken in ((stale, False), ((*stale[:2], seen.latest_heartbeat.isoformat()), True)):
        owner = new_owner("LocalExecutor")
        order = Order(job_id, owner.runner_id, "LocalExecutor", {}, (), orphan)
        assert (_claimed(order) is not None) == is_taken


def test_attach_leaves_a_live_owner_that_a_third_writer_keeps_from_beating(
    sqlite_database: Database, sqlite_url: str
) -> None:
    job = a_job(heartrate=0.4).store()
    owner = an_owner()
    with sqlite_database.write() as connection:
        assert statements.claim_queued(connection, job.id, owner) is not None
    stop, trouble = threading.Event(), []

    def keep_beating() -> None:
        while not stop.wait(0.1):
            try:
                with sqlite_database.write() as connection:
                    statements.beat(connection, owner.runner_id, [job.id])
            except DatabaseError as error:
                trouble.append(error)

    beating = threading.Thread(target=keep_beating)
    beating.start()

    async def attach() -> None:
        watch = Watch(sqlite_database, new_owner("LocalExecutor"), BaseJob.get(job.id), "release", print)  # type: ignore[arg-type]
        own = asyncio.create_task(watch.come_to_own())
        with held(sqlite_url):
            await asyncio.sleep(4 * GRACE * 0.4)  # several graces of silence
        before = row_of(sqlite_database, job.id)["latest_heartbeat"]
        await soon(lambda: row_of(sqlite_database, job.id)["latest_heartbeat"] != before)
        own.cancel()

    try:
        asyncio.run(attach())
    finally:
        stop.set()
        beating.join()
    assert row_of(sqlite_database, job.id)["runner_id"] == owner.runner_id
    assert not trouble
