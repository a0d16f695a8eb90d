"""A restored backup revives rows that have run since: they are held until it is known what they did."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from jobrunner import BaseJob, restoring, statements
from jobrunner.database import Database
from jobrunner.errors import BackendError, JobKilled, UsageError
from jobrunner.states import JobState, Phase
from jobrunner.testing import Fault, MemoryBackend, MemoryMonitorJob, Plan, use_backend
from jobrunner.worker import WorkerJob
from tests.helpers import an_owner, insert_job, plain_connection, row_of


class Own(BaseJob):
    """A job with code of its own."""

    def _execute(self) -> None:
        """Do nothing."""


@pytest.fixture
def outside() -> Iterator[MemoryBackend]:
    """An outside system whose work goes on until it is told to end."""
    backend = MemoryBackend(plan=Plan())
    with use_backend(backend):
        yield backend


def submitted_since(outside: MemoryBackend, job: MemoryMonitorJob) -> str:
    """Have the outside do a job's work, as its runner did after the backup; the row knows nothing of it."""
    external_id = asyncio.run(outside.submit(job.spec or {}, job.submit_token or ""))
    outside.calls.clear()
    return external_id


def test_live_rows_are_held_and_what_is_stored_later_is_not(database: Database) -> None:
    waiting, running, worker = Own().store(), insert_job(database, an_owner()), WorkerJob().store()
    assert restoring.hold_all(database) == 2
    later = Own().store()
    held = {job_id: row_of(database, job_id)["held_at"] is not None for job_id in (waiting.id, running)}
    assert held == {waiting.id: True, running: True}
    assert row_of(database, worker.id)["held_at"] is None
    assert row_of(database, later.id)["held_at"] is None
    with pytest.raises(UsageError, match="held since the database was restored"):
        waiting.run()
    assert waiting.reload().state is JobState.QUEUED
    assert "restored" in (waiting.message or "")


def test_work_that_is_found_outside_is_watched_and_never_submitted_again(
    database: Database, outside: MemoryBackend
) -> None:
    job = MemoryMonitorJob(poll_interval=0.05).store()
    restoring.hold_all(database)
    external_id = submitted_since(outside, job)
    assert restoring.prove(database) == []
    row = row_of(database, job.id)
    assert (row["external_id"], row["held_at"]) == (external_id, None)
    outside.succeed(external_id)
    job.reload().run()
    assert (job.state, outside.calls["submit"]) == (JobState.SUCCESS, 0)


def test_work_that_is_not_found_is_no_proof_and_waits_for_a_person(
    database: Database, outside: MemoryBackend
) -> None:
    job = MemoryMonitorJob(poll_interval=0.05).store()
    restoring.hold_all(database)
    (left,) = restoring.prove(database)
    assert (left.job_id, left.state) == (job.id, JobState.QUEUED)
    assert "does not prove" in left.why
    assert left.why in str(row_of(database, job.id)["message"])
    assert restoring.confirm(database, [job.id]) == [job.id]
    outside.plan = Plan(run_for_s=0.0)
    job.reload().run()
    assert (job.state, outside.calls["submit"]) == (JobState.SUCCESS, 1)


def test_work_that_may_have_been_submitted_again_stays_held(
    database: Database, outside: MemoryBackend
) -> None:
    job = MemoryMonitorJob(poll_interval=0.05, resubmit={"preempted": 2}).store()
    restoring.hold_all(database)
    outside.advance(submitted_since(outside, job), Phase.FAILED, "its host was taken", cause="preempted")
    (left,) = restoring.prove(database)
    assert "may have been submitted again" in left.why


def submitted_before(database: Database, outside: MemoryBackend, count: int) -> list[MemoryMonitorJob]:
    """Store jobs whose rows know their work outside."""
    jobs = [MemoryMonitorJob(poll_interval=0.05).store() for _ in range(count)]
    for job in jobs:
        external_id = submitted_since(outside, job)
        with database.write() as connection:
            assert statements.record_submitted(connection, job.id, job.submit_token or "", external_id)
    return jobs


