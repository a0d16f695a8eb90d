"""The statements that write a job's row: each fenced, each exact, on both databases."""

import dataclasses
import uuid
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import Connection

from jobrunner import statements
from jobrunner.database import Database
from jobrunner.errors import JobNotFound
from jobrunner.heartbeat import Beater
from jobrunner.statements import Attempt, Begun, Claim, End, Sight, Sighting
from jobrunner.states import TERMINAL_STATES, JobState
from tests.helpers import (
    a_running_job,
    an_owner,
    begin_cancel,
    calls_of,
    events_of,
    insert_job,
    plain_connection,
    plain_sql,
    row_of,
    statements_of,
)

TOKEN = uuid.uuid4().hex

Write = Callable[[Connection, Claim], object]


def observe(conn: Connection, claim: Claim, external_id: str, **shown: Any) -> set[int]:
    sight = Sight(claim.job_id, claim.claims, external_id, **shown)
    return statements.observe_many(conn, claim.runner_id, [sight])


def cancel(conn: Connection, claim: Claim, cause: str) -> Begun | None:
    """Begin to cancel the attempt that the row is at."""
    row = statements.get_or_none(conn, claim.job_id)
    attempt = Attempt(TOKEN, None) if row is None else Attempt(row["submit_token"], row["external_id"])
    return begin_cancel(conn, claim, attempt, cause)


def end_many(conn: Connection, claim: Claim, state: JobState, message: str = "done") -> list[int]:
    """End the attempt that the row is at."""
    row = statements.get_or_none(conn, claim.job_id)
    external_id = None if row is None else row["external_id"]
    end = End(claim.job_id, claim.claims, external_id, state, message)
    return statements.end_many(conn, claim.runner_id, [end])


OWNERS_WRITES: dict[str, Write] = {
    "end": lambda conn, claim: statements.end(conn, claim, JobState.SUCCESS, "done"),
    "release": lambda conn, claim: statements.release(conn, claim, "told to stop"),
    "begin_submit": lambda conn, claim: statements.begin_submit(conn, claim, TOKEN, "this host"),
    "renew_token": lambda conn, claim: statements.renew_token(conn, claim, TOKEN, "another"),
    "observe_many": lambda conn, claim: observe(conn, claim, "ext-1", external_state="RUNNING"),
    "say_unsubmitted": lambda conn, claim: statements.say_unsubmitted(conn, claim, "not yet"),
    "begin_cancel_many": lambda conn, claim: cancel(conn, claim, "kill"),
    "end_many": lambda conn, claim: end_many(conn, claim, JobState.SUCCESS),
}


def write(database: Database, do: Write, claim: Claim) -> object:
    with database.write() as connection:
        return do(connection, claim)


def beat(database: Database, claim: Claim) -> list[statements.Beaten]:
    with database.write() as connection:
        return statements.beat(connection, claim.runner_id, [claim.job_id])


@pytest.mark.parametrize("name", OWNERS_WRITES)
@pytest.mark.parametrize(
    "stale",
    [{"claims": 0}, {"claims": 2}, {"runner_id": "another"}, {"job_id": 4711}],
    ids=lambda change: "other " + "".join(change),
)
def test_a_stale_claim_writes_nothing(
    database: Database, database_url: str, name: str, stale: dict[str, object]
) -> None:
    external_id = "ext-1" if name == "observe_many" else None
    claim, _ = a_running_job(database, submit_token=TOKEN, external_id=external_id)
    before = row_of(database, claim.job_id)
    assert not write(database, OWNERS_WRITES[name], dataclasses.replace(claim, **stale))  # type: ignore[arg-type]
    assert row_of(database, claim.job_id) == before
    assert events_of(database_url, claim.job_id) == [(None, "running")]
    assert write(database, OWNERS_WRITES[name], claim), "with the claim itself it writes"
    assert row_of(database, claim.job_id) != before


