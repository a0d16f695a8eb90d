"""The API of BaseJob: what users of Airflow's know, and what is new."""

import datetime as dt
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from jobrunner import statements
from jobrunner.clock import utcnow
from jobrunner.database import Database
from jobrunner.errors import (
    DatabaseUnavailable,
    JobFailed,
    JobKilled,
    JobLost,
    JobNotFound,
    NotOwner,
    SpecError,
    UsageError,
    WaitTimeout,
)
from jobrunner.models import BaseJob, ProcessMonitorJob, UnknownJob
from jobrunner.settings import configure
from jobrunner.statements import Claim
from jobrunner.states import JobState
from jobrunner.testing import MemoryMonitorJob
from tests.helpers import CodeJob, Run, beat_for_ever, events_of, insert_job, plain_sql, row_of


class OtherJob(BaseJob):
    def _execute(self) -> None:
        self.heartbeat(only_if_necessary=True)


class NamedJob(BaseJob, job_type="tests.Named"):
    pass


class Family(BaseJob, abstract=True):
    pass


class Child(Family):
    pass


# --- the constructor ------------------------------------------------------------------------------


def test_the_heartrate_of_the_constructor_beats_the_settings() -> None:
    configure(heartrate=7, job_types={"CodeJob": {"heartrate": 8}})
    assert OtherJob().heartrate == 7
    assert CodeJob().heartrate == 8
    assert CodeJob(heartrate=9).heartrate == 9


@pytest.mark.parametrize("heartrate", [0, -1, float("nan"), float("inf")])
def test_a_heartrate_that_cannot_be_kept_is_refused(heartrate: float) -> None:
    with pytest.raises(UsageError, match="heartrate"):
        OtherJob(heartrate=heartrate)


@pytest.mark.parametrize("timeout", [0, -3, float("inf"), float("nan")])
def test_a_timeout_that_leaves_no_time_is_refused(timeout: float) -> None:
    with pytest.raises(UsageError, match="timeout"):
        OtherJob(timeout=timeout)


def test_a_naive_time_is_refused_by_the_object() -> None:
    with pytest.raises(UsageError, match=r"latest_heartbeat .* has no time zone"):
        OtherJob(latest_heartbeat=dt.datetime(2026, 1, 1))  # noqa: DTZ001


class Exits:
    """A value of others whose text exits."""

    def __repr__(self) -> str:
        raise SystemExit(3)

    __str__ = __repr__


REFUSED: dict[str, tuple[Callable[..., BaseJob], dict[str, Any]]] = {
    "a spec that is a list": (OtherJob, {"spec": ["a"]}),
    "a spec that is a text": (MemoryMonitorJob, {"spec": "a"}),
    "a spec of work outside that is a list": (MemoryMonitorJob, {"spec": ["a"]}),
    "an empty list as a spec": (MemoryMonitorJob, {"spec": []}),
    "a key": (OtherJob, {"key": Exits()}),
    "a heartrate": (OtherJob, {"heartrate": Exits()}),
    "a timeout": (OtherJob, {"timeout": Exits()}),
    "a poll interval": (MemoryMonitorJob, {"poll_interval": Exits()}),
    "a start timeout": (MemoryMonitorJob, {"start_timeout": Exits()}),
    "a number as a cause": (MemoryMonitorJob, {"resubmit": {1: 1}}),
    "an odd cause": (MemoryMonitorJob, {"resubmit": {Exits(): 1}}),
    "an odd count": (MemoryMonitorJob, {"resubmit": {"oom": Exits()}}),
    "a count alone": (MemoryMonitorJob, {"resubmit": 3}),
    "causes alone": (MemoryMonitorJob, {"resubmit": ["oom"]}),
}


@pytest.mark.parametrize(("job_class", "options"), REFUSED.values(), ids=REFUSED)
def test_a_value_that_no_job_can_have_is_refused_in_one_sentence(
    job_class: Callable[..., BaseJob], options: dict[str, Any]
) -> None:
    with pytest.raises((UsageError, SpecError)) as refused:
        job_class(**options)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("job_type", ["etl\0x", "etl\udc80", 7, Exits()])
def test_a_job_type_that_no_row_can_carry_is_refused_with_its_class(job_type: Any) -> None:
    known = set(BaseJob.__mapper__.polymorphic_map)
    with pytest.raises(UsageError, match="of Odd cannot be stored as it is"):
        type("Odd", (OtherJob,), {}, job_type=job_type)
    assert set(BaseJob.__mapper__.polymorphic_map) == known


