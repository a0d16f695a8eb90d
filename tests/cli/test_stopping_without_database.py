"""Processes that are told to stop while the database does not answer: they end soon, and nothing is lost."""

import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from sqlalchemy import make_url

from tests.cli.conftest import CommandLine
from tests.helpers import plain_connection, plain_sql
from tests.postgres import Postgres
from tests.proxy import TcpProxy

_GONE_S = 20.0
"""What the pages on workers and on the command line promise."""
_SLACK_S = 15.0  # for a machine that does much else: without a bound it takes more than a minute


@pytest.fixture
def relay(jobrunner: CommandLine, postgres: Postgres, postgres_url: str) -> Iterator[TcpProxy]:
    """What stands between the command line and its database, and may fall silent."""
    url = make_url(postgres_url)
    with TcpProxy(str(url.query["host"])) as proxy:
        jobrunner.environment["JOBRUNNER_DATABASE_URL"] = proxy.url(str(url.database))
        jobrunner.environment["JOBRUNNER_HEARTRATE"] = "1"
        yield proxy


def _until(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s, "it never came to be"
        time.sleep(0.05)


def _stopped(process: "subprocess.Popen[str]", relay: TcpProxy) -> tuple[int, str]:
    """Stop a process while its database is silent; return its exit code and what it said."""
    relay.is_silent = True
    try:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=_GONE_S + _SLACK_S)
    finally:
        process.kill()
        relay.is_silent = False
    return process.returncode, said


def _ends_as_killed(jobrunner: CommandLine, url: str) -> None:
    """See that the job was left to others: running and silent, or released by a statement that came late."""
    sql = "SELECT state, end_date, claims FROM job WHERE job_type = 'ProcessMonitorJob'"
    ((state, end_date, claims),) = plain_sql(url, sql)
    assert (state in {"running", "queued"}, end_date, claims) == (True, None, 1)
    jobrunner("kill", "1", "--wait")
    assert plain_sql(url, sql)[0][0] == "killed"


def test_a_monitor_job_in_the_foreground(jobrunner: CommandLine, relay: TcpProxy, postgres_url: str) -> None:
    process = jobrunner.begin("start", "process", "--", "sleep", "100")
    sql = "SELECT 1 FROM job WHERE state = 'running' AND external_id IS NOT NULL"
    _until(lambda: plain_sql(postgres_url, sql))
    code, said = _stopped(process, relay)
    assert code == 128 + signal.SIGTERM, said
    assert "others will find" in said
    assert "is released" in said
    assert "Traceback" not in said
    _ends_as_killed(jobrunner, postgres_url)


def test_a_worker_with_jobs(jobrunner: CommandLine, relay: TcpProxy, postgres_url: str) -> None:
    assert jobrunner("start", "process", "--detach", "--", "sleep", "100").code == 0
    process = jobrunner.begin("worker")
    sql = "SELECT 1 FROM job WHERE job_type = 'ProcessMonitorJob' AND external_id IS NOT NULL"
    _until(lambda: plain_sql(postgres_url, sql))
    code, said = _stopped(process, relay)
    assert code == 0, said
    assert "The database did not answer: others find its jobs silent" in said
    assert "Traceback" not in said
    _ends_as_killed(jobrunner, postgres_url)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_job_that_is_being_queued_says_how_to_learn_whether_it_was(
    jobrunner: CommandLine, postgres_url: str, number: signal.Signals
) -> None:
    jobrunner.environment["JOBRUNNER_DATABASE_URL"] = postgres_url
    waits = (
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INSERT INTO job %'"
    )
    with closing(plain_connection(postgres_url)) as somebody:
        somebody.execute("BEGIN")
        somebody.execute("LOCK TABLE job IN EXCLUSIVE MODE")
        process = jobrunner.begin("start", "process", "--detach", "--", "true")
        _until(lambda: plain_sql(postgres_url, waits))
        process.send_signal(number)
        out, said = process.communicate(timeout=_GONE_S + _SLACK_S)
        somebody.execute("ROLLBACK")
    assert (process.returncode, out) == (128 + number, "")
    assert "the job may have been stored, and a worker runs it then" in said
    listed = shlex.split(said.split("`jobrunner ")[1].split("`")[0])
    assert listed[:2] == ["list", "--key"]
    stored = [job_id for (job_id,) in plain_sql(postgres_url, "SELECT id FROM job")]
    assert [row["id"] for row in jobrunner(*listed, "--json").json] == stored