@pytest.mark.parametrize("state", sorted(TERMINAL_STATES))
def test_a_terminal_state_is_absorbing_for_every_statement(
    database: Database, database_url: str, state: JobState
) -> None:
    claim, owner = a_running_job(database, submit_token=TOKEN, external_id="ext-1", heartrate=10.0)
    with database.write() as connection:
        assert statements.end(connection, claim, state, "the first outcome", external_id="ext-1")
    before, events = row_of(database, claim.job_id), events_of(database_url, claim.job_id)
    sighting = Sighting(claim.job_id, claim.runner_id, claim.claims, before["latest_heartbeat"])
    others: list[Write] = [
        *OWNERS_WRITES.values(),
        lambda conn, claim: statements.record_submitted(conn, claim.job_id, TOKEN, "ext-1"),
        lambda conn, claim: statements.claim_queued(conn, claim.job_id, owner),
        lambda conn, _claim: statements.adopt(conn, sighting, owner),
        lambda conn, claim: statements.beat(conn, claim.runner_id, [claim.job_id]),
    ]
    for do in others:
        assert not write(database, do, claim)
    with database.write() as connection:
        assert statements.request_kill(connection, claim.job_id, "anna", "too late") == state
    assert row_of(database, claim.job_id) == before
    assert events_of(database_url, claim.job_id) == events


def test_a_beat_never_revives(database: Database, database_url: str) -> None:
    claim, _ = a_running_job(database)
    for state in ("queued", *sorted(TERMINAL_STATES)):
        plain_sql(database_url, f"UPDATE job SET state = '{state}'")
        before = row_of(database, claim.job_id)
        assert beat(database, claim) == []
        assert row_of(database, claim.job_id) == before


def test_an_outcome_of_an_earlier_external_job_is_not_written(database: Database) -> None:
    claim, _ = a_running_job(database, external_id="ext-2")
    with database.write() as connection:
        assert not statements.end(connection, claim, JobState.FAILED, "gone", external_id="ext-1")
        assert not observe(connection, claim, "ext-1", external_state="FAILED")
    assert row_of(database, claim.job_id)["external_state"] is None


def test_an_observation_writes_only_what_it_was_given(database: Database) -> None:
    claim, _ = a_running_job(database, external_id="ext-1")
    with database.write() as connection:
        assert observe(connection, claim, "ext-1", external_state="RUNNING", detail={"node": "a"})
        assert observe(connection, claim, "ext-1", message="half done")
    row = row_of(database, claim.job_id)
    assert (row["external_state"], row["message"], row["detail"]) == ("RUNNING", "half done", {"node": "a"})


def test_an_end_brings_what_was_seen_last_and_keeps_what_was_not(database: Database) -> None:
    claim, _ = a_running_job(database, external_id="ext-1")
    other, _ = a_running_job(database, external_id="ext-2")
    with database.write() as connection:
        for each, external_id in ((claim, "ext-1"), (other, "ext-2")):
            observe(connection, each, external_id, external_state="RUNNING", detail={"node": "a"})
        end = statements.end
        assert end(connection, claim, JobState.FAILED, "it broke", external_state="DEAD", detail={"code": 3})
        assert end(connection, other, JobState.LOST, "it is gone")
    rows = [row_of(database, each.job_id) for each in (claim, other)]
    assert [(row["external_state"], row["detail"], row["message"]) for row in rows] == [
        ("DEAD", {"code": 3}, "it broke"),
        ("RUNNING", {"node": "a"}, "it is gone"),
    ]


# --- observing in bulk ----------------------------------------------------------------------------


def many_running(database: Database, count: int) -> tuple[str, list[int]]:
    """Store running jobs of one owner, whose external ids are ext-0, ext-1 …"""
    owner = an_owner()
    return owner.runner_id, [insert_job(database, owner, external_id=f"ext-{n}") for n in range(count)]


