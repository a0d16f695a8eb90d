"""`LocalExecutor` in the test's own process: running, attaching, signals."""

import datetime as dt
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from sqlalchemy import make_url

from jobrunner import statements
from jobrunner.database import Database, get_database
from jobrunner.errors import (
    ClaimLost,
    DatabaseUnavailable,
    JobFailed,
    JobKilled,
    JobLost,
    JobNotFound,
    JobrunnerError,
    Released,
    SettingsError,
    UsageError,
)
from jobrunner.executors.local import LocalExecutor
from jobrunner.models import BaseJob
from jobrunner.settings import configure
from jobrunner.statements import Claim
from jobrunner.states import JobState, Phase
from jobrunner.testing import Fault, MemoryBackend, MemoryMonitorJob, Plan, use_backend
from tests.helpers import (
    CodeJob,
    Run,
    a_running_job,
    beat_for_ever,
    events_of,
    insert_job,
    plain_connection,
    plain_sql,
    row_of,
    until,
)
from tests.postgres import Postgres
from tests.proxy import Proxy
from tests.runner.support import SOON, Thread, a_job, an_outside


def signal_soon(condition: Callable[[], object], *numbers: int) -> threading.Thread:
    """Send this process signals, one after the other, once a condition holds."""

    def send() -> None:
        until(condition)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    return Thread(send)


# --- running -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends_as", "error"), [(Phase.SUCCEEDED, None), (Phase.FAILED, JobFailed), (Phase.CANCELLED, JobFailed)]
)
def test_run_stores_watches_and_raises_as_the_job_ended(
    database: Database, ends_as: Phase, error: type[JobrunnerError] | None
) -> None:
    started: list[int] = []
    job = a_job(
        executor=LocalExecutor(on_started=started.append), spec={"run_for_s": 0.1, "ends_as": str(ends_as)}
    )
    with use_backend(an_outside()):
        if error is None:
            job.run()
        else:
            with pytest.raises(error, match="Job 1 failed: "):
                job.run()
    assert started == [job.id]
    assert job.state is (JobState.SUCCESS if error is None else JobState.FAILED)
    assert job.executor_class == "LocalExecutor"
    assert row_of(database, job.id)["start_date"] is not None


def test_run_without_an_executor_takes_this_process(sqlite_database: Database) -> None:
    with use_backend(an_outside(SOON)):
        job = a_job()
        job.run()
    assert job.state is JobState.SUCCESS


def test_a_lost_job_raises_job_lost(sqlite_database: Database) -> None:
    outside = an_outside()
    outside.order(Fault.VANISH, times=None, certain=True)
    with use_backend(outside), pytest.raises(JobLost):
        a_job().run()


def test_a_queued_job_can_be_run_and_a_finished_one_cannot(database: Database) -> None:
    with use_backend(an_outside(SOON)):
        job = a_job().store()
        job.run()
        assert job.state is JobState.SUCCESS
        with pytest.raises(UsageError, match="is success, not queued"):
            job.run()


def test_a_running_job_cannot_be_run_a_second_time(database: Database) -> None:
    claim, _ = a_running_job(database, job_type="MemoryMonitorJob", connection="memory_default")
    with use_backend(an_outside()), pytest.raises(UsageError, match="is running, not queued"):
        BaseJob.get(claim.job_id).run()
    assert row_of(database, claim.job_id)["claims"] == 1


def test_a_job_whose_connection_is_not_configured_is_not_claimed(sqlite_database: Database) -> None:
    job_id = insert_job(sqlite_database, job_type="MemoryMonitorJob", connection="nobody_knows_it")
    with use_backend(an_outside()):
        with pytest.raises(SettingsError, match="nobody_knows_it"):
            LocalExecutor().attach(job_id)
        with pytest.raises(SettingsError, match="nobody_knows_it"):
            BaseJob.get(job_id).run()
    row = row_of(sqlite_database, job_id)
    assert (row["state"], row["claims"]) == (JobState.QUEUED, 0)


@pytest.mark.parametrize("deleted", [True, False])
def test_run_says_that_its_job_was_taken_or_deleted(
    database: Database, database_url: str, deleted: bool
) -> None:
    job = a_job(heartrate=0.2)
    with use_backend(an_outside()):
        running = Thread(job.run)
        until(lambda: job.id and row_of(database, job.id)["external_id"])
        plain_sql(database_url, "DELETE FROM job_event")
        plain_sql(
            database_url,
            "DELETE FROM job" if deleted else "UPDATE job SET runner_id = 'another', claims = claims + 1",
        )
        error = running.ended()
    assert isinstance(error, ClaimLost)
    assert ("was deleted" if deleted else "taken over by runner another") in str(error)


