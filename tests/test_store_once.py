"""Storing and claiming, whatever becomes of the answer: one row, and its work once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import event, make_url

from jobrunner import doubt, statements
from jobrunner.database import Database, get_database
from jobrunner.errors import ClaimLost, DatabaseError, DatabaseUnavailable, UsageError
from jobrunner.executors.local import LocalExecutor
from jobrunner.models import BaseJob, storing
from jobrunner.models.rows import values_of
from jobrunner.models.start import Start, owner_for
from jobrunner.settings import configure
from jobrunner.statements import Sighting
from jobrunner.states import JobState
from jobrunner.testing import MemoryMonitorJob, use_backend
from jobrunner.worker import WorkerJob
from tests.helpers import CodeJob, an_owner, events_of, plain_connection, plain_sql, row_of, until
from tests.postgres import Postgres
from tests.proxy import LosingProxy
from tests.runner.support import SOON, a_job, an_outside


class _Repeatable(CodeJob, adoptable=True):
    """A job whose code may run twice."""


INSERT, UPDATE, LOOK = b"INSERT INTO job ", b"UPDATE job ", b"SELECT job.id"


@pytest.fixture
def proxy(postgres: Postgres, postgres_url: str) -> Iterator[LosingProxy]:
    """The database of this process stands behind it."""
    url = make_url(postgres_url)
    with LosingProxy(str(url.query["host"])) as proxy:
        configure(database_url=proxy.url(str(url.database)), heartrate=2.0)
        yield proxy


@pytest.fixture
def unanswered(proxy: LosingProxy, monkeypatch: pytest.MonkeyPatch) -> LosingProxy:
    """The proxy, which loses the answer to the next INSERT, and is silent from then on."""
    monkeypatch.setattr(doubt, "PATIENCE_S", 0.1)
    get_database()
    proxy.lose(INSERT, is_gone_after=True)
    return proxy


@pytest.fixture
def ran() -> list[int]:
    """The ids of the jobs whose code has run, in their order."""
    return []


def _jobs(url: str) -> list[tuple[Any, ...]]:
    return plain_sql(url, "SELECT id, state FROM job ORDER BY id")


def _code(ran: list[int], **options: Any) -> CodeJob:
    return CodeJob(lambda job: ran.append(job.id), **options)


# --- the answer is lost ----------------------------------------------------------------------------


def test_own_code_whose_row_was_stored_without_an_answer_runs_once(
    proxy: LosingProxy, postgres_url: str, ran: list[int]
) -> None:
    get_database()
    proxy.lose(INSERT)
    _code(ran).run()
    ((job_id, state),) = _jobs(postgres_url)
    assert (ran, state, proxy.lost) == ([job_id], "success", 1)
    assert events_of(postgres_url, job_id) == [(None, "running"), ("running", "success")]


def test_a_monitor_job_whose_row_was_stored_without_an_answer_is_submitted_once(
    proxy: LosingProxy, postgres_url: str
) -> None:
    outside = an_outside(SOON)
    with use_backend(outside):
        get_database()
        proxy.lose(INSERT)
        a_job().run()
    assert [state for _, state in _jobs(postgres_url)] == ["success"]
    assert (len(outside.jobs), proxy.lost) == (1, 1)


@pytest.mark.parametrize("make", [CodeJob, MemoryMonitorJob, lambda: WorkerJob(processes=1)])
def test_a_row_is_ours_after_its_answer_was_lost(
    proxy: LosingProxy, postgres_url: str, make: Callable[[], BaseJob]
) -> None:
    database = get_database()
    proxy.lose(INSERT)
    job = make()
    owner = owner_for(job)
    taken = Start(database, job, owner).take()
    row = row_of(database, job.id)
    assert (row["runner_id"], row["claims"], row["key"]) == (owner.runner_id, taken.claim.claims, job.key)
    assert (len(_jobs(postgres_url)), proxy.lost) == (1, 1)


def test_a_job_that_was_queued_without_an_answer_is_there_once(proxy: LosingProxy, postgres_url: str) -> None:
    get_database()
    proxy.lose(INSERT)
    job = CodeJob().store()
    job.store()
    assert (_jobs(postgres_url), proxy.lost) == ([(job.id, "queued")], 1)


def test_a_queued_job_that_was_claimed_without_an_answer_is_run(
    proxy: LosingProxy, postgres_url: str, ran: list[int]
) -> None:
    job = _code(ran).store()
    proxy.lose(UPDATE)
    job.run()
    assert (_jobs(postgres_url), ran, proxy.lost) == ([(job.id, "success")], [job.id], 1)
    assert row_of(get_database(), job.id)["claims"] == 1


def test_a_row_that_cannot_be_read_after_it_was_stored_is_read_again(
    proxy: LosingProxy, postgres_url: str, ran: list[int]
) -> None:
    get_database()
    proxy.lose(LOOK)
    _code(ran).run()
    assert ([state for _, state in _jobs(postgres_url)], len(ran), proxy.lost) == (["success"], 1, 1)


def test_a_claim_that_others_took_before_its_answer_came_is_theirs(
    proxy: LosingProxy, postgres_url: str, ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    get_database()
    proxy.lose(INSERT)
    look = statements.find

    def taken_meanwhile(*arguments: Any) -> Any:
        plain_sql(postgres_url, "UPDATE job SET runner_id = 'another', claims = claims + 1")
        return look(*arguments)

    monkeypatch.setattr(statements, "find", taken_meanwhile)
    job = _code(ran)
    with pytest.raises(ClaimLost, match="was taken over by runner another"):
        job.run()
    assert (_jobs(postgres_url), ran) == ([(job.id, "running")], [])


# --- the database stays away -----------------------------------------------------------------------


def test_a_store_that_nobody_can_answer_for_says_so_and_makes_one_row_when_it_is_called_again(
    unanswered: LosingProxy, postgres_url: str
) -> None:
    job = CodeJob()
    with pytest.raises(DatabaseUnavailable, match=f"may have been stored.*key {job.key}.*list --key"):
        job.store()
    unanswered.is_refusing = False
    assert len(_jobs(postgres_url)) == 1
    job.store()
    assert _jobs(postgres_url) == [(job.id, "queued")]


def test_a_run_that_nobody_can_answer_for_goes_on_under_the_same_claim_when_it_is_called_again(
    unanswered: LosingProxy, postgres_url: str, ran: list[int]
) -> None:
    job = _code(ran)
    with pytest.raises(DatabaseUnavailable, match=f"key {job.key}, and nobody runs it then"):
        job.run()
    unanswered.is_refusing = False
    assert ran == []
    job.run()
    assert (_jobs(postgres_url), ran) == ([(job.id, "success")], [job.id])
    assert row_of(get_database(), job.id)["claims"] == 1


def test_a_job_that_was_queued_in_doubt_can_be_run(
    unanswered: LosingProxy, postgres_url: str, ran: list[int]
) -> None:
    job = _code(ran)
    with pytest.raises(DatabaseUnavailable):
        job.store()
    unanswered.is_refusing = False
    job.run()
    assert (_jobs(postgres_url), ran) == ([(job.id, "success")], [job.id])


def test_a_store_that_was_refused_leaves_nothing_and_can_be_repeated(
    sqlite_database: Database, sqlite_url: str
) -> None:
    configure(sqlite_busy_timeout_s=0.1)
    get_database()
    job = CodeJob()
    with closing(plain_connection(sqlite_url)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailable, match="locked"):
            job.store()
        other.execute("ROLLBACK")
    assert _jobs(sqlite_url) == []
    job.store()
    assert _jobs(sqlite_url) == [(job.id, "queued")]


def test_a_full_database_file_stores_nothing_and_the_same_object_is_stored_later(
    sqlite_database: Database, sqlite_url: str
) -> None:
    (pages,) = plain_sql(sqlite_url, "PRAGMA page_count")[0]
    job = CodeJob(spec={"text": "x" * 100_000})

    def limit(connection: Any, *_: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {full}")

    event.listen(sqlite_database.engine, "checkout", limit)
    full = pages
    with pytest.raises(DatabaseUnavailable, match="full"):
        job.run()
    assert _jobs(sqlite_url) == []
    full = 1_000_000
    job.run()
    assert _jobs(sqlite_url) == [(job.id, "success")]


@pytest.mark.parametrize("is_monitored", [True, False])
def test_a_row_whose_owner_never_learnt_of_it_is_nobodys_to_run(
    unanswered: LosingProxy, postgres_url: str, is_monitored: bool
) -> None:
    job = a_job() if is_monitored else _Repeatable()
    with use_backend(an_outside()), pytest.raises(DatabaseUnavailable, match="nobody runs it then"):
        job.run()
    unanswered.is_refusing = False
    ((job_id, state),) = _jobs(postgres_url)
    database = get_database()
    row = row_of(database, job_id)
    seen = Sighting(job_id, row["runner_id"], row["claims"], row["latest_heartbeat"])
    with database.write() as connection:
        assert (state, statements.adopt(connection, seen, an_owner())) == ("running", None)
        assert statements.lose(connection, seen, "test", "never begun")
    assert _jobs(postgres_url) == [(job_id, "lost")]


def test_a_worker_that_is_told_to_stop_does_not_wait_to_learn_whether_its_row_was_stored(
    unanswered: LosingProxy, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubt, "PATIENCE_S", 1e6)

    def stop() -> None:
        until(lambda: unanswered.lost)
        os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(DatabaseUnavailable, match="may have been stored"):
        WorkerJob(processes=1).run()
    stopping.join()
    assert [state for _, state in _jobs(postgres_url)] == ["running"]  # it falls silent, and is lost


@pytest.mark.parametrize("is_monitored", [True, False])
def test_a_job_that_has_begun_may_be_taken_over(database: Database, is_monitored: bool) -> None:
    found: list[bool] = []
    if is_monitored:
        outside = an_outside(SOON)
        with use_backend(outside):
            job: BaseJob = a_job()
            job.run()
        found.append(bool(row_of(database, job.id)["adoptable"]))
    else:
        job = _Repeatable()
        job.code = lambda job: found.append(bool(row_of(database, job.id)["adoptable"]))
        job.run()
    assert (found, job.adoptable) == ([True], True)


# --- a key of the caller's own ---------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "x" * 251, "a\nb", "\x00", "\ud800", 7, b"x"])
def test_a_key_that_no_row_can_carry_is_refused(database: Database, key: Any) -> None:
    with pytest.raises(UsageError, match="give 1 to 250 printable characters"):
        CodeJob(key=key)


def test_a_key_is_kept_in_the_row_and_without_one_each_object_has_its_own(database: Database) -> None:
    assert row_of(database, CodeJob(key="nightly 2026-03-01").store().id)["key"] == "nightly 2026-03-01"
    assert CodeJob().store().id != CodeJob().store().id


def test_a_key_that_is_another_jobs_is_refused_and_names_it(database: Database, database_url: str) -> None:
    first = CodeJob(key="nightly").store()
    for attempt in (lambda: CodeJob(key="nightly").store(), lambda: CodeJob(key="nightly").run()):
        with pytest.raises(UsageError, match=rf"The key 'nightly' is that of job {first.id} \(queued\)"):
            attempt()
    assert _jobs(database_url) == [(first.id, "queued")]


def test_a_key_of_ones_own_finds_the_row_whose_answer_was_lost(proxy: LosingProxy, postgres_url: str) -> None:
    get_database()
    proxy.lose(INSERT)
    job = CodeJob(key="nightly", spec={"day": 1}).store()
    assert (_jobs(postgres_url), proxy.lost) == ([(job.id, "queued")], 1)


CHANGED = {
    "a tuple": lambda key: MemoryMonitorJob(key=key, spec={"a": (1, 2)}),
    "a number as a key": lambda key: MemoryMonitorJob(key=key, spec={"a": {1: "x"}}),
    "numbers": lambda key: MemoryMonitorJob(
        key=key, spec={"a": 1e300, "b": 10**50, "c": -0.0, "d": 0.1 + 0.2}
    ),
    "times": lambda key: MemoryMonitorJob(key=key, start_timeout=3, poll_interval=0.1 + 0.2),
    "a NUL in a label": lambda key: CodeJob(key=key, name="night\0ly", dag_id="d\0"),
    "an odd byte in the name": lambda key: CodeJob(key=key, name=os.fsdecode(b"night\xff")),
    "a name that is no text": lambda key: CodeJob(key=key, name=5),
    "a parent": lambda key: CodeJob(key=key, parent_id=CodeJob().store().id),
    "nothing": lambda key: CodeJob(key=key),
}
"""Jobs whose values are read back in another form than they were sent."""


@pytest.mark.parametrize("make", CHANGED.values(), ids=CHANGED)
def test_a_row_is_found_by_ones_own_key_in_whatever_form_the_database_keeps_it(
    proxy: LosingProxy, postgres_url: str, make: Callable[[str], BaseJob]
) -> None:
    get_database()
    job = make("nightly")
    proxy.lose(INSERT)
    job.store()
    assert plain_sql(postgres_url, "SELECT id, state FROM job WHERE key = 'nightly'") == [(job.id, "queued")]
    assert proxy.lost == 1


@pytest.mark.parametrize("make", CHANGED.values(), ids=CHANGED)
def test_a_row_holds_what_was_sent_and_nothing_else(
    database: Database, make: Callable[[str], BaseJob]
) -> None:
    job = make("nightly")
    sent = {name: value for name, value in values_of(job).items() if name in storing._SAME}
    job.store()
    with database.read() as connection:
        assert statements.holds(connection, job.id, sent)
        for other in ({"name": "another"}, {"spec": {"a": 3}}, {"parent_id": job.id}, {"poll_interval": 7.5}):
            assert not statements.holds(connection, job.id, sent | other)


def test_another_objects_row_of_the_same_key_is_not_taken_for_ones_own(
    proxy: LosingProxy, postgres_url: str
) -> None:
    get_database()
    first = CodeJob(key="nightly", spec={"day": 1}).store()
    proxy.lose(INSERT)
    with pytest.raises(UsageError, match=f"is that of job {first.id}"):
        CodeJob(key="nightly", spec={"day": 2}).store()
    assert _jobs(postgres_url) == [(first.id, "queued")]


def test_an_object_stored_by_many_threads_at_once_is_one_row(database: Database, database_url: str) -> None:
    job = CodeJob()
    threads = [threading.Thread(target=job.store) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _jobs(database_url) == [(job.id, "queued")]


# --- a transaction of the caller's own -------------------------------------------------------------


def test_what_the_callers_transaction_rolled_back_is_stored_by_the_next_call(
    database: Database, database_url: str
) -> None:
    job = CodeJob()
    with database.session() as session:
        job.store(session)
        assert job.store() is job  # undecided: nothing to wait for
        session.rollback()
    assert _jobs(database_url) == []
    job.store()
    assert _jobs(database_url) == [(job.id, "queued")]
    assert BaseJob.get(job.id).key == job.key


@pytest.mark.parametrize("is_committed", [False, True])
def test_what_the_callers_transaction_stored_is_run_once_whether_it_was_committed_or_not(
    database: Database, database_url: str, ran: list[int], is_committed: bool
) -> None:
    job = _code(ran)
    with database.session() as session:
        job.store(session=session)
        if is_committed:
            session.commit()
    job.run()
    assert (job.state, len(ran)) == (JobState.SUCCESS, 1)
    assert plain_sql(database_url, "SELECT id, state FROM job") == [(job.id, "success")]


def test_a_job_cannot_be_run_while_the_callers_transaction_is_open(
    database: Database, ran: list[int]
) -> None:
    job = _code(ran)
    with database.session() as session:
        job.store(session=session)
        with pytest.raises(UsageError, match="commit it before the job is run"):
            job.run()
        session.commit()
    job.run()
    assert len(ran) == 1


def test_what_the_callers_transaction_committed_is_one_row_however_often_it_is_stored(
    database: Database, database_url: str
) -> None:
    job = CodeJob()
    with database.session() as session:
        job.store(session)
        job.store(session)
        session.commit()
        job.store(session)
        session.commit()
    job.store()
    assert _jobs(database_url) == [(job.id, "queued")]


# --- what ends the stretch before the code does ----------------------------------------------------


class _OnStarted:
    """An executor that lends its name, and calls back."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def on_started(self, _job_id: int) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "state"),
    [(OSError("no space"), "failed"), (KeyboardInterrupt(), "killed"), (SystemExit(3), "failed")],
)
def test_a_callback_that_raises_ends_the_job_before_its_code(
    database: Database, database_url: str, ran: list[int], error: BaseException, state: str
) -> None:
    with pytest.raises(type(error)):
        _code(ran, executor=_OnStarted(error)).run()
    assert ([found for _, found in _jobs(database_url)], ran) == ([state], [])


