"""How the job of a child process ends, by whatever way the child itself ends."""

import asyncio
import io
import os
import signal
from pathlib import Path

import pytest

from jobrunner import sweeper
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
from tests.worker.workers import Working, a_worker


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


MAKES_ANYTHING_OF_SIGTERM = [
    own_jobs.Compute,
    own_jobs.Deny,
    own_jobs.Stops,
    own_jobs.StopsLoop,
    own_jobs.Complains,
    own_jobs.Swallows,
]


@pytest.mark.parametrize("job_class", MAKES_ANYTHING_OF_SIGTERM)
@in_loop
async def test_a_child_that_is_ended_after_its_timeout_is_failed_whatever_it_makes_of_that(
    sqlite_database: Database, notes: Path, job_class: type[BaseJob]
) -> None:
    job_id = store(job_class, notes, timeout=5.0)
    async with a_worker(sqlite_database):
        assert await until_ended(sqlite_database, job_id) == (JobState.FAILED, "the timeout has passed")


@pytest.mark.parametrize("job_class", MAKES_ANYTHING_OF_SIGTERM)
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
async def test_a_child_that_stops_by_itself_as_it_is_killed_has_cleaned_up(
    database: Database, notes: Path
) -> None:
    job_id = store(own_jobs.Stops, notes)
    async with a_worker(database):
        await soon(lambda: said(notes) == ["ran"])
        BaseJob.get(job_id).request_kill(by="ana")
        assert await until_ended(database, job_id) == (JobState.KILLED, "killed by ana")
    assert said(notes) == ["ran", "cleaned up"]
    assert row_of(database, job_id)["cancel_cause"] == "kill"


@in_loop
async def test_who_asks_for_a_kill_does_not_call_a_child_lost_that_its_worker_is_about_to_end(
    sqlite_database: Database, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "OBEY_S", 3.0)
    job_id = store(own_jobs.Compute, notes)  # it is silent
    async with a_worker(sqlite_database):
        await soon(lambda: said(notes) == ["ran"])
        BaseJob.get(job_id).request_kill(by="ana")
        assert await asyncio.to_thread(see_off, sqlite_database, job_id) is JobState.KILLED


@in_loop
async def test_a_child_that_nobody_ends_is_lost_and_its_process_is_named(
    sqlite_database: Database, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "OBEY_S", 600.0)
    monkeypatch.setattr(sweeper, "_CHILD_ENDS_S", 0.5)
    job_id = store(own_jobs.Compute, notes)
    async with a_worker(sqlite_database):
        await soon(lambda: said(notes) == ["ran"])
        BaseJob.get(job_id).request_kill(by="ana")
        assert await asyncio.to_thread(see_off, sqlite_database, job_id) is JobState.LOST
        (pid,) = pids(notes)
        message = row_of(sqlite_database, job_id)["message"]
        assert (f"its process {pid} on" in message, "nobody has ended it" in message) == (True, True)
        os.kill(pid, signal.SIGKILL)


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


@pytest.mark.parametrize("job_class", [own_jobs.Compute, own_jobs.Deny, own_jobs.Swallows])
@in_loop
async def test_a_child_that_others_terminate_is_failed(
    sqlite_database: Database, notes: Path, job_class: type[BaseJob]
) -> None:
    job_id = store(job_class, notes)
    async with a_worker(sqlite_database):
        await soon(lambda: said(notes) == ["ran"])
        os.kill(pids(notes)[0], signal.SIGTERM)
        end = await until_ended(sqlite_database, job_id)
    assert end == (JobState.FAILED, "its process was ended by SIGTERM")


@in_loop
async def test_a_child_that_works_on_after_sigterm_ends_as_its_code_says(
    sqlite_database: Database, notes: Path
) -> None:
    job_id = store(own_jobs.GoesOn, notes)
    async with a_worker(sqlite_database):
        await soon(lambda: said(notes) == ["ran"])
        os.kill(pids(notes)[0], signal.SIGTERM)
        assert await until_ended(sqlite_database, job_id) == (JobState.SUCCESS, "done")
    assert said(notes) == ["ran", "worked on"]


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


# --- processes that outlive their jobs ------------------------------------------------------------


@pytest.mark.parametrize(
    ("job_class", "end"),
    [
        (own_jobs.LeavesThread, (JobState.SUCCESS, "done")),
        (own_jobs.LeavesThreadAndFails, (JobState.FAILED, "ValueError: no luck")),
        (own_jobs.HangsAtExit, (JobState.SUCCESS, "done")),
    ],
)
@in_loop
async def test_a_process_that_goes_on_after_its_jobs_outcome_is_ended_and_gives_its_place_back(
    database: Database,
    notes: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    job_class: type[BaseJob],
    end: tuple[JobState, str],
) -> None:
    monkeypatch.setattr(children, "LINGER_S", 0.5)
    monkeypatch.setattr(children, "TERMINATE_S", 0.3)
    lingers = store(job_class, notes)
    async with a_worker(database, processes=1) as working:
        assert await until_ended(database, lingers) == end
        good = store(own_jobs.Good, notes)
        assert await until_ended(database, good) == (JobState.SUCCESS, "done")
        await soon(lambda: not working.worker._code.by_job)
    assert await until_ended(database, lingers) == end
    await soon(lambda: all_dead(notes))
    words = [each.getMessage() for each in caplog.records if f"job={lingers} " in each.getMessage()]
    (word,) = [each for each in words if "its process has not" in each]
    assert "pid=" in word


@in_loop
async def test_a_process_whose_deleted_job_had_ended_is_ended_all_the_same(
    sqlite_database: Database, sqlite_url: str, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "LINGER_S", 5.0)
    lingers = store(own_jobs.LeavesThread, notes)
    async with a_worker(sqlite_database, processes=1) as working:
        await until_ended(sqlite_database, lingers)
        child = working.worker._code.by_job[lingers]  # type: ignore[index]
        await soon(lambda: child.done_since_s is not None)
        plain_sql(sqlite_url, f"DELETE FROM job_event WHERE job_id = {lingers}")
        plain_sql(sqlite_url, f"DELETE FROM job WHERE id = {lingers}")
        await soon(lambda: not working.worker._code.by_job)
    await soon(lambda: all_dead(notes))


@in_loop
async def test_a_worker_that_stops_waits_for_an_outcome_and_not_for_what_its_process_leaves(
    sqlite_database: Database, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "LINGER_IN_DRAIN_S", 0.2)
    lingers = store(own_jobs.LeavesThread, notes)
    working = Working(sqlite_database, drain_timeout=600.0)
    await until_ended(sqlite_database, lingers)
    working.worker.stop("told to")
    assert await working.end() is JobState.SUCCESS
    await soon(lambda: all_dead(notes))


@in_loop
async def test_code_whose_job_others_ended_goes_on_and_is_named(
    sqlite_database: Database,
    sqlite_url: str,
    notes: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(children, "LINGER_S", 0.5)
    job_id = store(own_jobs.Compute, notes)
    async with a_worker(sqlite_database):
        await soon(lambda: said(notes) == ["ran"])
        plain_sql(sqlite_url, f"UPDATE job SET state = 'lost' WHERE id = {job_id}")
        await soon(lambda: "goes on without its job" in caplog.text)
        assert not all_dead(notes)  # only a kill or a timeout ends code
        (record,) = [each for each in caplog.records if "without its job" in each.getMessage()]
        assert f"job={job_id}" in record.getMessage()
        os.kill(pids(notes)[0], signal.SIGKILL)
