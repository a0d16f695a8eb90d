"""The poller on a loop whose time jumps to the next timer: hours pass in milliseconds."""

import asyncio
import logging
import math
import random
import selectors
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest

from jobrunner.backends.base import Gone, Observation, Patience, RemoteError
from jobrunner.backends.checks import Answer
from jobrunner.due_queue import Watch
from jobrunner.hearsay import GAP_S, REST_S, Hearsay
from jobrunner.poller import SLACK_S, Poller
from jobrunner.states import Phase
from jobrunner.testing import Fault, MemoryBackend


class _JumpingSelector(selectors.DefaultSelector):
    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits for something that never comes"
            self.now_s += timeout
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now_s


def now_s() -> float:
    return asyncio.get_running_loop().time()


def virtually(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        runner.run(main)


class Bench:
    """A poller over a memory backend with some jobs in it, and what it answered."""

    def __init__(self, jobs: int = 1, *, bulk_limit: int = 100, call_s: float = 60.0, **options: Any) -> None:
        self.outside = MemoryBackend(bulk_limit=bulk_limit, patience=Patience(call_s=call_s), clock=now_s)
        self.answers: list[tuple[float, int, str, Answer]] = []
        self.health: list[tuple[bool, str]] = []
        self.jobs = jobs
        self.then: Callable[[int, Answer], None] = lambda _job_id, _answer: None
        self.poller = Poller(
            self.outside,
            self._on_answer,
            name="bench",
            on_health=lambda readable, message: self.health.append((readable, message)),
            clock=now_s,
            random=random.Random(7),
            **options,
        )

    def _on_answer(self, job_id: int, external_id: str, answer: Answer) -> None:
        self.answers.append((now_s(), job_id, external_id, answer))
        self.then(job_id, answer)

    def of(self, job_id: int) -> list[Answer]:
        return [answer for _, each, _, answer in self.answers if each == job_id]

    def gaps_s(self) -> list[float]:
        asked_at_s = [call.at_s for call in self.outside.history if call.method == "fetch"]
        return [after - before for before, after in pairwise(asked_at_s)]

    def bulks(self) -> list[int]:
        return [len(call.keys) for call in self.outside.history if call.method == "fetch"]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        for number in range(1, self.jobs + 1):
            assert await self.outside.submit({}, f"token-{number}") == f"memory-{number}"
        task = asyncio.create_task(self.poller.run())
        try:
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def watch(self, *job_ids: int, interval_s: float = 10.0) -> None:
        for job_id in job_ids:
            self.poller.watch(job_id, f"memory-{job_id}", interval_s)


def test_jobs_due_together_are_asked_about_in_full_bulks() -> None:
    async def main() -> None:
        bench = Bench(10, bulk_limit=4)
        async with bench.running():
            bench.watch(*range(1, 11))
            await asyncio.sleep(1)
        assert sorted(bench.bulks()) == [2, 4, 4]
        assert sorted(job_id for _, job_id, _, _ in bench.answers) == list(range(1, 11))

    virtually(main())


def test_jobs_that_started_apart_come_to_travel_together() -> None:
    async def main() -> None:
        bench = Bench(20)
        async with bench.running():
            for job_id in range(1, 21):
                bench.watch(job_id)
                await asyncio.sleep(0.2)
            await asyncio.sleep(600)
            bench.outside.history.clear()
            await asyncio.sleep(100)
        assert sum(bench.bulks()) >= 180
        assert len(bench.bulks()) <= 40

    virtually(main())


def test_the_mean_of_the_poll_times_is_the_interval_and_none_is_much_longer() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running():
            bench.watch(1)
            await asyncio.sleep(4000)
        gaps = bench.gaps_s()
        assert 9.8 < sum(gaps) / len(gaps) < 10.2
        assert max(gaps) <= 10.51
        assert max(gaps) - min(gaps) > 0.5, "there is jitter"

    virtually(main())


def test_the_first_look_comes_at_once_or_when_it_was_asked_for() -> None:
    async def main() -> None:
        bench = Bench(2)
        async with bench.running():
            start_s = now_s()
            bench.poller.watch(1, "memory-1", 10.0)
            bench.poller.watch(2, "memory-2", 10.0, first_in_s=3.0)
            await asyncio.sleep(5)
            firsts = {job_id: at_s - start_s for at_s, job_id, _, _ in reversed(bench.answers)}
        assert firsts[1] == pytest.approx(0, abs=0.01)
        assert firsts[2] == pytest.approx(3, abs=0.01)

    virtually(main())


def test_two_jobs_on_one_external_id_are_asked_about_once_and_both_answered() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running():
            bench.poller.watch(1, "memory-1", 10.0)
            bench.poller.watch(2, "memory-1", 10.0)
            await asyncio.sleep(1)
        assert bench.bulks() == [1]
        assert len(bench.of(1)) == len(bench.of(2)) == 1

    virtually(main())


def test_at_most_so_many_calls_are_under_way() -> None:
    async def main() -> None:
        bench = Bench(10, bulk_limit=1, concurrency=3)
        bench.outside.order(Fault.SLOW, times=None, delay_s=1.0)
        async with bench.running():
            bench.watch(*range(1, 11))
            await asyncio.sleep(0.5)
            assert len(bench.bulks()) == 3
            await asyncio.sleep(1)
            assert len(bench.bulks()) == 6

    virtually(main())


def test_a_hurried_job_is_asked_about_at_once() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running():
            bench.watch(1, interval_s=3600)
            await asyncio.sleep(1)
            bench.outside.succeed("memory-1")
            bench.poller.hurry(1)
            bench.poller.hurry(99)
            await asyncio.sleep(0.1)
        assert [type(answer) for answer in bench.of(1)] == [Observation] * 2
        assert bench.of(1)[1] == Observation(Phase.SUCCEEDED, "SUCCEEDED")

    virtually(main())


def test_a_job_hurried_while_it_is_asked_about_is_asked_about_once_more() -> None:
    async def main() -> None:
        bench = Bench()
        bench.outside.order(Fault.SLOW, delay_s=1.0)
        async with bench.running():
            bench.watch(1, interval_s=3600)
            await asyncio.sleep(0.5)
            bench.poller.hurry(1)
            await asyncio.sleep(1)
        assert len(bench.of(1)) == 2

    virtually(main())


def test_a_forgotten_job_is_neither_asked_about_nor_answered() -> None:
    async def main() -> None:
        bench = Bench(2)
        bench.outside.order(Fault.SLOW, delay_s=1.0)
        async with bench.running():
            bench.watch(1, 2)
            await asyncio.sleep(0.5)
            bench.poller.forget(1)
            bench.poller.forget(1)
            await asyncio.sleep(100)
        assert bench.of(1) == []
        assert len(bench.of(2)) > 5
        assert len(bench.poller) == 1
        assert sum("memory-1" in call.keys for call in bench.outside.history) == 1

    virtually(main())


def test_an_answer_about_an_earlier_external_id_is_dropped() -> None:
    async def main() -> None:
        bench = Bench(2)
        bench.outside.order(Fault.SLOW, delay_s=1.0)
        async with bench.running():
            bench.poller.watch(1, "memory-1", 10.0)
            await asyncio.sleep(0.5)
            bench.poller.watch(1, "memory-2", 10.0)
            await asyncio.sleep(30)
        assert {external_id for _, _, external_id, _ in bench.answers} == {"memory-2"}

    virtually(main())


def test_a_job_may_be_forgotten_while_its_answer_is_taken() -> None:
    async def main() -> None:
        bench = Bench(3)
        bench.then = lambda job_id, _answer: bench.poller.forget(3 if job_id == 1 else job_id)
        async with bench.running():
            bench.watch(1, 2, 3)
            await asyncio.sleep(25)
        assert len(bench.of(1)) == 3
        assert len(bench.of(2)) == 1
        assert bench.of(3) == []

    virtually(main())


def test_a_new_interval_counts_for_a_job_watched_already() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running():
            bench.watch(1, interval_s=3600)
            await asyncio.sleep(1)
            bench.watch(1, interval_s=1)
            await asyncio.sleep(10)
        assert len(bench.of(1)) >= 10

    virtually(main())


def test_an_interval_of_nothing_is_refused() -> None:
    async def main() -> None:
        for interval_s in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match="interval_s"):
                Bench().poller.watch(1, "memory-1", interval_s)

    virtually(main())


