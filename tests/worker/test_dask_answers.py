"""What a Dask cluster answers about ended tasks: late, or never, and nothing else waits for it."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from jobrunner.executors.dask_jobs import DaskJobs, Task

pytest.importorskip("distributed")


class Future:
    """A task that has ended, whose answer is still with the cluster."""

    def __init__(self, status: str, ask: Callable[[float], object]) -> None:
        self.status = status
        self._ask = ask

    def result(self, timeout: float) -> object:
        return self._ask(timeout)

    exception = result


def settled(*futures: Future, beside: Callable[[], None] = lambda: None) -> DaskJobs:
    """Let the code jobs of a worker take note of tasks that have ended; `beside` comes meanwhile."""

    async def run() -> DaskJobs:
        jobs = DaskJobs(*cast("Any", (None, None, None, {"processes": None, "each": False})))
        jobs._keeper.cancel()
        jobs.by_job = {number: Task(future) for number, future in enumerate(futures)}
        asyncio.get_running_loop().call_soon(beside)
        await jobs._settle()
        return jobs

    return asyncio.run(run())


@pytest.mark.parametrize("status", ["finished", "error"])
def test_an_answer_that_is_lost_with_the_scheduler_is_said_in_a_sentence(
    status: str, caplog: pytest.LogCaptureFixture
) -> None:
    from distributed.client import FutureCancelledError

    def lost(_timeout: float) -> object:
        raise FutureCancelledError("jobrunner-1", "scheduler-connection-lost", "Client lost the connection.")

    jobs = settled(Future(status, lost), Future("finished", lambda _timeout: None))
    assert jobs.is_idle
    (record,) = caplog.records
    assert "a job could not be run by Dask" in record.getMessage()
    assert "Dask does not say how it ended" in record.getMessage()
    assert record.exc_info is None


def test_nothing_on_the_event_loop_waits_for_an_answer_of_the_cluster() -> None:
    went_on = threading.Event()
    seen: list[bool] = []

    def late(timeout: float) -> object:
        seen.append(went_on.wait(timeout))
        return None

    settled(Future("finished", late), beside=went_on.set)
    assert seen == [True]