@pytest.mark.parametrize("error", [OSError("no space"), SystemExit(3)])
def test_a_callback_that_raises_ends_a_monitor_job_before_it_is_submitted(
    sqlite_database: Database, sqlite_url: str, error: BaseException
) -> None:
    outside = an_outside()

    def refuse(_job_id: int) -> None:
        raise error

    with use_backend(outside), pytest.raises(type(error)):
        a_job(executor=LocalExecutor(on_started=refuse)).run()
    ((job_id, state),) = _jobs(sqlite_url)
    assert (state, len(outside.jobs)) == ("failed", 0)
    assert row_of(sqlite_database, job_id)["message"].startswith("not started: ")


def test_a_callback_that_raises_gives_a_job_back_that_was_queued_before(
    sqlite_database: Database, sqlite_url: str
) -> None:
    outside = an_outside()

    def refuse(_job_id: int) -> None:
        raise OSError("no space")

    with use_backend(outside):
        job = a_job(executor=LocalExecutor(on_started=refuse)).store()
        with pytest.raises(OSError, match="no space"):
            job.run()
    assert _jobs(sqlite_url) == [(job.id, "queued")]
    assert row_of(sqlite_database, job.id)["message"] == "released: OSError: no space"


@pytest.mark.parametrize("is_monitored", [True, False])
def test_a_row_that_the_driver_cannot_read_is_ended(
    postgres_database: Database,
    postgres_url: str,
    ran: list[int],
    monkeypatch: pytest.MonkeyPatch,
    is_monitored: bool,
) -> None:
    import psycopg
    from sqlalchemy.exc import DataError

    def unreadable(*_: Any) -> Any:
        raise DataError("SELECT", {}, psycopg.DataError("can't parse timestamptz"))

    job = a_job() if is_monitored else _code(ran)
    monkeypatch.setattr(statements, "get", unreadable)
    with use_backend(an_outside()), pytest.raises(DatabaseError, match="can't parse timestamptz"):
        job.run()
    monkeypatch.undo()
    ((job_id, state),) = _jobs(postgres_url)
    assert (state, ran) == ("failed", [])
    assert "can't parse timestamptz" in row_of(postgres_database, job_id)["message"]


