"""What others' code holds in the database: bounded for each transaction, each class, and all together."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from jobrunner import hook_sessions
from jobrunner.database import Database, get_database
from jobrunner.errors import DatabaseError, DatabaseUnavailable
from jobrunner.hook_sessions import HookSessions
from jobrunner.models import BaseJob
from jobrunner.settings import configure
from jobrunner.states import JobState
from jobrunner.transaction_limit import Turns, _is_read
from tests.helpers import row_of, until


class HoldingJob(BaseJob):
    """A job whose callback is the test's."""

    calls = 0

    def _execute(self) -> None:
        for _ in range(3):
            self.heartbeat()

    def heartbeat_callback(self, session: Session | None = None) -> None:
        assert session is not None
        self.calls += 1
        _write(session, self.id, f"call {self.calls}")
        if self.calls == 1:
            time.sleep(0.6)


class HoldingsNeighbour(BaseJob):
    """A job of another class."""


def _write(session: Session, job_id: int, word: str) -> None:
    session.execute(text("UPDATE job SET dag_id = :word WHERE id = :id"), {"word": word, "id": job_id})


@pytest.fixture
def sessions(database: Database) -> Iterator[HookSessions]:
    """Return the sessions of a runner's callbacks."""
    given = HookSessions(database.settings)
    yield given
    given.close()


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transactions end, and classes rest, after a short time."""
    monkeypatch.setattr(hook_sessions, "_WRITE_PART", 0.0)
    monkeypatch.setattr(hook_sessions, "_REST_MOST_S", 1.0)


@pytest.mark.parametrize(
    ("statement", "is_read"),
    [
        ("SELECT 1", True),
        ("\n  (select 1)", True),
        ("WITH some AS (SELECT 1) SELECT * FROM some", True),
        ("EXPLAIN SELECT 1", True),
        ("SELECT id FROM job FOR UPDATE SKIP LOCKED", False),
        ("SELECT id FROM job FOR NO KEY UPDATE", False),
        ("SELECT id FROM job FOR SHARE", False),
        ("SELECT id INTO copy FROM job", False),
        ("WITH gone AS (DELETE FROM job RETURNING id) SELECT * FROM gone", False),
        ("EXPLAIN ANALYZE UPDATE job SET name = 'x'", False),
        ("UPDATE job SET name = 'x'", False),
        ("SAVEPOINT one", False),
        ("LOCK TABLE job", False),
    ],
)
def test_what_may_hold_something_counts_as_a_write(statement: str, is_read: bool) -> None:
    assert _is_read(statement) is is_read


def test_a_session_that_reads_keeps_nobody_from_writing_and_can_write_afterwards(
    database: Database, sessions: HookSessions
) -> None:
    job = HoldingJob().store()
    with sessions.session(job) as session:
        assert session.execute(text("SELECT dag_id FROM job")).scalar() is None
        with database.write() as connection:
            connection.execute(text("UPDATE job SET name = 'by another'"))
        _write(session, job.id, "mine")
        assert session.execute(text("SELECT name FROM job")).scalar() == "by another"
        session.commit()
    assert row_of(database, job.id)["dag_id"] == "mine"


def test_a_session_that_is_rolled_back_leaves_nothing(database: Database, sessions: HookSessions) -> None:
    job = HoldingJob().store()
    with sessions.session(job) as session:
        _write(session, job.id, "mine")
        session.rollback()
        assert session.execute(text("SELECT dag_id FROM job")).scalar() is None
    assert row_of(database, job.id)["dag_id"] is None


@pytest.mark.usefixtures("brief")
def test_what_holds_its_row_for_too_long_is_rolled_back_and_says_so(
    database: Database, sessions: HookSessions, caplog: pytest.LogCaptureFixture
) -> None:
    job = HoldingJob().store()
    with sessions.session(job) as session:
        _write(session, job.id, "mine")
        assert job.request_kill(by="anna") is not None  # it waits, and is not refused
        with pytest.raises((SQLAlchemyError, DatabaseError)):
            session.commit()
    row = row_of(database, job.id)
    assert (row["dag_id"], row["kill_requested_by"]) == (None, "anna")
    assert caplog.text.count("a heartbeat_callback kept what it had written locked for 0.25 s") == 1


@pytest.mark.usefixtures("brief")
def test_a_statement_under_way_does_not_keep_a_transaction_from_being_ended(
    postgres_database: Database,
) -> None:
    sessions = HookSessions(postgres_database.settings)
    job = HoldingJob().store()
    with suppress(SQLAlchemyError), sessions.session(job) as session:
        _write(session, job.id, "mine")
        begun_s = time.monotonic()
        with pytest.raises(SQLAlchemyError):
            session.execute(text("SELECT pg_sleep(25)"))
        assert time.monotonic() - begun_s < 20
    assert job.request_kill() is JobState.KILLED
    sessions.close()


@pytest.mark.usefixtures("brief")
def test_a_class_that_kept_others_waiting_is_not_called_for_a_while(
    database: Database, sessions: HookSessions
) -> None:
    job, other = HoldingJob(), HoldingsNeighbour()
    with suppress(SQLAlchemyError), sessions.session(job.store()) as session:
        _write(session, job.id, "mine")
        until(lambda: sessions.is_resting(job))
        assert not sessions.is_resting(other)
    until(lambda: not sessions.is_resting(job))
    with sessions.session(job) as session:
        _write(session, job.id, "mine")
        session.commit()
    assert row_of(database, job.id)["dag_id"] == "mine"


def test_those_of_a_class_that_waits_for_its_turn_are_refused_when_one_of_it_hangs(
    sqlite_database: Database, brief: None
) -> None:
    sessions, job = HookSessions(sqlite_database.settings), HoldingJob().store()
    refused: list[BaseException] = []

    def wait() -> None:
        with sessions.session(job) as session:
            try:
                _write(session, job.id, "the other's")
            except DatabaseUnavailable as error:
                refused.append(error)

    with sessions.session(job) as session:
        _write(session, job.id, "mine")
        threads = [threading.Thread(target=wait) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(refused) == 5
    sessions.close()


def test_a_long_turn_is_followed_by_a_rest_in_which_others_write() -> None:
    turns = Turns()
    turns.take(1.0, lambda: None)
    turns.give_back(0.3)
    begun_s = time.monotonic()
    turns.take(60.0, lambda: None)
    assert time.monotonic() - begun_s >= 1.0
    with pytest.raises(DatabaseUnavailable, match="kept this one from writing"):
        turns.take(0.1, lambda: None)
    turns.give_back(0.01)
    turns.take(0.0, lambda: None)


def test_sessions_that_hang_take_no_connection_from_other_classes(
    database: Database, sessions: HookSessions
) -> None:
    jobs = [HoldingJob().store() for _ in range(20)]
    hanging: list[Session] = []
    for job in jobs:
        hanging.append(session := sessions.session(job))
        session.execute(text("SELECT 1"))
    other = HoldingsNeighbour().store()
    with sessions.session(other) as session:
        assert session.execute(text("SELECT 1")).scalar() == 1
    with database.read() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    for session in hanging:
        session.close()


def test_the_server_ends_what_a_stopped_process_would_hold(postgres_url: str) -> None:
    configure(database_url=postgres_url, lock_timeout_s=3)
    sessions, job = HookSessions(get_database().settings), HoldingJob().store()
    with sessions.session(job) as session:
        asked = (
            "SELECT current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout')"
        )
        assert tuple(session.execute(text(asked)).one()) == ("2400ms", "1s")
        session.rollback()
    with get_database().session() as session:  # it is nobody's but that transaction's
        assert session.execute(text("SELECT current_setting('lock_timeout')")).scalar() == "3s"
    sessions.close()


def test_a_job_whose_callback_holds_its_own_row_goes_on_without_what_that_wrote(
    database: Database, brief: None, caplog: pytest.LogCaptureFixture
) -> None:
    job: Any = HoldingJob(heartrate=0.5)
    job.run()
    assert job.state == JobState.SUCCESS
    assert row_of(database, job.id)["dag_id"] in {None, "call 2", "call 3"}
    assert caplog.text.count("heartbeat_callback failed") == 1
