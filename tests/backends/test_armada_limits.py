"""How many ids a call may have is learnt from the server's refusal, whatever its words, for each method."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from jobrunner.backends.armada import ArmadaBackend
from jobrunner.backends.armada.bulk import fewer_ids
from jobrunner.backends.armada.trouble import ArmadaError, Kind
from jobrunner.backends.base import Observation
from jobrunner.errors import Throttled
from jobrunner.states import Phase
from tests.backends.test_armada_backend import with_backend
from tests.stubs.armada_server import ArmadaStub, State, serving

CODE = grpc.StatusCode


@pytest.fixture
def armada() -> Iterator[ArmadaStub]:
    with serving() as stub:
        yield stub


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (CODE.UNKNOWN, "request contained more than {most} {word}"),
        (CODE.INVALID_ARGUMENT, "too many job ids: the limit is {most}"),
        (CODE.INVALID_ARGUMENT, "too many job ids"),
        (CODE.RESOURCE_EXHAUSTED, "at most {most} ids a request"),
        (CODE.RESOURCE_EXHAUSTED, "too many job ids"),
        (CODE.RESOURCE_EXHAUSTED, "request exceeds max_query_items={most} items"),
    ],
)
def test_a_limit_is_learnt_whatever_its_code_and_words(
    armada: ArmadaStub, code: grpc.StatusCode, words: str
) -> None:
    armada.max_query_items, armada.too_many = 7, (code, words)
    ids = armada.seed("etl", "set", 30)

    async def test(backend: ArmadaBackend) -> Any:
        answers = await backend.fetch(ids)
        armada.forget_calls()
        await backend.fetch(ids[: backend.bulk_limit])
        return answers, backend.bulk_limit

    answers, limit = with_backend(armada, test)
    assert all(isinstance(answers[each], Observation) for each in ids)
    assert 3 <= limit <= 7
    assert armada.calls_per_method() == {"GetJobStatus": 1}, "what was learnt is kept"


def test_each_method_has_a_limit_of_its_own(armada: ArmadaStub) -> None:
    ids = armada.seed("etl", "set", 20)
    armada.max_cancel_items = 3

    async def test(backend: ArmadaBackend) -> Any:
        failed = await backend.cancel(ids, "no longer wanted")
        return failed, await backend.fetch(ids), backend.bulk_limit

    failed, seen, limit = with_backend(armada, test)
    assert failed == {}
    assert {each.phase for each in seen.values()} == {Phase.CANCELLED}
    assert limit == 500
    assert armada.cancelled_job_sets == []


def test_what_was_asked_for_before_a_cancellation_broke_off_was_asked_for(armada: ArmadaStub) -> None:
    ids = armada.seed("etl", "set", 6)
    armada.max_cancel_items = 3

    async def test(backend: ArmadaBackend) -> Any:
        await backend.cancel(ids[:4], "learn")
        armada.forget_calls()
        armada.fault("CancelJobs", None, times=1)
        armada.fault("CancelJobs", CODE.UNAVAILABLE, "away", times=1)
        return await backend.cancel(ids, "no longer wanted")

    assert set(with_backend(armada, test)) == set(ids[3:])


def test_errors_too_long_for_one_answer_are_asked_for_in_parts(armada: ArmadaStub) -> None:
    ids = armada.seed("etl", "set", 8)
    for each in ids:
        armada.move(each, State.FAILED, f"why {each}")
    armada.fault("GetJobErrors", CODE.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)")
    seen = with_backend(armada, lambda backend: backend.fetch(ids))
    assert [seen[each].message for each in ids] == [f"why {each}" for each in ids]
    assert [call.ids for call in armada.calls if call.method == "GetJobErrors"] == [8, 4, 4]


@pytest.mark.parametrize(
    "words", ["too many requests", "rate limit exceeded: at most 3 ids per second", "try again later"]
)
def test_being_throttled_is_no_limit_of_ids(armada: ArmadaStub, words: str) -> None:
    ids = armada.seed("etl", "set", 30)
    armada.fault("GetJobStatus", CODE.RESOURCE_EXHAUSTED, words)

    async def test(backend: ArmadaBackend) -> int:
        with pytest.raises(Throttled):
            await backend.fetch(ids)
        return backend.bulk_limit

    assert with_backend(armada, test) == 500


@pytest.mark.parametrize(
    ("words", "kind", "asked", "fewer"),
    [
        ("request contained more than 500 jobIds", Kind.UNCLEAR, 600, 500),
        ("request contained more than 500 jobIds", Kind.UNCLEAR, 400, 200),
        ("too many jobs: 600 > 100", Kind.REFUSED, 600, 300),
        ("too many job ids", Kind.REFUSED, 1, None),
        ("context deadline exceeded while reading job ids", Kind.UNCLEAR, 500, None),
        ("too many job ids", Kind.PERMISSION, 500, None),
        ("invalid job id", Kind.REFUSED, 500, None),
    ],
)
def test_only_words_about_too_many_ids_are_a_limit(
    words: str, kind: Kind, asked: int, fewer: int | None
) -> None:
    assert fewer_ids(ArmadaError(words, kind, details=words), asked) == fewer
