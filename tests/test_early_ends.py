"""Ends that come before a job's code does: a kill, a timeout, and what is no end of the job at all."""

import datetime as dt
import logging
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from jobrunner.database import Database
from jobrunner.errors import JobFailed, JobKilled
from jobrunner.models.endings import EarlyEnd, early_end
from jobrunner.states import JobState
from tests.helpers import CodeJob, events_of, plain_sql, row_of

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


class LeavesInOnKill(CodeJob):
    """Ends its clean-up by what a script ends with."""

    leaving: BaseException = SystemExit(0)

    def on_kill(self) -> None:
        raise self.leaving


class Panic(BaseException):
    """What no `except Exception` catches."""


@pytest.mark.parametrize(
    "leaving",
    [SystemExit(0), SystemExit(3), SystemExit("over"), KeyboardInterrupt(), GeneratorExit(), Panic()],
    ids=repr,
)
def test_a_killed_job_is_killed_whatever_its_clean_up_ends_with(
    sqlite_database: Database, leaving: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def code(job: CodeJob) -> None:
        job.request_kill(by="ana")
        job.heartbeat()

    job = LeavesInOnKill(code)
    job.leaving = leaving
    with caplog.at_level(logging.ERROR), pytest.raises(JobKilled, match="killed by ana"):
        job.run()
    assert (job.state, job.message) == (JobState.KILLED, "killed by ana")
    assert "on_kill failed" in caplog.text


def test_a_timeout_whose_clean_up_exits_is_failed(sqlite_database: Database) -> None:
    def code(job: CodeJob) -> None:
        while True:
            job.heartbeat()

    job = LeavesInOnKill(code, timeout=0.3, heartrate=0.1)
    with pytest.raises(JobFailed, match="the timeout has passed"):
        job.run()
    assert job.state is JobState.FAILED


def test_ctrl_c_after_the_timeout_is_the_timeout(sqlite_database: Database) -> None:
    def code(job: CodeJob) -> None:
        own = job._own
        assert own is not None
        while not own.is_past_deadline:
            pass
        raise KeyboardInterrupt

    job = CodeJob(code, timeout=1.0)
    with pytest.raises(KeyboardInterrupt):
        job.run()
    assert (job.state, job.message) == (JobState.FAILED, "the timeout has passed")


def test_code_whose_timeout_passed_while_it_was_queued_does_not_begin(
    database: Database, database_url: str
) -> None:
    began: list[CodeJob] = []
    job = CodeJob(began.append, timeout=3600.0).store()
    plain_sql(database_url, f"UPDATE job SET deadline_at = created_at WHERE id = {job.id}")
    with pytest.raises(JobFailed, match="the timeout has passed"):
        job.run()
    assert (job.state, began) == (JobState.FAILED, [])


@pytest.mark.parametrize(
    ("killed_s", "deadline_s", "state"),
    [
        (None, None, None),
        (None, +1, None),
        (None, -1, JobState.FAILED),
        (-1, None, JobState.KILLED),
        (-1, +1, JobState.KILLED),
        (-1, -2, JobState.FAILED),
        (-2, -1, JobState.KILLED),
        (+9, None, JobState.KILLED),  # a plain SQL UPDATE may write any time
        (+9, -1, JobState.FAILED),
    ],
)
def test_of_a_kill_and_a_timeout_the_first_one_counts(
    killed_s: float | None, deadline_s: float | None, state: JobState | None
) -> None:
    def moment(seconds: float | None) -> dt.datetime | None:
        return None if seconds is None else NOW + dt.timedelta(seconds=seconds)

    row: Any = {
        "kill_requested_at": moment(killed_s),
        "deadline_at": moment(deadline_s),
        "kill_requested_by": None,
        "kill_reason": None,
    }
    end = early_end(row, NOW)
    assert (None if end is None else end.state) is state
    assert end is None or isinstance(end, EarlyEnd)


# --- copies ---------------------------------------------------------------------------------------

# In a process of its own: a copy that is not stopped goes on with the whole program.
PROGRAM = """
import multiprocessing, os, signal, sys
from jobrunner.models import BaseJob
class Forks(BaseJob):
    def _execute(self):
        self.heartbeat()
        pid = os.fork()
        if pid == 0:
            {copy}
            return
        self.code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.heartbeat()
        {job}
    def on_kill(self):
        {on_kill}
job = Forks(heartrate=0.2)
try:
    job.run()
finally:
    print("ended once", job.state, job.code, flush=True)
"""


def run_forking(url: str, copy: str = "pass", job: str = "pass", on_kill: str = "pass") -> list[str]:
    program = PROGRAM.format(copy=copy, job=job, on_kill=on_kill)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={"JOBRUNNER_DATABASE_URL": url, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Exception ignored" not in done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("copy", "code"),
    [
        ("pass", 0),
        ("sys.exit(7)", 7),
        ("raise ValueError('only in the copy')", 1),
        ("[self.heartbeat() for _ in range(3)]", 0),
        ("self.kill()", 1),
    ],
)
def test_what_a_forked_copy_does_is_no_end_of_the_job(
    database: Database, database_url: str, copy: str, code: int
) -> None:
    assert run_forking(database_url, copy) == [f"ended once success {code}"]
    assert row_of(database, 1)["state"] is JobState.SUCCESS
    assert events_of(database_url, 1) == [(None, "running"), ("running", "success")]


def test_a_copy_that_a_clean_up_leaves_is_no_end_of_the_job(database: Database, database_url: str) -> None:
    clean_up = "pid = os.fork(); pid and os.waitpid(pid, 0)"
    job = "self.request_kill(by='ana'); [self.heartbeat() for _ in range(9)]"
    assert run_forking(database_url, job=job, on_kill=clean_up) == ["ended once killed 0"]
    assert events_of(database_url, 1) == [(None, "running"), ("running", "killed")]


def test_a_forked_worker_of_multiprocessing_may_beat_in_vain(database: Database, database_url: str) -> None:
    job = (
        "process = multiprocessing.get_context('fork').Process(target=self.heartbeat); "
        "process.start(); process.join(); self.code = process.exitcode"
    )
    assert run_forking(database_url, job=job) == ["ended once success 0"]
