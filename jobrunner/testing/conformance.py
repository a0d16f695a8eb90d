"""The tests that every backend must pass, to be run by pytest against the real thing or its double.

    class TestMyBackend(BackendConformance):
        @asynccontextmanager
        async def harness(self) -> AsyncIterator[Harness]:
            backend = MyBackend(...)
            yield Harness(backend=backend, spec=..., succeed=..., fail=..., unknown_id="no-such-job")
            await backend.close()

Where the harness needs pytest's fixtures, take them in an autouse fixture of the class and keep them
on `self`. Whatever the jobs left behind, the harness removes after its `yield`.
"""
# these are tests, though they ship with the package

import asyncio
import datetime as dt
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from jobrunner.backends.base import Absent, Backend, Found, Gone, LogLine, Observation, RemoteError, Unsure
from jobrunner.clock import monotonic_s, utcnow
from jobrunner.errors import LogsUnavailable
from jobrunner.states import FINAL_PHASES, Phase

Answer = Observation | Gone | RemoteError

_MOST_IDS = 200


@dataclass(kw_only=True)
class Harness:
    """A backend under test, and the hand that moves its outside world."""

    backend: Backend
    spec: Callable[[], Mapping[str, Any]]
    """Describes a job that goes on until it is told to end."""
    succeed: Callable[[str], Awaitable[None]]
    """Makes the job of this external id end well."""
    fail: Callable[[str], Awaitable[None]]
    """Makes the job of this external id end badly."""
    unknown_id: str
    """Has the form of an external id, and no job."""
    cancel_is_prompt: bool = True
    """False: a cancelled job may outlast `deadline_s`, and only the asking is tested."""
    submit_is_idempotent: bool = True
    """False: two submissions of one token make two jobs, and only `find` prevents that."""
    absent_blocks_late_submit: bool = True
    """False: something other than `find` keeps a late submission from doing harm."""
    deadline_s: float = 10.0
    """How long to look for something that must come."""
    look_every_s: float = 0.02
    """How long to wait between two looks."""

    def token(self) -> str:
        """Return a submit token never used before."""
        return uuid.uuid4().hex

    def unknown_ids(self, count: int) -> list[str]:
        """Return `count` distinct ids of the form of `unknown_id`, with no job either."""
        if self.unknown_id.isdecimal():
            return [str(int(self.unknown_id) + n) for n in range(count)]
        return [f"{self.unknown_id[:-4]}{n:04x}" for n in range(count)]

    async def start(self) -> str:
        """Submit a job and return its external id."""
        return await self.backend.submit(self.spec(), self.token())

    async def look(self, external_id: str) -> Answer:
        """Ask for one job; an answer that leaves it out counts as an error, as the contract says."""
        answers = await self.backend.fetch([external_id])
        return answers.get(external_id, RemoteError("not answered for"))

    async def until(self, external_id: str, *phases: Phase) -> Observation:
        """Look until the job is in one of `phases`, and fail after `deadline_s`."""
        give_up_at_s = monotonic_s() + self.deadline_s
        while True:
            answer = await self.look(external_id)
            if isinstance(answer, Observation) and answer.phase in phases:
                return answer
            if monotonic_s() > give_up_at_s:
                pytest.fail(f"{external_id} was not seen {' or '.join(phases)}; the last answer was {answer}")
            await asyncio.sleep(self.look_every_s)

    async def find(self, token: str, since: dt.datetime) -> Found | Absent | Unsure:
        """Ask what became of a submission until the answer is sure, never can be, or time is up."""
        give_up_at_s = monotonic_s() + self.deadline_s
        while True:
            proof = await self.backend.find(self.spec(), token, since)
            if not isinstance(proof, Unsure) or proof.retry_at is None or monotonic_s() > give_up_at_s:
                return proof
            await asyncio.sleep(self.look_every_s)


