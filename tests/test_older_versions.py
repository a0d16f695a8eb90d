"""Rows with rules that a claimer must know: who may claim them, and what jobrunner 0.1 makes of them."""

import io
import os
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobrunner import identity, statements
from jobrunner.database import Database
from jobrunner.statements import PROTOCOL, Owner, Sighting
from jobrunner.states import JobState
from tests.helpers import a_running_job, an_owner, insert_job, plain_sql, row_of, until

ROOT = Path(__file__).parents[1]
OLD = "cbf84ba989dea87951c053cc1276a6c9cdbe8821"
"""The last commit of jobrunner 0.1."""

NOT_HERE = [
    pytest.param({"needs": PROTOCOL + 1}, id="a newer protocol"),
    pytest.param({"held_at": "2026-01-01 00:00:00"}, id="held"),
    pytest.param({"host_uid": identity.uid() + 1}, id="another user"),
]
RULED = [{"needs": PROTOCOL}, {"held_at": "2026-01-01 00:00:00"}]


def set_columns(url: str, job_id: int, columns: dict[str, Any]) -> None:
    changes = ", ".join(f"{name} = {value!r}" for name, value in columns.items())
    plain_sql(url, f"UPDATE job SET {changes} WHERE id = {job_id}")


def sighting_of(database: Database, job_id: int) -> Sighting:
    row = row_of(database, job_id)
    return Sighting(job_id, row["runner_id"], row["claims"], row["latest_heartbeat"])


def claims_of(database: Database, job_id: int, owner: Owner) -> list[object]:
    """Try every way to claim a job that is queued, or stands still; return what each of them took."""
    seen = sighting_of(database, job_id)
    with database.write() as connection:
        return [
            statements.claim_queued(connection, job_id, owner),
            *statements.claim_many(connection, owner, [("Bare", None)], 10),
            statements.adopt(connection, seen, owner),
            *statements.adopt_many(connection, [seen], owner),
        ]


@pytest.mark.parametrize("columns", NOT_HERE)
def test_a_job_whose_rules_bar_this_runner_is_not_claimed(
    database: Database, database_url: str, columns: dict[str, Any]
) -> None:
    queued = insert_job(database)
    running, owner = a_running_job(database)
    for job_id in (queued, running.job_id):
        set_columns(database_url, job_id, columns)
        assert not any(claims_of(database, job_id, an_owner()))
    assert row_of(database, queued)["state"] is JobState.QUEUED
    assert row_of(database, running.job_id)["runner_id"] == owner.runner_id


def test_a_job_of_the_protocol_that_this_version_knows_is_claimed(
    database: Database, database_url: str
) -> None:
    job_id = insert_job(database)
    set_columns(database_url, job_id, {"needs": PROTOCOL, "host_uid": identity.uid()})
    owner = an_owner()
    assert any(claims_of(database, job_id, owner))
    assert row_of(database, job_id)["runner_host_id"] == owner.host_id


@pytest.mark.parametrize("columns", NOT_HERE[:2])
def test_a_job_whose_rules_are_not_known_here_is_not_declared_lost(
    database: Database, database_url: str, columns: dict[str, Any]
) -> None:
    claim, _ = a_running_job(database, adoptable=False)
    set_columns(database_url, claim.job_id, columns)
    seen = sighting_of(database, claim.job_id)
    with database.write() as connection:
        assert not statements.lose(connection, seen, "test", "silent")
        assert statements.lose_many(connection, {seen: "silent"}, "test") == []
    assert row_of(database, claim.job_id)["state"] is JobState.RUNNING


@pytest.mark.parametrize("columns", RULED)
def test_the_database_refuses_claims_of_an_older_version_by_their_runner_ids(
    database: Database, database_url: str, columns: dict[str, Any]
) -> None:
    job_id = insert_job(database)
    set_columns(database_url, job_id, columns)
    claim = "UPDATE job SET state = 'running', claims = claims + 1, runner_id = '{}'"
    plain_sql(database_url, claim.format(uuid.uuid4()))
    assert (row_of(database, job_id)["state"], row_of(database, job_id)["claims"]) == (JobState.QUEUED, 0)
    plain_sql(database_url, claim.format(an_owner().runner_id))
    assert (row_of(database, job_id)["state"], row_of(database, job_id)["claims"]) == (JobState.RUNNING, 1)


def test_a_submission_binds_process_work_to_its_user(database: Database) -> None:
    claim, _ = a_running_job(database, submit_token="t")
    with database.write() as connection:
        assert statements.begin_submit(connection, claim, "t", identity.host_id(), None, 1234) is not None
    row = row_of(database, claim.job_id)
    assert (row["host_id"], row["host_uid"], row["needs"]) == (identity.host_id(), 1234, PROTOCOL)


@pytest.fixture(scope="module")
def old_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of jobrunner 0.1, from this repository's history."""
    archive = subprocess.run(["git", "archive", OLD, "jobrunner"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip("this checkout has no history")
    place = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(place, filter="data")
    return place


@contextmanager
def worker_of(version: Path, url: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", "from jobrunner.cli.main import main; main()", "worker", "--processes", "1"],
        cwd=version,
        env={**os.environ, "JOBRUNNER_DATABASE_URL": url, "JOBRUNNER_HEARTRATE": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def test_a_worker_of_the_older_version_leaves_new_rows_alone_and_goes_on_with_its_own(
    database: Database, database_url: str, old_version: Path
) -> None:
    spec = {"command": ["true"], "cwd": "/", "env": {}, "records_dir": str(old_version / "records")}
    values = {"job_type": "ProcessMonitorJob", "connection": "process_default", "poll_interval": 0.2}
    common: dict[str, Any] = {**values, "spec": {**spec, "stop_grace_s": 1.0}}
    ruled = insert_job(database, submit_token=uuid.uuid4().hex, **common)
    set_columns(database_url, ruled, {"needs": PROTOCOL})
    held = insert_job(database, submit_token=uuid.uuid4().hex, **common)
    set_columns(database_url, held, {"held_at": "2026-01-01 00:00:00"})
    old = insert_job(database, submit_token=uuid.uuid4().hex, **common)
    with worker_of(old_version, database_url):
        until(lambda: row_of(database, old)["state"] is JobState.SUCCESS)
        # What follows them was taken: so were they looked at, and passed over.
        later = insert_job(database, submit_token=uuid.uuid4().hex, **common)
        until(lambda: row_of(database, later)["state"] is JobState.SUCCESS)
    for job_id in (ruled, held):
        row = row_of(database, job_id)
        assert (row["state"], row["claims"], row["submit_started_at"]) == (JobState.QUEUED, 0, None)
