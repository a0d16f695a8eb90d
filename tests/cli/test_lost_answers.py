"""Commands that store a row whose answer is lost on the way: one row, whose work is done once."""

import signal
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import make_url

from tests.cli.conftest import CommandLine
from tests.cli.worker_process import WorkerProcess
from tests.helpers import plain_sql
from tests.postgres import Postgres
from tests.proxy import LosingProxy

_APPEND = ("process", "--", "sh", "-c", "echo ran >> ran.txt")
_INSERT = b"INSERT INTO job "


@pytest.fixture
def losing(jobrunner: CommandLine, postgres: Postgres, postgres_url: str) -> Iterator[LosingProxy]:
    """What stands between the command line and its database, and loses the answer to the next INSERT."""
    url = make_url(postgres_url)
    with LosingProxy(str(url.query["host"])) as proxy:
        jobrunner.environment["JOBRUNNER_DATABASE_URL"] = proxy.url(str(url.database))
        proxy.lose(_INSERT)
        yield proxy


@pytest.fixture
def rows(postgres_url: str) -> Callable[[], list[tuple[object, ...]]]:
    """Ask for all jobs: their ids, types and states."""
    return lambda: plain_sql(postgres_url, "SELECT id, job_type, state FROM job ORDER BY id")


def _runs(jobrunner: CommandLine) -> int:
    return len((jobrunner.directory / "ran.txt").read_text().splitlines())


def test_a_job_in_the_foreground(
    jobrunner: CommandLine, losing: LosingProxy, rows: Callable[[], list[tuple[object, ...]]]
) -> None:
    answer = jobrunner("start", *_APPEND)
    ((job_id, *rest),) = rows()
    assert (answer.code, answer.out.splitlines()[0], losing.lost) == (0, f"job {job_id}", 1), answer
    assert (rest, _runs(jobrunner)) == (["ProcessMonitorJob", "success"], 1)


def test_a_detached_job_and_the_worker_that_runs_it(
    jobrunner: CommandLine, losing: LosingProxy, rows: Callable[[], list[tuple[object, ...]]]
) -> None:
    answer = jobrunner("start", _APPEND[0], "--detach", *_APPEND[1:])
    ((job_id, *rest),) = rows()
    assert (answer.code, answer.out, losing.lost) == (0, f"job {job_id}\n", 1), answer
    assert rest == ["ProcessMonitorJob", "queued"]
    losing.lose(_INSERT)
    worker = WorkerProcess(jobrunner)
    jobrunner.until(str(job_id), "state", "success")
    worker.send(signal.SIGTERM)
    assert (worker.ended()[0], losing.lost) == (0, 2)
    assert [row[1:] for row in rows()] == [("ProcessMonitorJob", "success"), ("WorkerJob", "success")]
    assert _runs(jobrunner) == 1


def test_own_code(
    own_jobs: CommandLine, losing: LosingProxy, rows: Callable[[], list[tuple[object, ...]]]
) -> None:
    answer = own_jobs("start", "my_jobs:Quick", "--arg", "rows=7", "--arg", "label=x")
    ((job_id, _, state),) = rows()
    assert (answer.code, state, losing.lost) == (0, "success", 1), answer
    assert answer.out.splitlines() == [f"job {job_id}", "7 'x'"]
