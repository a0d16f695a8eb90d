"""`BatchClient` keeps to the seed's formulas and errors, over HTTP, and sleeps on a simulated clock."""

import asyncio
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

import pytest

from jobrunner.backends.batch import BatchClient, BatchConnection, BatchWaiters
from jobrunner.backends.batch import client as client_module
from jobrunner.backends.batch import waiters as waiters_module
from jobrunner.backends.batch.connection import Aws
from jobrunner.backends.batch.trouble import AwsError, Kind
from jobrunner.errors import BackendError, JobFailed, SettingsError, UsageError
from jobrunner.settings import configure
from tests.stubs.batch_server import BatchStub, serving
from tests.stubs.moto_batch import use_aws_environment
from tests.test_docs import PAGES, ROOT, Shell, blocks, commands_of

NOBODY = "876da822-4198-45f2-a252-6cea32512ea8"
real_sleep = asyncio.sleep


class Clock:
    """Time that passes only while the client sleeps; things happen in it when their time has come."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []
        self._later: list[tuple[float, Callable[[], object]]] = []

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        self._later.append((seconds, action))

    async def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.now_s += seconds
        for entry in [entry for entry in self._later if entry[0] <= self.now_s]:
            self._later.remove(entry)
            entry[1]()
        await real_sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(client_module, "_sleep", clock.sleep)
    monkeypatch.setattr(waiters_module, "_sleep", clock.sleep)
    return clock


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchStub]:
    use_aws_environment(monkeypatch)
    with serving() as stub:
        configure(connections={"batch_default": {"endpoint_url": stub.url, "calls_per_s": 1000}})
        yield stub


def run(main: Callable[[BatchClient], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    """Run a coroutine with a client that is closed afterwards."""

    async def with_client() -> Any:
        async with BatchClient(**options) as client:
            return await main(client)

    return asyncio.run(with_client())


def a_job(stub: BatchStub, status: str = "SUBMITTED") -> str:
    (job_id,) = stub.seed_jobs(1, status="RUNNING" if status in {"SUCCEEDED", "FAILED"} else status)
    if status == "SUCCEEDED":
        stub.succeed(job_id)
    elif status == "FAILED":
        stub.fail(job_id, exit_code=137)
    return job_id


def described(stub: BatchStub) -> int:
    return stub.calls_per_operation().get("DescribeJobs", 0)


# --- delays ----------------------------------------------------------------------------------------


def extremes(draw: Callable[[], float], count: int = 4000) -> tuple[float, float]:
    random.seed(1)
    drawn = [draw() for _ in range(count)]
    return min(drawn), max(drawn)


@pytest.mark.parametrize(
    ("arguments", "lowest", "highest"),
    [
        ({"delay": 10, "width": 5}, 5, 15),
        ({"delay": 10}, 9, 11),
        ({"delay": -10, "width": -5, "minima": -8}, 8, 15),
        ({"delay": 10, "width": 5, "minima": 0}, 5, 15),
        ({"delay": 0}, 0, 1),
        ({"delay": 3, "width": 10}, 0, 13),
        ({"delay": 3, "width": 10, "minima": 2}, 2, 13),
        ({"delay": 1, "width": 1, "minima": 7}, 7, 7),
    ],
)
def test_jitter_fills_the_width_around_a_delay_and_stays_above_its_minimum(
    arguments: dict[str, float], lowest: float, highest: float
) -> None:
    least, most = extremes(lambda: BatchClient.add_jitter(**arguments))
    assert lowest <= least <= lowest + 0.1
    assert highest - 0.1 <= most <= highest


@pytest.mark.parametrize(
    ("tries", "longest"), [(0, 1.0), (1, 1.36), (5, 10.0), (40, 577.0), (41, 600.0), (4200, 600.0)]
)
def test_an_exponential_delay_is_between_a_third_and_the_whole_of_its_formula(
    tries: int, longest: float
) -> None:
    least, most = extremes(lambda: BatchClient.exponential_delay(tries))
    assert longest / 3 * 0.999 <= least <= longest / 3 * 1.01
    assert longest * 0.99 <= most <= longest * 1.001


def test_without_a_delay_one_to_ten_seconds_are_slept(clock: Clock) -> None:
    async def main() -> None:
        for _ in range(2000):
            await BatchClient.delay()

    random.seed(1)
    asyncio.run(main())
    assert 1 <= min(clock.slept) < 1.1
    assert 9.9 < max(clock.slept) <= 10


def test_a_delay_that_is_given_is_slept_one_second_more_or_less(clock: Clock) -> None:
    async def main() -> None:
        for _ in range(2000):
            await BatchClient.delay(30)

    random.seed(1)
    asyncio.run(main())
    assert 29 <= min(clock.slept) < 29.1
    assert 30.9 < max(clock.slept) <= 31


def test_the_bounds_of_the_random_delay_are_set_on_the_class_for_all(
    stub: BatchStub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = a_job(stub, "SUCCEEDED")

    async def main(client: BatchClient) -> None:
        monkeypatch.setattr(BatchClient, "DEFAULT_DELAY_MIN", 0)
        monkeypatch.setattr(BatchClient, "DEFAULT_DELAY_MAX", 0)
        await client.delay()
        await client.monitor_job()
        await BatchWaiters(client.aws).wait_for_job(job_id)

    run(main, job_id=job_id)
    assert clock.slept == [0, 0, 0]


def test_the_numbers_of_retries_are_set_on_the_class_for_all_that_have_none_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without, own = BatchClient(), BatchClient(max_retries=0, status_retries=1)
    assert (without.max_retries, without.status_retries) == (4200, 10)
    monkeypatch.setattr(BatchClient, "MAX_RETRIES", 7)
    monkeypatch.setattr(BatchClient, "STATUS_RETRIES", 3)
    assert (without.max_retries, without.status_retries) == (7, 3)
    assert (own.max_retries, own.status_retries) == (0, 1)


# --- a whole job -----------------------------------------------------------------------------------


def test_a_job_is_awaited_from_its_submission_to_its_success(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub)
    clock.at(60, lambda: stub.runnable(job_id))
    clock.at(300, lambda: stub.run(job_id))
    clock.at(900, lambda: stub.runnable(job_id))  # a second attempt goes back
    clock.at(1000, lambda: stub.run(job_id))
    clock.at(3600, lambda: stub.succeed(job_id))
    said = run(lambda client: client.monitor_job(), job_id=job_id)
    assert said == {"status": "success", "message": f"AWS Batch job {job_id} succeeded"}
    assert 3600 <= clock.now_s <= 3600 + 601


def test_a_failed_job_is_an_error_that_says_why(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "RUNNING")
    clock.at(100, lambda: stub.fail(job_id, 137, "OutOfMemoryError: Container killed due to memory usage"))
    with pytest.raises(JobFailed) as caught:
        run(lambda client: client.monitor_job(), job_id=job_id)
    assert str(caught.value) == (
        f"AWS Batch job {job_id} failed: exit code 137 (SIGKILL): OutOfMemoryError: Container killed due to "
        "memory usage; Essential container in task exited"
    )


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_an_ended_job_costs_one_call_and_one_random_delay(stub: BatchStub, clock: Clock, status: str) -> None:
    job_id = a_job(stub, status)

    async def main(client: BatchClient) -> None:
        if status == "FAILED":
            with pytest.raises(JobFailed):
                await client.monitor_job()
        else:
            await client.monitor_job()

    run(main, job_id=job_id)
    assert described(stub) == 1
    assert len(clock.slept) == 1
    assert 1 <= clock.slept[0] <= 10


@pytest.mark.parametrize("job_id", [None, ""])
def test_without_a_job_id_there_is_nothing_to_monitor(stub: BatchStub, job_id: str | None) -> None:
    with pytest.raises(UsageError, match="There is no job to monitor"):
        run(lambda client: client.monitor_job(), job_id=job_id)
    for ask in ("get_job_description", "check_job_success", "wait_for_job", "poll_for_job_complete"):
        with pytest.raises(UsageError, match="its id is empty"):
            run(lambda client, ask=ask: getattr(client, ask)(""))  # type: ignore[misc]
    assert described(stub) == 0


def test_one_client_awaits_many_jobs_at_once(stub: BatchStub, clock: Clock) -> None:
    job_ids = stub.seed_jobs(20)
    clock.at(50, lambda: stub.bump("SUCCEEDED"))

    async def main(client: BatchClient) -> list[bool]:
        await asyncio.gather(*(client.wait_for_job(each) for each in job_ids))
        return await asyncio.gather(*(client.check_job_success(each) for each in job_ids))

    assert run(main) == [True] * 20


# --- its end ---------------------------------------------------------------------------------------


def test_success_is_true(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "SUCCEEDED")
    assert run(lambda client: client.check_job_success(job_id)) is True
    assert clock.slept == []


def test_failed_not_complete_and_unknown_are_told_apart(stub: BatchStub) -> None:
    failed, running, waiting, odd = a_job(stub, "FAILED"), *stub.seed_jobs(3)
    stub.runnable(waiting, "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT")
    stub.amend(odd, status="HIBERNATING")

    async def why(client: BatchClient, job_id: str) -> tuple[type[Exception], str]:
        with pytest.raises((JobFailed, BackendError)) as caught:
            await client.check_job_success(job_id)
        return caught.type, str(caught.value)

    async def main(client: BatchClient) -> list[tuple[type[Exception], str]]:
        return [await why(client, each) for each in (failed, running, waiting, odd)]

    cause = "exit code 137 (SIGKILL): Essential container in task exited"
    assert run(main) == [
        (JobFailed, f"AWS Batch job {failed} failed: {cause}"),
        (BackendError, f"AWS Batch job {running} is not complete: RUNNING"),
        (
            BackendError,
            f"AWS Batch job {waiting} is not complete: RUNNABLE: MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT",
        ),
        (BackendError, f"AWS Batch job {odd} has an unknown status: 'HIBERNATING'"),
    ]


# --- polling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["RUNNING", "SUCCEEDED", "FAILED"])
def test_waiting_for_running_ends_when_it_runs_or_has_ended(
    stub: BatchStub, clock: Clock, status: str
) -> None:
    job_id = a_job(stub, status)
    run(lambda client: client.poll_for_job_running(job_id, 5))
    assert len(clock.slept) == 1
    assert 4 <= clock.slept[0] <= 6
    assert described(stub) == 1


@pytest.mark.parametrize("status", ["SUBMITTED", "PENDING", "RUNNABLE", "STARTING"])
def test_waiting_for_running_goes_on_before(stub: BatchStub, clock: Clock, status: str) -> None:
    job_id = a_job(stub, status)
    clock.at(30, lambda: stub.run(job_id))
    run(lambda client: client.poll_for_job_running(job_id))
    assert clock.now_s >= 30


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED"])
def test_waiting_for_the_end_ends_with_it_and_not_before(stub: BatchStub, clock: Clock, status: str) -> None:
    job_id = a_job(stub, "RUNNING")
    clock.at(100, lambda: stub.bump(status))
    run(lambda client: client.poll_for_job_complete(job_id, 5))
    assert 4 <= clock.slept[0] <= 6
    assert clock.now_s >= 100


def test_a_delay_is_slept_before_each_of_the_two_waits(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "RUNNING")
    clock.at(150, lambda: stub.succeed(job_id))
    run(lambda client: client.wait_for_job(job_id, 100))
    assert len(clock.slept) == 2
    assert all(99 <= each <= 101 for each in clock.slept)
    assert described(stub) == 2


def test_looks_at_a_job_grow_apart_by_the_formula_and_a_second_of_jitter(
    stub: BatchStub, clock: Clock
) -> None:
    job_id = a_job(stub, "RUNNING")
    with pytest.raises(BackendError):
        run(lambda client: client.poll_job_status(job_id, ["SUCCEEDED"]), max_retries=60)
    assert len(clock.slept) == 60
    for tries, each in enumerate(clock.slept, 1):
        longest_s = min(600, 1 + (0.6 * tries) ** 2)
        assert longest_s / 3 - 1 <= each <= longest_s + 1


@pytest.mark.parametrize("max_retries", [0, 1, 4])
def test_polling_gives_up_after_one_look_more_than_its_retries(
    stub: BatchStub, clock: Clock, max_retries: int
) -> None:
    job_id = a_job(stub, "RUNNABLE")
    with pytest.raises(BackendError, match=rf"exceed max_retries \({max_retries}\).* SUCCEEDED: RUNNABLE"):
        run(lambda client: client.poll_job_status(job_id, ["SUCCEEDED"]), max_retries=max_retries)
    assert described(stub) == max_retries + 1
    assert len(clock.slept) == max_retries


def test_a_status_that_matches_ends_the_polling_with_true(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "PENDING")
    assert run(lambda client: client.poll_job_status(job_id, ["PENDING", "RUNNABLE"])) is True
    assert run(lambda client: client.poll_job_status(job_id, "PENDING")) is True
    assert clock.slept == []


def test_a_job_that_ended_otherwise_is_not_waited_for(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "FAILED")
    with pytest.raises(BackendError, match="has ended, and will not be RUNNING: exit code 137"):
        run(lambda client: client.poll_job_status(job_id, ["RUNNING"]))
    assert clock.slept == []


@pytest.mark.parametrize("match_status", [["SUCEEDED"], [], "running"])
def test_a_status_that_there_is_not_is_refused(stub: BatchStub, match_status: Any) -> None:
    with pytest.raises(UsageError, match=r"No AWS Batch job can match.*known: SUBMITTED, PENDING"):
        run(lambda client: client.poll_job_status(NOBODY, match_status))
    assert described(stub) == 0


# --- one look --------------------------------------------------------------------------------------


def test_an_empty_answer_right_after_the_submission_is_asked_again(stub: BatchStub, clock: Clock) -> None:
    stub.appear_after_s = 3600
    job_id = a_job(stub, "RUNNING")
    clock.at(5, lambda: stub.set("appear_after_s", 0.0))
    job = run(lambda client: client.get_job_description(job_id))
    assert job["jobId"] == job_id
    assert described(stub) == len(clock.slept) + 1 >= 3


def test_a_job_that_nobody_knows_is_asked_for_status_retries_times(stub: BatchStub, clock: Clock) -> None:
    with pytest.raises(
        BackendError,
        match=rf"job {NOBODY} cannot be described: exceeded status_retries \(10\): no such job \(10 x\)$",
    ):
        run(lambda client: client.get_job_description(NOBODY))
    assert described(stub) == 10
    assert len(clock.slept) == 9
    for tries, each in enumerate(clock.slept, 1):
        longest_s = 1 + (0.6 * tries) ** 2
        assert longest_s / 3 - 1 <= each <= longest_s + 1


@pytest.mark.parametrize("kind", ["throttled", "throttled_400", "server_error", "lost_answer"])
def test_a_call_that_was_throttled_or_lost_is_made_again(stub: BatchStub, clock: Clock, kind: Any) -> None:
    job_id = a_job(stub, "RUNNING")
    stub.fault("DescribeJobs", kind, 3)
    assert run(lambda client: client.get_job_description(job_id))["status"] == "RUNNING"
    assert described(stub) == 4


def test_throttling_without_an_end_is_counted_and_told(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "RUNNING")
    stub.fault("DescribeJobs", "throttled", None)
    with pytest.raises(BackendError) as caught:
        run(lambda client: client.get_job_description(job_id), status_retries=3)
    assert "exceeded status_retries (3): throttled (3 x); last: DescribeJobs was throttled" in str(
        caught.value
    )
    assert isinstance(caught.value.__cause__, AwsError)
    assert described(stub) == 3
    assert len(clock.slept) == 2


def test_throttled_and_empty_answers_share_the_retries_and_are_told_apart(
    stub: BatchStub, clock: Clock
) -> None:
    stub.fault("DescribeJobs", "throttled", 2)
    with pytest.raises(BackendError, match=r"\(5\): throttled \(2 x\), no such job \(3 x\)$"):
        run(lambda client: client.get_job_description(NOBODY), status_retries=5)
    assert described(stub) == 5


def test_the_time_that_aws_asks_for_is_waited(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "RUNNING")
    stub.fault("DescribeJobs", "throttled", 5, retry_after_s=120)
    run(lambda client: client.get_job_description(job_id))
    assert len(clock.slept) == 5
    assert all(120 <= each <= 122 for each in clock.slept)


def test_each_look_has_retries_of_its_own(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "RUNNING")
    for look in range(4):
        stub.fault("DescribeJobs", "throttled", 1, after=look)
    clock.at(60, lambda: stub.succeed(job_id))
    assert run(lambda client: client.poll_job_status(job_id, ["SUCCEEDED"]), status_retries=2) is True


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("access_denied", Kind.PERMISSION, "permission denied for DescribeJobs"),
        ("expired_token", Kind.EXPIRED, "have expired"),
        ("unknown_token", Kind.CREDENTIALS, "refused the credentials"),
    ],
)
def test_any_other_refusal_is_an_error_at_once(
    stub: BatchStub, clock: Clock, fault: Any, kind: Kind, words: str
) -> None:
    job_id = a_job(stub, "RUNNING")
    stub.fault("DescribeJobs", fault)
    with pytest.raises(AwsError, match=words) as caught:
        run(lambda client: client.get_job_description(job_id))
    assert caught.value.kind is kind
    assert described(stub) == 1
    assert clock.slept == []


def test_two_matches_are_an_error_at_once(
    stub: BatchStub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = a_job(stub, "RUNNING")
    real_call = Aws.call

    async def twice(self: Aws, *args: Any, **params: Any) -> dict[str, Any]:
        answer = await real_call(self, *args, **params)
        return {"jobs": answer["jobs"] * 2}

    monkeypatch.setattr(Aws, "call", twice)
    with pytest.raises(BackendError, match=f"described job {job_id} 2 times"):
        run(lambda client: client.get_job_description(job_id))
    assert described(stub) == 1
    assert clock.slept == []


# --- cancelling ------------------------------------------------------------------------------------


def test_a_deadline_ends_the_monitoring_at_once_and_not_the_job(stub: BatchStub) -> None:
    job_id = a_job(stub, "RUNNING")

    async def main(client: BatchClient) -> None:
        async with asyncio.timeout(0.2):
            await client.monitor_job()

    started_s = time.monotonic()
    with pytest.raises(TimeoutError):
        run(main, job_id=job_id)
    assert time.monotonic() - started_s < 5
    assert stub.job(job_id)["status"] == "RUNNING"
    assert set(stub.calls_per_operation()) <= {"DescribeJobs"}


def test_a_cancellation_in_the_middle_of_a_call_goes_through_at_once(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "RUNNING")
    stub.delay_s = 1.5

    async def main(client: BatchClient) -> float:
        task = asyncio.create_task(client.monitor_job())
        while not stub.calls:
            await real_sleep(0.01)
        started_s = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        waited_s = time.monotonic() - started_s
        while stub.concurrency:  # the call itself ends by itself
            await real_sleep(0.01)
        return waited_s

    assert run(main, job_id=job_id) < 1
    assert set(stub.calls_per_operation()) == {"DescribeJobs"}


def test_a_cancellation_does_not_wait_for_waiters_that_block(stub: BatchStub) -> None:
    release = threading.Event()

    class Blocking:
        def wait_for_job(self, job_id: str) -> None:
            release.wait(30)

    async def main(client: BatchClient) -> None:
        async with asyncio.timeout(0.1):
            await client.monitor_job()

    started_s = time.monotonic()
    with pytest.raises(TimeoutError):
        run(main, job_id=NOBODY, waiters=Blocking())
    assert time.monotonic() - started_s < 5
    release.set()
    for thread in threading.enumerate():
        if thread.name == "jobrunner-batch":
            assert thread.daemon  # the end of the process waits for no other
            thread.join(5)


# --- waiters ---------------------------------------------------------------------------------------


def test_waiters_wait_in_place_of_the_polling(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "RUNNING")
    waited: list[tuple[str, bool]] = []

    class Blocking:
        def wait_for_job(self, job_id: str) -> None:
            waited.append((job_id, threading.current_thread() is threading.main_thread()))
            time.sleep(0.2)
            stub.succeed(job_id)

    async def main(client: BatchClient) -> int:
        looked = 0
        task = asyncio.create_task(client.monitor_job())
        while not task.done():
            looked += 1
            await real_sleep(0.01)
        assert (await task)["status"] == "success"
        return looked

    assert run(main, job_id=job_id, waiters=Blocking()) > 5  # the loop was not blocked
    assert waited == [(job_id, False)]
    assert clock.slept == []
    assert described(stub) == 1


def test_waiters_may_be_asynchronous(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "RUNNING")

    class Async:
        async def wait_for_job(self, job_id: str) -> None:
            await real_sleep(0)
            assert threading.current_thread() is threading.main_thread()
            stub.fail(job_id)

    with pytest.raises(JobFailed, match="exit code 1"):
        run(lambda client: client.monitor_job(), job_id=job_id, waiters=Async())


def test_waiters_that_return_too_early_do_not_make_a_success(stub: BatchStub) -> None:
    job_id = a_job(stub, "RUNNING")

    class Hasty:
        def wait_for_job(self, job_id: str) -> None: ...

    with pytest.raises(BackendError, match="is not complete: RUNNING"):
        run(lambda client: client.monitor_job(), job_id=job_id, waiters=Hasty())


def test_the_error_of_waiters_is_passed_on_as_it_is(stub: BatchStub) -> None:
    class Failing:
        def wait_for_job(self, job_id: str) -> None:
            raise LookupError(job_id)

    with pytest.raises(LookupError, match=NOBODY):
        run(lambda client: client.monitor_job(), job_id=NOBODY, waiters=Failing())
    assert described(stub) == 0


def test_our_waiters_share_their_connection_and_know_three_models(stub: BatchStub) -> None:
    waiters = BatchWaiters()
    assert BatchClient(waiters=waiters).aws is waiters.aws
    assert BatchClient(waiters=waiters, connection="batch_default").aws is not waiters.aws
    assert waiters.list_waiters() == ["JobComplete", "JobExists", "JobRunning"]
    paces = {name: waiters.get_waiter(name).config for name in waiters.list_waiters()}
    assert {name: (each.delay, each.max_attempts) for name, each in paces.items()} == {
        "JobExists": (2, 100),
        "JobRunning": (5, 100),
        "JobComplete": (300, 288),
    }


def test_a_job_is_awaited_by_our_waiters(stub: BatchStub, clock: Clock) -> None:
    stub.appear_after_s = 3600
    job_id = a_job(stub)
    clock.at(30, lambda: stub.set("appear_after_s", 0.0))
    clock.at(2000, lambda: stub.run(job_id))  # long after JobRunning's own 100 attempts
    clock.at(5000, lambda: stub.succeed(job_id))

    async def main() -> dict[str, str]:
        async with BatchWaiters() as waiters:
            return await BatchClient(job_id, waiters=waiters).monitor_job()

    assert asyncio.run(main())["status"] == "success"
    assert 5000 <= clock.now_s <= 5000 + 302
    assert 298 <= clock.slept[-1] <= 302


def test_our_waiters_say_why_a_job_failed(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "FAILED")

    async def main() -> None:
        async with BatchWaiters() as waiters:
            await waiters.wait_for_job(job_id)

    with pytest.raises(JobFailed, match=f"{job_id} failed: exit code 137"):
        asyncio.run(main())


def wait(name: str, job_ids: list[str], config: Mapping[str, Any] | None = None, **options: Any) -> None:
    async def main() -> None:
        async with BatchWaiters(waiter_config=config) as waiters:
            waiter = waiters.get_waiter(name)
            for key, value in options.items():
                setattr(waiter.config, key, value)
            await waiter.wait(jobs=job_ids)

    asyncio.run(main())


@pytest.mark.parametrize(("name", "delay", "attempts"), [("JobExists", 2, 100), ("JobRunning", 5, 100)])
def test_a_waiter_gives_up_after_its_attempts(
    stub: BatchStub, clock: Clock, name: str, delay: int, attempts: int
) -> None:
    with pytest.raises(BackendError, match=rf"{name} exceeded its max_attempts \({attempts}\).*not know"):
        wait(name, [NOBODY])
    assert described(stub) == attempts
    assert clock.slept == [delay] * (attempts - 1)


def test_a_waiter_waits_for_several_jobs_in_different_states(stub: BatchStub, clock: Clock) -> None:
    first, second = stub.seed_jobs(2)
    stub.succeed(first)
    wait("JobRunning", [first, second])
    assert described(stub) == 1
    clock.at(10, lambda: stub.succeed(second))
    wait("JobComplete", [first, second], delay=3)
    assert 10 <= clock.now_s <= 13
    with pytest.raises(BackendError, match="exceeded"):
        wait("JobComplete", [first, NOBODY], max_attempts=2)


def test_throttling_is_an_attempt_of_a_waiter_and_not_its_end(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "SUCCEEDED")
    stub.fault("DescribeJobs", "throttled", 2, retry_after_s=50)
    stub.fault("DescribeJobs", "server_error", 2)
    wait("JobRunning", [job_id])
    assert clock.slept == [51, 51, 5, 5]
    stub.fault("DescribeJobs", "throttled", None)
    with pytest.raises(BackendError, match=r"max_attempts \(3\); last: DescribeJobs was throttled"):
        wait("JobRunning", [job_id], max_attempts=3)


def test_any_other_refusal_ends_a_waiter_at_once(stub: BatchStub, clock: Clock) -> None:
    stub.fault("DescribeJobs", "access_denied")
    with pytest.raises(AwsError, match="permission denied"):
        wait("JobExists", [NOBODY])
    assert clock.slept == []


def test_a_job_that_vanishes_ends_the_waiting(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "RUNNING")
    clock.at(900, lambda: stub.vanish(job_id))

    async def main() -> None:
        async with BatchWaiters() as waiters:
            await waiters.wait_for_job(job_id)

    with pytest.raises(BackendError, match="knows the job no more, in 10 answers"):
        asyncio.run(main())
    assert clock.now_s < 900 + 12 * 302


def test_models_of_ones_own_are_waited_by(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "RUNNABLE")
    config = BatchWaiters().default_config
    config["waiters"]["Denied"] = {
        "operation": "DescribeJobs",
        "delay": 7,
        "maxAttempts": 3,
        "acceptors": [
            {"matcher": "error", "expected": "AccessDeniedException", "state": "success"},
            {"matcher": "pathAll", "argument": "jobs[].status", "expected": "FAILED", "state": "failure"},
            {"matcher": "error", "expected": "ServerException", "state": "failure"},
        ],
    }
    waiters = BatchWaiters(waiter_config=config)
    config["waiters"]["Denied"]["delay"] = 8
    assert waiters.waiter_config["waiters"]["Denied"]["delay"] == 7
    config = waiters.waiter_config
    assert "Denied" not in BatchWaiters().list_waiters()
    stub.fault("DescribeJobs", "access_denied", after=1)
    wait("Denied", [job_id], config)
    assert clock.slept == [7]
    stub.fault("DescribeJobs", "server_error")
    with pytest.raises(
        BackendError, match="Denied ended with a failure: Matched expected service error code"
    ):
        wait("Denied", [job_id], config)
    stub.fail(job_id)
    with pytest.raises(JobFailed):
        wait("Denied", [job_id], config)


# --- what is asked for wrongly ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_retries": -1}, "max_retries must be 0 or more"),
        ({"status_retries": 0}, "status_retries counts calls"),
        ({"waiters": object()}, r"must have wait_for_job\(job_id\), and object has not"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BatchClient(**options)


def test_waiters_that_there_are_not_are_refused() -> None:
    with pytest.raises(UsageError, match=r"There is no waiter 'JobDone' \(known: JobComplete, JobExists"):
        BatchWaiters().get_waiter("JobDone")
    for config in ({}, {"version": 1, "waiters": {}}):
        with pytest.raises(UsageError, match="none of botocore's"):
            BatchWaiters(waiter_config=config)
    with pytest.raises(UsageError, match="its id is empty"):
        asyncio.run(BatchWaiters().wait_for_job(""))


def test_the_connection_is_a_name_or_its_options(stub: BatchStub, clock: Clock) -> None:
    job_id = a_job(stub, "SUCCEEDED")
    configure(connections={"batch_default": {"endpoint_url": "http://127.0.0.1:9"}})
    configure(connections={"other": {"kind": "batch", "endpoint_url": stub.url}})
    for connection in ("other", BatchConnection(endpoint_url=stub.url)):
        assert run(lambda client: client.check_job_success(job_id), connection=connection)
    with pytest.raises(BackendError, match=r"network \(2 x\).*cannot be reached"):
        run(lambda client: client.check_job_success(job_id), status_retries=2)
    with pytest.raises(SettingsError, match='there is no connection "nope"'):
        BatchClient(connection="nope")


def test_a_shared_connection_stays_open(stub: BatchStub) -> None:
    job_id = a_job(stub, "SUCCEEDED")

    async def main() -> bool:
        aws = Aws(BatchConnection(endpoint_url=stub.url))
        async with BatchClient(connection=aws):
            pass
        async with BatchClient(connection=aws) as client:
            is_well = await client.check_job_success(job_id)
        await aws.close()
        return is_well

    assert asyncio.run(main())


# --- the page --------------------------------------------------------------------------------------


SEED_NAMES = (
    *("astronomer.providers.amazon.aws.hooks.batch_client", "BatchClientHookAsync", "job_id", "waiters"),
    *("*args", "**kwargs", "max_retries", "status_retries", "DEFAULT_DELAY_MIN", "DEFAULT_DELAY_MAX"),
    *("add_jitter", "width", "minima", "monitor_job", "check_job_success", "delay", "wait_for_job"),
    *("poll_for_job_complete", "poll_for_job_running", "get_job_description", "poll_job_status"),
    *("match_status", "exponential_delay", "execution_timeout", "AirflowException", "AirflowTaskTimeout"),
)
"""Every name of astronomer's module, as its own reference lists them."""

