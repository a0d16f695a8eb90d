import asyncio
import datetime as dt
import subprocess
import sys
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

import jobrunner.testing
from jobrunner.backends.base import (
    Absent,
    Found,
    Gone,
    Observation,
    Patience,
    RemoteError,
    Unsure,
    patience_of,
    sending_until,
)
from jobrunner.clock import monotonic_s, utcnow
from jobrunner.errors import BackendError, SubmitRejected, SubmitTooLate, Throttled
from jobrunner.states import Phase
from jobrunner.testing import Fault, MemoryBackend, Plan


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def phase_of(outside: MemoryBackend, external_id: str) -> Phase | None:
    answer = (await outside.fetch([external_id]))[external_id]
    return answer.phase if isinstance(answer, Observation) else None


def test_a_job_moves_by_its_plan() -> None:
    async def main() -> None:
        clock = Clock()
        plan = Plan(appear_after_s=1, wait_for_s=2, run_for_s=5, ends_as=Phase.FAILED, message="exit code 3")
        outside = MemoryBackend(plan=plan, clock=clock)
        external_id = await outside.submit({}, "token")
        seen = []
        for _ in range(9):
            seen.append(await phase_of(outside, external_id))
            clock.now_s += 1
        waiting, running, failed = Phase.WAITING, Phase.RUNNING, Phase.FAILED
        assert seen == [None, waiting, running, running, running, running, running, failed, failed]
        assert outside.jobs[external_id].message == "exit code 3"

    run(main())


def test_a_spec_overrides_the_plan() -> None:
    async def main() -> None:
        outside = MemoryBackend(plan=Plan(run_for_s=100))
        external_id = await outside.submit({"run_for_s": 0, "ends_as": "succeeded", "command": "x"}, "token")
        assert await phase_of(outside, external_id) is Phase.SUCCEEDED

    run(main())


def test_a_job_moves_by_hand() -> None:
    async def main() -> None:
        outside = MemoryBackend(plan=Plan(wait_for_s=None))
        external_id = await outside.submit({}, "token")
        assert await phase_of(outside, external_id) is Phase.WAITING
        outside.advance(external_id, Phase.RUNNING, "step 1", {"rows": 7})
        assert await outside.fetch([external_id]) == {
            external_id: Observation(Phase.RUNNING, "RUNNING", "step 1", {"rows": 7})
        }
        outside.fail(external_id, "out of memory")
        assert await outside.fetch([external_id]) == {
            external_id: Observation(Phase.FAILED, "FAILED", "out of memory", {"rows": 7})
        }

    run(main())


@pytest.mark.parametrize(
    ("plan", "end"),
    [
        (Plan(), Phase.CANCELLED),
        (Plan(cancel_takes_s=3), Phase.CANCELLED),
        (Plan(wait_for_s=None, cancel_takes_s=3), Phase.CANCELLED),
        (Plan(wait_for_s=2, run_for_s=100, cancel_takes_s=1), Phase.CANCELLED),
        (Plan(cancel_takes_s=3, run_for_s=2), Phase.SUCCEEDED),
        (Plan(cancel_takes_s=3, run_for_s=4), Phase.CANCELLED),
        (Plan(cancel_ends_as=Phase.SUCCEEDED), Phase.SUCCEEDED),
        (Plan(ignores_cancel=True), Phase.RUNNING),
    ],
)
def test_a_cancelled_job_ends_as_its_plan_says(plan: Plan, end: Phase) -> None:
    async def main() -> None:
        clock = Clock()
        outside = MemoryBackend(plan=plan, clock=clock)
        external_id = await outside.submit({}, "token")
        assert await outside.cancel([external_id], "no longer wanted") == {}
        if plan.cancel_takes_s:
            assert await phase_of(outside, external_id) in {Phase.WAITING, Phase.RUNNING}
        clock.now_s += 5
        assert await phase_of(outside, external_id) is end
        await outside.cancel([external_id], "again")
        assert await phase_of(outside, external_id) is end
        assert outside.jobs[external_id].cancel_reasons == ["no longer wanted", "again"]
        if end is Phase.CANCELLED:
            assert outside.jobs[external_id].message == "no longer wanted"

    run(main())


def test_submissions_of_one_token_are_counted_so_that_a_second_one_shows() -> None:
    async def main() -> None:
        outside = MemoryBackend()
        assert outside.submissions("token") == 0
        await outside.submit({}, "token")
        assert outside.submissions("token") == 1
        assert outside.job_of("token").phase is Phase.RUNNING
        await outside.submit({}, "token")
        assert outside.submissions("token") == 2
        with pytest.raises(AssertionError, match="2 jobs"):
            outside.job_of("token")

    run(main())


def test_an_idempotent_outside_makes_one_job_a_token() -> None:
    async def main() -> None:
        outside = MemoryBackend(idempotent=True)
        assert await outside.submit({}, "token") == await outside.submit({}, "token")
        assert outside.submissions("token") == 1

    run(main())