def test_throttling_holds_the_whole_connection_for_as_long_as_the_server_asks() -> None:
    async def main() -> None:
        bench = Bench(3, bulk_limit=1, concurrency=1)
        bench.outside.order(Fault.THROTTLE, retry_after_s=120)
        async with bench.running():
            start_s = now_s()
            bench.watch(1, 2, 3)
            await asyncio.sleep(119)
            assert len(bench.bulks()) == 1
            assert start_s + 120 <= bench.poller.progress_by_s <= start_s + 132 + SLACK_S
            await asyncio.sleep(14)
        assert len(bench.bulks()) >= 4, "all at once after it, and not one after the other"
        assert [answer for answer in bench.of(1) if isinstance(answer, RemoteError)] == [
            RemoteError("throttle was ordered", 120)
        ]

    virtually(main())


def test_throttling_doubles_the_waits_up_to_a_cap_and_a_success_ends_it() -> None:
    async def main() -> None:
        bench = Bench()
        order = bench.outside.order(Fault.THROTTLE, times=None)
        async with bench.running():
            bench.watch(1, interval_s=5)
            await asyncio.sleep(600)
            gaps = bench.gaps_s()
            assert gaps[0] <= 1
            assert max(gaps) <= 60.1
            assert min(gaps[-4:]) >= 29.9
            order.stop()
            await asyncio.sleep(60)
            asked = len(bench.bulks())
            await asyncio.sleep(50)
            assert len(bench.bulks()) - asked >= 9
        assert isinstance(bench.of(1)[-1], Observation)

    virtually(main())


