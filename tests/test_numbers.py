"""Seconds that no row can hold are refused where they are given, before anything is stored."""

from typing import Any

import pytest
from click.testing import CliRunner

from jobrunner.cli.main import main
from jobrunner.clock import is_duration
from jobrunner.database import Database
from jobrunner.errors import SettingsError, UsageError
from jobrunner.settings import configure
from jobrunner.testing import MemoryMonitorJob
from tests.helpers import plain_sql

ODD = [0, -1, 1e10, 10**400, float("inf"), float("nan"), "5", True, b"5"]


@pytest.mark.parametrize("seconds", ODD, ids=repr)
@pytest.mark.parametrize("option", ["heartrate", "poll_interval", "start_timeout", "timeout"])
def test_a_job_is_not_made_with_seconds_that_no_row_can_hold(
    sqlite_database: Database, option: str, seconds: Any
) -> None:
    with pytest.raises(UsageError, match=r"cannot be kept: give seconds"):
        MemoryMonitorJob(**{option: seconds})


@pytest.mark.parametrize("option", ["heartrate", "poll_interval"])
def test_a_rhythm_that_no_worker_keeps_is_refused_wherever_it_is_given(
    sqlite_database: Database, option: str
) -> None:
    short: dict[str, Any] = {option: 0.005}
    with pytest.raises(UsageError, match=r"at least 0\.01"):
        MemoryMonitorJob(**short)
    for setting in (short, {"job_types": {"Mine": short}}):
        with pytest.raises(SettingsError, match=r"must be 0\.01 or more"):
            configure(**setting)
    shortest: dict[str, Any] = {option: 0.01}
    assert MemoryMonitorJob(**shortest).store().id


def test_the_longest_time_can_be_stored(database: Database) -> None:
    job = MemoryMonitorJob(heartrate=1e9, poll_interval=1e9, start_timeout=1e9, timeout=1e9)
    assert job.store().id
    assert is_duration(1e9)


@pytest.mark.parametrize("option", ["--heartrate", "--timeout", "--poll-interval"])
def test_the_command_line_names_the_option_and_stores_nothing(sqlite_url: str, option: str) -> None:
    answer = CliRunner().invoke(
        main,
        ["start", "process", option, "100000d", "--detach", "--", "true"],
        env={"JOBRUNNER_DATABASE_URL": sqlite_url},
    )
    assert answer.exit_code == 2
    assert option in answer.stderr
    assert "at most 11574d" in answer.stderr
    assert plain_sql(sqlite_url, "SELECT count(*) FROM job") == [(0,)]
