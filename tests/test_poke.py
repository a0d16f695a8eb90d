"""One look at a job's work, as a sensor takes it."""

import asyncio

import pytest

from jobrunner.database import Database
from jobrunner.errors import BackendError, CodeError, JobFailed, JobKilled
from jobrunner.testing import Fault, MemoryBackend, MemoryMonitorJob, use_backend


def a_job_of(outside: MemoryBackend) -> MemoryMonitorJob:
    external_id = asyncio.run(outside.submit({}, "token"))
    return MemoryMonitorJob(external_id=external_id)


def test_it_waits_while_the_work_goes_on_and_is_true_when_it_is_done() -> None:
    outside = MemoryBackend()
    with use_backend(outside):
        job = a_job_of(outside)
        assert [job.poke(), job.poke()] == [False, False]
        outside.succeed(job.external_id or "", "all is well")
        assert job.poke() is True


def test_a_failure_and_a_cancellation_are_raised_with_their_words() -> None:
    outside = MemoryBackend()
    with use_backend(outside):
        job = a_job_of(outside)
        outside.fail(job.external_id or "", "exit code 7")
        with pytest.raises(JobFailed, match="failed: exit code 7"):
            job.poke()


def test_trouble_in_looking_is_no_verdict_about_the_job() -> None:
    outside = MemoryBackend()
    with use_backend(outside):
        job = a_job_of(outside)
        outside.order(Fault.ERROR)
        with pytest.raises(BackendError):
            job.poke()
        assert job.poke() is False
        with pytest.raises(BackendError, match="memory-0000 cannot be seen: "):
            MemoryMonitorJob(external_id="memory-0000").poke()


def test_a_stored_job_is_judged_by_its_row_once_it_has_ended(database: Database) -> None:
    outside = MemoryBackend()
    with use_backend(outside):
        job = MemoryMonitorJob().store()
        assert job.poke() is False, "nothing of it is outside yet"
        job.request_kill(reason="not needed")
        with pytest.raises(JobKilled, match="not needed"):
            job.poke()


def test_it_can_be_asked_within_a_running_loop() -> None:
    outside = MemoryBackend()

    async def main() -> bool:
        return job.poke()

    with use_backend(outside):
        job = a_job_of(outside)
        assert asyncio.run(main()) is False


def test_a_class_whose_attribute_ends_processes_is_named() -> None:
    class Exiting(MemoryMonitorJob):
        def own_way(self) -> None:
            raise SystemExit(4)

    outside = MemoryBackend()
    with use_backend(outside):
        job = Exiting(external_id=asyncio.run(outside.submit({}, "token")))
        with pytest.raises(CodeError, match=r"Exiting\.own_way raised SystemExit: 4"):
            job.poke()