def test_a_run_whose_beats_cannot_be_set_up_is_ended(
    database: Database, database_url: str, ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no descriptors left")

    monkeypatch.setattr("jobrunner.models.own_run.OwnRun", broken)
    with pytest.raises(RuntimeError):
        _code(ran).run()
    ((job_id, state),) = _jobs(database_url)
    assert (state, row_of(database, job_id)["message"]) == (
        "failed",
        "not started: RuntimeError: no descriptors left",
    )


def test_nothing_is_stored_where_no_runner_can_be_had(
    sqlite_database: Database, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("jobrunner.runner.Runner.__aenter__", broken)
    with use_backend(an_outside()), pytest.raises(RuntimeError):
        a_job().run()
    assert _jobs(sqlite_url) == []


def test_a_worker_that_cannot_go_on_ends_its_row(
    sqlite_database: Database, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("jobrunner.runner.Runner.__aenter__", broken)
    with pytest.raises(RuntimeError):
        WorkerJob(processes=1).run()
    assert [state for _, state in _jobs(sqlite_url)] == ["failed"]


def test_a_worker_whose_modules_cannot_be_imported_is_not_stored(
    sqlite_database: Database, sqlite_url: str
) -> None:
    with pytest.raises(UsageError, match="absent_module"):
        WorkerJob(processes=1, imports=["absent_module"]).run()
    assert _jobs(sqlite_url) == []


def test_a_claim_of_a_queued_job_that_somebody_else_took_is_refused(database: Database) -> None:
    job = CodeJob().store()
    with database.write() as connection:
        assert statements.claim_queued(connection, job.id, an_owner()) is not None
    with pytest.raises(UsageError, match="is running, not queued"):
        job.run()
    assert job.state is JobState.RUNNING


# --- the database takes no writes ------------------------------------------------------------------


def test_a_row_that_a_read_only_database_refused_was_not_stored(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubt, "PATIENCE_S", 0.1)
    name = make_url(postgres_url).database
    plain_sql(postgres_url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    configure(database_url=postgres_url)
    for store in (CodeJob().store, CodeJob().run):
        with pytest.raises(DatabaseUnavailable, match="read-only now") as caught:
            store()
        assert "stored" not in str(caught.value)
    assert _jobs(postgres_url) == []