def test_a_lost_answer_leaves_a_job_that_find_finds() -> None:
    async def main() -> None:
        outside = MemoryBackend()
        outside.order(Fault.ANSWER_LOST, call="submit")
        with pytest.raises(BackendError):
            await outside.submit({}, "token")
        assert outside.submissions("token") == 1
        assert await outside.find({}, "token", utcnow()) == Found(outside.job_of("token").external_id)

    run(main())


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.NOT_MADE, BackendError),
        (Fault.ERROR, BackendError),
        (Fault.REJECT, SubmitRejected),
        (Fault.THROTTLE, Throttled),
    ],
)
def test_a_submission_that_was_not_made_leaves_nothing(fault: Fault, error: type[BackendError]) -> None:
    async def main() -> None:
        outside = MemoryBackend()
        outside.order(fault, call="submit", retry_after_s=3)
        with pytest.raises(error) as caught:
            await outside.submit({}, "token")
        assert type(caught.value) is error
        assert not outside.jobs
        assert await outside.find({}, "token", utcnow()) == Absent()

    run(main())


def test_a_late_submission_comes_too_late_once_it_was_said_to_be_absent() -> None:
    async def main() -> None:
        outside = MemoryBackend()
        order = outside.order(Fault.LATE, call="submit")
        late = asyncio.create_task(outside.submit({}, "token"))
        await asyncio.sleep(0.01)
        assert not late.done()
        assert await outside.find({}, "token", utcnow()) == Absent()
        order.release()
        with pytest.raises(SubmitTooLate):
            await late
        assert not outside.jobs

    run(main())


def test_a_late_submission_is_made_and_found_when_nobody_looked_before() -> None:
    async def main() -> None:
        outside = MemoryBackend()
        order = outside.order(Fault.LATE, call="submit")
        release = threading.Timer(0.01, order.release)
        release.start()
        external_id = await outside.submit({}, "token")
        assert await outside.find({}, "token", utcnow()) == Found(external_id)
        release.join()

    run(main())


def test_a_submission_paused_past_its_moment_sends_nothing() -> None:
    async def main() -> None:
        outside = MemoryBackend(absent_blocks=False)
        outside.order(Fault.SLOW, call="submit", delay_s=0.02)
        with sending_until(monotonic_s() + 0.01), pytest.raises(SubmitTooLate):
            await outside.submit({}, "token")
        assert not outside.jobs

    run(main())


def test_a_listing_that_lags_is_unsure_until_it_would_show_the_job() -> None:
    async def main() -> None:
        clock = Clock()
        outside = MemoryBackend(plan=Plan(appear_after_s=60), clock=clock)
        since = utcnow()
        proof = await outside.find({}, "never used", since)
        assert isinstance(proof, Unsure)
        assert proof.retry_at == since + dt.timedelta(seconds=60)
        assert await outside.find({}, "never used", since - dt.timedelta(seconds=61)) == Absent()
        external_id = await outside.submit({}, "token")
        assert isinstance(await outside.find({}, "token", since), Unsure)
        clock.now_s += 60
        assert await outside.find({}, "token", since) == Found(external_id)

    run(main())


def test_find_can_be_made_unsure_for_a_while_or_for_ever() -> None:
    async def main() -> None:
        outside = MemoryBackend(absent_is_sure=False)
        retry_at = utcnow()
        outside.order(
            Fault.UNSURE, call="find", ids=["token"], retry_at=retry_at, message="the region is down"
        )
        assert await outside.find({}, "token", utcnow()) == Unsure(retry_at, "the region is down")
        assert await outside.find({}, "token", utcnow()) == Unsure(None)

    run(main())


def test_throttling_is_raised_as_often_as_ordered() -> None:
    async def main() -> None:
        outside = MemoryBackend()
        order = outside.order(Fault.THROTTLE, times=2, retry_after_s=7)
        for _ in range(2):
            with pytest.raises(Throttled) as caught:
                await outside.fetch(["a"])
            assert caught.value.retry_after_s == 7
        assert await outside.fetch(["a"]) == {"a": Gone()}
        assert order.served == 2
        assert outside.calls["fetch"] == 3

    run(main())


def test_a_fault_can_be_meant_for_some_ids() -> None:
    async def main() -> None:
        outside = MemoryBackend()
        good, bad = await outside.submit({}, "1"), await outside.submit({}, "2")
        order = outside.order(Fault.ERROR, times=None, ids=[bad], message="no")
        assert isinstance((await outside.fetch([good]))[good], Observation)
        answers = await outside.fetch([good, bad])
        assert isinstance(answers[good], Observation)
        assert answers[bad] == RemoteError("no")
        order.stop()
        assert isinstance((await outside.fetch([bad]))[bad], Observation)
        outside.order(Fault.VANISH, ids=[good], certain=True, message="the host restarted")
        assert (await outside.fetch([good, bad]))[good] == Gone("the host restarted", certain=True)
        outside.order(Fault.ERROR, call="cancel", ids=[bad])
        assert set(await outside.cancel([good, bad], "stop")) == {bad}
        assert [outside.jobs[each].cancel_reasons for each in (good, bad)] == [["stop"], []]

    run(main())


