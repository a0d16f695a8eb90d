"""A kill: from anywhere, in any form, heard at once, never lost."""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import make_url, text

from jobrunner import doubt
from jobrunner.database import Database, get_database
from jobrunner.errors import DatabaseUnavailable, JobKilled
from jobrunner.heartbeat import Beater
from jobrunner.models import BaseJob, own_run
from jobrunner.settings import configure
from jobrunner.states import JobState
from tests.helpers import (
    CodeJob,
    Run,
    a_running_job,
    beat_for_ever,
    events_of,
    plain_connection,
    plain_sql,
    row_of,
    until,
)
from tests.proxy import LosingProxy


class RaisesInOnKill(CodeJob):
    def on_kill(self) -> None:
        raise RuntimeError("the scratch directory is gone")


ANYTHING = {
    "sqlite": [
        "datetime('now')",
        "1",
        "'yes'",
        "''",
        "'2026-03-01'",
        "strftime('%s', 'now')",
        "x'00'",
        "1.5",
    ],
    "postgresql": [
        "now()",
        "'infinity'",
        "'-infinity'",
        "'0044-03-15 BC'",
        "'2026-03-01'",
        "clock_timestamp() + interval '1 day'",
        "'epoch'",
    ],
}


@pytest.mark.parametrize("value", ANYTHING["sqlite"])
def test_any_value_that_a_person_writes_with_sqlite3_is_a_kill(
    sqlite_database: Database, sqlite_url: str, value: str
) -> None:
    check_kill_by_plain_sql(sqlite_database, sqlite_url, value)


@pytest.mark.parametrize("value", ANYTHING["postgresql"])
def test_any_value_that_a_person_writes_with_psql_is_a_kill(
    postgres_database: Database, postgres_url: str, value: str
) -> None:
    check_kill_by_plain_sql(postgres_database, postgres_url, value)


def check_kill_by_plain_sql(database: Database, url: str, value: str) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=30)) as run:
        time.sleep(0.1)
        plain_sql(url, f"UPDATE job SET kill_requested_at = {value} WHERE id = {run.job.id}")
        assert isinstance(run.join(), JobKilled)
    row = row_of(database, run.job.id)
    assert (row["state"], row["message"], row["end_date"] is not None) == (JobState.KILLED, "killed", True)
    assert row["kill_requested_at"].tzinfo is not None
    assert run.job.kills == 1  # type: ignore[attr-defined]
    assert events_of(url, run.job.id) == [(None, "running"), ("running", "killed")]


def test_a_kill_is_heard_long_before_the_next_beat(database: Database) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=30)) as run:
        time.sleep(0.3)
        begun_s = time.monotonic()
        CodeJob.get(run.job.id).request_kill(by="anna", reason="too expensive")
        assert isinstance(run.join(), JobKilled)
        assert time.monotonic() - begun_s < 1
    assert run.job.message == "killed by anna: too expensive"
    assert (run.job.kill_requested_by, run.job.kill_reason) == ("anna", "too expensive")


def test_a_kill_that_comes_before_the_first_wait_is_heard_at_once(
    database: Database, database_url: str
) -> None:
    def code(job: CodeJob) -> None:
        plain_sql(database_url, "UPDATE job SET kill_requested_at = '2026-03-01 12:00:00'")
        job.heartbeat()

    begun_s = time.monotonic()
    with pytest.raises(JobKilled):
        CodeJob(code, heartrate=30).run()
    assert time.monotonic() - begun_s < 5


def test_kills_of_other_jobs_do_not_end_the_wait(database: Database) -> None:
    other = CodeJob().store()
    with Run(CodeJob(beat_for_ever, heartrate=1)) as run:
        time.sleep(0.1)
        before = row_of(database, run.job.id)["latest_heartbeat"]
        other.request_kill()
        time.sleep(0.3)
        assert row_of(database, run.job.id)["latest_heartbeat"] == before
        run.job.request_kill()


class NoText(Exception):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error

    __repr__ = __str__


