"""The database refuses, is silent, drops the connection and comes back: the job survives and says so once."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from jobrunner import statements
from jobrunner.database import Database, get_database
from jobrunner.errors import DatabaseUnavailable
from jobrunner.models.own_run import OwnRun
from jobrunner.settings import configure
from jobrunner.statements import Claim
from jobrunner.states import JobState
from tests.helpers import (
    CodeJob,
    Run,
    beat_for_ever,
    events_of,
    plain_connection,
    plain_sql,
    row_of,
    until,
)
from tests.postgres import Postgres
from tests.proxy import Proxy

HEARTRATE = 0.2


@pytest.fixture(autouse=True)
def _log_of_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield


class BeatingJob:
    """A job that beats until it is told to stop, and what it noted on the way."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.memory: list[tuple[object, object]] = []
        self.job = CodeJob(self._code, heartrate=HEARTRATE)
        self.run = Run(self.job)

    def _code(self, job: CodeJob) -> None:
        while not self.stop.is_set():
            before = job.latest_heartbeat
            failing = self.is_failing
            job.heartbeat()
            if failing and self.is_failing:
                self.memory.append((before, job.latest_heartbeat))

    @property
    def is_failing(self) -> bool:
        own = self.job._own
        return own is not None and own.health.failing_since_s is not None

    def wait_for_trouble(self) -> None:
        until(lambda: self.is_failing)

    def wait_for_recovery(self) -> None:
        until(lambda: not self.is_failing)

    def finish(self) -> None:
        self.stop.set()
        assert self.run.join() is None


def check_outage(
    caplog: pytest.LogCaptureFixture, begin: Callable[[], object], end: Callable[[], object]
) -> BeatingJob:
    beating = BeatingJob()
    with beating.run:
        time.sleep(0.3)
        begin()
        try:
            beating.wait_for_trouble()
            time.sleep(1)
        finally:
            end()
        beating.wait_for_recovery()
        beating.finish()
    assert all(before == after for before, after in beating.memory), "memory claims no beat that failed"
    said = [message for message in caplog.messages if message.startswith("heartbeat")]
    assert len([message for message in said if message.startswith("heartbeat failing")]) == 1, said
    assert len([message for message in said if message.startswith("heartbeat recovered after")]) == 1, said
    row = row_of(get_database(), beating.job.id)
    assert (row["state"], row["message"]) == (JobState.SUCCESS, "done")
    return beating


# --- PostgreSQL -----------------------------------------------------------------------------------


@pytest.fixture
def proxy(postgres: Postgres, postgres_url: str) -> Iterator[Proxy]:
    """A proxy in front of the database of this process."""
    with Proxy(postgres.socket_dir) as proxy:
        configure(
            database_url=postgres_url.replace(postgres.socket_dir, proxy.socket_dir),
            call_timeout_s=0.6,
            connect_timeout_s=2,
        )
        yield proxy
        proxy.is_refusing = proxy.is_silent = False
        get_database().dispose()