def test_a_retry_after_for_one_id_holds_the_connection_and_spares_the_answers_of_the_others() -> None:
    async def main() -> None:
        bench = Bench(2)
        bench.outside.order(Fault.ERROR, ids=["memory-1"], retry_after_s=30)
        async with bench.running():
            bench.watch(1, 2)
            await asyncio.sleep(29)
            assert len(bench.bulks()) == 1
            await asyncio.sleep(5)
        assert [type(answer) for answer in bench.of(1)] == [RemoteError, Observation]
        assert [type(answer) for answer in bench.of(2)] == [Observation, Observation]

    virtually(main())


@pytest.mark.parametrize("retry_after_s", [math.nan, math.inf, -5.0, "soon"])
def test_a_senseless_retry_after_does_not_stop_the_watching(retry_after_s: Any) -> None:
    async def main() -> None:
        bench = Bench()
        bench.outside.order(Fault.THROTTLE, retry_after_s=retry_after_s)
        async with bench.running():
            bench.watch(1)
            await asyncio.sleep(4000)
        assert isinstance(bench.of(1)[-1], Observation)

    virtually(main())


def test_a_success_sent_before_the_throttling_does_not_end_it() -> None:
    async def main() -> None:
        bench = Bench(2, bulk_limit=1)
        bench.outside.order(Fault.SLOW, ids=["memory-1"], delay_s=1.0)
        bench.outside.order(Fault.THROTTLE, ids=["memory-2"], retry_after_s=60)
        async with bench.running():
            bench.watch(1, 2)
            await asyncio.sleep(59)
        assert isinstance(bench.of(1)[0], Observation)
        assert len(bench.bulks()) == 2

    virtually(main())


