"""Airbyte jobs are started once, and their end is asked for without hitting another."""

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from jobrunner.backends.airbyte import cancelling, transport
from jobrunner.backends.airbyte.backend import AirbyteBackend
from jobrunner.backends.airbyte.client import Api
from jobrunner.backends.base import Found, Observation, Unsure
from jobrunner.clock import utcnow
from jobrunner.errors import BackendError, NotSent, SubmitRejected, Throttled
from jobrunner.states import Phase
from tests.backends.airbyte_help import SPEC, a_backend, in_loop
from tests.stubs.airbyte_server import CONNECTION, AirbyteStub, FaultKind, serving

OTHER = "22222222-2222-4222-8222-222222222222"


@pytest.fixture
def stub() -> Iterator[AirbyteStub]:
    with serving() as served:
        yield served


def spec(**changes: Any) -> dict[str, Any]:
    return {**SPEC, **changes}


async def none_held(_ids: Sequence[str]) -> set[str]:
    return set()


async def proven(backend: AirbyteBackend, baseline: str | None, **options: Any) -> Found | Unsure:
    """Ask until the answer is sure, or can never be."""
    token = uuid.uuid4().hex
    while True:
        proof = await backend.find(spec(), token, utcnow(), baseline=baseline, **options)
        assert isinstance(proof, (Found, Unsure)), "never absent"
        if isinstance(proof, Found) or proof.retry_at is None:
            return proof
        await asyncio.sleep(0.01)


# --- submitting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "reset", "refresh", "clear"])
@in_loop
async def test_a_submission_is_one_post_and_is_watched_without_another_look(
    stub: AirbyteStub, kind: str
) -> None:
    async with a_backend(stub, few=0) as backend:
        baseline = await backend.baseline(spec())
        assert baseline == "0"
        external_id = await backend.submit(spec(jobType=kind), "token")
        answer = (await backend.fetch([external_id]))[external_id]
        assert isinstance(answer, Observation)
        assert await backend.baseline(spec()) == external_id
    assert answer.detail["airbyte_job_type"] == kind
    assert stub.counts()["post"] == 1
    assert stub.counts().get("get", 0) == 0


@pytest.mark.parametrize("kind", ["lost_answer", "server_error", "bad_gateway", "dropped", "html"])
@in_loop
async def test_a_post_is_never_repeated(stub: AirbyteStub, kind: FaultKind) -> None:
    stub.fault("post", kind, times=None)
    async with a_backend(stub) as backend:
        with pytest.raises(BackendError) as caught:
            await backend.submit(spec(), "token")
    assert not isinstance(caught.value, (SubmitRejected, NotSent, Throttled)), "it is in doubt"
    assert stub.counts()["post"] == 1


@pytest.mark.parametrize("kind", ["server_error", "bad_gateway", "dropped", "lost_answer"])
@in_loop
async def test_trouble_with_the_token_or_the_baseline_means_that_nothing_was_sent(
    stub: AirbyteStub, kind: FaultKind
) -> None:
    async with a_backend(stub) as backend:
        stub.fault("token", kind)
        with pytest.raises(NotSent):
            await backend.submit(spec(), "token")
        stub.fault("list", kind)
        with pytest.raises(NotSent):
            await backend.baseline(spec())
        stub.fault("post", "throttled", retry_after="3")
        with pytest.raises(Throttled) as caught:
            await backend.submit(spec(), "token")
    assert caught.value.retry_after_s == 3
    assert not stub.job_ids()


