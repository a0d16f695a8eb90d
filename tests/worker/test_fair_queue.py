"""Jobs that nobody here may take, or that fail again and again, hold up none of the younger ones."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from jobrunner import worklist
from jobrunner.cli import spelling
from jobrunner.database import Database
from jobrunner.executors import resting
from jobrunner.statements import PROTOCOL
from jobrunner.states import JobState
from jobrunner.testing import use_backend
from jobrunner.worker import claiming
from tests.helpers import an_owner, insert_job, plain_sql, row_of
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


def test_any_number_of_jobs_can_be_left_alone(database: Database) -> None:
    (job_id,) = own_code(database)
    without = range(job_id + 1, job_id + 50_000)

    def asked(connection: Connection, *more: int) -> list[int]:
        rows = worklist.queued(connection, ["Good"], [None], an_owner(), [*without, *more], 10)
        return [row["id"] for row in rows]

    with database.read() as connection:
        assert asked(connection) == [job_id]
        assert asked(connection, job_id) == []