def test_an_outage_is_an_error_for_each_job_backs_off_and_is_over_at_once() -> None:
    async def main() -> None:
        bench = Bench(3)
        order = bench.outside.order(Fault.ERROR, times=None)
        async with bench.running():
            bench.watch(1, 2, 3, interval_s=5)
            await asyncio.sleep(300)
            assert {type(answer) for _, _, _, answer in bench.answers} == {RemoteError}
            gaps = bench.gaps_s()
            assert max(gaps) <= 30.1
            assert len(gaps) < 40
            order.stop()
            await asyncio.sleep(31)
            asked = len(bench.of(1))
            await asyncio.sleep(20)
            assert len(bench.of(1)) - asked >= 3
        assert bench.health[0] == (False, "error was ordered")
        assert bench.health[1][0]
        assert bench.health[1][1].startswith("readable again after 3")
        assert len(bench.health) == 2

    virtually(main())


def test_calls_that_fail_together_double_the_wait_once() -> None:
    async def main() -> None:
        bench = Bench(4, bulk_limit=1)
        bench.outside.order(Fault.THROTTLE, times=4)
        async with bench.running():
            start_s = now_s()
            bench.watch(1, 2, 3, 4)
            await asyncio.sleep(0.1)
            assert len(bench.bulks()) == 4
            assert bench.poller.progress_by_s <= start_s + 1 + SLACK_S

    virtually(main())


def test_one_call_alone_tries_whether_the_trouble_is_over() -> None:
    async def main() -> None:
        bench = Bench(4, bulk_limit=1)
        bench.outside.order(Fault.ERROR, times=4)
        bench.outside.order(Fault.SLOW, times=None, delay_s=5.0)
        async with bench.running():
            bench.watch(1, 2, 3, 4, interval_s=2)
            await asyncio.sleep(6)
            assert len(bench.bulks()) == 5
            await asyncio.sleep(2)
            assert len(bench.bulks()) == 9

    virtually(main())


def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        bench = Bench(3)
        bench.outside.order(Fault.ERROR, times=5)
        async with bench.running():
            bench.watch(1, 2, 3, interval_s=1)
            await asyncio.sleep(100)

    with caplog.at_level(logging.INFO, "jobrunner"):
        virtually(main())
    texts = [record.getMessage().partition(" connection=")[0] for record in caplog.records]
    assert texts == ["status unreadable", "status readable again"]


def test_one_broken_job_neither_slows_the_others_nor_speaks_for_the_connection() -> None:
    async def main() -> None:
        bench = Bench(5)
        bench.outside.order(Fault.ERROR, times=None, ids=["memory-1"])
        async with bench.running():
            bench.watch(*range(1, 6), interval_s=5)
            await asyncio.sleep(500)
        assert all(isinstance(answer, RemoteError) for answer in bench.of(1))
        assert len(bench.of(1)) < 25, "its own interval grew to 30 s"
        assert len(bench.of(2)) > 90
        assert bench.health == []

    virtually(main())


def test_an_id_that_spoils_every_call_it_is_in_is_soon_asked_about_alone() -> None:
    async def main() -> None:
        bench = Bench(64)

        class Spoilt(type(bench.outside)):  # type: ignore[misc]
            async def fetch(self, ids: Any) -> Any:
                answers = await super().fetch(ids)
                if "memory-33" in ids:
                    raise ValueError("an id in this call is malformed")
                return answers

        bench.outside.__class__ = Spoilt
        async with bench.running():
            bench.watch(*range(1, 65), interval_s=5)
            await asyncio.sleep(200)
            bench.answers.clear()
            bench.health.clear()
            await asyncio.sleep(200)
        assert all(isinstance(answer, RemoteError) for answer in bench.of(33))
        for job_id in {*range(1, 65)} - {33}:
            assert len(bench.of(job_id)) >= 35
            assert all(isinstance(answer, Observation) for answer in bench.of(job_id))
        assert bench.health == []

    virtually(main())


def test_a_call_that_hangs_is_ended_at_its_deadline() -> None:
    async def main() -> None:
        bench = Bench(call_s=7)
        bench.outside.order(Fault.TIMEOUT)
        async with bench.running():
            start_s = now_s()
            bench.watch(1)
            await asyncio.sleep(0.1)
            assert bench.poller.progress_by_s == pytest.approx(start_s + 7 + SLACK_S)
            await asyncio.sleep(20)
        at_s, _, _, answer = bench.answers[0]
        assert at_s - start_s == pytest.approx(7, abs=0.01)
        assert answer == RemoteError("no answer within 7 s")
        assert isinstance(bench.of(1)[1], Observation)

    virtually(main())