def test_many_observations_are_one_statement(database: Database) -> None:
    me, ids = many_running(database, 30)
    sights = [Sight(each, 1, f"ext-{n}", "RUNNING", f"step {n}", {"n": n}) for n, each in enumerate(ids)]
    with database.write() as connection, statements_of(database) as sent:
        assert statements.observe_many(connection, me, sights[::-1]) == set(ids)
    assert len(sent) == 1
    for n, job_id in enumerate(ids):
        row = row_of(database, job_id)
        assert (row["external_state"], row["message"], row["detail"]) == ("RUNNING", f"step {n}", {"n": n})


def test_in_one_bulk_each_row_has_its_own_fence(database: Database, database_url: str) -> None:
    me, ids = many_running(database, 6)
    ours, taken, reclaimed, renewed, ended, released = ids
    plain_sql(database_url, f"UPDATE job SET runner_id = 'another' WHERE id = {taken}")
    plain_sql(database_url, f"UPDATE job SET claims = 2 WHERE id = {reclaimed}")
    plain_sql(database_url, f"UPDATE job SET external_id = 'a later one' WHERE id = {renewed}")
    plain_sql(database_url, f"UPDATE job SET state = 'failed' WHERE id = {ended}")
    plain_sql(database_url, f"UPDATE job SET state = 'queued' WHERE id = {released}")
    before = {each: row_of(database, each) for each in ids}
    sights = [Sight(each, 1, f"ext-{n}", "RUNNING", "seen") for n, each in enumerate(ids)]
    with database.write() as connection:
        assert statements.observe_many(connection, me, sights) == {ours}
    assert [each for each in ids if row_of(database, each) != before[each]] == [ours]


STRANGE: list[Any] = [
    "a \0 within",
    "half a pair \ud800",
    "a whole one \N{GRINNING FACE}, 'quoted' and \"so\" \\u0000",
    float("nan"),
    uuid.UUID(int=7),
    {"deep": ["\0", float("inf")], 3: None},
]


@pytest.mark.parametrize("strange", STRANGE, ids=repr)
def test_whatever_a_backend_says_spoils_no_other_row(database: Database, strange: Any) -> None:
    me, (first, second) = many_running(database, 2)
    message = strange if isinstance(strange, str) else "plain"
    sights = [
        Sight(first, 1, "ext-0", "RUNNING", message, {"value": strange}),
        Sight(second, 1, "ext-1", "RUNNING", "plain"),
    ]
    with database.write() as connection:
        assert statements.observe_many(connection, me, sights) == {first, second}
    assert row_of(database, second)["message"] == "plain"
    assert set(row_of(database, first)["detail"]) == {"value"}
    if strange == STRANGE[2]:
        assert row_of(database, first)["message"] == row_of(database, first)["detail"]["value"] == strange


def test_a_bulk_leaves_out_the_row_that_somebody_holds(
    postgres_database: Database, postgres_url: str
) -> None:
    me, ids = many_running(postgres_database, 20)
    sights = [Sight(each, 1, f"ext-{n}", "RUNNING") for n, each in enumerate(ids)]
    with closing(plain_connection(postgres_url)) as somebody:
        somebody.execute("BEGIN")
        somebody.execute(f"SELECT 1 FROM job WHERE id = {ids[3]} FOR UPDATE")
        with postgres_database.write() as connection:
            assert statements.observe_many(connection, me, sights) == set(ids) - {ids[3]}
        somebody.execute("ROLLBACK")
    with postgres_database.write() as connection:
        assert statements.observe_many(connection, me, sights[3:4]) == {ids[3]}


def test_a_bulk_finds_its_rows_by_their_ids(sqlite_database: Database) -> None:
    """By the index on the state SQLite would go through all running jobs for each row of the bulk."""
    me, ids = many_running(sqlite_database, 3)
    with calls_of(sqlite_database) as sent, sqlite_database.write() as connection:
        statements.observe_many(connection, me, [Sight(each, 1, "ext-0") for each in ids])
        ((statement, parameters),) = [call for call in sent if call[0].startswith("UPDATE")]
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    steps = [row[3] for row in plan]
    assert "SEARCH job USING INTEGER PRIMARY KEY (rowid=?)" in steps, steps