def test_run_works_from_another_thread_and_leaves_the_signals_alone(sqlite_database: Database) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with use_backend(an_outside(Plan(run_for_s=0.5))):
        running = Thread(a_job().run)
        time.sleep(0.2)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
        assert running.ended() is None


# --- signals -------------------------------------------------------------------------------------


def test_a_closed_terminal_that_is_ignored_as_by_nohup_stops_nothing(sqlite_database: Database) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        job = a_job()
        with use_backend(an_outside(Plan(run_for_s=1.0))):
            sender = signal_soon(
                lambda: job.id and row_of(sqlite_database, job.id)["external_state"], signal.SIGHUP
            )
            job.run()
            sender.join()
        assert job.state is JobState.SUCCESS
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_releases_the_job_and_the_former_handlers_come_back(
    database: Database, number: signal.Signals
) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda got, _frame: heard.append(got))
    try:
        outside = an_outside()
        job = a_job()
        with use_backend(outside):
            sender = signal_soon(lambda: job.id and row_of(database, job.id)["external_state"], number)
            with pytest.raises(Released) as caught:
                job.run()
            sender.join()
        assert caught.value.signal == number
        assert f"Stopped by {number.name}: job {job.id} goes on" in str(caught.value)
        assert (job.state, job.runner_id) == (JobState.QUEUED, None)
        assert outside.calls["cancel"] == 0
        os.kill(os.getpid(), number)
        until(lambda: heard == [number])
    finally:
        signal.signal(number, before)


def test_a_signal_with_on_exit_kill_kills_and_waits_for_the_end(database: Database) -> None:
    job = a_job(executor=LocalExecutor(on_exit="kill"))
    with use_backend(an_outside(Plan(cancel_takes_s=0.5))):
        sender = signal_soon(lambda: job.id and row_of(database, job.id)["external_state"], signal.SIGTERM)
        with pytest.raises(JobKilled, match="its monitor was stopped by SIGTERM"):
            job.run()
        sender.join()
    assert job.state is JobState.KILLED


def test_a_second_signal_releases_a_job_that_does_not_end(sqlite_database: Database) -> None:
    job = a_job(executor=LocalExecutor(on_exit="kill"))
    with use_backend(an_outside(Plan(ignores_cancel=True))):
        sender = signal_soon(
            lambda: job.id and row_of(sqlite_database, job.id)["external_state"],
            signal.SIGTERM,
            signal.SIGINT,
        )
        with pytest.raises(Released) as caught:
            job.run()
        sender.join()
    assert caught.value.signal == signal.SIGINT
    assert job.state is JobState.QUEUED
    assert job.kill_requested_at is not None


def test_a_signal_while_the_work_is_being_submitted_does_not_lose_it(sqlite_database: Database) -> None:
    outside = an_outside()
    slow = outside.order(Fault.SLOW, call="submit", delay_s=1.0)
    job = a_job()
    with use_backend(outside):
        sender = signal_soon(lambda: slow.served, signal.SIGTERM)
        with pytest.raises(Released):
            job.run()
        sender.join()
    assert job.state is JobState.QUEUED
    assert job.external_id in outside.jobs


def test_a_signal_while_a_throttled_submission_waits_is_heeded_at_once(sqlite_database: Database) -> None:
    outside = an_outside()
    order = outside.order(Fault.THROTTLE, call="submit", times=None, retry_after_s=60)
    job = a_job()
    with use_backend(outside):
        sender = signal_soon(lambda: order.served, signal.SIGTERM)
        begun_s = time.monotonic()
        with pytest.raises(Released):
            job.run()
        assert time.monotonic() - begun_s < 5
        sender.join()


# --- attaching -----------------------------------------------------------------------------------


def test_attaching_to_a_released_job_owns_it_and_submits_nothing(database: Database) -> None:
    outside = an_outside()
    job = a_job()
    with use_backend(outside):
        sender = signal_soon(lambda: job.id and row_of(database, job.id)["external_state"], signal.SIGTERM)
        with pytest.raises(Released):
            job.run()
        sender.join()
        outside.succeed(next(iter(outside.jobs)))
        LocalExecutor().attach(job.id)
    assert job.reload().state is JobState.SUCCESS
    assert outside.calls["submit"] == 1
    assert job.claims == 2


def test_attaching_to_a_queued_job_runs_it(sqlite_database: Database) -> None:
    with use_backend(an_outside(SOON)):
        job = a_job().store()
        LocalExecutor().attach(job.id)
    assert job.reload().state is JobState.SUCCESS