def test_the_outside_is_asked_in_bulk_and_over_one_backend(
    database: Database, outside: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[MemoryBackend] = []

    def make(*_arguments: object) -> MemoryBackend:
        made.append(outside)
        return outside

    monkeypatch.setattr(MemoryMonitorJob, "make_backend", classmethod(make))
    submitted_before(database, outside, outside.bulk_limit + 5)
    restoring.hold_all(database)
    outside.calls.clear()
    assert restoring.prove(database) == []
    assert (len(made), outside.calls["fetch"]) == (1, 2)


def test_one_id_that_spoils_a_call_keeps_no_other_job_held(
    database: Database, outside: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = submitted_before(database, outside, 20)
    fetch, bad = outside.fetch, jobs[13].reload().external_id

    async def spoiled(ids: Sequence[str]) -> Any:
        if bad in ids:
            raise ValueError("an odd answer")
        return await fetch(ids)

    monkeypatch.setattr(outside, "fetch", spoiled)
    restoring.hold_all(database)
    (left,) = restoring.prove(database)
    assert left.job_id == jobs[13].id
    assert "ask again" in left.why
    assert "ValueError" not in left.why


def test_an_outside_that_is_away_is_not_asked_for_each_job(
    database: Database, outside: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted_before(database, outside, 40)
    asked = []

    async def fetch(ids: Sequence[str]) -> Any:
        asked.append(ids)
        raise BackendError("the server is away")

    monkeypatch.setattr(outside, "fetch", fetch)
    restoring.hold_all(database)
    left = restoring.prove(database)
    assert len(left) == 40
    assert {each.why for each in left} == {
        "the outside could not be asked: the server is away; ask again with `db restored --ask`"
    }
    assert len(asked) < 20


@pytest.mark.parametrize(
    ("column", "value"),
    [("spec", "'{broken'"), ("resubmit", "'[1'"), ("connection", "x'ff'"), ("job_type", "x'fffe'")],
)
def test_a_row_that_cannot_be_read_stays_held_in_plain_words(
    sqlite_database: Database, sqlite_url: str, outside: MemoryBackend, column: str, value: str
) -> None:
    bad, good = submitted_before(sqlite_database, outside, 2)
    restoring.hold_all(sqlite_database)
    with closing(plain_connection(sqlite_url)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = on")
        connection.execute(f"UPDATE job SET {column} = {value} WHERE id = {bad.id}")
    (left,) = restoring.prove(sqlite_database)
    assert left.job_id == bad.id
    assert f"its column {column} cannot be read" in left.why
    assert "Error" not in left.why
    assert row_of(sqlite_database, good.id)["held_at"] is None


def test_a_job_of_a_type_that_is_not_here_stays_held_and_says_where_to_ask(database: Database) -> None:
    insert_job(database, job_type="of.a.Newer.Version", connection="newer_default", submit_token="t")
    restoring.hold_all(database)
    (left,) = restoring.prove(database)
    assert "cannot be loaded here: ask from where it is installed" in left.why


def test_own_code_stays_held_until_it_is_confirmed(database: Database) -> None:
    job = Own(connection="its_own_word").store()
    restoring.hold_all(database)
    (left,) = restoring.prove(database)
    assert (left.job_id, left.why) == (job.id, "nothing outside can say whether its own code has run")
    assert restoring.confirm(database) == [job.id]
    job.reload().run()
    assert job.state is JobState.SUCCESS
    with pytest.raises(UsageError, match="not held"):
        restoring.confirm(database, [job.id])


def test_a_hold_bars_no_kill(database: Database, outside: MemoryBackend) -> None:
    queued, submitted = Own().store(), MemoryMonitorJob(poll_interval=0.05).store()
    external_id = submitted_since(outside, submitted)
    with database.write() as connection:
        assert statements.record_submitted(
            connection, submitted.id, submitted.submit_token or "", external_id
        )
    restoring.hold_all(database)
    assert queued.request_kill(reason="it has run") is JobState.KILLED
    assert submitted.request_kill(reason="it has run") is JobState.QUEUED
    with pytest.raises(JobKilled):
        submitted.reload().run()
    assert outside.jobs[external_id].phase is Phase.CANCELLED


def test_a_kill_ends_what_was_submitted_since_the_backup(database: Database, outside: MemoryBackend) -> None:
    job = MemoryMonitorJob(poll_interval=0.05).store()
    restoring.hold_all(database)
    external_id = submitted_since(outside, job)
    assert job.request_kill(reason="it runs") is JobState.QUEUED  # its row says that nothing was submitted
    with pytest.raises(JobKilled):
        job.reload().run()
    assert outside.jobs[external_id].phase is Phase.CANCELLED
    assert (job.external_id, outside.calls["submit"]) == (external_id, 0)


def test_a_kill_of_a_held_job_says_what_is_not_proven(database: Database, outside: MemoryBackend) -> None:
    job = MemoryMonitorJob(poll_interval=0.05).store()
    restoring.hold_all(database)
    job.request_kill()
    with pytest.raises(JobKilled, match="does not prove that there was none"):
        job.reload().run()
    assert outside.calls["submit"] == 0


def test_a_kill_of_a_held_job_waits_until_the_outside_can_be_asked(
    database: Database, outside: MemoryBackend
) -> None:
    job = MemoryMonitorJob(poll_interval=0.05).store()
    restoring.hold_all(database)
    external_id = submitted_since(outside, job)
    outside.order(Fault.ERROR, "find", times=2)
    job.request_kill()
    with pytest.raises(JobKilled):
        job.reload().run()
    assert outside.jobs[external_id].phase is Phase.CANCELLED
