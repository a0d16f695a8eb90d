"""Answers of any backend, through a runner: every job ends, or says why not, and every kill arrives."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.backends.base import Absent, Found, Gone, Observation, Patience, RemoteError, Unsure
from jobrunner.database import Database
from jobrunner.errors import BackendError, ClaimLost, NotSent, SubmitTooLate, Throttled
from jobrunner.models import BaseJob
from jobrunner.states import JobState, Phase
from jobrunner.testing import MemoryBackend, MemoryMonitorJob, Plan, use_backend
from tests.fuzz.examples import TIMEOUT_S, examples
from tests.fuzz.texts import any_json, any_text
from tests.helpers import row_of
from tests.runner.support import a_runner, soon, start

pytestmark = pytest.mark.timeout(TIMEOUT_S)

_NEVER = "never returns"
_ERRORS = [
    ValueError("\ud800\x00"),
    KeyError(),
    RecursionError("deep"),
    MemoryError(),
    AssertionError(),
    StopAsyncIteration(),
    TimeoutError(),
    OSError(28, "No space left on device"),
    asyncio.CancelledError(),
    SystemExit(3),
    GeneratorExit(),
    BaseException("a panic"),
    BaseExceptionGroup("several", [SystemExit(1), ValueError()]),
    BackendError("\n"),
    Throttled("later", retry_after_s=float("nan")),
    Throttled("later", retry_after_s=-5.0),
    NotSent("away"),
    SubmitTooLate(),
]


def _says_no_end(observation: Observation) -> bool:
    """Whether it says nothing that would be a lie: no runner can see through one."""
    phase: Any = observation.phase
    return not (isinstance(phase, Phase) and phase.is_final)


_odd_fields = st.builds(
    Observation,
    phase=st.sampled_from(Phase) | any_json(2),
    external_state=any_text | any_json(2),
    message=any_text | any_json(2),
    detail=any_json(4),
    has_run=any_json(1),
    cause=any_text | any_json(1),
)
_odd_values = st.one_of(
    any_json(4),
    st.just(object()),
    st.just(iter(())),
    st.builds(Gone, any_text | any_json(1)),
    st.builds(RemoteError, any_text | any_json(1), any_json(1)),
    st.builds(Found, any_json(1)),
    st.just(Unsure(None)),
    st.sampled_from([Observation, Gone, Absent]),
)
# A mapping that has odd answers for the ids that were asked for; "?" stands for each of them.
_odd_mappings = st.dictionaries(st.just("?"), st.one_of(_odd_values, _odd_fields.filter(_says_no_end)))
_deviations = st.lists(
    st.tuples(
        st.sampled_from(["submit", "find", "fetch", "fetch", "fetch", "cancel", "cancel"]),
        st.one_of(st.sampled_from(_ERRORS), st.just(_NEVER), _odd_values, _odd_mappings),
    ),
    min_size=2,
    max_size=8,
)


class _Deviating(MemoryBackend):
    """A backend that deviates from its contract a few times, and keeps it from then on."""

    def __init__(self, deviations: list[tuple[str, Any]]) -> None:
        super().__init__(plan=Plan(run_for_s=0.1), patience=Patience(call_s=0.4, appear_s=5.0, vanish_s=5.0))
        self._left: dict[str, list[Any]] = {}
        for method, what in deviations:
            self._left.setdefault(method, []).append(what)

    async def _deviate(self, method: str, keys: Sequence[str]) -> tuple[bool, Any]:
        left = self._left.get(method)
        if not left:
            return False, None
        what = left.pop(0)
        if isinstance(what, BaseException):
            raise what
        if isinstance(what, str) and what == _NEVER:
            await asyncio.get_running_loop().create_future()
        if isinstance(what, dict) and "?" in what:
            return True, dict.fromkeys(keys, what["?"])
        return True, what

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        deviates, answer = await self._deviate("submit", [token])
        return answer if deviates and not isinstance(answer, str) else await super().submit(spec, token)

    async def find(self, spec: Mapping[str, Any], token: str, since: Any) -> Any:
        deviates, answer = await self._deviate("find", [token])
        is_proof = isinstance(answer, Absent | Found)  # a lie, which no runner can see through
        return answer if deviates and not is_proof else await super().find(spec, token, since)

    async def fetch(self, ids: Sequence[str]) -> Any:
        deviates, answer = await self._deviate("fetch", ids)
        return answer if deviates else await super().fetch(ids)

    async def cancel(self, ids: Sequence[str], reason: str) -> Any:
        deviates, answer = await self._deviate("cancel", ids)
        return answer if deviates else await super().cancel(ids, reason)


@given(_deviations)
@examples(20)
def test_every_job_ends_and_every_kill_arrives_whatever_a_backend_answers(
    sqlite_database: Database, caught: list[str], deviations: list[tuple[str, Any]]
) -> None:
    caught.clear()
    outside = _Deviating(deviations)
    threads = threading.active_count()

    async def play() -> None:
        with use_backend(outside):
            async with a_runner(sqlite_database) as runner:
                jobs = [MemoryMonitorJob(heartrate=0.3, poll_interval=0.05) for _ in range(2)]
                endless = MemoryMonitorJob(heartrate=0.3, poll_interval=0.05, spec={"run_for_s": None})
                ends = [start(runner, job) for job in (*jobs, endless)]
                endless.request_kill()
                await soon(lambda: all(_row(job)["state"].is_terminal for job in (*jobs, endless)))
                outcomes = await asyncio.gather(*ends, return_exceptions=True)
                assert not [each for each in outcomes if isinstance(each, ClaimLost)], outcomes
        for job in jobs:
            row = _row(job)
            assert row["state"] is JobState.SUCCESS or row["message"], row
        row = _row(endless)
        assert row["state"] is JobState.KILLED or row["message"], row
        for job in (*jobs, endless):
            assert outside.submissions(_row(job)["submit_token"]) <= 1

    def _row(job: BaseJob) -> dict[str, Any]:
        return row_of(sqlite_database, job.id)

    asyncio.run(play())
    assert threading.active_count() <= threads + 8  # a pool's idle threads stay for a while
    assert caught == []