def test_a_job_survives_a_database_that_refuses(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        proxy.is_refusing = True
        proxy.cut()

    def serve() -> None:
        proxy.is_refusing = False

    check_outage(caplog, refuse, serve)


def test_a_job_survives_a_database_that_says_nothing(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    def fall_silent() -> None:
        proxy.is_silent = True

    def serve() -> None:
        proxy.is_silent = False

    check_outage(caplog, fall_silent, serve)


def test_a_job_survives_a_database_that_drops_its_connections(
    postgres_database: Database, postgres_url: str
) -> None:
    beating = BeatingJob()
    terminate = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with beating.run:
        for _ in range(5):
            assert plain_sql(postgres_url, terminate)
            before = row_of_bare(postgres_url)
            until(lambda before=before: row_of_bare(postgres_url) != before)  # type: ignore[misc]
        beating.finish()
    assert events_of(postgres_url, beating.job.id) == [(None, "running"), ("running", "success")]


def row_of_bare(url: str) -> object:
    return plain_sql(url, "SELECT latest_heartbeat FROM job")


def test_a_job_survives_a_restart_of_the_server(
    postgres: Postgres, postgres_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    check_outage(caplog, postgres.stop, postgres.start)


def test_a_kill_set_during_an_outage_of_the_owner_is_obeyed_afterwards(
    proxy: Proxy, postgres_url: str
) -> None:
    from jobrunner.errors import JobKilled

    with Run(CodeJob(beat_for_ever, heartrate=HEARTRATE)) as run:
        own = run.job._own
        assert own is not None
        proxy.is_refusing = True
        proxy.cut()
        until(lambda: own.health.failing_since_s is not None)
        plain_sql(postgres_url, "UPDATE job SET kill_requested_at = now()")
        proxy.is_refusing = False
        assert isinstance(run.join(), JobKilled)
    assert plain_sql(postgres_url, "SELECT state FROM job") == [("killed",)]


def test_a_silent_runner_fences_itself_and_is_free_again_after_a_good_beat(proxy: Proxy) -> None:
    beating = BeatingJob()
    with beating.run:
        assert not beating.job.is_fenced
        proxy.is_refusing = True
        proxy.cut()
        until(lambda: beating.job.is_fenced)
        proxy.is_refusing = False
        until(lambda: not beating.job.is_fenced)
        beating.finish()


# --- SQLite ---------------------------------------------------------------------------------------


def test_a_job_survives_a_sqlite_file_that_somebody_holds_locked(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    configure(database_url=sqlite_url, sqlite_busy_timeout_s=0.05)
    with ExitStack() as stack:
        holder = plain_connection(sqlite_url)
        stack.callback(holder.close)
        check_outage(caplog, lambda: holder.execute("BEGIN EXCLUSIVE"), lambda: holder.execute("ROLLBACK"))


def test_a_job_that_finds_its_table_gone_for_a_while_goes_on(
    database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_outage(
        caplog,
        lambda: plain_sql(database_url, "ALTER TABLE job RENAME TO job_away"),
        lambda: plain_sql(database_url, "ALTER TABLE job_away RENAME TO job"),
    )


def test_a_sqlite_file_that_cannot_be_opened_for_a_while_is_an_outage(
    sqlite_url: str, tmp_path: Path
) -> None:
    configure(database_url=sqlite_url)
    database = get_database()
    database.dispose()
    shutil.move(tmp_path / "jobs.db", tmp_path / "away.db")
    (tmp_path / "jobs.db").mkdir()
    with pytest.raises(DatabaseUnavailable), database.write():
        pass
    (tmp_path / "jobs.db").rmdir()
    shutil.move(tmp_path / "away.db", tmp_path / "jobs.db")
    with database.write():
        pass


# --- the outcome ----------------------------------------------------------------------------------


def test_an_outcome_is_written_when_the_database_is_back(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    configure(database_url=sqlite_url, sqlite_busy_timeout_s=0.05)
    holder = plain_connection(sqlite_url)

    def code(_job: CodeJob) -> None:
        holder.execute("BEGIN EXCLUSIVE")

    with Run(job := CodeJob(code)) as run:
        until(lambda: "outcome cannot be written yet" in caplog.text)
        time.sleep(0.5)
        holder.execute("ROLLBACK")
        assert run.join() is None
    holder.close()
    assert job.state == JobState.SUCCESS
    assert events_of(sqlite_url, job.id) == [(None, "running"), ("running", "success")]
    assert caplog.text.count("outcome cannot be written yet") == 1


def test_an_outcome_whose_answer_was_lost_is_found_written(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = statements.end
    answers: list[bool] = []

    def lose_the_first_answer(*args: object, **options: object) -> bool:
        if not answers:
            with database.write() as other:
                answers.append(end(other, *args[1:], **options))  # type: ignore[arg-type]
            raise DatabaseUnavailable("the connection was lost before the answer came")
        answers.append(end(*args, **options))  # type: ignore[arg-type]
        return answers[-1]

    def code(_job: CodeJob) -> None:
        monkeypatch.setattr(statements, "end", lose_the_first_answer)
        if database.is_sqlite:  # there, the transaction around it would hold the lock
            monkeypatch.setattr(database, "write", database.read)

    job = CodeJob(code)
    job.run()
    assert answers == [True, False]
    assert job.state == JobState.SUCCESS
    assert events_of(database_url, job.id) == [(None, "running"), ("running", "success")]


def test_a_run_whose_outcome_cannot_be_read_again_still_knows_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = OwnRun.end

    def then_the_database_goes(self: OwnRun, state: JobState, message: str, **guard: bool) -> bool:
        is_written = end(self, state, message, **guard)
        monkeypatch.setattr(CodeJob, "reload", unreadable)
        return is_written

    def unreadable(_self: CodeJob) -> None:
        raise DatabaseUnavailable("not now")

    monkeypatch.setattr(OwnRun, "end", then_the_database_goes)
    job = CodeJob()
    job.run()
    assert job.state == JobState.SUCCESS


def test_a_job_whose_outcome_is_not_taken_yet_is_beaten_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, beats = statements.end, set()

    def refuse(connection: Connection, claim: Claim, *outcome: Any, **guard: Any) -> bool:
        beats.add(statements.get(connection, claim.job_id)["latest_heartbeat"])
        if len(beats) < 4:
            raise DatabaseUnavailable("no room for its event")
        return end(connection, claim, *outcome, **guard)

    monkeypatch.setattr(statements, "end", refuse)
    job = CodeJob(heartrate=HEARTRATE)
    job.run()
    assert job.state is JobState.SUCCESS


def test_an_outcome_is_tried_again_as_soon_as_a_beat_would_be(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, tries = statements.end, []

    def refuse(connection: Connection, claim: Claim, *outcome: Any, **guard: Any) -> bool:
        tries.append(time.monotonic())
        if len(tries) < 20:
            raise DatabaseUnavailable("not now")
        return end(connection, claim, *outcome, **guard)

    monkeypatch.setattr(statements, "end", refuse)
    CodeJob(heartrate=0.2).run()
    pauses = sorted(later - sooner for sooner, later in pairwise(tries))
    assert pauses[len(pauses) // 2] < 0.2  # the median: a busy machine may keep one of them for longer


def test_an_interrupt_does_not_keep_an_outcome_from_being_written(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    end, tries = statements.end, []

    def be_interrupted(*args: Any, **guard: Any) -> bool:
        tries.append(args)
        if len(tries) == 1:
            raise KeyboardInterrupt
        return end(*args, **guard)

    monkeypatch.setattr(statements, "end", be_interrupted)
    job = CodeJob()
    job.run()
    assert job.state is JobState.SUCCESS
    assert "interrupted before the outcome was written" in caplog.text


def test_a_second_interrupt_leaves_an_outcome_unwritten_and_says_so(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def be_interrupted(*_args: Any, **_guard: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(statements, "end", be_interrupted)
    job = CodeJob()
    with pytest.raises(KeyboardInterrupt):
        job.run()
    assert row_of(database, job.id)["state"] is JobState.RUNNING
    assert "the outcome is not written" in caplog.text