@in_loop
async def test_what_airbyte_refuses_is_refused_in_its_own_words(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.known_connections = [OTHER]
    async with a_backend(stub) as backend:
        with pytest.raises(SubmitRejected, match=f"404 could not find connection {CONNECTION}"):
            await backend.submit(spec(), "token")
        with pytest.raises(SubmitRejected, match="needs the environment variable WHERE"):
            await backend.submit(spec(connectionId="${env:WHERE}"), "token")
        monkeypatch.setenv("WHERE", "nowhere")
        with pytest.raises(SubmitRejected, match=r"connectionId is '\$\{env:WHERE\}', which is no UUID"):
            await backend.submit(spec(connectionId="${env:WHERE}"), "token")
        monkeypatch.setenv("WHERE", OTHER)
        await backend.submit(spec(connectionId="${env:WHERE}"), "token")
    assert len(stub.job_ids()) == 1


# --- finding ---------------------------------------------------------------------------------------


@in_loop
async def test_a_job_whose_answer_was_lost_is_found(stub: AirbyteStub) -> None:
    stub.seed(1, connection_id=CONNECTION, status="succeeded")
    stub.seed(3)
    async with a_backend(stub) as backend:
        baseline = await backend.baseline(spec())
        stub.fault("post", "lost_answer")
        with pytest.raises(BackendError):
            await backend.submit(spec(), "token")
        made = stub.job_ids()[-1]
        assert await proven(backend, baseline, is_held=none_held) == Found(str(made))
    assert stub.counts()["post"] == 1


@in_loop
async def test_a_job_that_is_made_after_the_client_gave_up_is_found(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "LONG_S", 0.05)
    stub.post_takes_s = 0.4
    async with a_backend(stub, doubt_s=20.0) as backend:
        baseline = await backend.baseline(spec())
        with pytest.raises(BackendError, match="no clear answer"):
            await backend.submit(spec(), "token")
        assert not stub.job_ids()
        proof = await proven(backend, baseline)
    assert [proof] == [Found(str(each)) for each in stub.job_ids()]


@in_loop
async def test_a_job_that_another_one_holds_or_of_another_type_or_older_is_not_taken(
    stub: AirbyteStub,
) -> None:
    stub.one_at_a_time = False
    old = stub.start(CONNECTION, "sync").id
    stub.start(CONNECTION, "refresh")
    held = stub.start(CONNECTION, "sync").id

    async def is_held(ids: Sequence[str]) -> set[str]:
        return {each for each in ids if each == str(held)}

    async with a_backend(stub) as backend:
        proof = await proven(backend, str(old), is_held=is_held)
        assert isinstance(proof, Unsure)
        assert f"{held} of the Airbyte connection {CONNECTION} is watched by another job here" in proof.reason
        own = stub.start(CONNECTION, "sync").id
        stub.start(CONNECTION, "sync")
        assert await proven(backend, str(old), is_held=is_held) == Found(str(own)), "the first one after it"


@in_loop
async def test_nothing_found_is_a_doubt_for_a_person_and_never_absent(stub: AirbyteStub) -> None:
    async with a_backend(stub) as backend:
        first = await backend.find(spec(), "token", utcnow(), baseline="0")
        assert isinstance(first, Unsure)
        assert first.retry_at is not None
        last = await proven(backend, "0")
    assert last == Unsure(
        None,
        f"no sync job that began since is listed for the Airbyte connection {CONNECTION}, but it may have "
        "been made all the same",
    )


@in_loop
async def test_a_submission_is_looked_for_where_it_was_made_whatever_the_variables_say_elsewhere(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host takes the job over: there the variable names another connection, or is not set."""
    named = spec(connectionId="${env:WHERE}", jobType="${env:KIND}", onConflict="${env:POLICY}")
    monkeypatch.setenv("WHERE", CONNECTION)
    monkeypatch.setenv("KIND", "refresh")
    monkeypatch.setenv("POLICY", "adopt")
    async with a_backend(stub) as backend:
        baseline = await backend.baseline(named)
        stub.fault("post", "lost_answer")
        with pytest.raises(BackendError):
            await backend.submit(named, "token")
        (made,) = stub.job_ids()
        stub.start(OTHER, "sync")
        monkeypatch.setenv("WHERE", OTHER)
        monkeypatch.setenv("KIND", "sync")
        assert await backend.find(named, "token", utcnow(), baseline=baseline) == Found(str(made))
        monkeypatch.delenv("WHERE")
        monkeypatch.delenv("KIND")
        monkeypatch.delenv("POLICY")
        assert await backend.find(named, "token", utcnow(), baseline=baseline) == Found(str(made))


@in_loop
async def test_without_a_baseline_nothing_is_adopted_because_a_schedule_starts_jobs_too(
    stub: AirbyteStub,
) -> None:
    since = utcnow()
    stub.start(CONNECTION, "sync")
    async with a_backend(stub) as backend:
        proof = await backend.find(spec(), "token", since)
    assert isinstance(proof, Unsure)
    assert proof.retry_at is None
    assert "never stored" in proof.reason


@in_loop
async def test_a_reset_that_the_server_does_as_a_clear_is_found(stub: AirbyteStub) -> None:
    made = stub.start(CONNECTION, "clear").id
    async with a_backend(stub) as backend:
        found = await backend.find(spec(jobType="reset"), "token", utcnow(), baseline="0")
    assert found == Found(str(made))


# --- a job that runs already -----------------------------------------------------------------------


@in_loop
async def test_on_a_conflict_the_job_that_runs_is_adopted(stub: AirbyteStub) -> None:
    running = stub.start(CONNECTION, "sync").id
    async with a_backend(stub) as backend:
        baseline = await backend.baseline(spec())
        with pytest.raises(BackendError, match="A sync is already running") as caught:
            await backend.submit(spec(), "token")
        assert not isinstance(caught.value, (SubmitRejected, NotSent, Throttled)), "`find` is asked"
        found = await backend.find(spec(), "token", utcnow(), baseline=baseline, is_held=none_held)
        assert found == Found(str(running))
    assert stub.counts()["post"] == 1


@in_loop
async def test_on_a_conflict_a_job_that_is_watched_already_is_not_adopted(stub: AirbyteStub) -> None:
    stub.start(CONNECTION, "sync")

    async def all_held(ids: Sequence[str]) -> set[str]:
        return set(ids)

    async with a_backend(stub, doubt_s=0.0) as backend:
        with pytest.raises(BackendError):
            await backend.submit(spec(), "token")
        proof = await backend.find(spec(), "token", utcnow(), baseline="5000", is_held=all_held)
    assert isinstance(proof, Unsure)
    assert proof.retry_at is None
    assert "A sync is already running" in proof.reason
    assert "is watched by another job here" in proof.reason


@in_loop
async def test_on_a_conflict_a_job_of_another_type_is_not_adopted(stub: AirbyteStub) -> None:
    stub.start(CONNECTION, "reset")
    async with a_backend(stub, doubt_s=0.0) as backend:
        baseline = await backend.baseline(spec())
        with pytest.raises(BackendError, match="A sync is already running"):
            await backend.submit(spec(), "token")
        proof = await backend.find(spec(), "token", utcnow(), baseline=baseline, is_held=none_held)
    assert isinstance(proof, Unsure)
    assert proof.retry_at is None
    assert proof.reason.startswith("POST /jobs: 409 A sync is already running for: ")
    assert "made all the same" not in proof.reason, "it was refused, and so not made"


@in_loop
async def test_on_a_conflict_it_may_fail_instead(stub: AirbyteStub) -> None:
    stub.start(CONNECTION, "sync")
    async with a_backend(stub) as backend:
        with pytest.raises(SubmitRejected, match=f"A sync is already running for: {CONNECTION}"):
            await backend.submit(spec(onConflict="fail"), "token")


# --- cancelling ------------------------------------------------------------------------------------


@in_loop
async def test_a_cancellation_looks_before_and_after(stub: AirbyteStub) -> None:
    job_id = str(stub.start(CONNECTION, "sync").id)
    async with a_backend(stub) as backend:
        assert not await backend.cancel([job_id], "enough")
        answer = (await backend.fetch([job_id]))[job_id]
    assert isinstance(answer, Observation)
    assert answer.phase is Phase.CANCELLED
    assert [call.operation for call in stub.calls[1:5]] == ["get", "list", "delete", "get"]


@in_loop
async def test_a_newer_run_is_never_hit_for_an_old_one(stub: AirbyteStub) -> None:
    old = stub.start(CONNECTION, "sync").id
    stub.succeed(old)
    new = stub.start(CONNECTION, "sync").id
    async with a_backend(stub) as backend:
        for _ in range(3):
            assert not await backend.cancel([str(old)], "enough")
    assert stub.status(new) == "running"
    assert "delete" not in stub.counts()


@in_loop
async def test_a_stale_job_beside_a_newer_run_is_not_cancelled_and_says_so(stub: AirbyteStub) -> None:
    stub.one_at_a_time = False
    old, new = (stub.start(CONNECTION, "sync").id for _ in range(2))
    async with a_backend(stub) as backend:
        troubles = await backend.cancel([str(old)], "enough")
    assert troubles[str(old)].message == (
        f"not cancelled: Airbyte ends whatever runs on a connection, and there the newer job {new} is running"
    )
    assert (stub.status(old), stub.status(new)) == ("running", "running")


@in_loop
async def test_a_newer_run_that_was_hit_in_the_last_moment_is_told(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = stub.start(CONNECTION, "sync").id
    delete = Api.delete_job

    async def between(api: Api, asked: int) -> None:
        stub.succeed(job_id)
        stub.start(CONNECTION, "sync")
        await delete(api, asked)

    monkeypatch.setattr(Api, "delete_job", between)
    async with a_backend(stub) as backend:
        await backend.fetch([str(job_id)])
        await backend.cancel([str(job_id)], "enough")
        answer = (await backend.fetch([str(job_id)]))[str(job_id)]
    assert isinstance(answer, Observation)
    assert answer.phase is Phase.SUCCEEDED, "its true outcome"
    assert "which may have ended the newer job 1002" in answer.message


@in_loop
async def test_a_job_that_begins_in_place_of_a_cancelled_one_is_told(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So did some versions with a job that was pending."""
    job_id = stub.start(CONNECTION, "sync").id
    delete = Api.delete_job

    async def respawning(api: Api, asked: int) -> None:
        await delete(api, asked)
        stub.start(CONNECTION, "sync")

    monkeypatch.setattr(Api, "delete_job", respawning)
    async with a_backend(stub) as backend:
        await backend.fetch([str(job_id)])
        assert not await backend.cancel([str(job_id)], "enough")
        answer = (await backend.fetch([str(job_id)]))[str(job_id)]
        assert isinstance(answer, Observation)
        assert answer.phase is Phase.CANCELLED
        assert "the newer job 1002 of its Airbyte connection has begun since" in answer.message
        assert not await backend.cancel([str(job_id)], "enough")
    assert stub.status(1002) == "running"
    assert stub.counts()["delete"] == 1


@in_loop
async def test_a_job_that_is_not_currently_running_is_no_trouble(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = stub.start(CONNECTION, "sync").id

    async def as_seen_before(api: Api, _job: Any) -> None:
        stub.succeed(job_id)

    monkeypatch.setattr(cancelling, "_running", as_seen_before)
    async with a_backend(stub) as backend:
        assert not await backend.cancel([str(job_id)], "enough")
    assert [call.status for call in stub.calls if call.operation == "delete"] == [409]


@pytest.mark.parametrize("status", [403, 404, 409])
@in_loop
async def test_a_job_that_is_not_there_cannot_be_cancelled(stub: AirbyteStub, status: int) -> None:
    stub.unknown_status = status
    async with a_backend(stub) as backend:
        troubles = await backend.cancel(["9000"], "enough")
    assert bool(troubles) == (status == 403), "it may be there, and only hidden"
    assert "delete" not in stub.counts()


@in_loop
async def test_many_cancellations_are_sent_and_none_is_forgotten(stub: AirbyteStub) -> None:
    ids = [str(each) for each in stub.seed(30)]
    stub.cancel_takes_s = 0.01
    async with a_backend(stub) as backend:
        assert not await backend.cancel(ids, "enough")
        answers = await backend.fetch(ids)
    assert {answer.phase for answer in answers.values()} == {Phase.CANCELLED}  # type: ignore[union-attr]
    assert stub.max_concurrency <= 3


@in_loop
async def test_those_that_were_not_reached_in_time_are_named(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobrunner.backends.airbyte.backend._CANCEL_S", 0.3)
    ids = [str(each) for each in stub.seed(10)]
    stub.cancel_takes_s = 30.0
    async with a_backend(stub) as backend:
        troubles = await backend.cancel(ids, "enough")
    assert set(troubles) == set(ids)
    assert "not asked yet" in troubles[ids[-1]].message


@in_loop
async def test_an_outage_while_cancelling_is_told_for_each(stub: AirbyteStub) -> None:
    ids = [str(each) for each in stub.seed(3)]
    async with a_backend(stub) as backend:
        stub.fault("delete", "bad_gateway", times=None)
        troubles = await backend.cancel(ids, "enough")
        assert {each.message for each in troubles.values()} == {
            f"{stub.url} answered DELETE /jobs/{each} with 502 and an HTML page" for each in ids
        }
        stub.clear_faults()
        stub.fault("get", "throttled", times=None, retry_after="5")
        with pytest.raises(Throttled):
            await backend.cancel(ids, "enough")
    assert {stub.status(int(each)) for each in ids} == {"running"}