class OddText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise SystemExit(3)

    def __format__(self, _spec: str) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize(
    "given",
    [NoText(ValueError("no text")), NoText(SystemExit(3)), OddText("late"), ValueError("why"), 5, b"x"],
)
@pytest.mark.parametrize("name", ["by", "reason"])
def test_a_kill_counts_whatever_was_given_as_its_reason_or_its_author(
    database: Database, given: object, name: str
) -> None:
    queued, submitted = CodeJob().store(), CodeJob().store()
    with database.write() as connection:
        connection.execute(text(f"UPDATE job SET submit_started_at = created_at WHERE id = {submitted.id}"))
    assert queued.request_kill(**{name: given}) is JobState.KILLED  # type: ignore[arg-type]
    assert submitted.request_kill(**{name: given}) is JobState.QUEUED  # type: ignore[arg-type]
    for job in (queued, submitted):
        row = row_of(database, job.id)
        assert row["kill_requested_at"] is not None
        assert row["kill_requested_by" if name == "by" else "kill_reason"]


def test_who_asked_first_stands_as_the_one_who_did(database: Database) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=30)) as run:
        with database.write() as connection:
            from jobrunner import statements

            statements.request_kill(connection, run.job.id, "anna", "first")
            statements.request_kill(connection, run.job.id, "bob", "second")
            flag = statements.get(connection, run.job.id)
        assert (flag["kill_requested_by"], flag["kill_reason"]) == ("anna", "first")
    assert run.job.message == "killed by anna: first"


def test_without_a_name_the_user_and_host_stand_as_the_one_who_asked(database: Database) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=30)) as run:
        assert run.job.request_kill() in {JobState.RUNNING, JobState.KILLED}
        run.join()
    assert run.job.kill_requested_by


def test_a_kill_after_the_end_changes_nothing(database: Database) -> None:
    job = CodeJob()
    job.run()
    before = row_of(database, job.id)
    assert job.request_kill(by="anna") == JobState.SUCCESS
    assert row_of(database, job.id) == before
    assert len(job.events) == 2


