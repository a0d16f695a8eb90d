"""Claiming, adopting, losing and releasing many jobs in one statement: the rules of one, for each of them."""

import dataclasses
import datetime as dt
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobrunner import statements
from jobrunner.database import Database
from jobrunner.statements import Claim, Owner, Sighting
from jobrunner.states import JobState
from tests.helpers import (
    a_running_job,
    an_owner,
    events_of,
    insert_job,
    plain_connection,
    plain_sql,
    row_of,
    statements_of,
)

BARE = [("Bare", None)]


def claim_many(
    database: Database,
    owner: Owner,
    most: int = 100,
    served: Collection[tuple[str, str | None]] = BARE,
    host_ids: Collection[str] = (),
) -> list[int]:
    with database.write() as connection:
        rows = statements.claim_many(connection, owner, served, most, host_ids)
    assert {row["runner_id"] for row in rows} <= {owner.runner_id}
    return [row["id"] for row in rows]


def adopt_many(
    database: Database, seen: Sequence[Sighting], owner: Owner, host_ids: Collection[str] = ()
) -> list[int]:
    with database.write() as connection:
        return [row["id"] for row in statements.adopt_many(connection, seen, owner, host_ids)]


def sighting_of(database: Database, job_id: int) -> Sighting:
    row = row_of(database, job_id)
    return Sighting(job_id, row["runner_id"], row["claims"], row["latest_heartbeat"])


# --- claiming -------------------------------------------------------------------------------------


def test_the_oldest_are_claimed_and_no_more_than_asked(database: Database, database_url: str) -> None:
    ids = [insert_job(database) for _ in range(5)]
    owner = an_owner()
    assert claim_many(database, owner, 3) == ids[:3]
    assert claim_many(database, an_owner(), 10) == ids[3:]
    assert claim_many(database, an_owner(), 10) == []
    row = row_of(database, ids[0])
    assert (row["state"], row["claims"], row["executor_class"]) == (JobState.RUNNING, 1, owner.executor_class)
    assert row["latest_heartbeat"] >= row["start_date"]
    for job_id in ids:
        assert events_of(database_url, job_id) == [(None, "queued"), ("queued", "running")]


def test_only_what_is_served_is_claimed(database: Database) -> None:
    plain = insert_job(database)
    here = insert_job(database, connection="here")
    elsewhere = insert_job(database, connection="elsewhere")
    other = insert_job(database, job_type="Other")
    owner = an_owner()
    assert claim_many(database, owner, served=[]) == []
    assert claim_many(database, owner, served=[("Bare", "here")]) == [here]
    assert claim_many(database, owner, served=[("Bare", None), ("Nobody", "elsewhere")]) == [plain]
    assert claim_many(database, owner, served=[("Bare", "elsewhere"), ("Other", None)]) == [elsewhere, other]


def test_what_is_bound_to_a_host_is_claimed_only_there(database: Database) -> None:
    insert_job(database, host_id="another")
    mine = insert_job(database, host_id=an_owner().host_id)
    before = insert_job(database, host_id="this one before its restart")
    assert claim_many(database, an_owner(), host_ids=["this one before its restart"]) == [mine, before]
    assert claim_many(database, an_owner()) == []


def test_a_claim_says_which_jobs_are_flagged(database: Database, database_url: str) -> None:
    job_id = insert_job(database)
    plain_sql(database_url, f"UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP WHERE id = {job_id}")
    with database.write() as connection:
        (row,) = statements.claim_many(connection, an_owner(), BARE, 10)
    assert row["kill_requested_at"] is not None


def test_several_who_claim_at_once_share_the_jobs_and_never_two_have_one(database: Database) -> None:
    ids = [insert_job(database) for _ in range(60)]

    def take(_number: int) -> list[int]:
        mine: list[int] = []
        owner = an_owner()
        while some := claim_many(database, owner, 5):
            mine += some
        return mine

    with ThreadPoolExecutor(4) as threads:
        taken = Counter(job_id for some in threads.map(take, range(4)) for job_id in some)
    assert taken == dict.fromkeys(ids, 1)
    assert {row_of(database, job_id)["claims"] for job_id in ids} == {1}


def test_a_queued_job_that_somebody_holds_locked_is_passed_over(
    postgres_database: Database, postgres_url: str
) -> None:
    held, free = insert_job(postgres_database), insert_job(postgres_database)
    holder = plain_connection(postgres_url)
    try:
        holder.execute("BEGIN")
        holder.execute(f"SELECT * FROM job WHERE id = {held} FOR UPDATE")
        assert claim_many(postgres_database, an_owner()) == [free]
        holder.execute("ROLLBACK")
    finally:
        holder.close()
    assert claim_many(postgres_database, an_owner()) == [held]


# --- adopting and losing --------------------------------------------------------------------------