def test_attaching_to_an_ended_job_tells_how_it_ended(database: Database) -> None:
    with use_backend(an_outside(Plan(run_for_s=0.05, ends_as=Phase.FAILED, message="no such table"))):
        job = a_job()
        with pytest.raises(JobFailed):
            job.run()
        with pytest.raises(JobFailed, match="no such table"):
            LocalExecutor().attach(job.id)


def test_attaching_to_a_job_that_is_not_there_is_said(database: Database) -> None:
    with pytest.raises(JobNotFound, match="There is no job 4711"):
        LocalExecutor().attach(4711)


def test_a_users_own_job_cannot_be_attached_to(database: Database) -> None:
    job_id = insert_job(database, job_type="SomebodysOwnJob", adoptable=False)
    with pytest.raises(UsageError, match="SomebodysOwnJob, which runs its own code"):
        LocalExecutor().attach(job_id)


def test_a_job_of_a_type_that_is_not_installed_is_told_from_one_that_runs_code(database: Database) -> None:
    job_id = insert_job(database, job_type="OfAnotherHouse")
    with pytest.raises(UsageError, match="'OfAnotherHouse', which is not installed here"):
        LocalExecutor().attach(job_id)


def test_an_orphan_that_runs_its_own_code_is_lost_once_somebody_sees_to_its_kill(
    database: Database, database_url: str
) -> None:
    claim, _ = a_running_job(database, job_type="SomebodysOwnJob", adoptable=False, heartrate=0.2)
    began = time.monotonic()
    with pytest.raises(JobLost, match="nobody can go on with its code"):
        LocalExecutor().finish_kill(claim.job_id)
    assert time.monotonic() - began >= 0.2 * 2.1  # a whole grace, seen by ourselves
    assert row_of(database, claim.job_id)["end_date"] is not None
    assert events_of(database_url, claim.job_id)[-1] == ("running", "lost")


def test_a_users_own_job_that_lives_is_left_to_its_owner(database: Database) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=0.1)) as run:
        run.job.request_kill(reason="enough")
        with pytest.raises(JobKilled, match="enough"):
            LocalExecutor().finish_kill(run.job.id)


def test_the_job_of_a_host_that_stays_silent_is_lost_after_the_grace_for_hosts(
    database: Database, database_url: str
) -> None:
    configure(host_grace_s=5)
    values = {"job_type": "ProcessMonitorJob", "host_id": "mars/boot/1", "hostname": "mars", "heartrate": 0.2}
    claim, _ = a_running_job(database, connection="process_default", **values)
    with pytest.raises(UsageError, match="on that host"):
        LocalExecutor().attach(claim.job_id)
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=3)
    plain_sql(database_url, f"UPDATE job SET latest_heartbeat = '{long_ago:%Y-%m-%d %H:%M:%S}+00:00'")
    with pytest.raises(JobLost, match=r"has been silent for 3\.0 h"):
        LocalExecutor().attach(claim.job_id)


def test_a_follower_that_is_stopped_leaves_the_owner_alone(database: Database) -> None:
    outside = an_outside()
    job = a_job()
    with use_backend(outside):
        owner = Thread(job.run)
        until(lambda: job.id and row_of(database, job.id)["external_state"])
        started: list[int] = []
        sender = signal_soon(lambda: started, signal.SIGINT)
        with pytest.raises(Released):
            LocalExecutor(on_started=started.append).attach(job.id)
        sender.join()
        row = row_of(database, job.id)
        assert (row["state"], row["claims"]) == (JobState.RUNNING, 1)
        outside.succeed(row["external_id"])
        assert owner.ended() is None


