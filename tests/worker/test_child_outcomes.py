"""How the job of a child process ends, by whatever way the child itself ends."""

import asyncio
import io
import os
import signal
from pathlib import Path

import pytest

from jobrunner.database import Database
from jobrunner.errors import UsageError
from jobrunner.executors import child, children
from jobrunner.identity import process_table
from jobrunner.models import BaseJob
from jobrunner.settings import configured
from jobrunner.statements import new_runner_id
from jobrunner.states import JobState
from jobrunner.sweeper import see_off
from tests.helpers import insert_job, plain_sql, row_of
from tests.runner.support import in_loop, soon
from tests.worker import own_jobs
from tests.worker.test_children import ROOT, all_dead, pids, said, store
from tests.worker.workers import a_worker


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(children, "OBEY_S", 0.2)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


async def until_ended(database: Database, job_id: int) -> tuple[JobState, str]:
    await soon(lambda: row_of(database, job_id)["state"].is_terminal)
    row = row_of(database, job_id)
    return row["state"], row["message"]


@pytest.mark.parametrize("job_class", [own_jobs.Compute, own_jobs.Deny])
@in_loop
async def test_a_child_that_is_ended_after_its_timeout_is_failed_whatever_it_makes_of_that(
    sqlite_database: Database, notes: Path, job_class: type[BaseJob]
) -> None:
    job_id = store(job_class, notes, timeout=5.0)
    async with a_worker(sqlite_database):
        assert await until_ended(sqlite_database, job_id) == (JobState.FAILED, "the timeout has passed")


@pytest.mark.parametrize("job_class", [own_jobs.Compute, own_jobs.Deny])
@in_loop
async def test_a_child_that_is_ended_for_a_kill_is_killed_whatever_it_makes_of_that(
    sqlite_database: Database, notes: Path, job_class: type[BaseJob]
) -> None:
    job_id = store(job_class, notes)
    async with a_worker(sqlite_database):
        await soon(lambda: said(notes) == ["ran"])
        BaseJob.get(job_id).request_kill(by="ana", reason="enough")
        assert await until_ended(sqlite_database, job_id) == (JobState.KILLED, "killed by ana: enough")


@in_loop
async def test_a_child_that_leaves_while_it_is_killed_is_killed(
    sqlite_database: Database, notes: Path
) -> None:
    job_id = store(own_jobs.ExitOnKill, notes)
    async with a_worker(sqlite_database):
        await soon(lambda: said(notes) == ["ran"])
        BaseJob.get(job_id).request_kill(by="ana")
        assert await until_ended(sqlite_database, job_id) == (JobState.KILLED, "killed by ana")


@in_loop
async def test_a_clean_up_that_takes_long_is_no_silence(
    sqlite_database: Database, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "OBEY_S", 60.0)
    job_id = store(own_jobs.HangOnKill, notes)
    async with a_worker(sqlite_database):
        await soon(lambda: said(notes) == ["ran"])
        BaseJob.get(job_id).request_kill(by="ana")
        # Whoever asks for the kill looks whether its process is silent.
        await asyncio.to_thread(see_off, sqlite_database, job_id)
        assert await until_ended(sqlite_database, job_id) == (JobState.KILLED, "killed by ana")
        assert said(notes) == ["ran", "cleaned up"]


@in_loop
async def test_a_kill_reaches_a_child_whose_job_was_given_up_as_lost(
    sqlite_database: Database, sqlite_url: str, notes: Path
) -> None:
    job_id = store(own_jobs.Hang, notes)
    async with a_worker(sqlite_database):
        await soon(lambda: "ran" in said(notes))
        BaseJob.get(job_id).request_kill(by="ana")
        plain_sql(sqlite_url, f"UPDATE job SET state = 'lost' WHERE id = {job_id}")
        await soon(lambda: all_dead(notes))


@in_loop
async def test_a_child_that_others_terminate_is_failed(sqlite_database: Database, notes: Path) -> None:
    job_id = store(own_jobs.Compute, notes)
    async with a_worker(sqlite_database):
        await soon(lambda: said(notes) == ["ran"])
        os.kill(pids(notes)[0], signal.SIGTERM)
        end = await until_ended(sqlite_database, job_id)
    assert end == (JobState.FAILED, "its process was ended by SIGTERM")


@pytest.mark.parametrize(
    ("killed", "deadline", "state"),
    [("-60", "-30", JobState.KILLED), ("-30", "-60", JobState.FAILED), ("-60", "+600", JobState.KILLED)],
)
@in_loop
async def test_of_a_kill_and_a_timeout_the_first_one_counts(
    sqlite_database: Database, sqlite_url: str, notes: Path, killed: str, deadline: str, state: JobState
) -> None:
    job_id = store(own_jobs.Compute, notes)
    async with a_worker(sqlite_database):
        await soon(lambda: said(notes) == ["ran"])
        moments = f"datetime('now', '{killed} seconds'), deadline_at = datetime('now', '{deadline} seconds')"
        plain_sql(sqlite_url, f"UPDATE job SET kill_requested_at = {moments} WHERE id = {job_id}")
        assert (await until_ended(sqlite_database, job_id))[0] is state


@pytest.mark.parametrize("job_class", [own_jobs.WithDaemon, own_jobs.WithLostDaemon])
@in_loop
async def test_a_killed_child_leaves_no_daemon_behind_when_it_counts_as_killed(
    sqlite_database: Database, notes: Path, job_class: type[BaseJob]
) -> None:
    job_id = store(job_class, notes)
    async with a_worker(sqlite_database):
        await soon(lambda: sorted(said(notes)) == ["daemon", "ran"])
        daemon = pids(notes)[said(notes).index("daemon")]
        BaseJob.get(job_id).request_kill(by="ana")
        assert await until_ended(sqlite_database, job_id) == (JobState.KILLED, "killed by ana")
        found = process_table().get(daemon)
        assert found is None or found.has_ended
        await soon(lambda: all_dead(notes))


def test_a_job_that_is_deleted_while_its_class_cannot_be_loaded_leaves_no_traceback(
    sqlite_database: Database,
    sqlite_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def made(*_args: object) -> None:
        plain_sql(sqlite_url, f"DELETE FROM job WHERE id = {job_id}")
        raise UsageError("There is no such class.")

    job_id = insert_job(sqlite_database, job_type="NoSuchClass")
    order = child.Order(job_id, new_runner_id(), "LocalExecutor", configured())
    monkeypatch.setattr(child, "_made", made)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(order.to_line())))
    assert child.main(os.getpid()) == child.ENDED
    assert "was deleted" in caplog.text
    assert "Traceback" not in caplog.text
