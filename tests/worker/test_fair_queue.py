"""Jobs that nobody here may take, or that fail again and again, hold up none of the younger ones."""

import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from jobrunner import identity, sweeper, worklist
from jobrunner.cli import spelling
from jobrunner.database import Database
from jobrunner.executors import resting
from jobrunner.statements import PROTOCOL
from jobrunner.states import JobState
from jobrunner.testing import use_backend
from jobrunner.worker import claiming
from tests.helpers import a_running_job, an_owner, insert_job, plain_sql, row_of, until
from tests.runner.support import SOON, a_job, an_outside, in_loop, soon
from tests.worker.workers import Working, a_worker, store, until_state

ROOT = Path(__file__).parents[2]

BARRED = {
    "held": ("held_at = '2026-01-01 00:00:00'", "since the database was restored"),
    "a newer protocol": (f"needs = {PROTOCOL + 1}", "a newer jobrunner stored it"),
    "another host": ("host_id = 'a/b/c'", "bound to another host"),
    "another user": ("host_uid = 4242", "bound to the user 4242"),
}
UNCLAIMABLE = "claims = 2147483647"
"""A count that cannot go up: the database refuses each claim."""


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def own_code(database: Database, count: int = 1) -> list[int]:
    spec = {"class": "tests.worker.own_jobs:Good", "args": {}}
    return [insert_job(database, job_type="Good", heartrate=1.0, spec=spec) for _ in range(count)]


def change(url: str, job_ids: list[int], columns: str) -> None:
    plain_sql(url, f"UPDATE job SET {columns} WHERE id IN ({', '.join(map(str, job_ids))})")


def why_waiting(database: Database, job_id: int, working: Working) -> str:
    row = row_of(database, job_id)
    kind = row["job_type"], row["connection"]
    special = worklist.is_special(row)
    why = spelling.why_waiting(*kind, [working.row()], row["spec"], is_special=special)
    return worklist.why_barred_row(row) or why or ""


@pytest.mark.parametrize("bar", BARRED)
@in_loop
async def test_code_that_nobody_here_may_run_keeps_no_younger_one_waiting(
    database: Database, database_url: str, bar: str
) -> None:
    columns, reason = BARRED[bar]
    barred = own_code(database, 11)
    change(database_url, barred, columns)
    (good,) = own_code(database)
    async with a_worker(database, processes=1) as working:
        await until_state(database, JobState.SUCCESS, good)
        await soon(lambda: reason in why_waiting(database, barred[0], working))
        # It is no reason for one that is only waiting for its turn.
        assert spelling.why_waiting("Good", None, [working.row()], is_special=False) is None
    assert {row_of(database, job_id)["claims"] for job_id in barred} == {0}


@pytest.mark.parametrize("bar", BARRED)
@in_loop
async def test_jobs_that_are_claimed_one_by_one_are_those_that_may_be_claimed_here(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, bar: str
) -> None:
    monkeypatch.setattr(claiming, "_ALONE_MOST", 3)
    with use_backend(an_outside(plan=SOON)):
        barred = store(*(a_job() for _ in range(5)))
        change(database_url, barred, BARRED[bar][0])
        change(database_url, store(a_job()), UNCLAIMABLE)
        good = store(*(a_job() for _ in range(2)))
        async with a_worker(database):
            await until_state(database, JobState.SUCCESS, *good)
    assert {row_of(database, job_id)["state"] for job_id in barred} == {JobState.QUEUED}


@in_loop
async def test_jobs_that_cannot_be_claimed_do_not_come_round_again_before_the_others(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "_ALONE_MOST", 2)
    monkeypatch.setattr(resting, "_MOST_S", 0.0)  # as where so many fail that the first have rested by then
    with use_backend(an_outside(plan=SOON)):
        change(database_url, store(*(a_job() for _ in range(5))), UNCLAIMABLE)
        good = store(*(a_job() for _ in range(2)))
        async with a_worker(database):
            await until_state(database, JobState.SUCCESS, *good)


@in_loop
async def test_code_that_could_not_be_started_is_not_tried_again_before_the_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resting, "_MOST_S", 0.0)
    started: list[int] = []

    async def start(job_id: int, *_: Any) -> None:
        started.append(job_id)
        code._resting.rest(job_id)  # its child fails before it has claimed it

    async with a_worker(database, processes=1) as working:
        await soon(lambda: working.worker._rounds > 0)
        code: Any = working.worker._code
        monkeypatch.setattr(code, "start", start)
        failing = own_code(database, 12)
        await soon(lambda: set(failing) <= set(started))
        assert sorted(started[:12]) == failing
        await soon(lambda: len(started) > 24)  # and all of them are tried again


