"""Job classes whose attributes raise, hang or make no sense: they end no worker, and bar no other job."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from jobrunner import statements, unexpected
from jobrunner.aside import Aside, Late
from jobrunner.cli.spelling import why_waiting
from jobrunner.database import Database
from jobrunner.errors import CodeError, SettingsError
from jobrunner.models import BaseJob
from jobrunner.models.base_job import object_of
from jobrunner.runner import Runner
from jobrunner.states import JobState
from jobrunner.terms import all_say_the_same
from jobrunner.testing import MemoryMonitorJob, Plan, use_backend
from tests.helpers import an_owner, insert_job, row_of
from tests.runner.support import SOON, a_job, an_outside, in_loop, soon, start
from tests.worker.workers import a_worker, store, until_state

NOTHING = "nothing was submitted, as it cannot be watched: "
_numbers = itertools.count(1)


class Unhashable:
    """A value that ends the process of whoever hashes it."""

    def __hash__(self) -> int:
        raise SystemExit(9)


class Incomparable:
    """One that ends the process of whoever compares it with another."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise SystemExit(9)


def exits(*_arguments: object, **_options: object) -> Any:
    raise SystemExit(4)


def interrupts(*_arguments: object, **_options: object) -> Any:
    raise KeyboardInterrupt


def is_cancelled(*_arguments: object, **_options: object) -> Any:
    raise asyncio.CancelledError


def a_class(**attributes: Any) -> type[MemoryMonitorJob]:
    """Return a class of jobs of a name of its own, as the registry of the models wants it."""
    return type(f"Attributed{next(_numbers)}", (MemoryMonitorJob,), {"__module__": __name__, **attributes})


def stored(database: Database, job_class: type[BaseJob], **values: Any) -> int:
    """Store a job by its row alone: none of the class's code runs."""
    given = {"submit_token": f"token-{next(_numbers)}", "connection": "memory_default", "spec": {}}
    return insert_job(
        database, job_type=job_class.__name__, adoptable=True, heartrate=0.3, **{**given, **values}
    )


