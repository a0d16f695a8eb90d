"""Rows written by SQL: whatever stands in them, all can be asked about, and healthy jobs beside run on."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner import statements
from jobrunner.backends.base import Patience
from jobrunner.database import Database
from jobrunner.errors import JobEndedBadly, JobrunnerError
from jobrunner.models import BaseJob
from jobrunner.states import JobState
from jobrunner.testing import MemoryBackend, MemoryMonitorJob, Plan, use_backend
from tests.fuzz.command_line import ask
from tests.fuzz.examples import TIMEOUT_S, examples
from tests.fuzz.messages import ensure_message, ensure_no_secret
from tests.fuzz.rows import Client, changes, event_changes, odd_values
from tests.helpers import insert_job, plain_connection, row_of
from tests.runner.support import soon
from tests.worker.workers import a_worker

pytestmark = pytest.mark.timeout(TIMEOUT_S)


@pytest.fixture
def client(database_url: str) -> Iterator[Client]:
    with closing(plain_connection(database_url)) as connection:
        yield Client(connection)


def _insert(database: Database, **values: Any) -> int:
    options = {"job_type": "MemoryMonitorJob", "connection": "memory_default", "spec": {}, "heartrate": 0.3}
    return insert_job(database, **{**options, "submit_token": None, **values})


def _told(do: Callable[[], object]) -> None:
    try:
        do()
    except JobEndedBadly as error:
        ensure_no_secret(str(error))
    except JobrunnerError as error:
        ensure_message(str(error))


@given(st.lists(changes, min_size=1, max_size=3), event_changes)
@examples(25)
def test_whatever_stands_in_rows_can_be_asked_about(
    database: Database, client: Client, rows: list[dict[str, Any]], event: dict[str, Any]
) -> None:
    client.clear()
    ids = [_insert(database) for _ in rows]
    for job_id, wanted in zip(ids, rows, strict=True):
        client.change(job_id, wanted)
    client.add_event(ids[0], event)
    healthy = _insert(database, name="healthy")
    first = str(ids[0])
    assert healthy in [row["id"] for row in json.loads(ask("list", "--json").out)]
    for arguments in (
        ("list",),
        ("show", first),
        ("show", first, "--json"),
        ("check",),
        ("check", "--json"),
        ("wait", first, "--timeout", "0.01s"),
        ("logs", first),
        ("db", "check", "--json"),
        ("db", "restored"),
    ):
        ask(*arguments)
    _told(BaseJob.most_recent_job)
    _told(MemoryMonitorJob.most_recent_job)
    for job_id in ids:
        _told(lambda: BaseJob.get(job_id).is_alive())  # noqa: B023
        _told(lambda: BaseJob.get(job_id).wait(0.001))  # noqa: B023
        _told(lambda: BaseJob.get(job_id).result(0.001))  # noqa: B023
    ask("kill", *map(str, ids))
    with database.read() as connection:
        killed = {each: statements.get(connection, each) for each in [healthy]}
    assert killed[healthy]["state"] is JobState.QUEUED
    ask("db", "prune", "--older-than", "1d")


_flags = st.lists(odd_values.filter(lambda value: value is not None), min_size=1, max_size=3)


@given(st.lists(changes, min_size=3, max_size=8), _flags)
@examples(4)
def test_a_worker_runs_the_healthy_jobs_and_obeys_every_kill_whatever_stands_beside(
    database: Database, client: Client, caught: list[str], rows: list[dict[str, Any]], flags: list[Any]
) -> None:
    caught.clear()
    client.clear()
    outside = MemoryBackend(plan=Plan(run_for_s=0.1), patience=Patience(call_s=5.0))
    endless = {"run_for_s": None}

    async def work() -> None:
        with use_backend(outside):
            ids = [_insert(database, submit_token=f"{number:032}") for number in range(len(rows))]
            for job_id, wanted in zip(ids, rows, strict=True):
                client.change(job_id, wanted)
            healthy = [MemoryMonitorJob(heartrate=0.3).store().id for _ in range(2)]
            to_kill = [MemoryMonitorJob(heartrate=0.3, spec=endless).store().id for _ in flags]
            async with a_worker(database, processes=1):
                await _until(database, JobState.SUCCESS, healthy)
                await _until(database, JobState.RUNNING, to_kill)
                flagged = [
                    job_id
                    for job_id, flag in zip(to_kill, flags, strict=True)
                    if client.write("job", job_id, "kill_requested_at", flag)
                    and row_of(database, job_id)["kill_requested_at"] is not None
                ]
                await _until(database, JobState.KILLED, flagged)
                later = MemoryMonitorJob(heartrate=0.3).store().id
                await _until(database, JobState.SUCCESS, [later])
                for job_id in set(to_kill) - set(flagged):
                    BaseJob.get(job_id).request_kill()
                await _until(database, JobState.KILLED, to_kill)

    asyncio.run(work())
    assert caught == []


async def _until(database: Database, state: JobState, ids: list[int]) -> None:
    def found() -> list[Any]:
        return [row_of(database, job_id)["state"] for job_id in ids]

    try:
        await soon(lambda: all(each is state for each in found()))
    except AssertionError:
        shown = [(row["state"], row["message"]) for row in (row_of(database, each) for each in ids)]
        raise AssertionError(f"not {state}: {shown}") from None