def test_a_follower_waits_through_an_outage_and_makes_nobody_an_orphan_for_it(
    postgres: Postgres, postgres_database: Database, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    claim, _ = a_running_job(
        postgres_database,
        job_type="MemoryMonitorJob",
        connection="memory_default",
        heartrate=0.5,
        submit_token="t",
    )
    outside = an_outside()
    with Proxy(postgres.socket_dir) as proxy, use_backend(outside):
        name = make_url(postgres_url).database or ""
        configure(database_url=postgres.url(name, proxy.socket_dir), connect_timeout_s=2)
        follower = Thread(lambda: LocalExecutor().attach(claim.job_id))
        time.sleep(0.5)
        proxy.is_refusing = True
        proxy.cut()
        time.sleep(1.5)
        proxy.is_refusing = False
        back_s = time.monotonic()
        until(lambda: row_of(postgres_database, claim.job_id)["claims"] == 2)
        assert time.monotonic() - back_s > 0.9, "its owner has a whole grace to beat again"
        until(lambda: outside.jobs)
        outside.succeed(next(iter(outside.jobs)))
        assert follower.ended() is None
        get_database().dispose()
        postgres_database.dispose()
    said = [each for each in caplog.messages if "cannot be looked at" in each]
    assert len(said) == 1


@contextmanager
def held_locked(url: str, job_id: int) -> Iterator[Any]:
    """Hold a job's row as an open session of psql does; ROLLBACK lets it go."""
    with closing(plain_connection(url)) as holder:
        holder.execute("BEGIN")
        holder.execute(f"UPDATE job SET name = 'mine' WHERE id = {job_id}")
        yield holder


def beat_again(database: Database, claim: Claim) -> None:
    """Beat as an owner does who could not, and find that the job is still his."""
    with database.write() as connection:
        assert statements.beat(connection, claim.runner_id, [claim.job_id])


def test_a_follower_does_not_take_a_job_whose_row_somebody_held_locked_for_an_orphan(
    postgres_database: Database, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Its owner lives, and cannot beat: he needs a moment after the lock is gone.
    values = {"job_type": "MemoryMonitorJob", "connection": "memory_default", "submit_token": "t"}
    claim, _ = a_running_job(postgres_database, heartrate=0.5, **values)
    outside = an_outside()
    with use_backend(outside):
        with held_locked(postgres_url, claim.job_id) as holder:
            follower = Thread(lambda: LocalExecutor().attach(claim.job_id))
            time.sleep(2.0)  # a whole grace, and nearly another
            holder.execute("ROLLBACK")
            beat_again(postgres_database, claim)
            free_s = time.monotonic()
        until(lambda: row_of(postgres_database, claim.job_id)["claims"] == 2)  # now it is one
        assert time.monotonic() - free_s > 0.9, "its owner has a whole grace to beat again"
        until(lambda: outside.jobs)
        outside.succeed(next(iter(outside.jobs)))
        assert follower.ended() is None
    said = [each for each in caplog.messages if "held locked" in each]
    assert len(said) == 1


def test_an_owners_code_is_not_lost_while_somebody_holds_the_row_locked(
    postgres_database: Database, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    claim, _ = a_running_job(postgres_database, job_type="SomebodysOwnJob", adoptable=False, heartrate=0.5)
    with held_locked(postgres_url, claim.job_id) as holder:
        killer = Thread(lambda: LocalExecutor().finish_kill(claim.job_id))
        time.sleep(2.0)
        holder.execute("ROLLBACK")
        beat_again(postgres_database, claim)
        free_s = time.monotonic()
    assert isinstance(killer.ended(), JobLost)
    assert time.monotonic() - free_s > 0.9, "its owner has a whole grace to beat again"
    said = [each for each in caplog.messages if "held locked" in each]
    assert len(said) == 1


def test_a_follower_that_waits_for_a_locked_row_can_be_stopped(
    postgres_database: Database, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"job_type": "MemoryMonitorJob", "connection": "memory_default", "submit_token": "t"}
    claim, _ = a_running_job(postgres_database, heartrate=0.2, **values)
    with use_backend(an_outside()), held_locked(postgres_url, claim.job_id):
        sender = signal_soon(lambda: "held locked" in caplog.text, signal.SIGINT)
        with pytest.raises(Released):
            LocalExecutor().attach(claim.job_id)
        sender.join()
    assert row_of(postgres_database, claim.job_id)["claims"] == 1


def test_finish_kill_cancels_what_a_dead_owner_left(database: Database) -> None:
    outside = an_outside()
    job = a_job()
    with use_backend(outside):
        sender = signal_soon(lambda: job.id and row_of(database, job.id)["external_state"], signal.SIGTERM)
        with pytest.raises(Released):
            job.run()
        sender.join()
        assert job.request_kill(by="anna") is JobState.QUEUED
        with pytest.raises(JobKilled, match="killed by anna"):
            LocalExecutor().finish_kill(job.id)
    (made,) = outside.jobs.values()
    assert made.phase is Phase.CANCELLED


def test_how_a_watch_ended_is_told_even_where_the_row_cannot_be_read_any_more(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reload(self: MemoryMonitorJob, session: Any = None) -> Any:
        raise DatabaseUnavailable("away")

    outside: MemoryBackend = an_outside()
    job = a_job()
    with use_backend(outside):
        sender = signal_soon(
            lambda: job.id and row_of(sqlite_database, job.id)["external_state"], signal.SIGTERM
        )
        monkeypatch.setattr(MemoryMonitorJob, "reload", reload)
        with pytest.raises(Released):
            job.run()
        sender.join()