# --- what a submission says -----------------------------------------------------------------------


def test_what_is_said_of_a_submission_stands_until_there_is_an_id(database: Database) -> None:
    claim, _ = a_running_job(database, submit_token=TOKEN)
    with database.write() as connection:
        assert statements.say_unsubmitted(connection, claim, "not submitted yet: throttled")
        assert statements.get(connection, claim.job_id)["message"] == "not submitted yet: throttled"
        assert statements.record_submitted(connection, claim.job_id, TOKEN, "ext-1")
        assert statements.get(connection, claim.job_id)["message"] is None
        assert not statements.say_unsubmitted(connection, claim, "too late")
        assert observe(connection, claim, "ext-1", message="half done")
        assert statements.record_submitted(connection, claim.job_id, TOKEN, "ext-1"), "a late second answer"
    assert row_of(database, claim.job_id)["message"] == "half done"


# --- transitions ----------------------------------------------------------------------------------


def test_each_transition_appends_one_event(database: Database, database_url: str) -> None:
    owner = an_owner()
    job_id = insert_job(database)
    with database.write() as connection:
        claim = statements.claim_queued(connection, job_id, owner)
        assert claim is not None
        assert statements.release(connection, claim, "a deploy")
        second = statements.claim_queued(connection, job_id, owner)
        assert second == dataclasses.replace(claim, claims=2)
        assert statements.end(connection, second, JobState.FAILED, "exit code 3")
    told = plain_sql(database_url, "SELECT from_state, to_state, actor, reason FROM job_event ORDER BY id")
    runner = f"runner {owner.runner_id}"
    assert told == [
        (None, "queued", "test", "stored"),
        ("queued", "running", runner, "claimed"),
        ("running", "queued", runner, "a deploy"),
        ("queued", "running", runner, "claimed"),
        ("running", "failed", runner, "exit code 3"),
    ]


def test_a_transition_is_one_statement_on_postgresql(postgres_database: Database) -> None:
    claim, _ = a_running_job(postgres_database)
    with statements_of(postgres_database) as sent, postgres_database.write() as connection:
        assert statements.end(connection, claim, JobState.SUCCESS, "done")
    assert len(sent) == 1
    assert "UPDATE job" in sent[0]
    assert "INSERT INTO job_event" in sent[0]


def test_a_transition_is_one_immediate_transaction_on_sqlite(sqlite_database: Database) -> None:
    claim, _ = a_running_job(sqlite_database)
    with statements_of(sqlite_database) as sent, sqlite_database.write() as connection:
        assert statements.end(connection, claim, JobState.SUCCESS, "done")
    assert [statement.split()[0:2] for statement in sent] == [
        ["BEGIN", "IMMEDIATE"],
        ["UPDATE", "job"],
        ["INSERT", "INTO"],
    ]


def test_a_transition_whose_event_cannot_be_written_does_not_happen(
    database: Database, database_url: str
) -> None:
    from jobrunner.errors import DatabaseError

    claim, _ = a_running_job(database)
    plain_sql(database_url, "ALTER TABLE job_event RENAME TO job_events")
    with pytest.raises(DatabaseError), database.write() as connection:
        statements.end(connection, claim, JobState.SUCCESS, "done")
    assert row_of(database, claim.job_id)["state"] == JobState.RUNNING


def test_a_release_gives_the_job_back_to_nobody(database: Database) -> None:
    claim, _ = a_running_job(database, external_id="ext-1", submit_token=TOKEN)
    with database.write() as connection:
        assert statements.release(connection, claim, "told to stop")
    row = row_of(database, claim.job_id)
    assert (row["state"], row["runner_id"], row["claims"]) == (JobState.QUEUED, None, 1)
    assert (row["external_id"], row["submit_token"], row["message"]) == ("ext-1", TOKEN, "told to stop")
    assert row["end_date"] is None