def test_the_executor_gives_its_classs_name() -> None:
    class CeleryExecutor:
        pass

    assert OtherJob().executor_class == "LocalExecutor"
    assert OtherJob(CeleryExecutor()).executor_class == "CeleryExecutor"


def test_a_job_knows_where_it_was_made() -> None:
    job = OtherJob()
    assert job.hostname
    assert job.unixname


@pytest.mark.parametrize("abstract", [BaseJob, Family])
def test_base_job_itself_and_abstract_families_have_no_jobs_of_their_own(abstract: type[BaseJob]) -> None:
    with pytest.raises(InvalidRequestError, match="abstract"):
        abstract()


# --- liveness -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "age", "alive"),
    [
        (JobState.RUNNING, dt.timedelta(seconds=20), True),
        (JobState.RUNNING, dt.timedelta(seconds=21), False),
        (JobState.RUNNING, dt.timedelta(days=1), False),
        (JobState.SUCCESS, dt.timedelta(seconds=10), False),
        (JobState.RUNNING, dt.timedelta(seconds=-9), True),
        (JobState.RUNNING, dt.timedelta(seconds=-20), False),
    ],
)
def test_an_object_that_was_never_stored_is_judged_by_what_it_holds(
    state: JobState, age: dt.timedelta, alive: bool
) -> None:
    job = OtherJob(heartrate=10, state=state)
    job.latest_heartbeat = utcnow() - age
    assert job.is_alive() is alive


@pytest.mark.parametrize("grace", [1, 0.5, 0, -1, float("nan"), float("inf")])
def test_a_grace_of_one_heartrate_or_less_is_refused(grace: float) -> None:
    with pytest.raises(UsageError, match="grace"):
        OtherJob().is_alive(grace_multiplier=grace)


@pytest.mark.parametrize(("age_s", "alive"), [(0, True), (15, True), (25, False), (-5, True), (-25, False)])
def test_a_stored_job_is_judged_by_its_row_and_the_databases_clock(
    database: Database, database_url: str, age_s: int, alive: bool
) -> None:
    job = CodeJob(beat_for_ever, heartrate=10)
    job_id = insert_running(database)
    set_age(database_url, job_id, age_s)
    job = CodeJob.get(job_id)  # type: ignore[assignment]
    job.latest_heartbeat = utcnow() + dt.timedelta(days=1)  # what memory says does not matter
    assert job.is_alive() is alive


def insert_running(database: Database, **values: Any) -> int:
    from tests.helpers import an_owner

    return insert_job(database, an_owner(), **{"job_type": "CodeJob"} | values)


def set_age(url: str, job_id: int, age_s: float) -> None:
    past = (
        f"strftime('%Y-%m-%d %H:%M:%f', 'now', '{-age_s} seconds')"
        if url.startswith("sqlite")
        else f"clock_timestamp() - interval '{age_s} seconds'"
    )
    plain_sql(url, f"UPDATE job SET latest_heartbeat = {past} WHERE id = {job_id}")


# --- run: how it ends -----------------------------------------------------------------------------


def test_a_job_that_returns_is_a_success(database: Database, database_url: str) -> None:
    job = CodeJob(heartrate=10)
    job.run()
    row = row_of(database, job.id)
    assert (job.state, row["state"]) == (JobState.SUCCESS, JobState.SUCCESS)
    assert row["end_date"] >= row["start_date"]
    assert job.end_date == row["end_date"]
    assert events_of(database_url, job.id) == [(None, "running"), ("running", "success")]


def exits_with(code: Any) -> Any:
    def code_of_job(_job: CodeJob) -> None:
        raise SystemExit(code)

    return code_of_job


@pytest.mark.parametrize("code", [0, None])
def test_sys_exit_0_is_a_success(database: Database, code: object) -> None:
    job = CodeJob(exits_with(code))
    job.run()
    assert job.state == JobState.SUCCESS


@pytest.mark.parametrize("code", [3, "out of memory", [1]])
def test_any_other_exit_is_a_failure_and_is_raised_again(database: Database, code: object) -> None:
    job = CodeJob(exits_with(code))
    with pytest.raises(SystemExit):
        job.run()
    assert job.state == JobState.FAILED
    assert job.end_date is not None
    assert str(code) in str(job.message)


