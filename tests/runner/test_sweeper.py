"""Finding orphans: standing still is counted on our own clock, and any doubt restarts the count."""

import datetime as dt
import json
import time
import uuid
from contextlib import closing
from typing import Any

import pytest

from jobrunner import identity, restarts, statements, worklist
from jobrunner.clock import utcnow
from jobrunner.database import Database
from jobrunner.errors import DatabaseUnavailable
from jobrunner.settings import get_settings
from jobrunner.states import JobState
from jobrunner.sweeper import Lookout, StandStill, claim
from tests.helpers import (
    a_running_job,
    an_owner,
    insert_job,
    plain_connection,
    plain_sql,
    row_of,
    statements_of,
)

RATE, GRACE = 10.0, 2.1


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def count(clock: Clock) -> StandStill:
    return StandStill(GRACE, clock)


def a_row(**changes: Any) -> Any:
    row = {"id": 7, "runner_id": "r1", "claims": 1, "latest_heartbeat": _BEAT, "heartrate": RATE}
    return row | changes


_BEAT = utcnow()


def looks(count: StandStill, clock: Clock, seconds: float, row: Any, every_s: float = 1.0) -> Any:
    """Look again and again for so long; return what the last look said."""
    found = None
    for _ in range(round(seconds / every_s)):
        clock.now_s += every_s
        found = count.look(row)
    return found


def test_a_job_is_an_orphan_after_standing_still_for_a_whole_grace_before_our_eyes(
    count: StandStill, clock: Clock
) -> None:
    assert count.look(a_row()) is None
    assert looks(count, clock, 20, a_row()) is None
    found = looks(count, clock, 1, a_row())
    assert (found.job_id, found.runner_id, found.claims, found.latest_heartbeat) == (7, "r1", 1, _BEAT)


def test_a_heartbeat_that_is_years_old_at_the_first_look_makes_nobody_an_orphan(
    count: StandStill, clock: Clock
) -> None:
    old = a_row(latest_heartbeat=_BEAT - dt.timedelta(days=1000))
    assert count.look(old) is None
    assert looks(count, clock, 20, old) is None


@pytest.mark.parametrize(
    "change",
    [
        {"latest_heartbeat": _BEAT + dt.timedelta(microseconds=1)},
        {"latest_heartbeat": _BEAT - dt.timedelta(hours=1)},  # the database's clock went back: it beats
        {"claims": 2},
        {"runner_id": "r2"},
        {"runner_id": None},
    ],
)
def test_any_change_restarts_the_count(count: StandStill, clock: Clock, change: dict[str, Any]) -> None:
    count.look(a_row())
    looks(count, clock, 20, a_row())
    clock.now_s += 1
    assert count.look(a_row(**change)) is None
    assert looks(count, clock, 20, a_row(**change)) is None
    assert looks(count, clock, 1, a_row(**change)) is not None


def test_a_look_that_came_much_too_late_restarts_the_count(count: StandStill, clock: Clock) -> None:
    count.look(a_row())
    looks(count, clock, 10, a_row())
    clock.now_s += 3600  # we were asleep, and so may have been everybody
    assert count.look(a_row()) is None
    assert looks(count, clock, 20, a_row()) is None
    assert looks(count, clock, 1, a_row()) is not None


def test_a_failed_look_restarts_all_counts(count: StandStill, clock: Clock) -> None:
    count.look(a_row())
    looks(count, clock, 20, a_row())
    count.restart()
    assert looks(count, clock, 2, a_row()) is None


def test_jobs_are_counted_one_by_one_each_by_its_own_heartrate(count: StandStill, clock: Clock) -> None:
    quick, slow = a_row(id=1, heartrate=1.0), a_row(id=2, heartrate=100.0)
    for _ in range(4):
        found = (count.look(quick), count.look(slow))
        clock.now_s += 1
    assert found[0] is not None
    assert found[1] is None


def test_a_job_that_is_looked_at_in_its_turn_is_counted_while_others_are_looked_at(
    count: StandStill, clock: Clock
) -> None:
    quick = a_row(heartrate=1.0)
    assert count.look(quick) is None
    for _ in range(2):
        clock.now_s += 10.0
        found = count.look(quick, 0.0, clock.now_s - 1.5)
    assert found is not None
    clock.now_s += 10.0
    assert count.look(quick, 0.0, clock.now_s - 10.0) is None  # we were paused: no look was on time


def test_only_between_the_ids_that_were_looked_at_a_job_is_forgotten_that_was_not_there(
    count: StandStill,
) -> None:
    for job_id in range(1, 6):
        count.look(a_row(id=job_id))
    count.keep({3}, after=1, until=4)
    assert count._counts.keys() == {1, 3, 5}


# --- one job --------------------------------------------------------------------------------------


def long_silent(url: str) -> None:
    plain_sql(url, "UPDATE job SET latest_heartbeat = '2026-01-01 00:00:00+00:00'")