def test_an_end_keeps_who_ran_it_and_when(database: Database) -> None:
    claim, owner = a_running_job(database)
    with database.write() as connection:
        statements.end(connection, claim, JobState.LOST, "nobody knows")
    row = row_of(database, claim.job_id)
    assert (row["runner_id"], row["pid"], row["executor_class"]) == (
        owner.runner_id,
        owner.pid,
        "TestExecutor",
    )
    assert row["created_at"] <= row["start_date"] <= row["end_date"]


# --- submit once ----------------------------------------------------------------------------------


def test_a_submission_may_begin_with_its_own_token_only(database: Database) -> None:
    claim, _ = a_running_job(database, submit_token=TOKEN)
    with database.write() as connection:
        assert statements.begin_submit(connection, claim, "another token") is None
        begun = statements.begin_submit(connection, claim, TOKEN, "this host")
    row = row_of(database, claim.job_id)
    assert begun is not None
    assert begun.tzinfo is not None
    assert (row["submit_started_at"], row["host_id"]) == (begun, "this host")


def test_no_submission_begins_once_a_kill_is_wished_or_an_id_stands(
    database: Database, database_url: str
) -> None:
    claim, _ = a_running_job(database, submit_token=TOKEN)
    plain_sql(database_url, "UPDATE job SET kill_requested_at = '2026-01-01 00:00:00'")
    with database.write() as connection:
        assert statements.begin_submit(connection, claim, TOKEN) is None
    plain_sql(database_url, "UPDATE job SET kill_requested_at = NULL, external_id = 'ext-1'")
    with database.write() as connection:
        assert statements.begin_submit(connection, claim, TOKEN) is None
    assert row_of(database, claim.job_id)["submit_started_at"] is None


def test_what_was_made_is_recorded_by_its_token_whoever_owns_the_job_now(
    database: Database, database_url: str
) -> None:
    claim, _ = a_running_job(database, submit_token=TOKEN)
    plain_sql(database_url, "UPDATE job SET runner_id = 'you', claims = 2")
    with database.write() as connection:
        assert not statements.record_submitted(connection, claim.job_id, "another token", "ext-0")
        assert statements.record_submitted(connection, claim.job_id, TOKEN, "ext-1")
        assert statements.record_submitted(connection, claim.job_id, TOKEN, "ext-1"), "again is no harm"
        assert not statements.record_submitted(connection, claim.job_id, TOKEN, "ext-2")
    assert row_of(database, claim.job_id)["external_id"] == "ext-1"


def test_a_new_token_takes_the_place_of_the_very_attempt_that_failed(database: Database) -> None:
    claim, _ = a_running_job(database, submit_token=TOKEN, external_id="ext-1")
    with database.write() as connection:
        assert not statements.renew_token(connection, claim, TOKEN, "new")
        assert not statements.renew_token(connection, claim, TOKEN, "new", "ext-0")
        assert not statements.renew_token(connection, claim, "another", "new", "ext-1")
        assert statements.renew_token(connection, claim, TOKEN, "new", "ext-1")
    row = row_of(database, claim.job_id)
    assert (row["submit_token"], row["attempt"], row["external_id"]) == ("new", 2, None)
    assert (row["submit_started_at"], row["external_state"]) == (None, None)


def test_no_new_token_once_a_kill_is_wished(database: Database, database_url: str) -> None:
    claim, _ = a_running_job(database, submit_token=TOKEN)
    plain_sql(database_url, "UPDATE job SET kill_requested_at = '2026-01-01 00:00:00'")
    with database.write() as connection:
        assert not statements.renew_token(connection, claim, TOKEN, "new")
    assert row_of(database, claim.job_id)["submit_token"] == TOKEN


