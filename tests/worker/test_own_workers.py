"""A worker whose class is a subclass of `WorkerJob` is a worker to all, also to who cannot load its class."""

from typing import Any

import pytest

from jobrunner import restoring, schema, statements, worklist
from jobrunner.cli import spelling
from jobrunner.database import Database
from jobrunner.errors import UsageError
from jobrunner.executors.base import WorkerExecutor
from jobrunner.statements import new_owner
from jobrunner.states import JobState
from jobrunner.testing import use_backend
from jobrunner.worker import WorkerJob
from jobrunner.worker.serving import Serving
from tests.helpers import a_running_job, insert_job, plain_sql, row_of
from tests.runner.support import a_job, an_outside, in_loop, soon
from tests.worker.workers import a_worker, store, until_state


class NightWorker(WorkerJob):
    """A user's own."""


class _Elsewhere:
    """An executor with a place of its own for jobs."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def code_jobs(self, *_: Any) -> Any: ...


WORKERS = [
    pytest.param(lambda: WorkerJob(heartrate=60.0), id="ours"),
    pytest.param(lambda: NightWorker(heartrate=60.0), id="a subclass"),
    pytest.param(lambda: NightWorker(_Elsewhere(), 60.0), id="a subclass that spreads its jobs"),
]
NO_WORKERS: list[dict[str, Any]] = [
    {"spec": {"capacity": 3, "class": "a:B"}},
    {"spec": {"capacity": 3, "imports": [], "drain_timeout": 1}, "submit_token": "t"},
    {"spec": None},
    {"spec": [1]},
]


def a_working(database: Database, job: WorkerJob, **changes: Any) -> int:
    """Store the row of a worker at work, as one that nobody here can load where its `job_type` is changed."""
    columns = {"job_type": type(job).__name__, "spec": job.spec, "heartrate": 60.0, "adoptable": False}
    return insert_job(database, new_owner("LocalExecutor"), **{**columns, **changes})


@pytest.mark.parametrize("make", WORKERS)
def test_a_worker_of_any_class_is_known_as_one(database: Database, database_url: str, make: Any) -> None:
    ours = a_working(database, make())
    unknown = a_working(database, make(), job_type="of.a.Newer.Worker")
    others = [a_running_job(database, heartrate=60.0, **values)[0].job_id for values in NO_WORKERS]
    with database.read() as connection:
        found = {row["id"] for row in worklist.workers(connection, 2.1)}
        assert found == {ours, unknown}
    assert restoring.hold_all(database) == len(others)
    rows = {job_id: row_of(database, job_id) for job_id in (ours, unknown, *others)}
    assert {job_id for job_id, row in rows.items() if statements.is_worker_row(row)} == found
    assert {job_id for job_id, row in rows.items() if row["held_at"] is None} == found
    named = rf"job {ours} .*job {unknown} .*Stop them"
    with pytest.raises(UsageError, match=named):
        schema.downgrade(database, "0004")
    plain_sql(database_url, f"UPDATE job SET heartrate = 0.001 WHERE id = {ours}")  # it fell silent
    with pytest.raises(UsageError, match=rf": job {unknown} "):
        schema.downgrade(database, "0004")


def test_spreading_jobs_is_what_an_executor_of_workers_does() -> None:
    assert isinstance(_Elsewhere(), WorkerExecutor)


@in_loop
async def test_a_silent_worker_of_ones_own_class_is_lost_as_a_worker_is(database: Database) -> None:
    died = a_working(database, NightWorker(), job_type="of.a.Newer.Worker", heartrate=0.3)
    async with a_worker(database):
        await until_state(database, JobState.LOST, died)
    assert row_of(database, died)["message"].endswith("others take its jobs over")


@in_loop
async def test_a_worker_that_was_only_stored_is_started_by_no_other(database: Database) -> None:
    assert Serving(database.settings).why_not("NightWorker", None, is_watched=False) == "a worker runs itself"
    (stored,) = store(NightWorker())
    unknown = insert_job(database, job_type="of.a.Newer.Worker", spec=NightWorker().spec)
    with use_backend(an_outside()):
        (job_id,) = store(a_job())
        async with a_worker(database, processes=1) as working:
            await soon(lambda: working.jobs == {job_id})
            looks = working.worker._rounds
            await soon(lambda: working.worker._rounds > looks + 2)
            assert not working.worker._code.by_job
    for worker_id in (stored, unknown):
        assert (row_of(database, worker_id)["state"], row_of(database, worker_id)["claims"]) == ("queued", 0)


def test_jobs_that_wait_are_told_of_a_worker_of_ones_own_class(database: Database) -> None:
    a_working(database, NightWorker(), job_type="of.a.Newer.Worker")
    with database.read() as connection:
        workers = worklist.workers(connection, 2.1)
    assert spelling.why_waiting("ProcessMonitorJob", None, workers) is None
