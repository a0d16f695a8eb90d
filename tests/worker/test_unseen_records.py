"""A worker with other mounts leaves process jobs of its host alone: it does not see their records."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobrunner import identity, statements
from jobrunner.backends.process.records import marked
from jobrunner.database import Database
from jobrunner.errors import UsageError
from jobrunner.models import BaseJob
from jobrunner.statements import Owner
from jobrunner.states import JobState
from jobrunner.sweeper import claim
from jobrunner.testing import MemoryBackend, use_backend
from jobrunner.worker import sight
from tests.helpers import an_owner, insert_job, plain_sql, row_of
from tests.runner.support import a_job, an_outside, in_loop, look, soon
from tests.worker.workers import a_worker, until_state


@pytest.fixture
def outside() -> Iterator[MemoryBackend]:
    backend = an_outside()
    with use_backend(backend):
        yield backend


def begun(database: Database, place: str, owner: Owner | None = None, **values: Any) -> int:
    """Store a job whose work has begun on this host, with its record in that place."""
    job = a_job()
    token = str(job.submit_token)
    columns = {
        "job_type": "MemoryMonitorJob",
        "heartrate": 0.3,
        "spec": job.spec,
        "submit_token": token,
        "connection": job.connection,
        "host_id": identity.host_id(),
        "host_uid": identity.uid(),
        "submit_baseline": place,
        "external_id": f"{place.partition(':')[2]}/{token}",
    }
    job_id = insert_job(database, owner, **{**columns, **values})
    with database.write() as connection:
        connection.exec_driver_sql(f"UPDATE job SET submit_started_at = created_at WHERE id = {job_id}")
    return job_id


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    """A place of records that this process does not see, though something is there under its path."""
    (tmp_path / "other" / "processes").mkdir(parents=True)
    return f"another-mark:{tmp_path}/other/processes"


@pytest.fixture
def here(tmp_path: Path) -> str:
    """A place of records that this process sees."""
    return marked(str(tmp_path / "own" / "processes"))


@pytest.mark.parametrize("in_doubt", [False, True], ids=["submitted", "in doubt"])
@pytest.mark.parametrize("state", ["silent", "released"])
@in_loop
async def test_a_job_whose_records_it_does_not_see_is_left_alone_with_the_reason(
    database: Database, outside: MemoryBackend, elsewhere: str, here: str, *, state: str, in_doubt: bool
) -> None:
    def owner() -> Owner | None:
        return an_owner() if state == "silent" else None

    values = {"external_id": None} if in_doubt else {}
    unseen = begun(database, elsewhere, owner(), **values)
    seen = begun(database, here, owner())
    async with a_worker(database) as working:
        await soon(lambda: working.jobs == {seen})
        told = "unseen" if state == "silent" else "unserved"
        await soon(lambda: told in (working.row()["detail"] or {}))
        looks = working.worker._rounds
        await soon(lambda: working.worker._rounds > looks + 5)
        assert working.jobs == {seen}
        (why,) = (
            working.row()["detail"][told].values()
            if state == "silent"
            else [each[2] for each in working.row()["detail"][told]]
        )
        assert "cannot be seen from here" in why
    before = JobState.RUNNING if state == "silent" else JobState.QUEUED
    claims = 1 if state == "silent" else 0
    assert look(database, unseen, "state", "claims") == (before, claims)


@in_loop
async def test_many_whose_records_are_unseen_keep_no_other_job_waiting(
    database: Database, outside: MemoryBackend, elsewhere: str, here: str
) -> None:
    for _ in range(30):
        begun(database, elsewhere)
    seen = begun(database, here)
    async with a_worker(database, capacity=5) as working:
        await soon(lambda: working.jobs == {seen})


@in_loop
async def test_what_was_claimed_before_its_records_vanished_is_given_back(
    database: Database, outside: MemoryBackend, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As one that is released between the look at what waits and the claim.
    monkeypatch.setattr("jobrunner.worklist.bound", lambda *_args: [])
    job_id = begun(database, elsewhere)
    async with a_worker(database):
        await soon(lambda: row_of(database, job_id)["claims"] > 0)
        await soon(lambda: row_of(database, job_id)["state"] is JobState.QUEUED)
    assert "cannot be seen from here" in row_of(database, job_id)["message"]


@contextmanager
def carrying(record: str) -> Iterator[None]:
    """Have a process that carries a record in its environment, as those of a job do."""
    code = "print('up', flush=True); import time; time.sleep(300)"
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "JOBRUNNER_RECORD": record}, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


@in_loop
async def test_after_the_hosts_grace_only_one_without_live_processes_is_lost(
    database: Database, database_url: str, outside: MemoryBackend, elsewhere: str
) -> None:
    living, dead = begun(database, elsewhere, an_owner()), begun(database, elsewhere, an_owner())
    plain_sql(database_url, "UPDATE job SET latest_heartbeat = '2026-01-01 00:00:00'")
    with carrying(str(row_of(database, living)["external_id"])):
        async with a_worker(database) as working:
            await until_state(database, JobState.LOST, dead)
            looks = working.worker._rounds
            await soon(lambda: working.worker._rounds > looks + 5)
        assert row_of(database, living)["state"] is JobState.RUNNING
    message = row_of(database, dead)["message"]
    assert "cannot be seen from here" in message
    assert "no process of it lives here" in message


@in_loop
async def test_a_disk_that_hangs_holds_up_no_other_job(
    database: Database,
    outside: MemoryBackend,
    here: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    goes_on = threading.Event()
    monkeypatch.setattr(sight, "_LOOK_MOST_S", 0.1)
    monkeypatch.setattr("jobrunner.record_places.mark_of", lambda _place: goes_on.wait(60) and None)
    bound = begun(database, here, an_owner())
    free = begun(database, here, an_owner(), host_id=None)
    try:
        async with a_worker(database) as working:
            await soon(lambda: working.jobs == {free})
            await soon(lambda: "unseen" in (working.row()["detail"] or {}))
            assert "does not answer" in working.row()["detail"]["unseen"][str(bound)]
            goes_on.set()
    finally:
        goes_on.set()
    assert row_of(database, bound)["claims"] == 1


def test_a_claim_by_hand_is_refused_with_what_to_do(
    database: Database, outside: MemoryBackend, elsewhere: str
) -> None:

    job_id = begun(database, elsewhere)
    with pytest.raises(UsageError, match=r"cannot be seen from here.*mounted"):
        BaseJob.get(job_id).run()
    with database.read() as connection:
        row = statements.get(connection, job_id)
        assert claim(connection, row, an_owner(), None) is None
    assert row_of(database, job_id)["state"] is JobState.QUEUED
