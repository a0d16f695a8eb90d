"""What several test modules need."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Self

import psycopg
from sqlalchemy import Connection, event, make_url

from jobrunner import statements
from jobrunner.database import Database
from jobrunner.identity import ProcessIdentity
from jobrunner.models import BaseJob
from jobrunner.statements import Attempt, Cancel, Claim, Owner, new_owner

IS_LONG = bool(os.environ.get("JOBRUNNER_TEST_LONG"))
"""Whether long proofs are to be run in their long form."""


def plain_connection(url: str) -> Any:
    """Return a connection of the bare driver, in autocommit: what a person at a shell has."""
    if url.startswith("sqlite"):
        return sqlite3.connect(str(make_url(url).database), isolation_level=None, check_same_thread=False)
    return psycopg.connect(url, autocommit=True)


@contextmanager
def rows_held(url: str, ids: Sequence[int]) -> Iterator[Callable[[], None]]:
    """Hold rows of PostgreSQL locked, as an open session of psql does; gives what lets go of them."""
    with closing(plain_connection(url)) as somebody:
        somebody.execute("BEGIN")
        somebody.execute(f"SELECT 1 FROM job WHERE id IN ({','.join(map(str, ids))}) FOR UPDATE")
        yield lambda: somebody.execute("ROLLBACK")


def plain_sql(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Run one statement as any other client would, past everything of ours."""
    with closing(plain_connection(url)) as connection:
        cursor = connection.execute(statement)
        return [tuple(row) for row in cursor.fetchall()] if cursor.description else []


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until a condition holds."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it never came to be"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    it = ProcessIdentity.of(pid)
    return it is not None and it.standing() == "alive"


def an_owner(**changes: Any) -> Owner:
    """Return an owner that is nobody else."""
    import dataclasses

    return dataclasses.replace(new_owner("TestExecutor"), **changes)


def insert_job(database: Database, owner: Owner | None = None, **values: Any) -> int:
    """Store a bare row, queued or claimed by `owner`, and return its id."""
    row = {"job_type": "Bare", "heartrate": 10.0, "adoptable": True, **values}
    with database.write() as connection:
        return int(statements.store(connection, row, owner, "test")["id"])


def a_running_job(database: Database, **values: Any) -> tuple[Claim, Owner]:
    """Store a running row of a fresh owner, and return his claim."""
    owner = an_owner()
    return Claim(insert_job(database, owner, **values), owner.runner_id, 1), owner


def row_of(database: Database, job_id: int) -> dict[str, Any]:
    """Return a job's whole row."""
    with database.read() as connection:
        return dict(statements.get(connection, job_id))


def begin_cancel(
    connection: Connection, claim: Claim, attempt: Attempt, cause: str
) -> statements.Begun | None:
    """Record the cancellation of one attempt, and return what is in force; None: it was not recorded."""
    cancel = Cancel(claim.job_id, claim.claims, attempt.token, attempt.external_id, cause)
    return statements.begin_cancel_many(connection, claim.runner_id, [cancel]).get(claim.job_id)


def events_of(url: str, job_id: int) -> list[tuple[Any, ...]]:
    """Return a job's events as (from, to)."""
    return plain_sql(url, f"SELECT from_state, to_state FROM job_event WHERE job_id = {job_id} ORDER BY id")


@contextmanager
def statements_of(database: Database) -> Iterator[list[str]]:
    """Collect every statement that is sent to the database."""
    sent: list[str] = []
    with _telling(database, lambda statement, _parameters: sent.append(statement)):
        yield sent


@contextmanager
def calls_of(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Collect every statement that is sent to the database, with its parameters."""
    sent: list[tuple[str, Any]] = []
    with _telling(database, lambda *call: sent.append(call)):
        yield sent


@contextmanager
def _telling(database: Database, note: Callable[[str, Any], None]) -> Iterator[None]:
    def tell(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        note(statement, parameters)

    event.listen(database.engine, "before_cursor_execute", tell)
    try:
        yield
    finally:
        event.remove(database.engine, "before_cursor_execute", tell)


class CodeJob(BaseJob):
    """A job whose code is a function of the test."""

    kills = 0

    def __init__(self, code: "Callable[[CodeJob], object]" = lambda _job: None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.code = code

    def _execute(self) -> None:
        self.code(self)

    def on_kill(self) -> None:
        self.kills += 1


class Run:
    """A job that runs in a thread of its own, and what came of it."""

    def __init__(self, job: BaseJob) -> None:
        self.job = job
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.job.run()
        except BaseException as error:  # noqa: BLE001  # the test asks for it
            self.error = error

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.job._own is not None or not self._thread.is_alive())
        return self

    def __exit__(self, *_: object) -> None:
        self.join()

    def join(self) -> BaseException | None:
        """Wait for the end and return the error that `run` raised."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.error


def beat_for_ever(job: BaseJob) -> None:
    """The code of a job that goes on until something ends it."""
    while True:
        job.heartbeat()