def test_a_cancel_whose_answer_is_lost_was_heard_and_one_that_failed_was_not() -> None:
    async def main() -> None:
        outside = MemoryBackend()
        external_id = await outside.submit({}, "token")
        for fault, heard in ((Fault.ERROR, 0), (Fault.THROTTLE, 0), (Fault.ANSWER_LOST, 1)):
            outside.order(fault, call="cancel")
            with pytest.raises(BackendError):
                await outside.cancel([external_id], "stop")
            assert len(outside.jobs[external_id].cancel_reasons) == heard

    run(main())


def test_garbage_is_what_was_ordered_or_something_of_no_known_kind() -> None:
    async def main() -> None:
        outside = MemoryBackend()
        for answer in (None, ["a"], {"a": 1}):
            for call in ("fetch", "submit", "find", "cancel"):
                outside.order(Fault.GARBAGE, call=call, answer=answer)
            received: list[Any] = [
                await outside.fetch(["a"]),
                await outside.submit({}, "token"),
                await outside.find({}, "token", utcnow()),
                await outside.cancel(["a"], ""),
            ]
            assert received == [answer] * 4
        outside.order(Fault.GARBAGE)
        answers = await outside.fetch(["a"])
        assert set(answers) == {"a", "never-asked-for"}
        assert not isinstance(answers["a"], (Observation, Gone, RemoteError))

    run(main())


def test_a_call_hangs_until_it_is_cancelled() -> None:
    async def main() -> None:
        outside = MemoryBackend()
        outside.order(Fault.TIMEOUT)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await outside.fetch(["a"])
        assert await outside.fetch(["a"]) == {"a": Gone()}

    run(main())


def test_an_order_that_makes_no_sense_is_refused() -> None:
    outside = MemoryBackend()
    for fault, call in ((Fault.VANISH, "submit"), (Fault.ANSWER_LOST, "fetch"), (Fault.ERROR, "close")):
        with pytest.raises(ValueError, match="cannot go wrong"):
            outside.order(fault, call=call)


def test_more_than_bulk_limit_is_refused() -> None:
    async def main() -> None:
        outside = MemoryBackend(bulk_limit=2)
        for call in (outside.fetch(["a", "b", "c"]), outside.cancel(["a", "b", "c"], "stop")):
            with pytest.raises(ValueError, match="more than bulk_limit 2"):
                await call

    run(main())


def test_logs_begin_where_they_are_asked_to() -> None:
    async def main() -> None:
        outside = MemoryBackend()
        external_id = await outside.submit({}, "token")
        outside.write(external_id, "one", "two")
        assert [line.text async for line in outside.logs(external_id, None)] == ["one", "two"]
        later = utcnow() + dt.timedelta(hours=1)
        assert [line.text async for line in outside.logs(external_id, later)] == []
        assert [line.text async for line in outside.logs("nobody", None)] == []

    run(main())


def test_the_outside_outlives_those_who_close_it_and_remembers_who_called() -> None:
    async def main() -> None:
        outside = MemoryBackend(patience=Patience(call_s=1))
        await outside.close()
        await outside.submit({}, "token")
        assert outside.calls == {"close": 1, "submit": 1}
        assert [(call.method, call.keys) for call in outside.history] == [
            ("close", ()),
            ("submit", ("token",)),
        ]
        assert patience_of(outside) == Patience(call_s=1)

    run(main())


def test_what_is_forgotten_is_gone_and_its_ids_are_never_given_again() -> None:
    async def main() -> None:
        outside = MemoryBackend(plan=Plan(run_for_s=0.0))
        outside.order(Fault.THROTTLE, times=None)
        first = await outside.submit({}, "a")
        outside.forget()
        assert [*outside.jobs, *outside.calls, *outside.history] == []
        assert await outside.fetch([first]) == {first: Gone()}
        assert isinstance(await outside.find({}, "a", utcnow()), Absent)
        assert await outside.submit({}, "b") != first

    run(main())


def test_runners_on_several_threads_share_one_outside() -> None:
    outside = MemoryBackend()

    def submit(name: str) -> None:
        async def main() -> None:
            for number in range(50):
                await outside.submit({}, f"{name}-{number}")

        asyncio.run(main())

    threads = [threading.Thread(target=submit, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outside.jobs) == outside.calls["submit"] == 200


def test_the_public_names_are_sorted_and_need_no_pytest() -> None:
    assert jobrunner.testing.__all__ == sorted(jobrunner.testing.__all__)
    code = "import sys, jobrunner.testing; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
