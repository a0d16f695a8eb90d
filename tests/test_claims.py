"""Who may take a job: one at a time, only what he can serve, and an orphan only as it was seen."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

from jobrunner import statements
from jobrunner.database import Database
from jobrunner.statements import Claim, Owner, Sighting, new_owner
from jobrunner.states import JobState
from tests.helpers import a_running_job, an_owner, events_of, insert_job, plain_sql, row_of


def claim(database: Database, job_id: int, owner: Owner, host_id: str | None = None) -> Claim | None:
    with database.write() as connection:
        return statements.claim_queued(connection, job_id, owner, host_id)


def adopt(database: Database, seen: Sighting, owner: Owner, host_id: str | None = None) -> Claim | None:
    with database.write() as connection:
        return statements.adopt(connection, seen, owner, host_id)


def sighting_of(database: Database, job_id: int) -> Sighting:
    row = row_of(database, job_id)
    return Sighting(job_id, row["runner_id"], row["claims"], row["latest_heartbeat"])


def test_a_runner_is_a_new_one_each_time() -> None:
    first, second = new_owner("LocalExecutor"), new_owner("LocalExecutor")
    assert first.runner_id != second.runner_id
    assert first.hostname not in first.runner_id
    assert (first.pid, first.host_id) == (second.pid, second.host_id)


def test_a_claim_makes_the_job_the_runners_own(database: Database) -> None:
    job_id, owner = insert_job(database), an_owner()
    stored = row_of(database, job_id)
    assert claim(database, job_id, owner) == Claim(job_id, owner.runner_id, 1)
    row = row_of(database, job_id)
    assert (row["state"], row["runner_id"], row["claims"]) == (JobState.RUNNING, owner.runner_id, 1)
    assert row["latest_heartbeat"] >= row["start_date"] >= stored["latest_heartbeat"]
    assert (row["hostname"], row["pid"], row["process_started_at"]) == (
        owner.hostname,
        owner.pid,
        owner.process_started_at,
    )


def test_a_second_claim_keeps_the_first_start_and_counts_on(database: Database) -> None:
    job_id = insert_job(database)
    first = claim(database, job_id, an_owner())
    assert first is not None
    started = row_of(database, job_id)["start_date"]
    with database.write() as connection:
        statements.release(connection, first, "told to stop")
    again = claim(database, job_id, an_owner())
    assert again is not None
    assert again.claims == 2
    assert row_of(database, job_id)["start_date"] == started


def test_a_foreground_start_inserts_its_row_already_claimed(database: Database, database_url: str) -> None:
    owner = an_owner()
    job_id = insert_job(database, owner)
    assert events_of(database_url, job_id) == [(None, "running")]
    assert claim(database, job_id, an_owner()) is None
    assert row_of(database, job_id)["runner_id"] == owner.runner_id


def test_of_many_who_claim_at_once_one_wins(database: Database, database_url: str) -> None:
    owners = [an_owner() for _ in range(6)]
    for _ in range(5):
        job_id = insert_job(database)
        together = threading.Barrier(len(owners))

        def race(owner: Owner, job_id: int = job_id, together: threading.Barrier = together) -> Claim | None:
            together.wait()
            return claim(database, job_id, owner)

        with ThreadPoolExecutor(len(owners)) as pool:
            (winner,) = [won for won in pool.map(race, owners) if won is not None]
        row = row_of(database, job_id)
        assert (row["runner_id"], row["claims"]) == (winner.runner_id, 1)
        assert events_of(database_url, job_id) == [(None, "queued"), ("queued", "running")]


def test_of_many_who_adopt_at_once_one_wins(database: Database) -> None:
    lost, _ = a_running_job(database)
    seen = sighting_of(database, lost.job_id)
    owners = [an_owner() for _ in range(6)]
    with ThreadPoolExecutor(len(owners)) as pool:
        (winner,) = [won for won in pool.map(lambda owner: adopt(database, seen, owner), owners) if won]
    row = row_of(database, lost.job_id)
    assert (row["runner_id"], row["claims"], winner.claims) == (winner.runner_id, 2, 2)


def test_a_job_of_another_host_is_neither_claimed_nor_adopted(database: Database) -> None:
    owner = an_owner(host_id="machine-a/boot-1/1")
    elsewhere = insert_job(database, host_id="machine-b/boot-1/1")
    here = insert_job(database, host_id="machine-a/boot-1/1")
    assert claim(database, elsewhere, owner) is None
    assert claim(database, here, owner) is not None
    orphan, _ = a_running_job(database, host_id="machine-b/boot-1/1")
    assert adopt(database, sighting_of(database, orphan.job_id), owner) is None
    assert row_of(database, orphan.job_id)["runner_id"] == orphan.runner_id


def test_a_job_of_a_host_that_this_one_can_serve_is_claimed(database: Database) -> None:
    owner, before = an_owner(host_id="machine-a/boot-2/1"), "machine-a/boot-1/1"
    queued = insert_job(database, host_id=before)
    orphan, _ = a_running_job(database, host_id=before)
    assert claim(database, queued, owner, before) is not None
    assert adopt(database, sighting_of(database, orphan.job_id), owner, before) is not None


def test_an_orphan_is_adopted_as_it_was_seen(database: Database, database_url: str) -> None:
    orphan, _ = a_running_job(database, external_id="ext-1")
    owner = an_owner()
    adopted = adopt(database, sighting_of(database, orphan.job_id), owner)
    assert adopted == Claim(orphan.job_id, owner.runner_id, 2)
    assert row_of(database, orphan.job_id)["external_id"] == "ext-1"
    assert events_of(database_url, orphan.job_id) == [(None, "running"), ("running", "running")]


def test_an_orphan_that_beat_since_it_was_seen_is_not_adopted(database: Database) -> None:
    alive, _ = a_running_job(database)
    seen = sighting_of(database, alive.job_id)
    for _ in range(2):  # on SQLite two beats may fall into one millisecond
        with database.write() as connection:
            (answer,) = statements.beat(connection, alive.runner_id, [alive.job_id], with_time=True)
        if answer.latest_heartbeat != seen.latest_heartbeat:
            break
        threading.Event().wait(0.005)
    assert adopt(database, seen, an_owner()) is None
    assert row_of(database, alive.job_id)["runner_id"] == alive.runner_id


def test_an_orphan_that_was_taken_since_it_was_seen_is_not_adopted(database: Database) -> None:
    orphan, _ = a_running_job(database)
    seen = sighting_of(database, orphan.job_id)
    for change in ({"claims": 0}, {"runner_id": "you"}, {"runner_id": None}):
        assert adopt(database, dataclasses.replace(seen, **change), an_owner()) is None
    assert adopt(database, seen, an_owner()) is not None


def test_an_orphan_without_an_owner_is_adopted(database: Database, database_url: str) -> None:
    orphan, _ = a_running_job(database)
    plain_sql(database_url, "UPDATE job SET runner_id = NULL")
    assert adopt(database, sighting_of(database, orphan.job_id), an_owner()) is not None


def test_what_is_not_adoptable_is_not_adopted(database: Database) -> None:
    orphan, _ = a_running_job(database, adoptable=False)
    assert adopt(database, sighting_of(database, orphan.job_id), an_owner()) is None


def test_a_time_written_more_finely_by_another_client_is_still_the_same_moment(
    database: Database, database_url: str
) -> None:
    orphan, _ = a_running_job(database)
    zone = "" if database.is_sqlite else "+00"
    plain_sql(database_url, f"UPDATE job SET latest_heartbeat = '2026-03-01 12:00:00.123456{zone}'")
    seen = sighting_of(database, orphan.job_id)
    assert seen.latest_heartbeat.microsecond == 123456
    assert adopt(database, seen, an_owner()) is not None


def test_the_owner_before_can_write_nothing_after_an_adoption(database: Database) -> None:
    before, _ = a_running_job(database)
    after = adopt(database, sighting_of(database, before.job_id), an_owner())
    assert after is not None
    with database.write() as connection:
        assert not statements.beat(connection, before.runner_id, [before.job_id])
        assert not statements.end(connection, before, JobState.FAILED, "too late")
        assert statements.end(connection, after, JobState.SUCCESS, "done")


def test_a_runner_that_claims_its_own_job_again_is_fenced_from_its_earlier_self(database: Database) -> None:
    owner = an_owner()
    job_id = insert_job(database)
    first = claim(database, job_id, owner)
    assert first is not None
    with database.write() as connection:
        statements.release(connection, first, "a pause")
    second = claim(database, job_id, owner)
    assert second is not None
    with database.write() as connection:
        assert not statements.end(connection, first, JobState.FAILED, "a slow answer")
        (answer,) = statements.beat(connection, owner.runner_id, [job_id])
    assert answer.claims == second.claims == 2
