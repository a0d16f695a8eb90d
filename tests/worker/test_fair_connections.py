"""A connection in trouble holds back its own jobs, and those of no other; and what must not grow for ever."""

from typing import Any

import pytest
from sqlalchemy import RowMapping

from jobrunner.cli import spelling
from jobrunner.database import Database
from jobrunner.errors import NotSent
from jobrunner.executors.resting import Resting
from jobrunner.states import JobState
from jobrunner.testing import MemoryBackend, MemoryMonitorJob
from jobrunner.worker import windows
from jobrunner.worker.serving import Serving
from jobrunner.worker.share import divided
from jobrunner.worker.taking import Taking
from tests.helpers import an_owner, insert_job, plain_sql
from tests.runner.support import SOON, an_outside, in_loop, soon
from tests.worker.workers import a_worker, store, until_state


class _Down(MemoryBackend):
    async def submit(self, spec: Any, token: str) -> str:
        raise NotSent("connection refused")


BACKENDS: dict[str, MemoryBackend] = {}


class DownJob(MemoryMonitorJob):
    @classmethod
    def make_backend(cls, connection: Any) -> MemoryBackend:  # noqa: ARG003  # there is one of each
        return BACKENDS["down"]


class UpJob(MemoryMonitorJob):
    @classmethod
    def make_backend(cls, connection: Any) -> MemoryBackend:  # noqa: ARG003  # there is one of each
        return BACKENDS["up"]


@pytest.fixture(autouse=True)
def _backends() -> None:
    BACKENDS.update(down=_Down(), up=an_outside(plan=SOON))


@pytest.mark.parametrize("capacity", [1, 40])
@in_loop
async def test_a_connection_that_takes_nothing_keeps_no_place_from_another(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, capacity: int
) -> None:
    monkeypatch.setattr(windows, "SLOW_S", 0.2)
    monkeypatch.setattr(windows, "LEAST", 20)
    down = store(*(DownJob(poll_interval=0.05, heartrate=1.0) for _ in range(60)))
    async with a_worker(database, capacity=capacity) as working:
        await soon(lambda: working.worker._rounds > 0)
        await soon(lambda: working.worker._taking.windows.slow > 0)
        up = store(*(UpJob(poll_interval=0.05, heartrate=1.0) for _ in range(3)))
        await until_state(database, JobState.SUCCESS, *up)
        (running,) = plain_sql(
            database_url, "SELECT count(*) FROM job WHERE job_type = 'DownJob' AND state = 'running'"
        )[0]
        assert 0 < running <= max(1, capacity // 10)
        await soon(lambda: "unserved" in (working.row()["detail"] or {}))
        why = spelling.why_waiting("DownJob", "memory_default", [working.row()])
        assert why is not None
        assert "its connection takes no jobs at present" in why
        assert f"the message of job {down[0]} says why" in why
        # It comes back, and all of them are served.
        monkeypatch.setattr(_Down, "submit", MemoryBackend.submit)
        BACKENDS["down"].plan = SOON
        await soon(lambda: working.worker._taking.windows.slow == 0)


@in_loop
async def test_a_share_is_of_all_that_waits_and_not_of_what_may_be_claimed_now(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "LEAST", 20)
    rounds: list[int] = []
    own = Taking.own

    async def noted(taking: Taking, rows: list[RowMapping]) -> int:
        rounds.append(len(rows))
        return await own(taking, rows)

    monkeypatch.setattr(Taking, "own", noted)
    insert_job(database, an_owner(), job_type="WorkerJob", heartrate=60.0, spec={"capacity": 200})
    store(*(UpJob(poll_interval=0.05, heartrate=1.0) for _ in range(100)))
    async with a_worker(database, capacity=200):
        await soon(lambda: rounds)
    assert rounds[0] == 20  # there are 100 for two workers: half of the 20 would be too few


def test_a_number_is_divided_among_those_who_want_some() -> None:
    assert divided(10, {"a": 100, "b": 2, "c": 3}) == {"a": 5, "b": 2, "c": 3}
    assert divided(2, {"a": 5, "b": 5, "c": 5}) == {"a": 1, "b": 1}
    assert divided(0, {"a": 5}) == {}
    assert divided(9, {}) == {}
    assert divided(9, {"a": 0, "b": 20}) == {"b": 9}


# --- what must not grow for ever ------------------------------------------------------------------


def test_what_rested_long_ago_is_forgotten() -> None:
    now_s = 0.0
    resting: Resting[int] = Resting(lambda: now_s)
    for number in range(5_000):
        resting.rest(number)
        now_s += 1.0
    assert len(resting) < 1_000


def test_connections_that_anybody_may_write_into_rows_do_not_add_up(database: Database) -> None:
    serving = Serving(database.settings)
    for number in range(25_000):
        serving.why_not("BatchMonitorJob", f"no such connection {number}", is_watched=True)
    assert len(serving._verdicts) <= 10_000


@in_loop
async def test_a_worker_keeps_nothing_of_jobs_that_have_ended(database: Database) -> None:
    ids = store(*(UpJob(poll_interval=0.05, heartrate=1.0) for _ in range(30)))
    async with a_worker(database) as working:
        await until_state(database, JobState.SUCCESS, *ids)
        await soon(lambda: not working.jobs)
        await soon(lambda: not any(each.jobs for each in working.worker._taking.windows._windows.values()))
        assert not working.worker._sweeping._still._counts
        assert not working.worker._claiming._refused