def test_orphans_are_adopted_as_they_were_sighted_and_only_so(database: Database, database_url: str) -> None:
    claims = [a_running_job(database)[0] for _ in range(6)]
    ids = [claim.job_id for claim in claims]
    seen = [sighting_of(database, job_id) for job_id in ids]
    plain_sql(database_url, f"UPDATE job SET latest_heartbeat = '2026-01-01 00:00:00' WHERE id = {ids[1]}")
    plain_sql(database_url, f"UPDATE job SET claims = 7 WHERE id = {ids[2]}")
    plain_sql(database_url, f"UPDATE job SET runner_id = 'another' WHERE id = {ids[3]}")
    with database.write() as connection:
        assert statements.end(connection, claims[4], JobState.SUCCESS, "done")
    heir = an_owner()
    assert adopt_many(database, seen, heir) == [ids[0], ids[5]]
    row = row_of(database, ids[0])
    assert (row["runner_id"], row["claims"], row["state"]) == (heir.runner_id, 2, JobState.RUNNING)
    assert row["latest_heartbeat"] > seen[0].latest_heartbeat
    assert events_of(database_url, ids[0])[-1] == ("running", "running")
    assert adopt_many(database, seen, an_owner()) == []  # they have just been claimed
    assert adopt_many(database, [], an_owner()) == []


def test_what_cannot_be_adopted_is_not(database: Database) -> None:
    own_code, _ = a_running_job(database, adoptable=False)
    bound, _ = a_running_job(database, host_id="another")
    seen = [sighting_of(database, claim.job_id) for claim in (own_code, bound)]
    assert adopt_many(database, seen, an_owner()) == []
    assert adopt_many(database, seen, an_owner(), ["another"]) == [bound.job_id]


def test_of_several_who_adopt_at_once_one_has_each_job(database: Database) -> None:
    ids = [a_running_job(database)[0].job_id for _ in range(40)]
    seen = [sighting_of(database, job_id) for job_id in ids]

    def take(_number: int) -> list[int]:
        return adopt_many(database, seen, an_owner())

    with ThreadPoolExecutor(4) as threads:
        taken = Counter(job_id for some in threads.map(take, range(4)) for job_id in some)
    assert taken == dict.fromkeys(ids, 1)
    assert {row_of(database, job_id)["claims"] for job_id in ids} == {2}


def test_orphans_are_lost_each_with_its_reason_and_only_as_they_were_sighted(
    database: Database, database_url: str
) -> None:
    first, second, beaten = (a_running_job(database) for _ in range(3))
    seen = {
        sighting_of(database, claim.job_id): f"why {claim.job_id}" for claim, _ in (first, second, beaten)
    }
    with database.write() as connection:
        assert statements.beat(connection, beaten[1].runner_id, [beaten[0].job_id])
        lost = statements.lose_many(connection, seen, "the sweeper")
    assert sorted(lost) == [first[0].job_id, second[0].job_id]
    for claim, _ in (first, second):
        row = row_of(database, claim.job_id)
        assert (row["state"], row["message"]) == (JobState.LOST, f"why {claim.job_id}")
        assert row["end_date"] is not None
        (event,) = plain_sql(
            database_url,
            f"SELECT actor, reason FROM job_event WHERE job_id = {claim.job_id} ORDER BY id DESC LIMIT 1",
        )
        assert tuple(event) == ("the sweeper", f"why {claim.job_id}")
    assert row_of(database, beaten[0].job_id)["state"] is JobState.RUNNING
    with database.write() as connection:
        assert statements.lose_many(connection, seen, "the sweeper") == []
        assert statements.lose_many(connection, {}, "the sweeper") == []


# --- releasing ------------------------------------------------------------------------------------


def test_what_is_still_a_runners_is_released(database: Database, database_url: str) -> None:
    owner = an_owner()
    ids = [insert_job(database, owner) for _ in range(4)]
    claims = [Claim(job_id, owner.runner_id, 1) for job_id in ids]
    plain_sql(database_url, f"UPDATE job SET claims = 2 WHERE id = {ids[1]}")
    plain_sql(database_url, f"UPDATE job SET runner_id = 'another' WHERE id = {ids[2]}")
    with database.write() as connection:
        released = statements.release_many(connection, owner.runner_id, claims, "its worker was stopped")
    assert sorted(released) == [ids[0], ids[3]]
    row = row_of(database, ids[0])
    assert (row["state"], row["runner_id"], row["message"]) == (
        JobState.QUEUED,
        None,
        "its worker was stopped",
    )
    assert events_of(database_url, ids[0])[-1] == ("running", "queued")
    assert row_of(database, ids[1])["state"] is JobState.RUNNING
    with database.write() as connection:
        assert statements.release_many(connection, owner.runner_id, [], "nothing") == []


def test_a_sighting_is_held_to_the_microsecond_on_postgresql(postgres_database: Database) -> None:
    claim, _ = a_running_job(postgres_database)
    seen = sighting_of(postgres_database, claim.job_id)
    later = seen.latest_heartbeat + dt.timedelta(microseconds=1)
    nearly = dataclasses.replace(seen, latest_heartbeat=later)
    assert adopt_many(postgres_database, [nearly], an_owner()) == []
    assert adopt_many(postgres_database, [seen], an_owner()) == [claim.job_id]


@pytest.mark.parametrize("count", [1, 300])
def test_a_bulk_claim_is_one_statement_on_postgresql(postgres_database: Database, count: int) -> None:

    ids = [insert_job(postgres_database) for _ in range(count)]
    with statements_of(postgres_database) as sent:
        assert claim_many(postgres_database, an_owner(), 1000) == ids
    assert len([each for each in sent if "UPDATE job" in each]) == 1
    assert len(sent) == 2  # and one that reads the rows