class BackendConformance:
    """Subclass it as `Test…`, give it `harness`, and pytest finds the tests below."""

    def harness(self) -> AbstractAsyncContextManager[Harness]:
        """Return an async context manager that yields a fresh `Harness`."""
        raise NotImplementedError("a conformance test gives its own `harness`")

    def _run(self, test: Callable[[Harness], Awaitable[None]]) -> None:
        async def main() -> None:
            async with self.harness() as harness:
                await test(harness)

        asyncio.run(main())

    def test_it_is_a_backend_and_may_be_closed_twice(self) -> None:
        async def test(h: Harness) -> None:
            assert isinstance(h.backend, Backend), "a method or bulk_limit is missing"
            assert h.backend.bulk_limit >= 1, "bulk_limit is at least one id a call"
            await h.backend.close()
            await h.backend.close()

        self._run(test)

    def test_a_submitted_job_is_soon_seen_and_waits_or_runs(self) -> None:
        async def test(h: Harness) -> None:
            external_id = await h.start()
            seen = await h.until(external_id, *Phase)
            assert seen.phase in {Phase.WAITING, Phase.RUNNING}, f"it ended by itself: {seen}"
            assert seen.external_state, "external_state is the outside system's own word"

        self._run(test)

    def test_success_is_seen_and_stays(self) -> None:
        async def test(h: Harness) -> None:
            external_id = await h.start()
            await h.until(external_id, Phase.WAITING, Phase.RUNNING)
            await h.succeed(external_id)
            ended = await h.until(external_id, *FINAL_PHASES)
            assert ended.phase is Phase.SUCCEEDED, f"it should have succeeded: {ended}"
            again = await h.look(external_id)
            assert isinstance(again, Observation), f"a finished job must not be forgotten at once: {again}"
            assert again.phase is Phase.SUCCEEDED, f"a final phase must stay: {again}"

        self._run(test)

    def test_a_failure_is_seen_with_a_message(self) -> None:
        async def test(h: Harness) -> None:
            external_id = await h.start()
            await h.until(external_id, Phase.WAITING, Phase.RUNNING)
            await h.fail(external_id)
            ended = await h.until(external_id, *FINAL_PHASES)
            assert ended.phase is Phase.FAILED, f"it should have failed: {ended}"
            assert ended.message, "a failure says why, or at least that nothing more is known"

        self._run(test)

    def test_a_cancelled_job_ends_as_cancelled_however_often_it_is_asked(self) -> None:
        async def test(h: Harness) -> None:
            external_id = await h.start()
            await h.until(external_id, Phase.WAITING, Phase.RUNNING)
            for _ in range(2):
                refused = await h.backend.cancel([external_id], "no longer wanted")
                assert not refused, f"a live job could not be asked to end: {refused}"
            if not h.cancel_is_prompt:
                return
            ended = await h.until(external_id, *FINAL_PHASES)
            assert ended.phase is Phase.CANCELLED, f"an end by our cancel is not {ended}"
            await h.backend.cancel([external_id], "once more")
            again = await h.look(external_id)
            assert isinstance(again, Observation), f"a cancelled job must not be forgotten at once: {again}"
            assert again.phase is Phase.CANCELLED, f"a final phase must stay: {again}"

        self._run(test)

    def test_cancelling_a_finished_job_changes_nothing(self) -> None:
        async def test(h: Harness) -> None:
            external_id = await h.start()
            await h.until(external_id, Phase.WAITING, Phase.RUNNING)
            await h.succeed(external_id)
            await h.until(external_id, Phase.SUCCEEDED)
            await h.backend.cancel([external_id], "too late")
            after = await h.look(external_id)
            assert isinstance(after, Observation), f"a finished job must not be forgotten: {after}"
            assert after.phase is Phase.SUCCEEDED, f"a late cancel rewrote the outcome: {after}"

        self._run(test)

    def test_cancelling_an_unknown_id_or_nothing_does_not_raise(self) -> None:
        async def test(h: Harness) -> None:
            await h.backend.cancel([h.unknown_id], "nobody there")
            assert not await h.backend.cancel([], "nothing at all")

        self._run(test)

    def test_an_unknown_id_is_never_observed(self) -> None:
        async def test(h: Harness) -> None:
            answer = await h.look(h.unknown_id)
            assert isinstance(answer, (Gone, RemoteError)), f"nobody knows this job: {answer}"

        self._run(test)

    def test_asking_for_nothing_answers_nothing(self) -> None:
        async def test(h: Harness) -> None:
            assert dict(await h.backend.fetch([])) == {}

        self._run(test)

    def test_each_id_gets_its_own_answer_in_whatever_order_it_is_asked(self) -> None:
        async def test(h: Harness) -> None:
            good, bad, busy = [await h.start() for _ in range(3)]
            for external_id in (good, bad, busy):
                await h.until(external_id, Phase.WAITING, Phase.RUNNING)
            await h.succeed(good)
            await h.fail(bad)
            await h.until(good, Phase.SUCCEEDED)
            await h.until(bad, Phase.FAILED)
            everyone = [bad, h.unknown_id, busy, good]
            for asked in (everyone, everyone[::-1]):
                answers: dict[str, Answer] = {}
                for at in range(0, len(asked), h.backend.bulk_limit):
                    answers |= await h.backend.fetch(asked[at : at + h.backend.bulk_limit])
                phases = {
                    key: value.phase for key, value in answers.items() if isinstance(value, Observation)
                }
                assert phases.pop(busy, None) in {Phase.WAITING, Phase.RUNNING}, "the job that goes on"
                assert phases == {good: Phase.SUCCEEDED, bad: Phase.FAILED}, "an answer went to another id"
                assert set(answers) <= set(asked), "an id was answered for that nobody asked about"

        self._run(test)

    def test_a_full_bulk_is_answered(self) -> None:
        async def test(h: Harness) -> None:
            external_id = await h.start()
            await h.until(external_id, Phase.WAITING, Phase.RUNNING)
            others = h.unknown_ids(min(h.backend.bulk_limit, _MOST_IDS) - 1)
            answers = await h.backend.fetch([*others, external_id])
            assert isinstance(answers.get(external_id), Observation), "the one known id among many"
            observed = [key for key in others if isinstance(answers.get(key), Observation)]
            assert not observed, f"nobody knows these jobs: {observed}"

        self._run(test)

    def test_the_same_token_never_makes_two_jobs(self) -> None:
        async def test(h: Harness) -> None:
            if not h.submit_is_idempotent:
                pytest.skip("this system has no idempotency: `find` comes before every second submission")
            token = h.token()
            first = await h.backend.submit(h.spec(), token)
            try:
                second = await h.backend.submit(h.spec(), token)
            except Exception:  # noqa: BLE001  # refusing is one of the two right answers
                return
            assert second == first, "one token made two jobs"

        self._run(test)

    def test_a_submitted_job_is_found_by_its_token(self) -> None:
        async def test(h: Harness) -> None:
            token, since = h.token(), utcnow()
            external_id = await h.backend.submit(h.spec(), token)
            proof = await h.find(token, since)
            assert not isinstance(proof, Absent), "Absent for a job that exists is how work is done twice"
            if isinstance(proof, Unsure) and proof.retry_at is None:
                pytest.skip(f"this system can never tell: {proof.reason}")
            assert proof == Found(external_id), f"the submission was not found: {proof}"

        self._run(test)

    def test_a_token_never_used_is_not_found(self) -> None:
        async def test(h: Harness) -> None:
            proof = await h.backend.find(h.spec(), h.token(), utcnow())
            assert isinstance(proof, (Absent, Unsure)), f"somebody else's job was found: {proof}"

        self._run(test)

    def test_a_late_submission_does_not_run_once_it_was_said_to_be_absent(self) -> None:
        async def test(h: Harness) -> None:
            token = h.token()
            if not h.absent_blocks_late_submit:
                pytest.skip("a late submission is made harmless by other means here")
            if not isinstance(await h.find(token, utcnow()), Absent):
                pytest.skip("this system did not say Absent")
            try:
                external_id = await h.backend.submit(h.spec(), token)
            except Exception:  # noqa: BLE001  # refusing is the plainest right answer
                return
            give_up_at_s = monotonic_s() + min(h.deadline_s, 1.0)
            while monotonic_s() < give_up_at_s:
                answer = await h.look(external_id)
                phase = answer.phase if isinstance(answer, Observation) else None
                assert phase not in {Phase.RUNNING, Phase.SUCCEEDED}, f"it ran after all: {answer}"
                await asyncio.sleep(h.look_every_s)

        self._run(test)

    def test_logs_are_lines(self) -> None:
        async def test(h: Harness) -> None:
            external_id = await h.start()
            await h.until(external_id, Phase.WAITING, Phase.RUNNING)
            await h.succeed(external_id)
            await h.until(external_id, Phase.SUCCEEDED)
            with suppress(LogsUnavailable):  # a system may keep none
                async for line in h.backend.logs(external_id, None):
                    assert isinstance(line, LogLine), f"not a line: {line!r}"
                    assert not line.text.endswith(("\n", "\r")), "a line carries no line end"

        self._run(test)