def test_an_exception_is_a_failure_and_is_raised_again(database: Database) -> None:
    def fail(_job: CodeJob) -> None:
        raise LookupError("no such table in the warehouse")

    job = CodeJob(fail)
    with pytest.raises(LookupError):
        job.run()
    row = row_of(database, job.id)
    assert (row["state"], row["end_date"] is not None) == (JobState.FAILED, True)
    assert row["message"] == "LookupError: no such table in the warehouse"


def test_a_killed_job_of_another_fails_the_one_that_waits_for_it(database: Database) -> None:
    other = CodeJob().store()
    other.request_kill()
    job = CodeJob(lambda _job: other.result())
    with pytest.raises(JobKilled):
        job.run()
    assert job.reload().state == JobState.FAILED
    assert job.kills == 0


def test_a_timeout_ends_the_job_as_failed_without_waiting_for_the_next_beat(database: Database) -> None:
    job = CodeJob(beat_for_ever, heartrate=60, timeout=0.3)
    begun_s = time.monotonic()
    with pytest.raises(JobFailed, match="timeout"):
        job.run()
    assert time.monotonic() - begun_s < 20
    assert (job.state, job.message, job.kills) == (JobState.FAILED, "the timeout has passed", 1)
    assert job.deadline_at is not None


def test_a_job_runs_once(database: Database) -> None:
    job = CodeJob()
    job.run()
    with pytest.raises(UsageError, match="not queued"):
        job.run()
    assert row_of(database, job.id)["claims"] == 1


def test_a_running_job_cannot_be_run_from_within(database: Database) -> None:
    job = CodeJob(lambda job: job.run())
    with pytest.raises(UsageError, match="not queued"):
        job.run()
    assert job.state == JobState.FAILED


def test_a_stored_job_can_be_run_later(database: Database, database_url: str) -> None:
    job = CodeJob().store()
    assert (job.state, row_of(database, job.id)["runner_id"]) == (JobState.QUEUED, None)
    job.run()
    assert job.state == JobState.SUCCESS
    assert events_of(database_url, job.id) == [
        (None, "queued"),
        ("queued", "running"),
        ("running", "success"),
    ]