def test_the_first_cause_of_a_cancellation_stands(database: Database) -> None:
    claim, _ = a_running_job(database)
    with database.write() as connection:
        first = cancel(connection, claim, "deadline")
    started = row_of(database, claim.job_id)["cancel_started_at"]
    with database.write() as connection:
        second = cancel(connection, claim, "kill")
    assert first is not None
    assert second is not None
    assert first.cause == second.cause == "deadline"
    assert row_of(database, claim.job_id)["cancel_started_at"] == started is not None


# --- the kill flag --------------------------------------------------------------------------------


def test_a_queued_job_that_has_something_outside_is_flagged_and_not_ended(database: Database) -> None:
    job_id = insert_job(database, external_id="ext-1")
    with database.write() as connection:
        assert statements.request_kill(connection, job_id, None, None) == JobState.QUEUED
    row = row_of(database, job_id)
    assert row["kill_requested_at"] is not None
    assert row["end_date"] is None


def test_a_kill_of_a_job_that_is_not_there_says_so(database: Database) -> None:
    with database.write() as connection:
        assert statements.request_kill(connection, 4711, "anna", None) is None
        assert statements.get_or_none(connection, 4711) is None
        with pytest.raises(JobNotFound):
            statements.get(connection, 4711)


def test_the_beat_brings_the_flag_and_flagged_asks_without_beating(
    database: Database, database_url: str
) -> None:
    claim, _ = a_running_job(database)
    a_running_job(database)
    assert [answer.kill_requested for answer in beat(database, claim)] == [False]
    plain_sql(database_url, "UPDATE job SET kill_requested_at = '2026-01-01 00:00:00'")
    before = row_of(database, claim.job_id)
    with database.read() as connection:
        assert statements.flagged(connection, claim.runner_id) == [claim.job_id]
        assert statements.look(connection, [claim.job_id])[claim.job_id]["kill_requested"]
    assert row_of(database, claim.job_id) == before
    assert [answer.kill_requested for answer in beat(database, claim)] == [True]


# --- locks ----------------------------------------------------------------------------------------


def test_a_row_held_by_somebody_silences_nobody_else(postgres_database: Database, postgres_url: str) -> None:
    owner = an_owner()
    ids = [insert_job(postgres_database, owner) for _ in range(5)]
    beater = Beater(postgres_database, owner.runner_id, 5.0)
    holder = plain_connection(postgres_url)
    try:
        holder.execute("BEGIN")
        holder.execute(f"SELECT * FROM job WHERE id = {ids[2]} FOR UPDATE")
        assert sorted(answer.job_id for answer in beater.beat(ids)) == ids[:2] + ids[3:]
        with postgres_database.read() as connection:
            row = statements.look(connection, ids)[ids[2]]
        assert (row["state"], row["runner_id"]) == (JobState.RUNNING, owner.runner_id)
        holder.execute("ROLLBACK")
        assert sorted(answer.job_id for answer in beater.beat(ids)) == ids
    finally:
        holder.close()
        beater.close()


def test_a_held_row_makes_an_owners_write_give_up_by_the_lock_timeout(
    postgres_url: str,
) -> None:
    from jobrunner.database import get_database
    from jobrunner.errors import DatabaseUnavailable
    from jobrunner.settings import configure

    configure(database_url=postgres_url, lock_timeout_s=0.2)
    database = get_database()
    claim, _ = a_running_job(database)
    holder = plain_connection(postgres_url)
    try:
        holder.execute("BEGIN")
        holder.execute("SELECT * FROM job FOR UPDATE")
        with pytest.raises(DatabaseUnavailable, match="lock timeout"), database.write() as connection:
            statements.end(connection, claim, JobState.SUCCESS, "done")
    finally:
        holder.close()


