"""What is kept of jobs, hosts and words that come and go: as little as they are few."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from jobrunner import identity, restarts
from jobrunner import runner as runner_module
from jobrunner.backends.airbyte.memory import Memory
from jobrunner.backends.airbyte.reading import job_of
from jobrunner.backends.armada import reading as armada
from jobrunner.backends.base import Observation
from jobrunner.backends.batch import reading as batch
from jobrunner.backends.process import ProcessBackend
from jobrunner.database import Database
from jobrunner.log_limits import Once
from jobrunner.settings import configure
from jobrunner.sqltypes import StateType, _unknown_state
from jobrunner.states import JobState
from jobrunner.submission import submit
from jobrunner.testing import Plan, use_backend
from jobrunner.worker.serving import Serving
from tests.runner.support import a_job, a_runner, an_outside, in_loop, soon, start, within


@in_loop
async def test_a_killed_command_leaves_nothing_in_its_backend(tmp_path: Path) -> None:
    backend = ProcessBackend(tmp_path)
    spec = {"command": ["sleep", "600"], "cwd": str(tmp_path), "env": {}, "stop_grace_s": 10.0}
    external_id = await backend.submit(spec, "a-token")
    assert await backend.cancel([external_id], "it is enough") == {}
    assert backend._canceller._asked

    async def has_ended() -> bool:
        answer = (await backend.fetch([external_id]))[external_id]
        return isinstance(answer, Observation) and answer.phase.is_final

    while not await has_ended():  # noqa: ASYNC110  # it is asked, and says nothing by itself
        await asyncio.sleep(0.01)
    assert not backend._canceller._asked


@in_loop
async def test_a_job_whose_step_crashed_is_forgotten_when_it_ends(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed: set[int] = set()

    async def crashing(runner: Any, owned: Any, *args: Any, **kwargs: Any) -> Any:
        if owned.job_id not in crashed:
            crashed.add(owned.job_id)
            raise RuntimeError("a fault")
        return await submit(runner, owned, *args, **kwargs)

    monkeypatch.setattr(runner_module, "submit", crashing)
    with use_backend(an_outside(Plan(run_for_s=0.0))):
        async with a_runner(sqlite_database) as runner:
            ends = [start(runner, a_job()) for _ in range(5)]
            assert [await within(end) for end in ends] == [JobState.SUCCESS] * 5
            assert len(crashed) == 5
            assert not runner._crashes._tries


@in_loop
async def test_a_connection_that_fails_and_works_in_turn_has_one_thing_to_show(
    sqlite_database: Database,
) -> None:
    outside = an_outside()
    with use_backend(outside):
        async with a_runner(sqlite_database) as runner:
            start(runner, a_job(poll_interval=3600.0))
            await soon(lambda: outside.calls["fetch"])
            (owned,) = runner.jobs.values()
            before = len(runner._tasks)
            for _ in range(1_000):
                runner._answers.on_health(owned.channel, good=False, _message="away")
                runner._answers.on_health(owned.channel, good=True, _message="back")
            assert len(runner._tasks) <= before
            assert not runner._answers._to_show_trouble


def test_what_was_found_out_about_jobs_nobody_stores_any_more_is_forgotten(sqlite_database: Database) -> None:
    now_s = 0.0
    serving = Serving(sqlite_database.settings, clock=lambda: now_s)
    for number in range(5_000):
        serving.why_not("MemoryMonitorJob", f"no such connection {number}", is_watched=True)
        now_s += 1.0
    assert len(serving._verdicts) < 200


@pytest.fixture
def _no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_unknown_words", Once())
    monkeypatch.setattr(armada, "_unknown_states", Once())


@pytest.mark.usefixtures("_no_words")
def test_words_that_nobody_knows_do_not_add_up(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(5_000):
        batch._phase_of({}, f"WORD {number}")
        armada.state_of(100 + number)
    assert len(batch._unknown_words._seen) == len(armada._unknown_states._seen) == 100
    assert len(caplog.records) == 200


def test_states_that_nobody_knows_do_not_add_up() -> None:
    for number in range(5_000):
        StateType().process_result_value(f"state {number}", None)  # type: ignore[arg-type]
    assert _unknown_state.cache_info().currsize <= 100


def test_boots_of_other_hosts_do_not_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(data_dir=tmp_path)
    for number in range(12_000):
        restarts.is_boot_of_this_machine(f"{identity.machine_id()}/boot-{number}/1")
    assert len(restarts._found) <= 10_000


def test_airbyte_jobs_that_have_ended_are_forgotten_long_before_those_that_have_not() -> None:
    memory = Memory()
    memory.ask(range(1, 1_001), 0.0)
    for number in range(1, 1_001):
        status = "running" if number <= 10 else "succeeded"
        job = job_of({"jobId": number, "status": status, "jobType": "sync"})
        assert job is not None
        memory.learn(job)
    memory.ask([5_000], 1_300.0)
    assert sorted(memory.jobs) == [*range(1, 11), 5_000]
