"""Real commands and real monitors that are killed and stopped: one run of the command, and its true end."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobrunner import identity
from jobrunner.database import Database
from jobrunner.states import JobState
from tests.helpers import events_of, plain_sql, row_of, until
from tests.runner.support import Monitors, monitors

RATE = 0.5
GRACE_S = RATE * 2.1

POINTS = [
    f"{when} {name}"
    for name in ("begin_submit", "submit", "record_submitted")
    for when in ("before", "after")
]


@pytest.fixture
def start(database: Database, database_url: str, tmp_path: Path) -> Iterator[Monitors]:
    """Start monitors of the test's database."""
    with monitors(database_url, tmp_path / "data") as started:
        yield started


@pytest.fixture
def start_on_sqlite(sqlite_database: Database, sqlite_url: str, tmp_path: Path) -> Iterator[Monitors]:
    """Start monitors of a SQLite file."""
    with monitors(sqlite_url, tmp_path / "data") as started:
        yield started


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[], int]:
    """How often the command of `counted` has run."""
    return lambda: len((tmp_path / "runs").read_text().splitlines()) if (tmp_path / "runs").exists() else 0


@pytest.fixture
def counted(tmp_path: Path) -> list[str]:
    """A command that notes each of its runs, waits for `go`, and exits with 7."""
    script = f"echo run >> {tmp_path}/runs; while ! test -e {tmp_path}/go; do sleep 0.05; done; exit 7"
    return ["sh", "-c", script]


def only_row(database: Database) -> dict[str, Any]:
    return row_of(database, 1)


# --- the plain ways ------------------------------------------------------------------------------


def test_a_command_runs_to_its_end_and_its_exit_code_is_told(
    start: Monitors, database: Database, counted: list[str], tmp_path: Path, runs: Callable[[], int]
) -> None:
    monitor = start(command=counted)
    assert monitor.hear("started") == "1"
    until(lambda: runs() == 1)
    (tmp_path / "go").touch()
    assert monitor.end() == 0, monitor.errors
    assert monitor.outcome == "JobFailed Job 1 failed: exit code 7"
    row = only_row(database)
    assert row["detail"]["exit_code"] == 7
    assert row["host_id"] == identity.host_id()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_monitor_releases_its_job_and_the_next_one_tells_its_end(
    start: Monitors,
    database: Database,
    database_url: str,
    counted: list[str],
    tmp_path: Path,
    runs: Callable[[], int],
    number: signal.Signals,
) -> None:
    monitor = start(command=counted)
    monitor.hear("started")
    until(lambda: only_row(database)["external_state"] == "running")
    monitor.send(number)
    assert monitor.end() == 0
    assert monitor.outcome == f"released {number.value}"
    assert "handlers True" in monitor.said
    row = only_row(database)
    assert (row["state"], row["runner_id"], row["message"]) == (
        JobState.QUEUED,
        None,
        "released: its runner was stopped",
    )
    mark = identity.stat_of(row["detail"]["pid"])
    assert mark is not None
    assert not mark.has_ended

    attached = start(attach=1)
    attached.hear("started")
    until(lambda: only_row(database)["state"] is JobState.RUNNING)
    (tmp_path / "go").touch()
    attached.end()
    assert attached.outcome == "JobFailed Job 1 failed: exit code 7"
    assert runs() == 1
    assert [after for _, after in events_of(database_url, 1)] == ["running", "queued", "running", "failed"]