@pytest.mark.parametrize("garbage", [None, [1, 2], {"memory-1": None, "other": Gone()}, {}, 7])
def test_garbage_is_an_error_and_never_a_verdict(garbage: Any) -> None:
    async def main() -> None:
        bench = Bench()
        bench.outside.order(Fault.GARBAGE, answer=garbage)
        async with bench.running():
            bench.watch(1)
            await asyncio.sleep(15)
        assert [type(answer) for answer in bench.of(1)] == [RemoteError, Observation]
        assert {external_id for _, _, external_id, _ in bench.answers} == {"memory-1"}

    virtually(main())


def test_a_phase_of_no_known_kind_is_an_error() -> None:
    async def main() -> None:
        bench = Bench()
        bench.outside.order(Fault.GARBAGE, answer={"memory-1": Observation("done", "DONE")})  # type: ignore[arg-type]
        async with bench.running():
            bench.watch(1)
            await asyncio.sleep(1)
        assert isinstance(bench.of(1)[0], RemoteError)

    virtually(main())


def test_an_id_left_out_of_the_answer_is_an_error_for_it_alone() -> None:
    async def main() -> None:
        bench = Bench(2)
        bench.outside.order(Fault.GARBAGE, answer={"memory-1": Gone()})
        async with bench.running():
            bench.watch(1, 2)
            await asyncio.sleep(1)
        assert bench.of(1) == [Gone()]
        assert bench.of(2) == [RemoteError("not answered for")]

    virtually(main())