@pytest.fixture
def go() -> Iterator[threading.Event]:
    """What attributes hang on, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def hanging(go: threading.Event) -> Callable[..., Any]:
    def hang(*_arguments: object, **_options: object) -> Any:
        go.wait(60)
        raise SettingsError("the test is over")

    return hang


FLAWS: dict[str, tuple[dict[str, Any], str]] = {
    "has_a_say": ({"has_a_say": exits}, ".has_a_say raised SystemExit: 4"),
    "has_a_say_none": ({"has_a_say": lambda _self: None}, ".has_a_say gave None"),
    "runs_on_this_host": ({"runs_on_this_host": property(exits)}, ".runs_on_this_host raised SystemExit: 4"),
    "runs_on_this_host_text": ({"runs_on_this_host": "yes"}, ".runs_on_this_host gave 'yes'"),
    "setattr": ({"__setattr__": exits}, "__setattr__) raised SystemExit: 4"),
    "new": ({"__new__": interrupts}, ".__new__ (or its __setattr__) raised KeyboardInterrupt"),
    "own_way": ({"own_way": is_cancelled}, ".own_way raised CancelledError"),
    "own_way_missing": ({"own_way": None}, ".own_way raised TypeError"),
    "own_way_property": ({"own_way": property(exits)}, ".own_way raised SystemExit: 4"),
    "own_way_list": ({"own_way": lambda _self: [1]}, ".own_way, which returned [1], raised TypeError"),
    "own_way_hash": ({"own_way": lambda _self: Unhashable()}, "raised SystemExit: 9"),
    "poll_property": (
        {"default_poll_interval": property(exits)},
        ".default_poll_interval raised SystemExit: 4",
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
@in_loop
async def test_a_class_at_fault_fails_its_job_with_a_word_and_hinders_no_other(
    sqlite_database: Database, flaw: str
) -> None:
    attributes, said = FLAWS[flaw]
    job_class = a_class(**attributes)
    crashes = unexpected.count()
    with use_backend(an_outside(plan=SOON)):
        bad = stored(sqlite_database, job_class)
        killed = stored(
            sqlite_database, job_class, kill_requested_at=row_of(sqlite_database, bad)["created_at"]
        )
        async with a_worker(sqlite_database) as working:
            await until_state(sqlite_database, JobState.FAILED, bad)
            (good,) = store(a_job())
            await until_state(sqlite_database, JobState.SUCCESS, good)
            await until_state(sqlite_database, JobState.KILLED, killed)
            assert not working.task.done()
    message = row_of(sqlite_database, bad)["message"]
    assert message.startswith(f"{NOTHING}{job_class.__name__}"), message
    assert said in message
    assert message.endswith("correct the class.")
    assert unexpected.count() == crashes


@in_loop
async def test_values_that_cannot_be_compared_fail_only_their_own_jobs(sqlite_database: Database) -> None:
    job_class = a_class(own_way=lambda _self: Incomparable())
    with use_backend(an_outside(plan=SOON)):
        first, second = stored(sqlite_database, job_class), stored(sqlite_database, job_class)
        async with a_worker(sqlite_database):
            await soon(lambda: all(row_of(sqlite_database, each)["end_date"] for each in (first, second)))
            (good,) = store(a_job())
            await until_state(sqlite_database, JobState.SUCCESS, good)
    states = sorted(row_of(sqlite_database, each)["state"] for each in (first, second))
    assert states == [JobState.FAILED, JobState.SUCCESS], "the first of them is compared with none"


@pytest.mark.parametrize("interval", ["10s", 0, -1, None, float("nan"), 10**400], ids=str)
@in_loop
async def test_a_default_poll_interval_that_makes_no_sense_is_replaced_and_that_is_said_once(
    sqlite_database: Database, interval: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job_class = a_class(default_poll_interval=interval)
    crashes = unexpected.count()
    with use_backend(an_outside(plan=SOON)):
        jobs = [stored(sqlite_database, job_class) for _ in range(3)]
        async with a_worker(sqlite_database) as working:
            await soon(lambda: all(row_of(sqlite_database, each)["external_id"] for each in jobs))
            for owned in working.worker._runner.jobs.values():
                owned.channel.poller.hurry(owned.job_id)
            await until_state(sqlite_database, JobState.SUCCESS, *jobs)
    said = [each for each in caplog.messages if "default_poll_interval" in each]
    assert len(said) == 1
    assert "10 is used" in said[0]
    assert unexpected.count() == crashes


@pytest.mark.parametrize("attribute", ["make_backend", "backend_behind", "own_way"])
@in_loop
async def test_a_class_that_never_answers_holds_up_nobody_and_its_job_can_be_killed(
    sqlite_database: Database, attribute: str, go: threading.Event
) -> None:
    hang = hanging(go)
    job_class = a_class(**{attribute: classmethod(hang) if attribute == "make_backend" else hang})
    with use_backend(an_outside(plan=SOON)):
        bad = stored(sqlite_database, job_class)
        async with a_worker(sqlite_database) as working:
            await soon(lambda: row_of(sqlite_database, bad)["claims"] == 1)
            (good,) = store(a_job())
            await until_state(sqlite_database, JobState.SUCCESS, good)
            beat = row_of(sqlite_database, bad)["latest_heartbeat"]
            await soon(lambda: row_of(sqlite_database, bad)["latest_heartbeat"] > beat)
            job = BaseJob.get(bad)
            await asyncio.to_thread(job.request_kill, reason="enough")
            await until_state(sqlite_database, JobState.KILLED, bad)
            assert not working.task.done()
    assert row_of(sqlite_database, bad)["message"] == "killed before it was submitted"


@in_loop
async def test_a_backend_that_is_not_made_in_time_leaves_its_job_queued_with_the_reason(
    sqlite_database: Database, go: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.terms.MAKE_S", 0.2)
    job_class = a_class(backend_behind=hanging(go))
    why = f"{job_class.__name__}.make_backend does not answer"
    with use_backend(an_outside(plan=SOON)):
        bad = stored(sqlite_database, job_class)
        async with a_worker(sqlite_database) as working:
            await soon(lambda: row_of(sqlite_database, bad)["state"] is JobState.QUEUED)
            await soon(lambda: why in str(row_of(sqlite_database, bad)["message"]))
            looks = working.worker._rounds
            await soon(lambda: working.worker._rounds > looks + 3)
            assert row_of(sqlite_database, bad)["claims"] == 1, "it is left alone for a while"
            row = working.row()
            workers = [{**row, "id": working.job.id}]
            shown = why_waiting(job_class.__name__, "memory_default", workers, {})
            assert why in str(shown)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (42, "returned 42, not a backend: it has no submit"),
        (None, "returned None, not a backend: it has no submit"),
        (exits, "make_backend raised SystemExit: 4"),
        (is_cancelled, "cannot be made: CancelledError"),
    ],
    ids=["number", "none", "exits", "cancelled"],
)
@in_loop
async def test_what_is_no_backend_leaves_its_job_queued_with_the_reason(
    sqlite_database: Database, made: Any, said: str
) -> None:
    job_class = a_class(make_backend=classmethod(made if callable(made) else lambda *_arguments: made))
    with use_backend(an_outside(plan=SOON)):
        bad = stored(sqlite_database, job_class)
        async with a_worker(sqlite_database) as working:
            await soon(lambda: said in str(row_of(sqlite_database, bad)["message"]))
            (good,) = store(a_job())
            await until_state(sqlite_database, JobState.SUCCESS, good)
            assert not working.task.done()
    assert row_of(sqlite_database, bad)["state"] is JobState.QUEUED


@in_loop
async def test_a_class_at_fault_leaves_work_that_is_outside_to_a_mended_one(
    sqlite_database: Database,
) -> None:
    outside = an_outside(plan=Plan())
    job_class = a_class(has_a_say=exits)
    with use_backend(outside):
        job_id = stored(sqlite_database, job_class)
        with pytest.MonkeyPatch.context() as mended:
            mended.setattr(job_class, "has_a_say", lambda _self: False)
            async with a_worker(sqlite_database):
                await soon(lambda: row_of(sqlite_database, job_id)["external_id"] is not None)
        async with a_worker(sqlite_database):
            await soon(lambda: "has_a_say" in str(row_of(sqlite_database, job_id)["message"]))
        row = row_of(sqlite_database, job_id)
        assert row["state"] is JobState.QUEUED
        assert row["external_id"] is not None
        outside.succeed(row["external_id"])
        with pytest.MonkeyPatch.context() as mended:
            mended.setattr(job_class, "has_a_say", lambda _self: False)
            async with a_worker(sqlite_database):
                await until_state(sqlite_database, JobState.SUCCESS, job_id)


@pytest.mark.parametrize("kind", [5, ["memory"], None, ""], ids=str)
@in_loop
async def test_a_backend_kind_that_is_no_text_leaves_its_job_queued_with_the_reason(
    sqlite_database: Database, kind: Any
) -> None:
    job_class = a_class(backend_kind=kind)
    with use_backend(an_outside(plan=SOON)):
        bad = stored(sqlite_database, job_class, connection="nowhere" if kind == "" else None)
        async with a_worker(sqlite_database) as working:
            (good,) = store(a_job())
            await until_state(sqlite_database, JobState.SUCCESS, good)
            await soon(lambda: job_class.__name__ in str(working.row()["detail"].get("unserved")))
    assert row_of(sqlite_database, bad)["state"] is JobState.QUEUED


@pytest.mark.parametrize("kind", ["", "orders of ours", "\u00e4\n"], ids=repr)
@in_loop
async def test_a_class_that_makes_its_own_backend_may_name_any_kind_or_none(
    sqlite_database: Database, kind: str
) -> None:
    job_class = a_class(backend_kind=kind)
    with use_backend(an_outside(plan=SOON)):
        own, other = store(job_class(heartrate=0.3), a_job())
        async with a_worker(sqlite_database):
            await until_state(sqlite_database, JobState.SUCCESS, own, other)
        foreground = job_class(heartrate=0.3)
        await asyncio.to_thread(foreground.run)
    assert foreground.state is JobState.SUCCESS


@in_loop
async def test_a_start_in_the_foreground_says_what_is_wrong_with_a_class_and_stores_nothing(
    sqlite_database: Database,
) -> None:
    job_class = a_class(own_way=exits)
    with use_backend(an_outside(plan=SOON)):
        watching = asyncio.to_thread(job_class().run)
        with pytest.raises(CodeError, match="own_way raised SystemExit: 4: correct the class"):
            await watching
    assert BaseJob.most_recent_job() is None


@in_loop
async def test_a_class_that_says_nothing_of_single_jobs_is_asked_once(sqlite_database: Database) -> None:
    made: list[int] = []

    def own(runner: Runner, job_class: type[MemoryMonitorJob]) -> None:
        job_id = stored(sqlite_database, job_class)
        with sqlite_database.write() as connection:
            claim = statements.claim_queued(connection, job_id, runner.owner)
            row = statements.get(connection, job_id)
        assert claim is not None

        def make() -> object:
            made.append(job_id)
            return object_of(row)

        runner.own(claim, row, job_class, make)

    def watched() -> int:
        return sum(job.is_watched for job in runner.jobs.values())

    with use_backend(an_outside()):
        for attributes, objects in (({}, 1), ({"own_way": lambda _self: None}, 3)):
            made.clear()
            async with Runner(sqlite_database, an_owner()) as runner:
                job_class = a_class(**attributes)
                for number in range(1, 4):
                    own(runner, job_class)
                    await soon(lambda: watched() == number)  # noqa: B023
                assert len(made) == objects
                assert {job.poll_interval for job in runner.jobs.values()} == {0.05}


@pytest.mark.parametrize("flaw", sorted(FLAWS.keys() - {"setattr", "new"}))  # both are of objects
def test_to_find_out_whether_a_class_says_anything_of_single_jobs_runs_none_of_its_code(flaw: str) -> None:
    assert not all_say_the_same(a_class(**FLAWS[flaw][0]))


def test_a_class_that_says_something_in_another_way_is_asked_each_time() -> None:
    class Meta(type(MemoryMonitorJob)):  # type: ignore[misc]
        pass

    odd = Meta(f"Attributed{next(_numbers)}", (MemoryMonitorJob,), {"__module__": __name__})
    assert not all_say_the_same(odd)
    assert not all_say_the_same(a_class(__getattribute__=exits))
    assert not all_say_the_same(a_class(judge=lambda *_: None))
    assert not all_say_the_same(a_class(on_kill=exits))
    assert not all_say_the_same(a_class(heartbeat_callback=exits))
    assert all_say_the_same(a_class(default_poll_interval=3))
    assert all_say_the_same(MemoryMonitorJob)


@in_loop
async def test_a_runner_told_to_stop_waits_for_no_class_that_does_not_answer(
    sqlite_database: Database, go: threading.Event
) -> None:
    with use_backend(an_outside(plan=SOON)):
        runner = Runner(sqlite_database, an_owner())
        async with runner:
            job = a_class(backend_behind=hanging(go))()
            start(runner, job)
            await soon(lambda: bool(runner._ways._opening))
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 10
    row = row_of(sqlite_database, job.id)
    assert (row["state"], row["message"]) == (JobState.QUEUED, "released: its runner was stopped")


@in_loop
async def test_calls_that_never_return_take_places_from_no_other_kind(go: threading.Event) -> None:
    aside = Aside()
    calls = [asyncio.create_task(aside.call("bad", go.wait, 0.1)) for _ in range(30)]
    for call in calls:
        with pytest.raises(Late):
            await call
    hanging_threads = [each for each in threading.enumerate() if each.name == "jobrunner-aside"]
    assert len(hanging_threads) <= 16
    assert await aside.call("good", lambda: 5, 10.0) == 5
    go.set()
    await soon(lambda: not aside._lines["bad"]._is_stuck)
    assert await aside.call("bad", lambda: 6, 10.0) == 6


@in_loop
async def test_calls_wait_for_their_turn_as_long_as_others_return() -> None:
    aside = Aside()
    calls = [asyncio.create_task(aside.call("slow", lambda: time.sleep(0.1), 0.3)) for _ in range(100)]
    assert await asyncio.gather(*calls) == [None] * 100  # six times as long as one may take


@in_loop
async def test_calls_that_return_at_once_need_few_threads_and_keep_their_order() -> None:
    aside = Aside()
    made: list[int] = []
    threads: set[int] = set()

    def call(number: int) -> int:
        made.append(number)
        threads.add(threading.get_ident())
        return number

    calls = [aside.begin("quick", partial(call, number), 60.0) for number in range(5_000)]
    assert await asyncio.gather(*calls) == list(range(5_000)) == sorted(made)
    assert len(threads) < 16  # one; a busy machine may add some


@in_loop
async def test_a_call_that_hangs_holds_up_none_of_those_behind_it(go: threading.Event) -> None:
    aside = Aside()
    hanging = aside.begin("one", go.wait, 60.0)
    assert await asyncio.gather(*(aside.begin("one", lambda: 1, 60.0) for _ in range(10))) == [1] * 10
    go.set()
    assert await hanging


@in_loop
async def test_a_call_of_which_nobody_wants_the_outcome_any_more_is_not_begun(go: threading.Event) -> None:
    aside = Aside()
    made: list[str] = []
    calls = [aside.begin("one", go.wait, 60.0) for _ in range(16)]
    await soon(lambda: aside._lines["one"]._is_stuck)
    unwanted = aside.begin("one", lambda: made.append("unwanted"), 60.0)
    unwanted.cancel()
    wanted = aside.begin("one", lambda: made.append("wanted"), 60.0)
    go.set()
    await asyncio.gather(*calls, wanted)
    assert made == ["wanted"]


class Entry:
    """The entry point of a job type whose module does what `load` does."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load