def test_what_could_not_be_committed_is_not_stored_and_may_be_stored_again(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Database.write

    @contextmanager
    def disk_full(self: Database) -> Iterator[Connection]:
        with real(self) as connection:
            yield connection
            raise DatabaseUnavailable("database or disk is full")

    job = OtherJob()
    monkeypatch.setattr(Database, "write", disk_full)
    with pytest.raises(DatabaseUnavailable):
        job.store()
    monkeypatch.undo()
    other = OtherJob().store()
    assert job.store().id != other.id
    assert row_of(sqlite_database, job.id)["state"] is JobState.QUEUED


def test_storing_twice_stores_once(database: Database, database_url: str) -> None:
    CodeJob().store().store()
    assert plain_sql(database_url, "SELECT count(*) FROM job") == [(1,)]


def test_a_queued_job_with_a_flag_set_by_plain_sql_is_killed_before_its_code(
    database: Database, database_url: str
) -> None:
    job = CodeJob(lambda _job: pytest.fail("its code ran")).store()
    plain_sql(database_url, "UPDATE job SET kill_requested_at = '2026-01-01 00:00:00'")
    with pytest.raises(JobKilled):
        job.run()
    assert job.state == JobState.KILLED


def test_a_job_that_was_killed_in_the_queue_does_not_run(database: Database) -> None:
    job = CodeJob().store()
    assert job.request_kill(reason="not needed any more") == JobState.KILLED
    assert row_of(database, job.id)["message"] == "killed before it started: not needed any more"
    with pytest.raises(UsageError, match="killed, not queued"):
        job.run()


# --- only the owner -------------------------------------------------------------------------------


def test_who_does_not_run_a_job_can_neither_beat_for_it_nor_kill_it(database: Database) -> None:
    job = CodeJob()
    for act in (job.heartbeat, job.kill):
        with pytest.raises(NotOwner, match="request_kill"):
            act()
    with Run(CodeJob(beat_for_ever, heartrate=0.1)) as run:
        elsewhere = CodeJob.get(run.job.id)
        for act in (elsewhere.heartbeat, elsewhere.kill):
            with pytest.raises(NotOwner):
                act()
        elsewhere.request_kill()


def test_a_job_that_has_ended_is_no_longer_its_runs(database: Database) -> None:
    job = CodeJob()
    job.run()
    with pytest.raises(NotOwner):
        job.heartbeat()


def test_kill_within_the_owner_calls_on_kill_and_ends_it_as_killed(database: Database) -> None:
    job = CodeJob(lambda job: job.kill())
    with pytest.raises(JobKilled):
        job.run()
    assert (job.state, job.kills) == (JobState.KILLED, 1)
    assert job.end_date is not None


# --- most_recent_job ------------------------------------------------------------------------------


def test_the_most_recent_job_is_found_in_the_session_that_holds_it(database: Database) -> None:
    with database.session() as session:
        old, job = OtherJob(heartrate=10), OtherJob(heartrate=10)
        old.latest_heartbeat = utcnow() - dt.timedelta(seconds=20)
        session.add(job)
        session.add(old)
        session.flush()
        assert OtherJob.most_recent_job(session=session) == job


def test_what_is_only_added_to_the_session_is_found_too(database: Database) -> None:
    with database.session() as session:
        job = OtherJob(heartrate=10)
        session.add(job)
        assert OtherJob.most_recent_job(session=session) is job


def test_a_running_job_comes_before_one_with_a_later_heartbeat(database: Database) -> None:
    with database.session() as session:
        running, later = OtherJob(state=JobState.RUNNING), OtherJob(state=JobState.SUCCESS)
        running.latest_heartbeat = utcnow() - dt.timedelta(hours=1)
        session.add_all([running, later])
        session.commit()
    found = OtherJob.most_recent_job()
    assert found is not None
    assert found.id == running.id


def test_a_row_of_an_orm_session_without_an_end_is_found_by_its_heartbeat(database: Database) -> None:
    with database.session() as session:
        old, later = OtherJob(state=JobState.FAILED), OtherJob(state=JobState.SUCCESS)
        old.latest_heartbeat = utcnow() - dt.timedelta(hours=1)
        session.add_all([later, old])
        session.commit()
    found = OtherJob.most_recent_job()
    assert found is not None
    assert found.id == later.id


def test_the_most_recent_job_is_of_its_own_type_and_on_base_job_of_any(database: Database) -> None:
    assert BaseJob.most_recent_job() is None
    child, named = Child().store(), NamedJob().store()
    for job_class, expected in [(Child, child), (Family, child), (NamedJob, named), (BaseJob, named)]:
        found = job_class.most_recent_job()
        assert (type(found), found and found.id) == (type(expected), expected.id)
    assert OtherJob.most_recent_job() is None


def test_the_last_ended_is_the_most_recent_when_none_runs(database: Database, database_url: str) -> None:
    first, second = CodeJob().store(), CodeJob().store()
    second.run()
    first.run()
    found = CodeJob.most_recent_job()
    assert found is not None
    assert found.id == first.id
    assert not found.is_alive()


# --- asking ---------------------------------------------------------------------------------------


def test_a_job_can_be_got_as_its_own_type(database: Database) -> None:
    stored = NamedJob(name="nightly").store()
    assert plain_type(stored.id) == NamedJob
    with database.session() as session:
        assert BaseJob.get(stored.id, session=session) is session.get(NamedJob, stored.id)


def plain_type(job_id: int) -> type:
    return type(BaseJob.get(job_id))


def test_a_job_that_is_not_there_is_not_found(database: Database) -> None:
    with pytest.raises(JobNotFound, match="jobrunner list"):
        BaseJob.get(4711)
    job = CodeJob().store()
    job.id = 4711
    for ask in (job.reload, job.request_kill, job.wait):
        with pytest.raises(JobNotFound):
            ask()
    assert not job.is_alive()


@pytest.mark.parametrize("job_id", [2**63, 2**70, -1, 0, "x", "9" * 5000, float("nan"), None, Exits()])
def test_an_id_that_no_row_can_have_is_not_found(database: Database, job_id: Any) -> None:
    with pytest.raises(JobNotFound, match="There is no job"):
        BaseJob.get(job_id)


def test_what_needs_a_row_says_so(database: Database) -> None:
    job = CodeJob()
    for ask in (job.reload, job.request_kill, job.wait, lambda: job.events, lambda: job.enqueued):
        with pytest.raises(UsageError, match="never stored"):
            ask()


def test_a_row_of_an_unknown_type_is_an_unknown_job(database: Database) -> None:
    job_id = insert_job(database, job_type="of.a.Newer.Version")
    job = BaseJob.most_recent_job()
    assert isinstance(job, UnknownJob)
    assert (job.id, job.job_type) == (job_id, "of.a.Newer.Version")
    assert isinstance(BaseJob.get(job_id), UnknownJob)
    with database.session() as session:
        assert isinstance(BaseJob.most_recent_job(session=session), UnknownJob)
    assert job.request_kill() == JobState.KILLED
    assert job.reload().job_type == "of.a.Newer.Version"


@pytest.mark.parametrize("raised", [SystemExit(3), GeneratorExit(), ImportError("no such module")], ids=repr)
def test_a_row_whose_class_cannot_be_imported_is_an_unknown_job(
    database: Database, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    class Broken:
        def load(self) -> None:
            raise raised

    monkeypatch.setattr("jobrunner.registry.entry_points", lambda **_of: [Broken()])
    assert plain_type(insert_job(database, job_type="installed.Elsewhere")) is UnknownJob


def test_wait_returns_the_state_in_which_it_ended(database: Database) -> None:
    with Run(CodeJob(beat_for_ever, heartrate=0.05)) as run:
        waiting = CodeJob.get(run.job.id)
        with pytest.raises(WaitTimeout, match="still running"):
            waiting.wait(timeout=0.1)
        waiting.request_kill()
        assert waiting.wait(timeout=30) == JobState.KILLED


@pytest.mark.parametrize(
    ("state", "error", "how"),
    [
        (JobState.FAILED, JobFailed, "failed"),
        (JobState.KILLED, JobKilled, "was killed"),
        (JobState.LOST, JobLost, "was lost"),
    ],
)
def test_the_result_of_a_job_that_ended_badly_is_an_error_that_names_it(
    database: Database, state: JobState, error: type[JobFailed], how: str
) -> None:
    from jobrunner import statements
    from tests.helpers import a_running_job

    claim, _ = a_running_job(database, job_type="CodeJob")
    with database.write() as connection:
        assert statements.end(connection, claim, state, "the disk was full")
    with pytest.raises(error, match=f"Job {claim.job_id} {how}: the disk was full") as caught:
        CodeJob.get(claim.job_id).result()
    assert caught.value.job_id == claim.job_id


def test_the_result_of_a_success_is_what_was_kept_of_it(database: Database) -> None:
    job = CodeJob()
    job.run()
    assert job.result() is None


def test_events_tell_who_did_what_and_why(database: Database) -> None:
    job = CodeJob().store()
    job.request_kill(by="anna", reason="a typo")
    stored, killed = job.events
    assert (stored.from_state, stored.to_state, stored.reason) == (None, JobState.QUEUED, "stored")
    assert (killed.from_state, killed.to_state, killed.actor) == (JobState.QUEUED, JobState.KILLED, "anna")
    assert killed.reason == "killed before it started: a typo"
    assert killed.at.tzinfo == dt.UTC
    assert "queued -> killed by anna" in repr(killed)


def test_a_job_lists_what_it_enqueued(database: Database) -> None:
    parent = CodeJob().store()
    children = [Child(parent_id=parent.id).store(), NamedJob(parent_id=parent.id).store()]
    insert_job(database, job_type="Unheard", parent_id=parent.id)
    assert [job.id for job in parent.enqueued[:2]] == [job.id for job in children]
    assert [type(job) for job in parent.enqueued] == [Child, NamedJob, UnknownJob]


def test_a_job_may_be_stored_in_the_callers_own_transaction(database: Database, database_url: str) -> None:
    with database.session() as session:
        CodeJob().store(session)
        session.rollback()
    assert plain_sql(database_url, "SELECT count(*) FROM job") == [(0,)]
    with database.session() as session:
        job = CodeJob().store(session)
        assert job.request_kill(session=session) == JobState.KILLED
        session.commit()
    assert plain_sql(database_url, "SELECT id, state FROM job") == [(job.id, "killed")]


# --- the callback ---------------------------------------------------------------------------------


class CallbackJob(CodeJob):
    trouble: Exception | None = None
    calls = 0

    def heartbeat_callback(self, session: Session | None = None) -> None:
        self.calls += 1
        assert session is not None
        assert session.execute(text("SELECT count(*) FROM job")).scalar() == 1
        if self.trouble is not None:
            raise self.trouble
        if self.calls == 2:
            session.execute(text("SELECT 1 FROM there_is_no_such_table"))


def beat_thrice(job: CodeJob) -> None:
    for _ in range(3):
        job.heartbeat()


def test_the_callback_gets_a_session_and_its_database_errors_are_forgiven(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    job = CallbackJob(beat_thrice, heartrate=0.02)
    with caplog.at_level(logging.WARNING):
        job.run()
    assert (job.state, job.calls) == (JobState.SUCCESS, 3)
    assert [record.message for record in caplog.records if "heartbeat_callback failed" in record.message]


def test_any_other_error_of_the_callback_fails_the_job(database: Database) -> None:
    job = CallbackJob(beat_thrice, heartrate=0.02)
    job.trouble = ZeroDivisionError("in the callback")
    with pytest.raises(ZeroDivisionError):
        job.run()
    assert job.state == JobState.FAILED


def test_before_its_time_a_beat_only_if_necessary_does_nothing_at_all(
    database: Database, database_url: str
) -> None:
    def code(job: CodeJob) -> None:
        from tests.helpers import statements_of

        before = job.latest_heartbeat
        with statements_of(database) as sent:
            for _ in range(100):
                job.heartbeat(only_if_necessary=True)
        assert not sent
        assert job.latest_heartbeat == before

    job = CallbackJob(code, heartrate=60)
    job.run()
    assert job.calls == 0


def test_a_beat_only_if_necessary_is_sent_when_it_is_due(database: Database) -> None:
    def code(job: CodeJob) -> None:
        before = job.latest_heartbeat
        time.sleep(0.06)
        job.heartbeat(only_if_necessary=True)
        assert job.latest_heartbeat > before

    CodeJob(code, heartrate=0.05).run()


def test_a_class_says_in_its_body_or_its_statement_that_it_is_adoptable() -> None:
    class SaysSoInside(BaseJob):
        adoptable = True

    class SaysSoOutside(BaseJob, adoptable=True):
        pass

    class SaysNothing(BaseJob):
        pass

    class Below(SaysSoInside):
        pass

    assert [kind(heartrate=1).adoptable for kind in (SaysSoInside, SaysSoOutside, SaysNothing, Below)] == [
        True,
        True,
        False,
        True,
    ]


def test_the_output_of_a_job_without_parts_is_under_its_external_id(sqlite_database: Database) -> None:
    job = ProcessMonitorJob(["true"])
    assert job.log_id() == ""
    job.external_id = "7-abc"
    assert job.log_id() == "7-abc"
    for part in ({"child": 0}, {"node": 1}):
        with pytest.raises(UsageError, match=r"A ProcessMonitorJob has no children or nodes: leave --child"):
            job.log_id(**part)


def test_own_code_is_beaten_for_until_its_end_is_written(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, seen, give_up_s = statements.end, set[dt.datetime](), time.monotonic() + 60

    def refuse(connection: Connection, claim: Claim, state: JobState, message: str, **guard: Any) -> bool:
        seen.add(row_of(database, claim.job_id)["latest_heartbeat"])
        if len(seen) < 4 and time.monotonic() < give_up_s:
            raise DatabaseUnavailable("The database takes no end now.")
        return write(connection, claim, state, message, **guard)

    monkeypatch.setattr(statements, "end", refuse)
    CodeJob(heartrate=0.2).run()
    assert len(seen) == 4


def test_a_copy_that_is_forked_in_a_heartbeat_callback_commits_nothing(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call_back(job: CodeJob, session: Session) -> None:
        session.execute(text("UPDATE job SET dag_id = 'of the copy' WHERE id = :id"), {"id": job.id})
        copy = os.fork()
        if copy:
            os.waitpid(copy, 0)
            session.rollback()

    monkeypatch.setattr(CodeJob, "heartbeat_callback", call_back)
    job = CodeJob(lambda job: job.heartbeat(), heartrate=0.05)
    job.run()
    row = row_of(postgres_database, job.id)
    assert (row["state"], row["dag_id"]) == (JobState.SUCCESS, None)