@in_loop
async def test_unreadable_jobs_that_cannot_be_ended_keep_none_from_its_end(
    sqlite_database: Database, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "_UNREADABLE_MOST", 2)
    with use_backend(an_outside(plan=SOON)):
        bound = store(*(a_job() for _ in range(3)))
        change(sqlite_url, bound, "connection = x'80ff', host_id = 'another'")
        nowhere, ends = store(a_job(), a_job())
        change(sqlite_url, [nowhere], "host_id = x'80ff'")
        change(sqlite_url, [ends], "job_type = x'80ff'")
        async with a_worker(sqlite_database) as working:
            await soon(
                lambda: plain_sql(sqlite_url, f"SELECT state FROM job WHERE id = {ends}")[0][0] == "failed"
            )
            await soon(lambda: "host_id cannot be read" in why_waiting(sqlite_database, nowhere, working))
    assert {row_of(sqlite_database, job_id)["state"] for job_id in bound} == {JobState.QUEUED}


@pytest.mark.parametrize("value", ["x'80ff'", "'nobody'", "1.5"])
@in_loop
async def test_a_job_whose_user_cannot_be_read_waits_and_keeps_no_other_from_its_end(
    sqlite_database: Database, sqlite_url: str, value: str
) -> None:
    with use_backend(an_outside(plan=SOON)):
        nobodys, healthy = store(a_job(), a_job())
        change(sqlite_url, [nobodys], f"host_uid = {value}")
        async with a_worker(sqlite_database) as working:
            await soon(lambda: row_of(sqlite_database, healthy)["state"] is JobState.SUCCESS)
            await soon(lambda: "bound to the user" in why_waiting(sqlite_database, nobodys, working))
    assert row_of(sqlite_database, nobodys)["state"] is JobState.QUEUED


def test_any_number_of_jobs_can_be_left_alone(database: Database) -> None:
    (job_id,) = own_code(database)
    without = range(job_id + 1, job_id + 50_000)

    def asked(connection: Connection, *more: int) -> list[int]:
        rows = worklist.queued(connection, ["Good"], [None], an_owner(), [*without, *more], 10)
        return [row["id"] for row in rows]

    with database.read() as connection:
        assert asked(connection) == [job_id]
        assert asked(connection, job_id) == []


# --- orphans --------------------------------------------------------------------------------------


def silent(database: Database, **values: Any) -> int:
    """Store a running job of a runner that is no more."""
    job = a_job()
    columns = {"submit_token": job.submit_token, "connection": job.connection, "spec": job.spec}
    given = {"job_type": "MemoryMonitorJob", "heartrate": 0.3, **columns, **values}
    return a_running_job(database, **given)[0].job_id


FOR_OTHERS: dict[str, dict[str, Any]] = {
    "another connection": {"job_type": "BatchMonitorJob", "connection": "of_another_team"},
    "another host": {"host_id": "a/b/c"},
    "another user": {"host_uid": identity.uid() + 1},
    "own code": {"job_type": "Good", "submit_token": None, "connection": None},
}


@pytest.fixture
def _short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "SILENT_MOST", 2)
    monkeypatch.setattr(sweeper, "PAGE", 1)


def judgeable(**changes: Any) -> worklist.Judgeable:
    served = {
        "host_ids": [identity.host_id()],
        "watched": ["MemoryMonitorJob"],
        "connections": [None, "here"],
    }
    return worklist.Judgeable(identity.uid(), 3600.0, **{**served, **changes})