@pytest.mark.parametrize("load", [exits, interrupts], ids=["exits", "interrupts"])
@in_loop
async def test_a_job_type_whose_import_ends_processes_ends_no_worker(
    sqlite_database: Database, load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.registry.entry_points", lambda **_of: [Entry(load)])
    with use_backend(an_outside(plan=SOON)):
        insert_job(sqlite_database, job_type=f"Ends{next(_numbers)}", heartrate=0.3)
        async with a_worker(sqlite_database, processes=0) as working:
            (good,) = store(a_job())
            await until_state(sqlite_database, JobState.SUCCESS, good)
            await soon(lambda: working.worker._rounds > 3)
            assert not working.task.done()


@in_loop
async def test_an_import_that_takes_long_holds_up_no_worker_and_is_used_when_it_ends(
    sqlite_database: Database, go: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_type = f"Imported{next(_numbers)}"
    made: list[type[BaseJob]] = []

    def load() -> Any:
        go.wait(60)
        made.append(type(job_type, (MemoryMonitorJob,), {"__module__": __name__}))
        return made[0]

    monkeypatch.setattr("jobrunner.registry._IMPORT_S", 0.1)
    monkeypatch.setattr("jobrunner.registry.entry_points", lambda **_of: [Entry(load)])
    with use_backend(an_outside(plan=SOON)):
        late = insert_job(
            sqlite_database, job_type=job_type, submit_token="t", connection="memory_default", heartrate=0.3
        )
        async with a_worker(sqlite_database) as working:
            (good,) = store(a_job())
            await until_state(sqlite_database, JobState.SUCCESS, good)
            why = "is still being imported here"
            await soon(lambda: why in str(working.row()["detail"].get("unserved")))
            assert row_of(sqlite_database, late)["claims"] == 0
            go.set()
            await until_state(sqlite_database, JobState.SUCCESS, late)