def test_an_on_kill_that_raises_is_logged_and_the_job_is_killed_all_the_same(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def code(job: CodeJob) -> None:
        job.request_kill()
        job.heartbeat()

    job = RaisesInOnKill(code)
    with caplog.at_level(logging.ERROR), pytest.raises(JobKilled):
        job.run()
    assert job.state == JobState.KILLED
    assert "on_kill failed" in caplog.text
    assert "the scratch directory is gone" in caplog.text


def test_code_that_swallows_its_kill_ends_killed_and_is_told_again(database: Database) -> None:
    told: list[JobKilled] = []

    def code(job: CodeJob) -> None:
        job.request_kill(reason="enough")
        for _ in range(3):
            try:
                job.heartbeat()
            except JobKilled as error:
                told.append(error)

    job = CodeJob(code, heartrate=30)
    begun_s = time.monotonic()
    with pytest.raises(JobKilled, match="enough"):
        job.run()
    assert time.monotonic() - begun_s < 10
    assert (job.state, job.kills, len(told)) == (JobState.KILLED, 1, 3)


def test_code_that_answers_its_kill_with_an_error_of_its_own_ends_killed(database: Database) -> None:
    def code(job: CodeJob) -> None:
        job.request_kill()
        try:
            job.heartbeat()
        except JobKilled as error:
            raise ValueError("could not clean up") from error

    job = CodeJob(code, heartrate=30)
    with pytest.raises(ValueError, match="clean up"):
        job.run()
    assert job.state == JobState.KILLED


def test_a_kill_that_is_set_while_beats_fail_is_obeyed_when_they_succeed_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = True
    beat = Beater.beat

    def sometimes(self: Beater, *args: Any, **options: Any) -> Any:
        if failing:
            raise DatabaseUnavailable("not now")
        return beat(self, *args, **options)

    monkeypatch.setattr(Beater, "beat", sometimes)
    with Run(CodeJob(beat_for_ever, heartrate=0.2)) as run:
        run.job.request_kill()
        time.sleep(0.5)
        assert run.error is None
        assert row_of(database, run.job.id)["state"] == JobState.RUNNING
        failing = False
        assert isinstance(run.join(), JobKilled)


def test_a_database_that_goes_away_between_the_flag_and_its_reason_does_not_stop_the_kill(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobrunner.models import base_job

    def gone(_session: object) -> Any:
        raise DatabaseUnavailable("not now")

    with Run(CodeJob(beat_for_ever, heartrate=0.2)) as run:
        monkeypatch.setattr(base_job, "reading", gone)
        plain = "UPDATE job SET kill_requested_at = '2026-03-01 12:00:00'"
        plain_sql(database.settings.database_url or "", plain)
        assert isinstance(run.join(), JobKilled)
    assert row_of(database, run.job.id)["state"] == JobState.KILLED


def test_many_kills_at_once_kill_once(database: Database, database_url: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with Run(CodeJob(beat_for_ever, heartrate=30)) as run:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _n: CodeJob.get(run.job.id).request_kill(), range(8)))
        run.join()
    until(lambda: row_of(database, run.job.id)["state"] == JobState.KILLED)
    assert events_of(database_url, run.job.id) == [(None, "running"), ("running", "killed")]


class CleansUp(CodeJob):
    """Its clean-up is a function of the test."""

    clean_up: Callable[[CodeJob], object] = staticmethod(lambda _job: None)

    def on_kill(self) -> None:
        super().on_kill()
        self.clean_up(self)


def cleaned_up_by(clean_up: Callable[[CodeJob], object], **kwargs: Any) -> CleansUp:
    def code(job: CodeJob) -> None:
        job.request_kill(by="ana")
        job.heartbeat()

    job = CleansUp(code, **kwargs)
    job.clean_up = clean_up
    return job


def test_a_clean_up_that_takes_its_time_is_no_silence(database: Database) -> None:
    def wait_for_beats(job: CodeJob) -> None:
        for _ in range(3):
            before = row_of(database, job.id)["latest_heartbeat"]
            until(lambda before=before: row_of(database, job.id)["latest_heartbeat"] > before)  # type: ignore[misc]

    job = cleaned_up_by(wait_for_beats, heartrate=0.1)
    with pytest.raises(JobKilled):
        job.run()
    assert (job.state, job.kills) == (JobState.KILLED, 1)


@pytest.mark.parametrize("asks", [CodeJob.heartbeat, CodeJob.kill], ids=["heartbeat", "kill"])
def test_a_clean_up_may_beat_and_kill_and_is_called_once(
    database: Database, asks: Callable[[CodeJob], object]
) -> None:
    job = cleaned_up_by(asks, heartrate=0.1)
    with pytest.raises(JobKilled):
        job.run()
    assert (job.state, job.message, job.kills) == (JobState.KILLED, "killed by ana", 1)


def test_a_clean_up_that_does_not_return_does_not_keep_the_job_from_ending(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(own_run, "_ON_KILL_S", 0.3)

    def hang(job: CodeJob) -> None:
        until(lambda: row_of(database, job.id)["state"] is JobState.KILLED)

    job = cleaned_up_by(hang, heartrate=0.1)
    with pytest.raises(JobKilled, match="its on_kill did not return"):
        job.run()
    assert (job.message, job.kills) == ("killed by ana; its on_kill did not return", 1)
    assert events_of(database_url, job.id) == [(None, "running"), ("running", "killed")]
    assert "on_kill does not return" in caplog.text


class Unspeakable(Exception):
    """An error that has no text."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


def test_a_clean_up_whose_error_has_no_text_stops_no_kill(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_job: CodeJob) -> None:
        raise Unspeakable

    job = cleaned_up_by(fail)
    with pytest.raises(JobKilled):
        job.run()
    assert job.state is JobState.KILLED
    assert "on_kill failed" in caplog.text


def test_a_kill_that_is_recorded_though_its_history_is_held_locked_is_no_error(postgres_url: str) -> None:
    configure(database_url=postgres_url, lock_timeout_s=0.2)
    claim, _ = a_running_job(get_database())
    with closing(plain_connection(postgres_url)) as holder:
        holder.execute("BEGIN")
        holder.execute("LOCK TABLE job_event IN SHARE ROW EXCLUSIVE MODE")
        assert BaseJob.get(claim.job_id).request_kill(by="ana") is JobState.RUNNING
    assert row_of(get_database(), claim.job_id)["kill_requested_by"] == "ana"


def test_a_kill_of_which_nobody_knows_whether_it_is_recorded_says_so(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubt, "PATIENCE_S", 0.1)
    url = make_url(postgres_url)
    with LosingProxy(str(url.query["host"])) as proxy:
        configure(database_url=proxy.url(str(url.database)))
        claim, _ = a_running_job(get_database())
        proxy.lose(b"UPDATE job ", is_gone_after=True)
        job = BaseJob.get(claim.job_id)
        with pytest.raises(
            DatabaseUnavailable, match=rf"kill of job {claim.job_id} was recorded is not known"
        ):
            job.request_kill(by="ana")
    rows = plain_sql(postgres_url, f"SELECT kill_requested_by FROM job WHERE id = {claim.job_id}")
    assert rows == [("ana",)]