def test_a_monitor_that_shall_kill_on_exit_kills_and_says_so(
    start_on_sqlite: Monitors, sqlite_database: Database, counted: list[str]
) -> None:
    monitor = start_on_sqlite(command=counted, on_exit="kill")
    monitor.hear("started")
    until(lambda: only_row(sqlite_database)["external_state"] == "running")
    monitor.send(signal.SIGTERM)
    monitor.end()
    assert monitor.outcome.startswith("JobKilled")
    row = only_row(sqlite_database)
    assert row["state"] is JobState.KILLED
    assert "its monitor was stopped by SIGTERM" in row["message"]


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize(
    ("column", "state", "why"),
    [
        ("kill_requested_at", JobState.KILLED, "killed"),
        ("deadline_at", JobState.FAILED, "the timeout has passed, and the work was cancelled"),
    ],
)
def test_a_kill_ends_as_killed_and_a_timeout_as_failed_whatever_the_command_makes_of_sigterm(
    start_on_sqlite: Monitors,
    sqlite_database: Database,
    sqlite_url: str,
    tmp_path: Path,
    code: int,
    column: str,
    state: JobState,
    why: str,
) -> None:
    polite = f"trap 'exit {code}' TERM; touch {tmp_path}/up; while true; do sleep 0.1; done"
    monitor = start_on_sqlite(command=["sh", "-c", polite])
    monitor.hear("started")
    until(lambda: only_row(sqlite_database)["external_state"] == "running" and (tmp_path / "up").exists())
    plain_sql(sqlite_url, f"UPDATE job SET {column} = datetime('now', '-1 seconds')")
    if column == "deadline_at":  # it is read with the claim
        monitor.send(signal.SIGKILL)
        monitor.end()
        monitor = start_on_sqlite(attach=1)
    monitor.end()
    row = only_row(sqlite_database)
    assert (row["state"], row["message"]) == (state, f"{why} (it exited {code} after SIGTERM)")
    assert row["detail"]["exit_code"] == code


def test_a_second_signal_releases_at_once(
    start_on_sqlite: Monitors, sqlite_database: Database, tmp_path: Path
) -> None:
    stubborn = ["sh", "-c", f"trap '' TERM; touch {tmp_path}/up; while true; do sleep 0.1; done"]
    monitor = start_on_sqlite(command=stubborn, on_exit="kill")
    monitor.hear("started")
    until(lambda: only_row(sqlite_database)["external_state"] == "running" and (tmp_path / "up").exists())
    monitor.send(signal.SIGINT)
    until(lambda: only_row(sqlite_database)["cancel_cause"])
    monitor.send(signal.SIGINT)
    begun_s = time.monotonic()
    monitor.end()
    assert monitor.outcome == f"released {signal.SIGINT.value}"
    assert time.monotonic() - begun_s < 4
    row = only_row(sqlite_database)
    assert row["state"] is JobState.QUEUED
    assert row["kill_requested_at"] is not None

    attached = start_on_sqlite(attach=1)  # the kill is not lost: the next owner finishes it
    attached.end()
    assert attached.outcome.startswith("JobKilled")


# --- attaching -----------------------------------------------------------------------------------


def test_attaching_to_a_job_whose_owner_lives_follows_and_touches_nothing(
    start: Monitors, database: Database, counted: list[str], tmp_path: Path
) -> None:
    owner = start(command=counted)
    owner.hear("started")
    until(lambda: only_row(database)["external_state"] == "running")
    follower = start(attach=1)
    follower.hear("started")
    time.sleep(2 * GRACE_S)
    row = only_row(database)
    assert (row["claims"], row["pid"]) == (1, owner.process.pid)
    (tmp_path / "go").touch()
    follower.end()
    owner.end()
    assert follower.outcome == owner.outcome == "JobFailed Job 1 failed: exit code 7"
    assert only_row(database)["claims"] == 1


def test_a_job_whose_owner_was_killed_is_adopted_after_a_grace_and_not_before(
    start: Monitors, database: Database, counted: list[str], tmp_path: Path, runs: Callable[[], int]
) -> None:
    owner = start(command=counted)
    owner.hear("started")
    until(lambda: only_row(database)["external_state"] == "running")
    owner.send(signal.SIGKILL)
    owner.end()
    attached = start(attach=1)
    attached.hear("started")
    begun_s = time.monotonic()
    until(lambda: only_row(database)["claims"] == 2)
    assert time.monotonic() - begun_s > GRACE_S - 0.2
    (tmp_path / "go").touch()
    attached.end()
    assert attached.outcome == "JobFailed Job 1 failed: exit code 7"
    assert runs() == 1


