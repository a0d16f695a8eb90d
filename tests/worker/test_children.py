"""Jobs that run their own code, in child processes of a worker: no job can hang or crash it."""

import dataclasses
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from jobrunner import statements
from jobrunner.database import Database
from jobrunner.errors import DatabaseUnavailable, UsageError
from jobrunner.executors import child, children
from jobrunner.executors.family import Family
from jobrunner.models import BaseJob
from jobrunner.statements import new_owner
from jobrunner.states import JobState
from tests.helpers import a_running_job, events_of, is_alive, plain_sql, row_of
from tests.postgres import Postgres
from tests.proxy import Proxy
from tests.runner.support import in_loop, soon
from tests.worker import own_jobs
from tests.worker.workers import Working, a_worker, until_state

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def store(job_class: type[BaseJob], notes: Path, **options: Any) -> int:
    """Store a job as `jobrunner start MODULE:CLASS --detach` does."""
    given = {"heartrate": 0.5, "notes": str(notes), **options}
    job = job_class(**given)
    job.spec = {"class": own_jobs.a_path(job_class), "args": given}
    return job.store().id


def said(notes: Path) -> list[str]:
    return [line.rpartition(" ")[0] for line in notes.read_text().splitlines()] if notes.exists() else []


def pids(notes: Path) -> list[int]:
    return [int(line.rpartition(" ")[2]) for line in notes.read_text().splitlines()]


def all_dead(notes: Path) -> bool:
    return not any(map(is_alive, pids(notes)))


# --- ends -----------------------------------------------------------------------------------------


@in_loop
async def test_a_child_claims_its_job_runs_it_and_writes_its_outcome(
    database: Database, database_url: str, notes: Path
) -> None:
    job_id = store(own_jobs.Good, notes)
    async with a_worker(database) as working:
        await until_state(database, JobState.SUCCESS, job_id)
    row = row_of(database, job_id)
    assert said(notes) == ["ran"]
    assert row["pid"] == pids(notes)[0] != os.getpid()
    assert row["runner_id"] != working.runner_id  # the process that beats is the process that claims
    assert (row["claims"], row["executor_class"], row["message"]) == (1, "LocalExecutor", "done")
    assert events_of(database_url, job_id) == [
        (None, "queued"),
        ("queued", "running"),
        ("running", "success"),
    ]


@pytest.mark.parametrize(
    ("job_class", "message"),
    [
        (own_jobs.Bad, "ValueError: no luck"),
        (own_jobs.Segfault, "its process was ended by SIGSEGV"),
        (own_jobs.Vanish, "its process ended with code 3 and wrote no outcome"),
    ],
)
@in_loop
async def test_a_job_that_fails_or_crashes_is_failed_and_the_worker_goes_on(
    database: Database, notes: Path, job_class: type[BaseJob], message: str
) -> None:
    job_id = store(job_class, notes)
    async with a_worker(database):
        await until_state(database, JobState.FAILED, job_id)
        good = store(own_jobs.Good, notes)
        await until_state(database, JobState.SUCCESS, good)
    assert row_of(database, job_id)["message"] == message


@in_loop
async def test_a_job_whose_class_cannot_be_loaded_is_failed_with_the_reason(
    database: Database, database_url: str, notes: Path
) -> None:
    missing = store(own_jobs.Good, notes)
    job = own_jobs.Good(heartrate=0.5)
    job.spec = {"class": "nowhere.to_be:Found", "args": {}}
    elsewhere = job.store().id
    nobody, _ = own_jobs.Good(heartrate=0.5).store().id, None
    plain_sql(database_url, f"UPDATE job SET job_type = 'of.a.Newer.Version' WHERE id = {nobody}")
    async with a_worker(database):
        await until_state(database, JobState.SUCCESS, missing)
        await until_state(database, JobState.FAILED, elsewhere, nobody)
    assert row_of(database, elsewhere)["message"] == (
        "it cannot be loaded here: The module 'nowhere' for 'nowhere.to_be:Found' cannot be found."
    )
    assert "There is no class for the job type 'of.a.Newer.Version'" in row_of(database, nobody)["message"]


def an_order(database: Database, job_id: int) -> child.Order:
    settings = {"database_url": database.settings.database_url}
    return child.Order(job_id, str(uuid.uuid4()), "LocalExecutor", settings)