def test_only_those_silent_jobs_are_read_that_can_be_judged_here(
    database: Database, database_url: str
) -> None:
    for values in FOR_OTHERS.values():
        silent(database, **values)
    ours = [
        silent(database, connection=None),
        silent(database, connection="here", host_id=identity.host_id(), host_uid=identity.uid()),
        silent(database, adoptable=False, job_type="of.a.Newer.Version", host_id="a/b/c"),
    ]
    # The one of another host has been silent for a moment only.
    silent_long = f"host_id IS NULL OR NOT adoptable OR id = {ours[1]}"
    plain_sql(database_url, f"UPDATE job SET latest_heartbeat = '2026-01-01 00:00:00' WHERE {silent_long}")
    with database.read() as connection:
        ids = [row[0] for row in plain_sql(database_url, "SELECT id FROM job")]
        until(lambda: all(worklist.is_silent(connection, job_id) for job_id in ids))

    def found(of: worklist.Judgeable, after: int = 0, most: int = 10) -> list[int]:
        with database.read() as connection:
            return [row["id"] for row in worklist.silent(connection, of, after, most).rows]

    assert found(judgeable()) == ours
    assert found(judgeable(), most=2) == ours[:2]
    assert found(judgeable(), after=ours[1]) == ours[2:]
    assert found(judgeable(connections=["here"])) == ours[1:]
    assert found(judgeable(watched=[])) == ours[2:]
    assert len(found(judgeable(coded=["Good"]))) == len(ours) + 1


@pytest.mark.parametrize("why", FOR_OTHERS)
@pytest.mark.usefixtures("_short_looks")
@in_loop
async def test_orphans_of_others_hide_none_that_a_worker_can_adopt(database: Database, why: str) -> None:
    with use_backend(an_outside()):
        others = [silent(database, **FOR_OTHERS[why]) for _ in range(5)]
        ours = silent(database)
        async with a_worker(database, processes=0) as working:
            await soon(lambda: working.jobs == {ours})
    assert {row_of(database, job_id)["claims"] for job_id in others} == {1}


@pytest.mark.usefixtures("_short_looks")
@in_loop
async def test_orphans_for_which_there_is_no_place_hide_none_that_is_to_be_lost(database: Database) -> None:
    with use_backend(an_outside()):
        waiting = [silent(database) for _ in range(8)]
        lost = silent(database, adoptable=False)
        async with a_worker(database, capacity=1) as working:
            await until_state(database, JobState.LOST, lost)
            assert len(working.jobs) <= 1
    assert {row_of(database, job_id)["state"] for job_id in waiting} <= {JobState.RUNNING, JobState.QUEUED}


@in_loop
async def test_to_read_many_silent_jobs_may_take_its_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = worklist.silent

    def read_slowly(*asked: Any) -> worklist.Silent:
        found = ask(*asked)
        time.sleep(0.4)  # by which no owner is kept from beating
        return found

    monkeypatch.setattr(worklist, "silent", read_slowly)
    with use_backend(an_outside()):
        orphan = silent(database)
        async with a_worker(database) as working:
            await soon(lambda: working.jobs == {orphan})


@in_loop
async def test_an_orphan_whose_last_beat_cannot_be_read_hides_no_other(
    sqlite_database: Database, sqlite_url: str
) -> None:
    with use_backend(an_outside()):
        odd, ours = silent(sqlite_database, host_id="a/b/c"), silent(sqlite_database)
        change(sqlite_url, [odd], "latest_heartbeat = 'soon'")
        async with a_worker(sqlite_database) as working:
            await soon(lambda: working.jobs == {ours})
            await until_state(sqlite_database, JobState.LOST, odd)
    assert "has left no beat that can be read" in row_of(sqlite_database, odd)["message"]


@in_loop
async def test_a_job_of_another_installations_type_waits_for_who_knows_it_queued_or_silent(
    database: Database,
) -> None:
    values: dict[str, Any] = {"job_type": "of.a.Plugin", "heartrate": 0.3, "connection": "plugin_default"}
    queued = insert_job(database, submit_token="token-1", **values)
    silent = insert_job(database, an_owner(), submit_token="token-2", external_id="id-1", **values)
    named = {"class": "tests.worker.own_jobs:Good", "args": {}}
    code = insert_job(database, spec=named, **values)  # of a class that uses a connection by itself
    again = insert_job(database, an_owner(), spec=named, **values)
    async with a_worker(database, processes=2) as working:
        await until_state(database, JobState.SUCCESS, code, again)  # by now all are seen to
        await soon(lambda: "cannot be loaded here" in why_waiting(database, queued, working))
    assert (row_of(database, queued)["state"], row_of(database, queued)["claims"]) == (JobState.QUEUED, 0)
    assert (row_of(database, silent)["state"], row_of(database, silent)["claims"]) == (JobState.RUNNING, 1)