def test_of_several_that_attach_one_adopts_and_all_tell_the_end(
    start: Monitors, database: Database, counted: list[str], tmp_path: Path, runs: Callable[[], int]
) -> None:
    owner = start(command=counted)
    owner.hear("started")
    until(lambda: only_row(database)["external_state"] == "running")
    owner.send(signal.SIGKILL)
    owner.end()
    several = [start(attach=1) for _ in range(3)]
    until(lambda: only_row(database)["claims"] == 2)
    (tmp_path / "go").touch()
    for each in several:
        each.end()
        assert each.outcome == "JobFailed Job 1 failed: exit code 7"
    assert (only_row(database)["claims"], runs()) == (2, 1)


def test_a_command_that_ended_while_nobody_watched_has_its_true_outcome(
    start_on_sqlite: Monitors, sqlite_database: Database, counted: list[str], tmp_path: Path
) -> None:
    owner = start_on_sqlite(command=counted)
    owner.hear("started")
    until(lambda: only_row(sqlite_database)["external_state"] == "running")
    owner.send(signal.SIGKILL)
    owner.end()
    (tmp_path / "go").touch()
    record = Path(only_row(sqlite_database)["external_id"]) / "exit"
    until(record.exists)
    attached = start_on_sqlite(attach=1)
    attached.end()
    assert attached.outcome == "JobFailed Job 1 failed: exit code 7"


# --- hosts ---------------------------------------------------------------------------------------


@pytest.fixture
def orphan(start_on_sqlite: Monitors, sqlite_database: Database, counted: list[str]) -> dict[str, Any]:
    """A command that runs, and whose owner was killed."""
    owner = start_on_sqlite(command=counted)
    owner.hear("started")
    until(lambda: only_row(sqlite_database)["external_state"] == "running")
    owner.send(signal.SIGKILL)
    owner.end()
    return only_row(sqlite_database)


def test_a_process_of_another_host_is_refused_with_the_name_of_that_host(
    start_on_sqlite: Monitors, sqlite_database: Database, sqlite_url: str, orphan: dict[str, Any]
) -> None:
    plain_sql(sqlite_url, "UPDATE job SET host_id = 'other/boot/1', hostname = 'mars'")
    attached = start_on_sqlite(attach=1)
    attached.end()
    assert attached.outcome == (
        "error UsageError Job 1 runs on mars, and only there can its process be seen: "
        "run `jobrunner attach 1` on that host."
    )
    assert only_row(sqlite_database)["claims"] == 1


@pytest.mark.parametrize("has_exit_record", [False, True])
def test_after_a_restart_of_the_host_the_record_tells_or_the_job_is_lost(
    start_on_sqlite: Monitors,
    sqlite_database: Database,
    sqlite_url: str,
    orphan: dict[str, Any],
    tmp_path: Path,
    has_exit_record: bool,
) -> None:
    before = f"{identity.machine_id()}/an-earlier-boot/{identity.pid_namespace()}"
    plain_sql(sqlite_url, f"UPDATE job SET host_id = '{before}'")
    directory = Path(orphan["external_id"])
    if has_exit_record:
        (tmp_path / "go").touch()
        until((directory / "exit").exists)
    record = json.loads((directory / "start").read_text())
    (directory / "start").write_text(json.dumps(record | {"host": before}))
    attached = start_on_sqlite(attach=1)
    attached.end()
    if has_exit_record:
        assert attached.outcome == "JobFailed Job 1 failed: exit code 7"
    else:
        assert attached.outcome.startswith("JobLost")
        assert "the host restarted" in only_row(sqlite_database)["message"]


# --- killed and stopped at every step ------------------------------------------------------------


def check_killed_at(
    start: Monitors,
    database: Database,
    point: str,
    command: list[str],
    go: Path,
    runs: Callable[[], int],
) -> None:
    monitor = start(command=command, at=point, signal=signal.SIGKILL)
    assert monitor.hear("at") == point
    monitor.end()
    row = only_row(database)
    assert row["state"] is JobState.RUNNING
    go.touch()
    attached = start(attach=1)
    attached.end()
    assert attached.outcome == "JobFailed Job 1 failed: exit code 7"
    assert runs() == 1
    assert only_row(database)["attempt"] <= 2


