"""Systems that know no token: what was there before is stored, and what others hold is left to them."""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from jobrunner import statements
from jobrunner.backends.base import Absent, Found, Unsure
from jobrunner.database import Database
from jobrunner.errors import BackendError, SubmitRejected
from jobrunner.states import JobState
from jobrunner.testing import Fault, MemoryBackend, use_backend
from tests.helpers import a_running_job, insert_job, row_of
from tests.runner.support import a_job, a_runner, crash, look, soon, start, take_over, within

Held = Callable[[Sequence[str]], Awaitable[set[str]]]


class Tokenless(MemoryBackend):
    """Numbers its jobs, and tells them apart by nothing else."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.baselines: list[str | None] = []
        self.troubles = 0
        self.is_blind = False
        self.refusal = ""

    async def baseline(self, spec: Mapping[str, Any]) -> str:
        if self.refusal:
            raise SubmitRejected(self.refusal)
        if self.troubles > 0:
            self.troubles -= 1
            raise BackendError("no list today")
        return str(len(self.jobs))

    async def find(
        self,
        spec: Mapping[str, Any],
        token: str,
        since: dt.datetime,
        baseline: str | None = None,
        is_held: Held | None = None,
    ) -> Found | Absent | Unsure:
        if self.is_blind:
            raise BackendError("no list today")
        self.baselines.append(baseline)
        assert is_held is not None
        newer = list(self.jobs)[int(baseline or 0) :]
        held = await is_held(newer)
        free = [each for each in newer if each not in held]
        return Found(free[0]) if free else Unsure(None, "nothing newer is free")


def test_what_was_there_before_is_stored_with_the_intent_and_asked_with(database: Database) -> None:
    async def main() -> None:
        outside = Tokenless()
        with use_backend(outside):
            async with a_runner(database) as runner:
                stranger = await outside.submit({}, "somebody-else")
                outside.order(Fault.ANSWER_LOST, "submit")
                job = a_job()
                end = start(runner, job)
                await soon(lambda: row_of(database, job.id)["external_id"] is not None)
                row = row_of(database, job.id)
                assert (row["submit_baseline"], outside.baselines) == ("1", ["1"])
                assert row["external_id"] not in {stranger, None}
                outside.succeed(row["external_id"])
                assert await within(end) is JobState.SUCCESS
        assert len(outside.jobs) == 2

    asyncio.run(main())


def test_without_an_answer_to_that_nothing_is_submitted_yet(database: Database) -> None:
    async def main() -> None:
        outside = Tokenless()
        outside.troubles = 2
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                end = start(runner, job)
                await soon(lambda: look(database, job.id, "message") == ("not submitted yet: no list today",))
                assert look(database, job.id, "submit_started_at") == (None,)
                await soon(lambda: row_of(database, job.id)["external_id"] is not None)
                outside.succeed(row_of(database, job.id)["external_id"])
                assert await within(end) is JobState.SUCCESS

    asyncio.run(main())


def test_what_refuses_the_question_refuses_the_job(database: Database) -> None:
    async def main() -> None:
        outside = Tokenless()
        outside.refusal = "wrong client id"
        with use_backend(outside):
            async with a_runner(database) as runner:
                job = a_job()
                assert await within(start(runner, job)) is JobState.FAILED
        assert look(database, job.id, "message") == ("not accepted: wrong client id",)
        assert not outside.jobs

    asyncio.run(main())


def test_an_adopter_asks_with_what_was_stored_before_and_leaves_what_others_hold(
    database: Database,
) -> None:
    async def main() -> None:
        outside = Tokenless()
        with use_backend(outside):
            async with a_runner(database) as first, a_runner(database) as second:
                outside.order(Fault.ANSWER_LOST, "submit")
                outside.is_blind = True
                doubtful = a_job()
                start(first, doubtful)
                await soon(lambda: len(outside.jobs) == 1)
                (mine,) = outside.jobs
                other = a_job()
                start(first, other)
                await soon(lambda: row_of(database, other.id)["external_id"] is not None)
                await crash(first)
                outside.is_blind = False
                end = take_over(second, doubtful)
                await soon(lambda: look(database, doubtful.id, "external_id") == (mine,))
                outside.succeed(mine)
                assert await within(end) is JobState.SUCCESS

    asyncio.run(main())


def test_an_id_that_another_job_holds_is_not_recorded(database: Database) -> None:
    claim, _ = a_running_job(database, connection="c", submit_token="mine", external_id=None)
    holder = insert_job(database, connection="c", external_id="7")
    watcher = insert_job(database, connection="c", external_id="8")
    with database.write() as connection:
        started = statements.now(connection)
        job, _ = statements.tables()
        connection.execute(job.update().where(job.c.id == holder).values(submit_started_at=started))
    with database.write() as connection:
        assert not statements.record_submitted(connection, claim.job_id, "mine", "7")
    with database.read() as connection:
        assert statements.held(connection, claim.job_id, ["7", "8", "9"]) == {"7"}
    with database.write() as connection:  # who only watches it holds nothing
        assert statements.record_submitted(connection, claim.job_id, "mine", "8")
    assert row_of(database, watcher)["external_id"] == "8"


def test_the_index_lets_in_one_of_two_that_record_the_same_id(database: Database) -> None:
    job, _ = statements.tables()
    with database.write() as connection:
        moment = statements.now(connection)
    ids = [insert_job(database, connection="c", external_id=None) for _ in range(2)]
    with database.write() as connection:
        connection.execute(job.update().values(submit_started_at=moment))
        connection.execute(job.update().where(job.c.id == ids[0]).values(external_id="7"))
    with pytest.raises(Exception, match=r"(?i)unique"), database.write() as connection:
        connection.execute(job.update().where(job.c.id == ids[1]).values(external_id="7"))