def test_sqlite_keeps_no_lock_behind_a_returning(sqlite_database: Database, sqlite_url: str) -> None:
    claim, _ = a_running_job(sqlite_database)
    beater = Beater(sqlite_database, claim.runner_id, 5.0)
    other = plain_connection(sqlite_url)
    other.execute("PRAGMA busy_timeout = 0")
    try:
        assert beater.beat([claim.job_id])
        other.execute("UPDATE job SET name = 'after a beat'")
        with sqlite_database.read() as connection:
            statements.begin_submit(connection, claim, TOKEN)
            cancel(connection, claim, "kill")
            statements.beat(connection, claim.runner_id, [claim.job_id])
            other.execute("UPDATE job SET name = 'after a scalar'")
    finally:
        other.close()
        beater.close()


# --- pruning --------------------------------------------------------------------------------------


def ended(database: Database, url: str, days_ago: int = 40, **values: object) -> int:
    claim, _ = a_running_job(database, **values)
    with database.write() as connection:
        assert statements.end(connection, claim, JobState.SUCCESS, "done")
    past = (
        f"strftime('%Y-%m-%d %H:%M:%f', 'now', '-{days_ago} days')"
        if database.is_sqlite
        else f"clock_timestamp() - interval '{days_ago} days'"
    )
    plain_sql(url, f"UPDATE job SET end_date = {past} WHERE id = {claim.job_id}")
    return claim.job_id


def prune(database: Database, batch: int = 100) -> int:
    with database.write() as connection:
        return statements.prune(connection, 30 * 86400.0, batch)


def ids_left(url: str) -> list[int]:
    return [job_id for (job_id,) in plain_sql(url, "SELECT id FROM job ORDER BY id")]


def test_pruning_takes_old_ended_jobs_with_their_events(database: Database, database_url: str) -> None:
    ended(database, database_url)
    young = ended(database, database_url, days_ago=20)
    queued = insert_job(database)
    running, _ = a_running_job(database)
    assert prune(database) == 1
    assert ids_left(database_url) == [young, queued, running.job_id]
    assert plain_sql(database_url, "SELECT count(*) FROM job_event WHERE job_id = 1") == [(0,)]
    assert prune(database) == 0


def test_pruning_goes_in_batches_oldest_first(database: Database, database_url: str) -> None:
    jobs = [ended(database, database_url, days_ago=days) for days in (50, 90, 70, 60, 80)]
    assert [prune(database, batch=2) for _ in range(4)] == [2, 2, 1, 0]
    assert ids_left(database_url) == []
    assert jobs == [1, 2, 3, 4, 5]


def test_pruning_never_takes_a_live_job_whatever_its_dates_say(database: Database, database_url: str) -> None:
    insert_job(database)
    a_running_job(database)
    plain_sql(database_url, "UPDATE job SET end_date = '2001-01-01 00:00:00'")
    assert prune(database) == 0


def test_a_parent_of_a_live_child_stays_and_other_children_lose_their_parent(
    database: Database, database_url: str
) -> None:
    with_live_child, without = ended(database, database_url), ended(database, database_url)
    live = insert_job(database, parent_id=with_live_child)
    young = ended(database, database_url, days_ago=1, parent_id=without)
    assert prune(database) == 1
    assert ids_left(database_url) == [with_live_child, live, young]
    assert row_of(database, young)["parent_id"] is None
    assert row_of(database, live)["parent_id"] == with_live_child


def test_pruning_leaves_a_locked_row_for_the_next_time(
    postgres_database: Database, postgres_url: str
) -> None:
    held, free = ended(postgres_database, postgres_url), ended(postgres_database, postgres_url)
    holder = plain_connection(postgres_url)
    try:
        holder.execute("BEGIN")
        holder.execute(f"SELECT * FROM job WHERE id = {held} FOR UPDATE")
        assert prune(postgres_database) == 1
        assert ids_left(postgres_url) == [held]
        holder.execute("ROLLBACK")  # the server hears of a closed connection only some time later
    finally:
        holder.close()
    assert free == held + 1
    assert prune(postgres_database) == 1
