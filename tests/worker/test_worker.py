"""A worker: what it takes and what it leaves, how several share, whose orphans it adopts, how it stops."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, RowMapping

from jobrunner import identity, statements, worklist
from jobrunner.database import Database
from jobrunner.errors import DatabaseUnavailable, SettingsError
from jobrunner.executors.local import LocalExecutor
from jobrunner.executors.signals import STOPPING
from jobrunner.models import BaseJob
from jobrunner.statements import Sighting
from jobrunner.states import JobState
from jobrunner.testing import MemoryBackend, MemoryMonitorJob, use_backend
from jobrunner.worker import WorkerJob, taking
from tests.helpers import (
    a_running_job,
    an_owner,
    events_of,
    insert_job,
    plain_connection,
    plain_sql,
    row_of,
)
from tests.runner.support import SOON, a_job, an_outside, in_loop, look, soon
from tests.worker.workers import Working, a_worker, store, until_state


@contextmanager
def outside(**options: Any) -> Iterator[MemoryBackend]:
    backend = an_outside(**options)
    with use_backend(backend):
        yield backend


# --- what it takes --------------------------------------------------------------------------------


@in_loop
async def test_queued_jobs_are_taken_and_watched_to_their_end(database: Database) -> None:
    with outside(plan=SOON) as backend:
        ids = store(*(a_job() for _ in range(5)))
        async with a_worker(database) as working:
            await until_state(database, JobState.SUCCESS, *ids)
            row = row_of(database, ids[0])
            assert (row["runner_id"], row["executor_class"]) == (working.runner_id, "LocalExecutor")
            more = store(a_job())  # and what comes later
            await until_state(database, JobState.SUCCESS, *more)
    assert len({call.keys for call in backend.history if call.method == "submit"}) == 6


@in_loop
async def test_the_worker_is_a_job_with_a_heartbeat(database: Database) -> None:
    async with a_worker(database, name="the one") as working:
        await soon(lambda: working.row()["detail"] is not None)
        first = working.row()
        await soon(lambda: working.row()["latest_heartbeat"] > first["latest_heartbeat"])
        assert (first["job_type"], first["state"], first["name"]) == (
            "WorkerJob",
            JobState.RUNNING,
            "the one",
        )
        assert first["detail"] == {"jobs": 0, "processes": 0, "capacity": 10_000}
        found = WorkerJob.most_recent_job()
        assert found is not None
        assert found.is_alive()
    row = working.row()
    assert (row["state"], row["message"]) == (JobState.SUCCESS, "the test is over")
    assert not BaseJob.get(working.job.id).is_alive()


@in_loop
async def test_no_more_than_the_capacity_is_taken(database: Database) -> None:
    with outside() as backend:
        ids = store(*(a_job() for _ in range(5)))
        async with a_worker(database, capacity=3) as working:
            await soon(lambda: working.jobs == set(ids[:3]))
            looks = working.worker._rounds
            await soon(lambda: working.worker._rounds > looks + 5)
            assert working.jobs == set(ids[:3])
            await soon(lambda: row_of(database, ids[0])["external_id"] is not None)
            backend.succeed(row_of(database, ids[0])["external_id"])
            await soon(lambda: working.jobs == set(ids[1:4]))


@in_loop
async def test_only_what_it_can_serve_is_taken(database: Database) -> None:
    with outside(plan=SOON):
        unknown = insert_job(database, job_type="of.a.Newer.Version")
        nowhere = insert_job(
            database, job_type="BatchMonitorJob", connection="not_configured", submit_token="t", spec={}
        )
        bound = insert_job(database, job_type="MemoryMonitorJob", host_id="another", submit_token="u")
        (good,) = store(a_job())
        async with a_worker(database) as working:
            await until_state(database, JobState.SUCCESS, good)
            looks = working.worker._rounds
            await soon(lambda: working.worker._rounds > looks + 3)
        for job_id in (nowhere, bound):
            assert look(database, job_id, "state", "claims") == (JobState.QUEUED, 0)
        assert row_of(database, unknown)["runner_id"] != working.runner_id


@in_loop
async def test_filters_by_type_and_by_connection(database: Database) -> None:
    with outside(plan=SOON):
        (mine,) = store(a_job())
        async with a_worker(database, job_types=["BatchMonitorJob"]) as working:
            await soon(lambda: working.worker._rounds > 3)
        async with a_worker(database, connections=["another"]) as working:
            await soon(lambda: working.worker._rounds > 3)
        assert look(database, mine, "state", "claims") == (JobState.QUEUED, 0)
        async with a_worker(database, job_types=["MemoryMonitorJob"], connections=["memory_default"]):
            await until_state(database, JobState.SUCCESS, mine)


@in_loop
async def test_a_job_whose_backend_cannot_be_made_is_given_back_and_left_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> MemoryBackend:
        raise SettingsError("its extra is not installed")

    with outside():
        monkeypatch.setattr(MemoryMonitorJob, "make_backend", classmethod(refuse))
        (job_id,) = store(a_job())
        async with a_worker(database) as working:
            await soon(lambda: row_of(database, job_id)["message"] is not None)
            looks = working.worker._rounds
            await soon(lambda: working.worker._rounds > looks + 3)
        row = row_of(database, job_id)
        assert (row["state"], row["claims"]) == (JobState.QUEUED, 1)
        assert row["message"] == "released: its extra is not installed"


@in_loop
async def test_a_queued_job_with_a_kill_flag_is_killed_and_never_submitted(
    database: Database, database_url: str
) -> None:
    with outside() as backend:
        (job_id,) = store(a_job())
        plain_sql(database_url, f"UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP WHERE id = {job_id}")
        async with a_worker(database):
            await until_state(database, JobState.KILLED, job_id)
    assert "submit" not in {call.method for call in backend.history}


@in_loop
async def test_a_released_job_is_watched_again_and_not_submitted_again(database: Database) -> None:
    with outside() as backend:
        (job_id,) = store(a_job())
        async with a_worker(database):
            await soon(lambda: row_of(database, job_id)["external_state"] is not None)
        row = row_of(database, job_id)
        assert (row["state"], row["message"]) == (JobState.QUEUED, "released: its worker was stopped")
        async with a_worker(database):
            await until_state(database, JobState.RUNNING, job_id)
            backend.succeed(row["external_id"])
            await until_state(database, JobState.SUCCESS, job_id)
    assert backend.submissions(row["submit_token"]) == 1


# --- several --------------------------------------------------------------------------------------


@in_loop
async def test_several_workers_share_the_jobs_equally(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "PATIENT_LOOKS", 50)  # they look often here, and the machine may be busy
    with outside():
        three_of_them = (a_worker(database, heartrate=5.0) for _ in range(3))
        async with next(three_of_them) as one, next(three_of_them) as two, next(three_of_them) as three:
            workers = (one, two, three)
            await soon(lambda: all(each.row()["detail"] is not None for each in workers))
            ids = store(*(a_job(heartrate=5.0, poll_interval=30.0) for _ in range(60)))
            await soon(lambda: len(one.jobs) + len(two.jobs) + len(three.jobs) == 60)
            assert one.jobs | two.jobs | three.jobs == set(ids)
            assert {len(each.jobs) for each in workers} <= set(range(16, 25))
            assert {row_of(database, job_id)["claims"] for job_id in ids} == {1}


@in_loop
async def test_what_others_do_not_take_is_taken(database: Database) -> None:
    with outside():
        async with a_worker(database, job_types=["BatchMonitorJob"]), a_worker(database) as able:
            ids = store(*(a_job(heartrate=5.0) for _ in range(6)))
            await soon(lambda: able.jobs == set(ids))


# --- orphans --------------------------------------------------------------------------------------


def an_orphan(database: Database, backend: MemoryBackend, **values: Any) -> int:
    """Store a running job of a runner that is no more, with its work under way outside."""
    job = a_job()
    columns = {"submit_token": job.submit_token, "connection": job.connection, "spec": job.spec}
    claim, _ = a_running_job(
        database, **{"job_type": "MemoryMonitorJob", "heartrate": 0.3, **columns, **values}
    )
    return claim.job_id


async def submitted_orphan(database: Database, backend: MemoryBackend) -> tuple[int, str]:
    job_id = an_orphan(database, backend)
    token = row_of(database, job_id)["submit_token"]
    external_id = await backend.submit({}, token)
    with database.write() as connection:
        assert statements.record_submitted(connection, job_id, token, external_id)
    return job_id, external_id


@in_loop
async def test_an_orphan_is_adopted_and_its_work_goes_on_under_the_same_id(
    database: Database, database_url: str
) -> None:
    with outside() as backend:
        job_id, external_id = await submitted_orphan(database, backend)
        async with a_worker(database) as working:
            await soon(lambda: working.jobs == {job_id})
            assert look(database, job_id, "claims", "external_id") == (2, external_id)
            backend.succeed(external_id)
            await until_state(database, JobState.SUCCESS, job_id)
        assert backend.submissions(row_of(database, job_id)["submit_token"]) == 1
    assert events_of(database_url, job_id) == [
        (None, "running"),
        ("running", "running"),
        ("running", "success"),
    ]


@in_loop
async def test_a_job_that_beats_is_never_adopted(database: Database) -> None:
    with outside() as backend:
        owner = an_owner()
        job = a_job()
        job_id = insert_job(
            database, owner, job_type="MemoryMonitorJob", heartrate=0.3, submit_token=job.submit_token
        )
        silent = an_orphan(database, backend)
        async with a_worker(database) as working:
            end_s = asyncio.get_running_loop().time() + 2.0
            while asyncio.get_running_loop().time() < end_s:
                with database.write() as connection:
                    assert statements.beat(connection, owner.runner_id, [job_id])
                await asyncio.sleep(0.25)
            assert working.jobs == {silent}
        assert look(database, job_id, "runner_id", "claims") == (owner.runner_id, 1)


@in_loop
async def test_a_job_whose_record_was_lost_by_the_database_ends_truly_all_the_same(
    database: Database, database_url: str
) -> None:
    with outside() as backend:
        (job_id,) = store(a_job())
        async with a_worker(database):
            await soon(lambda: row_of(database, job_id)["external_id"] is not None)
            external_id = row_of(database, job_id)["external_id"]
            plain_sql(database_url, f"UPDATE job SET external_id = NULL WHERE id = {job_id}")  # a failover
            BaseJob.get(job_id).request_kill()
            await until_state(database, JobState.KILLED, job_id)
        assert look(database, job_id, "claims", "external_id") == (2, external_id)
        assert backend.submissions(row_of(database, job_id)["submit_token"]) == 1


@in_loop
async def test_an_orphan_of_an_unservable_kind_is_left_to_others(database: Database) -> None:
    with outside() as backend:
        known = an_orphan(database, backend)
        elsewhere = an_orphan(database, backend, job_type="BatchMonitorJob", connection="not_configured")
        async with a_worker(database) as working:
            await soon(lambda: working.jobs == {known})
        assert look(database, elsewhere, "state", "claims") == (JobState.RUNNING, 1)


@in_loop
async def test_an_orphan_of_another_user_is_not_tried_again_and_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt, tried = statements.adopt_many, set[int]()

    def note(connection: Connection, seen: list[Sighting], *args: Any) -> list[RowMapping]:
        tried.update(each.job_id for each in seen)
        return adopt(connection, seen, *args)

    monkeypatch.setattr(statements, "adopt_many", note)
    with outside() as backend:
        here, somebody = identity.host_id(), identity.uid() + 1
        other = an_orphan(database, backend, host_id=here, host_uid=somebody)
        first = an_orphan(database, backend)
        async with a_worker(database) as working:
            await soon(lambda: working.jobs == {first})
            second = an_orphan(database, backend)  # by then the other user's has been judged, too
            await soon(lambda: working.jobs == {first, second})
        assert look(database, other, "state", "claims") == (JobState.RUNNING, 1)
    assert tried == {first, second}


@in_loop
async def test_what_nobody_can_go_on_with_is_lost_once_with_the_reason(
    database: Database, database_url: str
) -> None:
    own_code, owner = a_running_job(database, heartrate=0.3, adoptable=False)
    died, _ = a_running_job(database, heartrate=0.3, adoptable=False, job_type="WorkerJob")
    async with a_worker(database), a_worker(database):
        await until_state(database, JobState.LOST, own_code.job_id, died.job_id)
    row = row_of(database, own_code.job_id)
    silent = f"its process on {owner.hostname} fell silent"
    assert row["message"] == f"{silent}, and nobody can go on with its code"
    assert row_of(database, died.job_id)["message"] == f"{silent}: others take its jobs over"
    assert row["end_date"] is not None
    assert events_of(database_url, own_code.job_id) == [(None, "running"), ("running", "lost")]


@in_loop
async def test_a_process_of_another_host_is_lost_only_after_the_hosts_grace(
    database: Database, database_url: str
) -> None:
    with outside() as backend:
        young = an_orphan(database, backend, host_id="another")
        old = an_orphan(database, backend, host_id="another", hostname="its-host")
        plain_sql(database_url, f"UPDATE job SET latest_heartbeat = '2026-01-01 00:00:00' WHERE id = {old}")
        async with a_worker(database):
            await until_state(database, JobState.LOST, old)
        assert "has been silent for" in row_of(database, old)["message"]
        assert row_of(database, young)["state"] is JobState.RUNNING


@in_loop
async def test_an_outage_of_the_database_makes_nobody_an_orphan_and_ends_no_worker(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with outside() as backend:
        an_orphan(database, backend)
        ask, is_away = worklist.todo, True
        asked = 0

        def todo(connection: Any) -> Any:
            nonlocal asked
            asked += 1
            if is_away:
                raise DatabaseUnavailable("it is away")
            return ask(connection)

        monkeypatch.setattr(worklist, "todo", todo)
        async with a_worker(database) as working:
            await soon(lambda: asked > 15)  # for longer than the grace of the orphan
            assert working.jobs == set()
            is_away = False
            await soon(lambda: asked > 18)
            assert working.jobs == set()  # its count began anew
            await soon(lambda: len(working.jobs) == 1)
    assert [record.message for record in caplog.records if "look of a worker" in record.message] == [
        "the look of a worker failed error=it is away",
        "the look of a worker works again",
    ]


@in_loop
async def test_who_cannot_beat_takes_nothing_and_does_not_say_that_it_works_again(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from jobrunner.heartbeat import Beater

    with outside(plan=SOON):
        async with a_worker(database) as working:
            await soon(working.worker.is_ready)
            with monkeypatch.context() as patch:

                def refuse(*_arguments: object, **_more: object) -> list[object]:
                    raise DatabaseUnavailable("no beats now")

                patch.setattr(worklist, "todo", refuse)
                await soon(lambda: "the look of a worker failed" in caplog.text)
                patch.setattr(Beater, "beat", refuse)
                await soon(lambda: working.worker._runner.beats.is_failing)
                (job_id,) = store(a_job())
                looks = working.worker._rounds
                await soon(lambda: working.worker._rounds > looks + 5)
                assert row_of(database, job_id)["state"] is JobState.QUEUED
                assert not working.worker.is_ready()
                assert "works again" not in caplog.text
            await until_state(database, JobState.SUCCESS, job_id)
            assert "the look of a worker works again" in caplog.text


@in_loop
async def test_a_part_of_a_round_that_fails_keeps_back_no_other(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_arguments: object) -> list[object]:
        raise RuntimeError("a bug")

    lost, _ = a_running_job(database, heartrate=0.3, adoptable=False)
    with outside(plan=SOON):
        monkeypatch.setattr(statements, "lose_many", broken)
        async with a_worker(database):
            await soon(lambda: "a bug" in caplog.text)
            (job_id,) = store(a_job())
            await until_state(database, JobState.SUCCESS, job_id)
            assert caplog.text.count("the sweep of a worker failed") == 1
            monkeypatch.undo()
            await until_state(database, JobState.LOST, lost.job_id)


# --- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", STOPPING)
def test_a_worker_that_is_told_to_stop_as_soon_as_it_is_known_stops_in_good_order(
    database: Database, number: signal.Signals
) -> None:
    def stop(_job_id: int) -> None:
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    job = WorkerJob(LocalExecutor(on_started=stop), processes=1)
    job.run()
    assert (job.state, job.message) == (JobState.SUCCESS, f"stopped by {number.name}")
    assert signal.getsignal(number) is before


@in_loop
async def test_a_worker_that_is_killed_gives_its_jobs_back_and_cancels_nothing(database: Database) -> None:
    with outside() as backend:
        ids = store(a_job(), a_job())
        working = Working(database)
        await soon(lambda: all(row_of(database, job_id)["external_state"] for job_id in ids))
        working.job.request_kill(by="somebody", reason="maintenance")
        assert await working.end() is JobState.KILLED
        row = working.row()
        assert (row["state"], row["message"]) == (JobState.KILLED, "killed by somebody: maintenance")
        for job_id in ids:
            assert row_of(database, job_id)["state"] is JobState.QUEUED
    assert "cancel" not in {call.method for call in backend.history}


@in_loop
async def test_a_worker_that_was_taken_for_dead_stops_and_gives_back_what_is_still_its(
    database: Database, database_url: str
) -> None:
    with outside():
        (job_id,) = store(a_job())
        working = Working(database)
        await soon(lambda: working.jobs == {job_id})
        plain_sql(database_url, f"UPDATE job SET state = 'lost' WHERE id = {working.job.id}")
        assert await working.end() is JobState.LOST
        assert row_of(database, job_id)["state"] is JobState.QUEUED


@in_loop
async def test_nothing_is_taken_after_the_stop(database: Database) -> None:
    with outside():
        working = Working(database)
        await soon(working.worker.is_ready)
        working.worker.stop("enough")
        (job_id,) = store(a_job())
        assert await working.end() is JobState.SUCCESS
        assert look(database, job_id, "state", "claims") == (JobState.QUEUED, 0)


@pytest.mark.parametrize("what", ["the answer", "our own beat"])
@in_loop
async def test_who_saw_the_database_late_makes_nobody_an_orphan(
    database: Database, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    # A database that hangs keeps the living from beating, too: what it answers then is no verdict.
    silent, is_late = worklist.silent, True

    def late(*asked: Any) -> Any:
        if is_late and what == "the answer":
            time.sleep(0.3)
        elif is_late:
            working.worker._itself.good_s -= 10.0
        return silent(*asked)

    monkeypatch.setattr(worklist, "silent", late)
    with outside() as backend:
        an_orphan(database, backend)
        async with a_worker(database) as working:
            await soon(lambda: working.worker._rounds > 12)
            assert working.jobs == set()
            is_late = False
            await soon(lambda: len(working.jobs) == 1)


@in_loop
async def test_a_row_that_somebody_held_locked_makes_no_orphan(
    postgres_database: Database, postgres_url: str
) -> None:
    # Its owner lives, and cannot beat: he needs a moment after the lock is gone.
    owner = an_owner()
    with outside() as backend:
        held = insert_job(
            postgres_database, owner, job_type="MemoryMonitorJob", heartrate=0.3, submit_token="t"
        )
        silent = an_orphan(postgres_database, backend)
        holder = plain_connection(postgres_url)
        try:
            holder.execute("BEGIN")
            holder.execute(f"UPDATE job SET name = 'mine' WHERE id = {held}")
            async with a_worker(postgres_database) as working:
                await soon(lambda: working.jobs == {silent})  # a whole grace has passed
                holder.execute("ROLLBACK")
                with postgres_database.write() as connection:
                    assert statements.beat(connection, owner.runner_id, [held])
                rounds = working.worker._rounds
                await soon(lambda: working.worker._rounds > rounds + 1)
                assert working.jobs == {silent}
                await soon(lambda: working.jobs == {silent, held})  # now it is one
        finally:
            holder.close()