def test_a_callback_that_raises_does_not_end_the_watching(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench(2)

        def boom(job_id: int, answer: Answer) -> None:
            raise RuntimeError("boom")

        bench.then = boom
        async with bench.running():
            bench.watch(1, 2)
            await asyncio.sleep(25)
        assert len(bench.of(1)) == len(bench.of(2)) == 3

    virtually(main())
    assert "an answer was not taken" in caplog.text


def test_a_health_callback_that_raises_does_not_end_the_watching(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench()

        def boom(readable: bool, message: str) -> None:
            raise RuntimeError("boom")

        bench.poller._health._on_health = boom
        bench.outside.order(Fault.ERROR)
        async with bench.running():
            bench.watch(1)
            await asyncio.sleep(25)
        assert isinstance(bench.of(1)[-1], Observation)

    virtually(main())
    assert "a change of health was not taken" in caplog.text


def test_a_backend_that_cancels_itself_is_an_error_like_any_other() -> None:
    async def main() -> None:
        bench = Bench()
        fetch = bench.outside.fetch

        async def cancelled_once(ids: Any) -> Any:
            bench.outside.fetch = fetch  # type: ignore[method-assign]
            raise asyncio.CancelledError

        bench.outside.fetch = cancelled_once  # type: ignore[method-assign]
        async with bench.running():
            bench.watch(1)
            await asyncio.sleep(15)
        assert [type(answer) for answer in bench.of(1)] == [RemoteError, Observation]

    virtually(main())


def test_the_promise_is_the_next_look_and_nothing_when_there_is_nothing_to_watch() -> None:
    async def main() -> None:
        bench = Bench()
        assert bench.poller.progress_by_s == math.inf
        async with bench.running():
            bench.watch(1)
            assert bench.poller.progress_by_s == pytest.approx(now_s() + SLACK_S)
            await asyncio.sleep(1)
            assert now_s() + 8 + SLACK_S < bench.poller.progress_by_s < now_s() + 10 + SLACK_S
            bench.poller.forget(1)
            assert bench.poller.progress_by_s == math.inf

    virtually(main())


def test_the_promise_stays_in_the_past_when_nobody_runs_the_poller() -> None:
    async def main() -> None:
        bench = Bench()
        bench.watch(1)
        bench.poller.watch(2, "memory-2", 10.0, first_in_s=1.0)
        await asyncio.sleep(60)
        assert bench.poller.progress_by_s < now_s()
        bench.watch(3)
        assert bench.poller.progress_by_s < now_s(), "a newcomer does not renew it"

    virtually(main())


def test_the_promise_is_kept_through_an_outage() -> None:
    async def main() -> None:
        bench = Bench(3, bulk_limit=1, call_s=5)
        bench.outside.order(Fault.TIMEOUT, times=40)
        async with bench.running():
            bench.watch(1, 2, 3)
            for _ in range(1000):
                await asyncio.sleep(0.5)
                assert bench.poller.progress_by_s >= now_s()

    virtually(main())


def test_a_cancelled_run_loses_no_job_and_may_begin_again() -> None:
    async def main() -> None:
        bench = Bench(2, bulk_limit=1)
        bench.outside.order(Fault.TIMEOUT)
        async with bench.running():
            bench.watch(1, 2)
            await asyncio.sleep(1)
        assert len(bench.poller) == 2
        again = asyncio.create_task(bench.poller.run())
        await asyncio.sleep(1)
        assert isinstance(bench.of(1)[0], Observation)
        with pytest.raises(RuntimeError, match="running already"):
            await bench.poller.run()
        await bench.poller.close()
        await again

    virtually(main())


def test_closing_ends_the_run_with_its_calls_and_leaves_the_backend_open() -> None:
    async def main() -> None:
        bench = Bench()
        bench.outside.order(Fault.TIMEOUT)
        async with bench.running() as task:
            bench.watch(1)
            await asyncio.sleep(1)
            await bench.poller.close()
            await bench.poller.close()
            await task
        assert len(bench.poller) == 0
        assert bench.poller.progress_by_s == math.inf
        assert bench.outside.calls["close"] == 0

    virtually(main())


def test_a_hundred_thousand_jobs_take_a_call_a_hundred_and_little_time() -> None:
    async def main() -> None:
        bench = Bench(0)
        bench.poller._on_answer = lambda _job_id, _external_id, _answer: None
        async with bench.running():
            for job_id in range(100_000):
                bench.watch(job_id, interval_s=60)
            await asyncio.sleep(1)
            assert bench.bulks() == [100] * 1000
            for job_id in range(100_000):
                bench.poller.hurry(job_id)
                bench.poller.forget(job_id)
            assert len(bench.poller) == 0
            assert len(bench.poller._queue._heap) <= 1001, "what was superseded does not pile up"

    began_s = time.process_time()
    virtually(main())
    assert time.process_time() - began_s < 30


def test_what_was_forgotten_long_before_its_time_does_not_pile_up() -> None:
    async def main() -> None:
        poller = Bench(0).poller
        poller.watch(0, "the next", 1.0)
        for job_id in range(1, 20_000):
            poller.watch(job_id, "far away", 3600.0, first_in_s=3600.0)
            poller.forget(job_id)
        assert len(poller._queue._heap) < 2500

    virtually(main())


# --- what is heard from outside --------------------------------------------------------------------


def test_a_job_of_which_something_is_heard_is_asked_about_at_once() -> None:
    async def main() -> None:
        bench = Bench(3)
        async with bench.running():
            bench.watch(1, 2, 3, interval_s=100)
            await asyncio.sleep(50)
            heard_s = now_s()
            bench.poller.hurry_external("memory-2")
            await asyncio.sleep(1)
            asked_s, job_id, _, _ = bench.answers[-1]
        assert (job_id, len(bench.answers)) == (2, 4)
        assert asked_s - heard_s < 0.01

    virtually(main())


def test_all_jobs_of_an_external_id_are_asked_about_and_those_forgotten_are_not() -> None:
    async def main() -> None:
        bench = Bench(2)
        async with bench.running():
            bench.watch(1, 2, interval_s=100)
            for job_id in (11, 12, 13):
                bench.poller.watch(job_id, "memory-1", 100)
            for job_id in (1, 12):  # the first and one in the middle
                bench.poller.forget(job_id)
            await asyncio.sleep(50)
            bench.answers.clear()
            bench.poller.hurry_external("memory-1")
            await asyncio.sleep(1)
            assert sorted(job_id for _, job_id, _, _ in bench.answers) == [11, 13]
            for job_id in (11, 13):
                bench.poller.forget(job_id)
            bench.answers.clear()
            bench.poller.hurry_external("memory-1")
            await asyncio.sleep(1)
        assert bench.answers == []

    virtually(main())


def test_what_is_heard_while_a_job_is_asked_about_is_asked_about_again_after_a_rest() -> None:
    """The answer under way may be older than what was heard."""

    async def main() -> None:
        bench = Bench()
        bench.outside.order(Fault.SLOW, delay_s=0.5)
        async with bench.running():
            bench.watch(1, interval_s=100)
            await asyncio.sleep(0.1)
            bench.poller.hurry_external("memory-1")
            await asyncio.sleep(20)
        (gap_s,) = bench.gaps_s()
        assert REST_S <= gap_s < REST_S + 2 * GAP_S

    virtually(main())


def test_what_is_heard_again_and_again_of_one_job_is_asked_about_once_a_rest() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running():
            bench.watch(1, interval_s=1000)
            for _ in range(1000):
                bench.poller.hurry_external("memory-1")
                await asyncio.sleep(0.01)
        assert 8 <= len(bench.answers) <= 11, "ten seconds of it"
        assert min(bench.gaps_s()) >= REST_S

    virtually(main())


def test_a_flood_about_all_jobs_adds_one_bulk_a_gap() -> None:
    async def main() -> None:
        bench = Bench(1000, bulk_limit=10)
        async with bench.running():
            bench.watch(*range(1, 1001), interval_s=1000)
            await asyncio.sleep(100)
            before = bench.outside.calls["fetch"]
            for _ in range(100):
                for job_id in range(1, 1001):
                    bench.poller.hurry_external(f"memory-{job_id}")
                await asyncio.sleep(0.1)
            calls = bench.outside.calls["fetch"] - before
        assert 0.8 * 10 / GAP_S <= calls <= 10 / GAP_S + 1, "ten seconds of it"

    virtually(main())


def test_what_is_heard_of_nobody_is_let_go() -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.running():
            bench.watch(1, interval_s=100)
            await asyncio.sleep(10)
            for number in range(1000):
                bench.poller.hurry_external(f"nobody-{number}")
            await asyncio.sleep(10)
        assert len(bench.answers) == 1
        assert not bench.poller._hearsay._heard

    virtually(main())


def test_what_is_heard_during_a_back_off_neither_breaks_it_nor_piles_up() -> None:
    async def main() -> None:
        bench = Bench(51, bulk_limit=1)
        async with bench.running():
            bench.watch(*range(1, 52), interval_s=1000)
            await asyncio.sleep(500)
            bench.outside.order(Fault.THROTTLE, retry_after_s=30.0)
            bench.poller.hurry(51)
            await asyncio.sleep(1)
            calls = bench.outside.calls["fetch"]
            for _ in range(28):
                for job_id in range(1, 51):
                    bench.poller.hurry_external(f"memory-{job_id}")
                await asyncio.sleep(1)
            assert bench.outside.calls["fetch"] == calls
            await asyncio.sleep(6)
            assert calls < bench.outside.calls["fetch"] <= calls + 2 + 6 / GAP_S
            await asyncio.sleep(20)
        assert {job_id for _, job_id, _, _ in bench.answers[51:]} == set(range(1, 52)), "all of them, after"

    virtually(main())


def test_knowing_jobs_by_their_external_ids_is_small() -> None:
    def bytes_of(count: int) -> int:
        tracemalloc.start()
        try:
            hearsay = Hearsay(lambda: 0.0)
            watches = [Watch(n, f"0a1b2c3d-0000-4000-8000-{n:012d}", 10.0) for n in range(count)]
            before, _ = tracemalloc.get_traced_memory()
            for watch in watches:
                hearsay.add(watch)
            after, _ = tracemalloc.get_traced_memory()
            return after - before
        finally:
            tracemalloc.stop()

    assert bytes_of(20_000) / 20_000 < 150