def test_a_silent_job_is_held_locked_only_while_somebody_does(
    postgres_database: Database, postgres_url: str
) -> None:
    claim, _ = a_running_job(postgres_database)
    long_silent(postgres_url)
    with postgres_database.read() as connection, closing(plain_connection(postgres_url)) as holder:
        assert not worklist.is_locked(connection, claim.job_id)
        holder.execute("BEGIN")
        holder.execute(f"SELECT 1 FROM job WHERE id = {claim.job_id} FOR UPDATE")
        assert worklist.is_locked(connection, claim.job_id)
        holder.execute("ROLLBACK")
        assert not worklist.is_locked(connection, claim.job_id)


def test_the_row_of_a_job_that_beats_is_never_locked_by_a_look(postgres_database: Database) -> None:
    claim, _ = a_running_job(postgres_database, heartrate=60.0)
    lookout = Lookout(claim.job_id, GRACE)
    with statements_of(postgres_database) as sent, postgres_database.read() as connection:
        assert lookout.look(connection)[1] is None
    assert sent
    assert not [statement for statement in sent if " FOR " in statement]


def test_a_silent_job_counts_anew_after_its_row_was_held_locked(
    postgres_database: Database, postgres_url: str
) -> None:
    claim, _ = a_running_job(postgres_database, heartrate=0.2)
    long_silent(postgres_url)
    lookout = Lookout(claim.job_id, 2.0)
    with postgres_database.read() as connection, closing(plain_connection(postgres_url)) as holder:
        lookout.look(connection)
        time.sleep(0.3)
        holder.execute("BEGIN")
        holder.execute(f"SELECT 1 FROM job WHERE id = {claim.job_id} FOR UPDATE")
        lookout.look(connection)
        holder.execute("ROLLBACK")
        time.sleep(0.15)
        assert lookout.look(connection)[1] is None
        time.sleep(0.45)
        assert lookout.look(connection)[1] is not None


def test_tries_that_fail_and_work_in_turn_are_logged_once(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    claim, _ = a_running_job(database)
    lookout = Lookout(claim.job_id, GRACE)

    def look(trouble: str | None) -> None:
        with lookout.trying(), database.read() as connection:
            lookout.look(connection)
            if trouble is not None:
                raise DatabaseUnavailable(trouble)

    for trouble in ("it cannot be claimed now", "nor now", None, "away"):
        look(trouble)
    assert [each for each in caplog.messages if "cannot be looked at" in each] == [
        f"the job cannot be looked at job={claim.job_id} error=it cannot be claimed now"
    ]


# --- claiming -------------------------------------------------------------------------------------


def test_an_orphan_is_claimed_only_as_it_was_sighted(database: Database) -> None:
    seen, owner = a_running_job(database)
    row = row_of(database, seen.job_id)
    sighting = statements.Sighting(seen.job_id, owner.runner_id, 1, row["latest_heartbeat"])
    with database.write() as connection:
        statements.beat(connection, owner.runner_id, [seen.job_id])
    with database.write() as connection:
        assert claim(connection, row, an_owner(), sighting) is None  # type: ignore[arg-type]
    row = row_of(database, seen.job_id)
    sighting = statements.Sighting(seen.job_id, owner.runner_id, 1, row["latest_heartbeat"])
    with database.write() as connection:
        taken = claim(connection, row, an_owner(), sighting)  # type: ignore[arg-type]
    assert taken is not None
    assert taken.claims == 2


@pytest.mark.parametrize(
    ("host_id", "is_ours"),
    [
        (None, True),
        (identity.host_id(), True),
        (f"{identity.machine_id()}/{uuid.uuid4()}/{identity.pid_namespace()}", True),
        (f"another-machine/{identity.boot_id()}/{identity.pid_namespace()}", False),
        (f"{identity.machine_id()}/{identity.boot_id()}/1", False),
    ],
    ids=["unbound", "this host", "this machine before its restart", "another machine", "another container"],
)
def test_only_what_this_host_can_serve_is_claimed(
    database: Database, host_id: str | None, is_ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = insert_job(database, host_id=host_id)
    if is_ours and host_id not in {None, identity.host_id()}:
        # Without a record of that boot it may be a neighbour's: clones share a machine id.
        with database.write() as connection:
            assert claim(connection, row_of(database, job_id), an_owner(), None) is None  # type: ignore[arg-type]
        monkeypatch.setattr(restarts, "_found", {})
        record = get_settings().data_dir / "processes" / "some"
        record.mkdir(parents=True)
        (record / "start").write_text(json.dumps({"by": "wrapper", "host": host_id}))
    with database.write() as connection:
        taken = claim(connection, row_of(database, job_id), an_owner(), None)  # type: ignore[arg-type]
    assert (taken is not None) == is_ours
    assert row_of(database, job_id)["state"] is (JobState.RUNNING if is_ours else JobState.QUEUED)
