"""Workers in processes of their own, and the jobs that they find."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from bench.places import url_of
from bench.worker_process import JOB_TYPE
from jobrunner.database import Database

_LOOK_S = 0.1
_STOP_S = 60.0


class Apart:
    """A worker at work in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def tell(self, word: str = "tell") -> dict[str, Any]:
        """Return what it has cost so far; `down` and `up` end and bring back its backend."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def kill(self) -> None:
        """End it as nobody can prevent (kill -9)."""
        self.process.kill()
        self.process.wait()


@contextmanager
def a_worker(database: Database, **options: Any) -> Iterator[Apart]:
    """Give a worker with these options; at the end it is ended, and gives nothing back."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JOBRUNNER_")}
    with subprocess.Popen(
        [sys.executable, "-m", "bench.worker_process", url_of(database), json.dumps(options)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        worker = Apart(process)
        try:
            yield worker
        finally:
            with suppress(BrokenPipeError):
                worker.kill()


def store(database: Database, count: int, *, heartrate: float, poll_interval: float, is_outside: bool) -> str:
    """Store queued jobs, all in one statement, and return when they were there.

    `is_outside`: their work was submitted before.
    """
    token = "replace(gen_random_uuid()::text, '-', '')"
    values = {
        "job_type": f"'{JOB_TYPE}'",
        "name": "'job ' || n",
        "state": "'queued'",
        "heartrate": f"{heartrate}",
        "poll_interval": f"{poll_interval}",
        "connection": "'clockwork_default'",
        "adoptable": "true",
        "claims": "0",
        "submit_token": token,
        "submit_started_at": "clock_timestamp()" if is_outside else "NULL",
        "external_id": "'work-' || n" if is_outside else "NULL",
        "spec": "jsonb_build_object('command', md5(n::text), 'queue', 'long', 'cpus', 2)",
    }
    with database.write() as connection:
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql(
            f"INSERT INTO job ({', '.join(values)}) "
            f"SELECT {', '.join(values.values())} FROM generate_series(1, {count}) AS n"
        )
        stored_at = str(connection.exec_driver_sql("SELECT clock_timestamp()").scalar())
        connection.exec_driver_sql("ANALYZE job")
    return stored_at


def ask(database: Database, question: str) -> Any:
    """Return the one value that a question gives."""
    with database.read() as connection:
        connection.exec_driver_sql("SET statement_timeout = 0")
        return connection.exec_driver_sql(question.replace("%", "%%")).scalar()


def all_of(database: Database, question: str) -> list[Any]:
    """Return the rows that a question gives."""
    with database.read() as connection:
        return list(connection.exec_driver_sql(question.replace("%", "%%")))


def at_work(database: Database) -> int:
    """Return how many workers have said in their rows what they have."""
    question = "SELECT count(*) FROM job WHERE job_type = 'WorkerJob' AND detail IS NOT NULL"
    return int(ask(database, question))


def until(is_so: Callable[[], bool], what: str, patience_s: float, look_s: float = _LOOK_S) -> None:
    """Wait until something is so. Raises TimeoutError."""
    give_up_s = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"{what}: not within {patience_s:g} s")
        time.sleep(look_s)


def count_of(database: Database, state: str) -> int:
    """Return how many of the jobs are in this state."""
    return int(ask(database, f"SELECT count(*) FROM job WHERE state = '{state}' AND job_type = '{JOB_TYPE}'"))