def test_a_child_waits_for_a_database_that_is_away_and_says_so_once(
    postgres: Postgres, postgres_database: Database, notes: Path
) -> None:
    job_id = store(own_jobs.Good, notes)
    with Proxy(postgres.socket_dir) as proxy:
        proxy.is_refusing = True
        order = an_order(postgres_database, job_id)
        order.settings["database_url"] = postgres.url(
            make_url(order.settings["database_url"]).database or "", proxy.socket_dir
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "jobrunner.executors.child"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(order.to_line())
        process.stdin.flush()
        said_first = process.stderr.readline().decode()
        assert "the job cannot be claimed yet" in said_first
        proxy.is_refusing = False
        _, rest = process.communicate(timeout=60)
    assert process.returncode == child.ENDED
    assert rest.decode() == ""
    assert row_of(postgres_database, job_id)["state"] is JobState.SUCCESS


def test_a_claim_of_which_no_answer_came_is_the_childs_all_the_same(
    database: Database, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = store(own_jobs.Good, notes)
    real, answers_lost = Database.write, [True]

    @contextmanager
    def write(self: Database) -> Iterator[Any]:
        with real(self) as connection:
            yield connection
        if answers_lost:
            answers_lost.clear()
            raise DatabaseUnavailable("the connection was cut before the answer")

    monkeypatch.setattr(Database, "write", write)
    claimed = child._claimed(an_order(database, job_id))
    assert claimed is not None
    assert claimed[1].claims == row_of(database, job_id)["claims"] == 1
    assert child._claimed(an_order(database, job_id)) is None  # it is nobody else's


@in_loop
async def test_a_child_that_could_not_be_told_of_its_claim_gives_the_job_back(
    database: Database, database_url: str, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = store(own_jobs.Good, notes)
    real = children._begun

    def begun(order: child.Order) -> tuple["subprocess.Popen[bytes]", Family]:
        monkeypatch.setattr(children, "_begun", real)
        with database.write() as connection:
            owner = dataclasses.replace(new_owner("LocalExecutor"), runner_id=order.runner_id)
            statements.claim_queued(connection, order.job_id, owner)
        process = subprocess.Popen(["sh", "-c", f"exit {child.NOT_BEGUN}"])
        return process, Family.of(process.pid, order.runner_id)

    monkeypatch.setattr(children, "_begun", begun)
    async with a_worker(database):
        await until_state(database, JobState.SUCCESS, job_id)
    assert said(notes) == ["ran"]
    assert row_of(database, job_id)["claims"] == 2
    assert ("running", "queued") in events_of(database_url, job_id)


@in_loop
async def test_a_job_that_asks_for_resources_waits_for_a_dask_cluster(
    database: Database, database_url: str, notes: Path
) -> None:
    by_its_class = store(own_jobs.OnGpu, notes)
    unreadable = own_jobs.Good(heartrate=0.5, spec={})
    with_code = store(own_jobs.Good, notes)  # and keeps none back that asks for none
    stored = unreadable.store().id
    spec = '{"resources": "GPU"}'
    plain_sql(database_url, f"UPDATE job SET spec = '{spec}' WHERE id = {stored}")
    async with a_worker(database) as working:
        await until_state(database, JobState.SUCCESS, with_code)
        await soon(lambda: "unserved" in (working.row()["detail"] or {}))
        unserved = working.row()["detail"]["unserved"]
    assert row_of(database, by_its_class)["spec"]["resources"] == {"GPU": 1}
    assert ["OnGpu", None, "it asks for GPU=1, which only a Dask cluster gives", {"GPU": 1}] in unserved
    assert row_of(database, by_its_class)["claims"] == row_of(database, stored)["claims"] == 0


@pytest.mark.parametrize("resources", [{"GPU": 0}, {"GPU": "one"}, {"": 1}, ["GPU"], {"GPU": True}])
def test_resources_that_are_none_are_refused(database: Database, resources: Any) -> None:
    job = own_jobs.Good(spec={"resources": resources})
    with pytest.raises(UsageError):
        job.store()


# --- kills ----------------------------------------------------------------------------------------


@in_loop
async def test_a_kill_reaches_a_child(database: Database, notes: Path) -> None:
    job_id = store(own_jobs.Patient, notes)
    async with a_worker(database):
        await soon(lambda: said(notes) == ["ran"])
        BaseJob.get(job_id).request_kill(by="somebody", reason="enough")
        await until_state(database, JobState.KILLED, job_id)
        await soon(lambda: said(notes) == ["ran", "cleaned up"])
    assert row_of(database, job_id)["message"] == "killed by somebody: enough"


@pytest.mark.parametrize("why", ["kill", "timeout"])
@in_loop
async def test_a_child_that_hangs_is_ended_with_all_that_it_started(
    database: Database, database_url: str, notes: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(children, "OBEY_S", 0.2)
    monkeypatch.setattr(children, "TERMINATE_S", 0.3)
    job_id = store(own_jobs.Hang, notes, heartrate=1.0)
    async with a_worker(database, heartrate=5.0):
        await soon(lambda: sorted(said(notes)) == ["grandchild", "ran"])
        if why == "kill":
            BaseJob.get(job_id).request_kill(by="somebody")
        else:
            plain_sql(database_url, f"UPDATE job SET deadline_at = created_at WHERE id = {job_id}")
        await soon(lambda: row_of(database, job_id)["state"].is_terminal)
    row = row_of(database, job_id)
    if why == "kill":
        assert (row["state"], row["message"]) == (JobState.KILLED, "killed by somebody")
    else:
        assert (row["state"], row["message"]) == (JobState.FAILED, "the timeout has passed")
    await soon(lambda: all_dead(notes))


@in_loop
async def test_a_job_that_is_flagged_while_it_waits_never_runs(
    database: Database, database_url: str, notes: Path
) -> None:
    job_id = store(own_jobs.Good, notes)
    plain_sql(database_url, f"UPDATE job SET kill_requested_at = CURRENT_TIMESTAMP WHERE id = {job_id}")
    async with a_worker(database):
        await until_state(database, JobState.KILLED, job_id)
    assert said(notes) == []


# --- several, orphans, stopping -------------------------------------------------------------------


@in_loop
async def test_no_more_children_run_than_are_allowed_and_each_job_runs_once(
    database: Database, notes: Path
) -> None:
    ids = [store(own_jobs.Good, notes, heartrate=5.0) for _ in range(4)]
    most = 0

    def all_ended() -> bool:
        nonlocal most
        most = max(most, *(len(each.worker._code.by_job) for each in (one, two)))
        return all(row_of(database, job_id)["state"] is JobState.SUCCESS for job_id in ids)

    async with a_worker(database, processes=1) as one, a_worker(database, processes=1) as two:
        await soon(lambda: one.worker._rounds and two.worker._rounds)
        await soon(all_ended)
    assert most == 1
    assert said(notes) == ["ran"] * 4
    assert {row_of(database, job_id)["claims"] for job_id in ids} == {1}


@in_loop
async def test_an_orphan_whose_code_stands_running_twice_is_run_again(
    database: Database, notes: Path
) -> None:
    given: dict[str, Any] = {"heartrate": 0.5, "notes": str(notes)}
    own_jobs.Again(**given).note("ran")  # in the runner that died
    claim, _ = a_running_job(
        database,
        job_type="Again",
        heartrate=0.5,
        spec={"class": own_jobs.a_path(own_jobs.Again), "args": given},
    )
    async with a_worker(database):
        await until_state(database, JobState.SUCCESS, claim.job_id)
    assert said(notes) == ["ran", "ran"]
    assert row_of(database, claim.job_id)["claims"] == 2


@in_loop
async def test_a_worker_that_stops_waits_for_its_children(database: Database, notes: Path) -> None:
    job_id = store(own_jobs.Patient, notes)
    working = Working(database, drain_timeout=30.0)
    await soon(lambda: said(notes) == ["ran"])
    working.worker.stop("told to")
    beaten = working.row()["latest_heartbeat"]
    await soon(lambda: working.row()["latest_heartbeat"] > beaten)
    assert not working.task.done()
    BaseJob.get(job_id).request_kill()
    assert await working.end() is JobState.SUCCESS
    assert row_of(database, job_id)["state"] is JobState.KILLED


@in_loop
async def test_children_that_take_longer_go_on_by_themselves(database: Database, notes: Path) -> None:
    job_id = store(own_jobs.Patient, notes)
    working = Working(database, drain_timeout=0.2)
    await soon(lambda: said(notes) == ["ran"])
    working.worker.stop("told to")
    assert await working.end() is JobState.SUCCESS
    beaten = row_of(database, job_id)["latest_heartbeat"]
    await soon(lambda: row_of(database, job_id)["latest_heartbeat"] > beaten)
    BaseJob.get(job_id).request_kill()
    await until_state(database, JobState.KILLED, job_id)
    await soon(lambda: all_dead(notes))
