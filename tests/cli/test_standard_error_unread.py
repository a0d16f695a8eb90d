"""Standard error that nobody reads any more: Ctrl-S, a stopped `| logger`. The jobs go on."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from tests.cli.conftest import CommandLine
from tests.helpers import until

HEARTRATE = "0.5"


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The end for writing of a pipe that takes nothing more, and that nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


def _process(jobrunner: CommandLine, full_pipe: int, *arguments: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "jobrunner.cli.main", *arguments],
        cwd=jobrunner.directory,
        env=jobrunner.environment
        | {"JOBRUNNER_HEARTRATE": HEARTRATE, "JOBRUNNER_SQLITE_BUSY_TIMEOUT_S": "0.2"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=full_pipe,
        text=True,
    )
    jobrunner.started.append(process)
    return process


def _rows(jobrunner: CommandLine) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(jobrunner.database, timeout=30)) as connection:
        return connection.execute("SELECT job_type, state, claims, latest_heartbeat FROM job").fetchall()


def _beats_go_on_after_an_outage(jobrunner: CommandLine) -> None:
    """Keep all from writing for some beats, which is logged, and wait until each row was beaten for anew."""
    with closing(sqlite3.connect(jobrunner.database, timeout=30, isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        held = _beats(jobrunner)
        until(lambda: _seconds_since_the_last_beat(lock) > 2)
        lock.execute("ROLLBACK")
    for _ in range(3):
        until(lambda before=held: not before & _beats(jobrunner))  # type: ignore[misc]
        held = _beats(jobrunner)


def _beats(jobrunner: CommandLine) -> set[object]:
    return {row[3] for row in _rows(jobrunner)}


def _seconds_since_the_last_beat(connection: sqlite3.Connection) -> float:
    question = "SELECT min((julianday('now') - julianday(latest_heartbeat)) * 86400) FROM job"
    return float(connection.execute(question).fetchone()[0])


def test_a_worker_beats_on_and_stops_in_good_order(jobrunner: CommandLine, full_pipe: int) -> None:
    assert jobrunner("start", "process", "--detach", "--", "sleep", "300").code == 0
    worker = _process(jobrunner, full_pipe, "worker", "--processes", "0")
    until(lambda: [row[1] for row in _rows(jobrunner)] == ["running", "running"])
    _beats_go_on_after_an_outage(jobrunner)
    assert [row[2] for row in _rows(jobrunner)] == [1, 1]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert jobrunner("kill", "1", "--wait").code == 0


def test_the_child_of_a_worker_beats_on(own_jobs: CommandLine, full_pipe: int) -> None:
    own_jobs("start", "my_jobs:Endless", "--detach")
    worker = _process(own_jobs, full_pipe, "worker", "--processes", "1")
    until(lambda: [row[1] for row in _rows(own_jobs)] == ["running", "running"])
    _beats_go_on_after_an_outage(own_jobs)
    assert [row[2] for row in _rows(own_jobs)] == [1, 1]
    assert own_jobs("kill", "1", "--wait").code == 0
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


def test_a_command_in_the_foreground_beats_on_and_exits_with_its_outcome(
    jobrunner: CommandLine, full_pipe: int
) -> None:
    jobrunner("list")  # which makes the database
    monitor = _process(
        jobrunner, full_pipe, "start", "process", "--poll-interval", "0.2", "--json", "--", "sh", "-c",
        "until [ -e go ]; do sleep 0.1; done; exit 3",
    )  # fmt: skip
    until(lambda: [row[1] for row in _rows(jobrunner)] == ["running"])
    _beats_go_on_after_an_outage(jobrunner)
    (jobrunner.directory / "go").touch()
    out, _ = monitor.communicate(timeout=60)
    assert monitor.returncode == 1
    assert json.loads(out.splitlines()[-1])["state"] == "failed"