@pytest.mark.parametrize("point", POINTS)
def test_a_monitor_killed_at_any_step_of_its_submission_leaves_one_run(
    start_on_sqlite: Monitors,
    sqlite_database: Database,
    point: str,
    counted: list[str],
    tmp_path: Path,
    runs: Callable[[], int],
) -> None:
    check_killed_at(start_on_sqlite, sqlite_database, point, counted, tmp_path / "go", runs)


@pytest.mark.parametrize("point", ["before submit", "after submit"])
def test_a_monitor_killed_while_it_submits_leaves_one_run_on_postgresql_too(
    postgres_database: Database,
    postgres_url: str,
    point: str,
    counted: list[str],
    tmp_path: Path,
    runs: Callable[[], int],
) -> None:
    with monitors(postgres_url, tmp_path / "data") as start:
        check_killed_at(start, postgres_database, point, counted, tmp_path / "go", runs)


def check_stopped_at(
    start: Monitors, database: Database, point: str, command: list[str], go: Path, runs: Callable[[], int]
) -> None:
    """Stop a monitor; let another take over and finish; let the first one go on."""
    stopped = start(command=command, at=point, signal=signal.SIGSTOP)
    assert stopped.hear("at") == point
    stopped.until_stopped()
    go.touch()
    attached = start(attach=1)
    attached.end()
    assert attached.outcome == "JobFailed Job 1 failed: exit code 7"
    before, ran = only_row(database), runs()
    stopped.send(signal.SIGCONT)
    stopped.end()
    assert stopped.outcome == "claim lost"
    assert only_row(database) == before, "what comes late is not written"
    assert (ran, runs()) == (1, 1)


# A monitor that is stopped within a write holds SQLite's only lock until it goes on: see PROTOCOL 1.
@pytest.mark.parametrize(
    "point", ["after begin_submit", "before submit", "after submit", "after record_submitted"]
)
def test_a_monitor_stopped_at_any_step_and_overtaken_runs_nothing_and_writes_nothing(
    start_on_sqlite: Monitors,
    sqlite_database: Database,
    point: str,
    counted: list[str],
    tmp_path: Path,
    runs: Callable[[], int],
) -> None:
    check_stopped_at(start_on_sqlite, sqlite_database, point, counted, tmp_path / "go", runs)


@pytest.mark.parametrize("point", ["before begin_submit", "before submit", "before record_submitted"])
def test_a_monitor_stopped_and_overtaken_does_no_harm_on_postgresql_either(
    postgres_database: Database,
    postgres_url: str,
    point: str,
    counted: list[str],
    tmp_path: Path,
    runs: Callable[[], int],
) -> None:
    with monitors(postgres_url, tmp_path / "data") as start:
        check_stopped_at(start, postgres_database, point, counted, tmp_path / "go", runs)


def test_a_monitor_stopped_while_it_watches_and_overtaken_changes_nothing(
    start: Monitors, database: Database, counted: list[str], tmp_path: Path, runs: Callable[[], int]
) -> None:
    stopped = start(command=counted)
    stopped.hear("started")
    until(lambda: only_row(database)["external_state"] == "running")
    # Right after a beat, and so not within a write: on SQLite that would hold the database for as long.
    beaten = only_row(database)["latest_heartbeat"]
    until(lambda: only_row(database)["latest_heartbeat"] > beaten)
    time.sleep(RATE / 5)
    stopped.send(signal.SIGSTOP)
    stopped.until_stopped()
    attached = start(attach=1)
    until(lambda: only_row(database)["claims"] == 2)
    (tmp_path / "go").touch()
    attached.end()
    before = only_row(database)
    stopped.send(signal.SIGCONT)
    stopped.end()
    assert stopped.outcome == "claim lost"
    assert only_row(database) == before
    assert before["message"] == "exit code 7"
    assert runs() == 1