in_a_checkout = pytest.mark.skipif(not (ROOT / "docs" / "conf.py").exists(), reason="not in a checkout")


@in_a_checkout
def test_each_name_of_the_seeds_client_is_mapped() -> None:
    section = PAGES["docs/coming-from-airflow.md"].partition("\n## The Batch client hook\n")[2]
    left = "\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| "))
    missing = [name for name in SEED_NAMES if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", left)]
    assert not missing


@in_a_checkout
def test_the_example_in_coming_from_airflow_awaits_a_job(
    stub: BatchStub, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = blocks("docs/coming-from-airflow.md")
    (script,) = [block for block in page if block.mark == "file" and block.what == "one_job.py"]
    (console,) = [block for block in page if block.what == "batch-client"]
    ((command, shown),) = commands_of(console.text)
    monkeypatch.setenv("JOBRUNNER_CONNECTIONS__BATCH_DEFAULT__ENDPOINT_URL", stub.url)
    shell = Shell(tmp_path)
    shell.environment |= {name: value for name, value in os.environ.items() if "ENDPOINT_URL" in name}
    (shell.directory / script.what).write_text(script.text)
    job_id = a_job(stub, "RUNNING")
    threading.Timer(0.5, stub.succeed, [job_id]).start()
    program, name, shown_id = command.split()
    assert program == "python"
    assert shell.run(sys.executable, "-W", "error", name, job_id) == shown.replace(shown_id, job_id)
    assert described(stub) >= 1
