"""Armada as armada-client's stubs speak to it, over gRPC to a stub with Armada's own habits."""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from jobrunner.backends.armada import ArmadaBackend, ArmadaConnection, JobKey
from jobrunner.backends.armada.backend import cancel_request
from jobrunner.backends.armada.trouble import ArmadaError, Kind
from jobrunner.backends.base import Found, Gone, Observation, RemoteError, Unsure, sending_until
from jobrunner.clock import monotonic_s, utcnow
from jobrunner.errors import NotSent, SubmitRejected, SubmitTooLate, Throttled
from jobrunner.states import Phase
from tests.backends.test_armada_conformance import SPEC
from tests.stubs.armada_server import ArmadaStub, State, serving

TOKEN = "0123456789abcdef0123456789abcdef"
CODE = grpc.StatusCode


@pytest.fixture
def armada() -> Iterator[ArmadaStub]:
    with serving() as stub:
        yield stub


def with_backend(
    armada: ArmadaStub,
    test: Callable[[ArmadaBackend], Awaitable[Any]],
    *,
    settle_s: float = 0.2,
    **options: Any,
) -> Any:
    """Run a test with a backend on the stub, and close it after."""

    async def main() -> Any:
        connection = ArmadaConnection(**{"url": armada.address, "call_timeout_s": 5, **options})
        backend = ArmadaBackend(connection, settle_s=settle_s)
        try:
            return await test(backend)
        finally:
            await backend.close()

    return asyncio.run(main())


async def one(backend: ArmadaBackend, external_id: str) -> Any:
    return (await backend.fetch([external_id]))[external_id]


# --- submitting ----------------------------------------------------------------------------------


def test_a_submission_carries_its_token_twice_and_has_a_deadline(armada: ArmadaStub) -> None:
    external_id = with_backend(armada, lambda backend: backend.submit(SPEC, TOKEN))
    job = armada.job(external_id)
    assert (job.item.client_id, job.item.external_job_uri) == (TOKEN, f"jobrunner:{TOKEN}")
    assert job.item.pod_specs[0].containers[0].resources.limits["memory"].string == "1Gi"
    assert all(call.deadline_s is not None for call in armada.calls)
    assert armada.calls_per_method() == {"SubmitJobs": 1}


@pytest.mark.parametrize(
    ("code", "details", "error"),
    [
        (CODE.INVALID_ARGUMENT, "container main has no resources specified", SubmitRejected),
        (CODE.PERMISSION_DENIED, "could not find queue", SubmitRejected),
        (CODE.UNAUTHENTICATED, "no user", SubmitRejected),
        (CODE.UNIMPLEMENTED, "unknown service api.Submit", SubmitRejected),
        (CODE.RESOURCE_EXHAUSTED, "too many requests", Throttled),
        (CODE.RESOURCE_EXHAUSTED, "grpc: received message larger than max (5 vs. 4)", SubmitRejected),
        (CODE.UNAVAILABLE, "Socket closed", ArmadaError),
        (CODE.INTERNAL, "Failed to send events to Pulsar", ArmadaError),
        (CODE.UNKNOWN, "something", ArmadaError),
        (CODE.CANCELLED, "something", ArmadaError),
    ],
)
def test_a_failed_submission_says_what_follows_from_it(
    armada: ArmadaStub, code: grpc.StatusCode, details: str, error: type[Exception]
) -> None:
    armada.fault("SubmitJobs", code, details)
    with pytest.raises(error, match=details.split("(", maxsplit=1)[0]) as caught:
        with_backend(armada, lambda backend: backend.submit(SPEC, TOKEN))
    assert type(caught.value) is error
    assert armada.calls_per_method() == {"SubmitJobs": 1}, "it is never repeated here"


def test_a_server_that_says_nothing_leaves_a_doubt(armada: ArmadaStub) -> None:
    armada.fault("SubmitJobs", hangs_s=30)
    with pytest.raises(ArmadaError, match=r"gave no answer to SubmitJobs within 0\.3 s") as caught:
        with_backend(armada, lambda backend: backend.submit(SPEC, TOKEN), call_timeout_s=0.3)
    assert caught.value.kind is Kind.NO_ANSWER


def test_where_nobody_listens_nothing_was_sent(armada: ArmadaStub) -> None:
    armada.stop()
    with pytest.raises(NotSent, match=r"localhost:\d+ cannot be reached for SubmitJobs \(.*[Cc]onnect"):
        with_backend(armada, lambda backend: backend.submit(SPEC, TOKEN))


def test_a_request_that_would_leave_too_late_does_not_leave(armada: ArmadaStub) -> None:
    async def test(backend: ArmadaBackend) -> None:
        with sending_until(monotonic_s() - 0.001), pytest.raises(SubmitTooLate):
            await backend.submit(SPEC, TOKEN)

    with_backend(armada, test)
    assert armada.jobs == {}


# --- finding -------------------------------------------------------------------------------------


async def found(backend: ArmadaBackend, since: dt.datetime | None = None) -> list[Any]:
    """Ask what became of the submission until it is sure."""
    proofs: list[Any] = []
    while not proofs or (isinstance(proofs[-1], Unsure) and proofs[-1].retry_at is not None):
        proofs.append(await backend.find(SPEC, TOKEN, since or utcnow()))
        await asyncio.sleep(0.02)
    return proofs


def test_a_submission_is_looked_for_before_it_is_asked_for_again(armada: ArmadaStub) -> None:
    """Armada keeps the client id after it has handed the job on: at once, a second would be made."""
    armada.appear_after_s = 0.1
    armada.keeps_client_ids = False
    armada.fault("SubmitJobs", CODE.UNAVAILABLE, "gone", performed=True)

    async def test(backend: ArmadaBackend) -> list[Any]:
        with pytest.raises(ArmadaError):
            await backend.submit(SPEC, TOKEN)
        return await found(backend)

    proofs = with_backend(armada, test, settle_s=30)
    assert isinstance(proofs[0], Unsure)
    assert proofs[-1] == Found(armada.external_ids()[0])
    assert len(armada.jobs) == 1


def test_what_is_never_listed_is_asked_for_by_its_client_id(armada: ArmadaStub) -> None:
    armada.lists_by_uri = False

    async def test(backend: ArmadaBackend) -> Any:
        external_id = await backend.submit(SPEC, TOKEN)
        return external_id, await found(backend)

    external_id, proofs = with_backend(armada, test)
    assert proofs[-1] == Found(external_id)
    assert len(armada.jobs) == 1


def test_a_user_with_his_own_uri_keeps_it(armada: ArmadaStub) -> None:
    own = {**SPEC, "item": {**SPEC["item"], "externalJobUri": "theirs"}}  # type: ignore[dict-item]

    async def test(backend: ArmadaBackend) -> Any:
        external_id = await backend.submit(own, TOKEN)
        proof = await backend.find(own, TOKEN, utcnow())
        await asyncio.sleep(0.25)
        return external_id, proof, await backend.find(own, TOKEN, utcnow())

    external_id, first, last = with_backend(armada, test)
    assert isinstance(first, Unsure)
    assert last == Found(external_id)
    assert armada.job(external_id).item.external_job_uri == "theirs"


def test_an_old_submission_is_left_to_a_person(armada: ArmadaStub) -> None:
    async def test(backend: ArmadaBackend) -> Any:
        return (await found(backend, utcnow() - dt.timedelta(days=6, hours=1)))[-1]

    proof = with_backend(armada, test)
    assert isinstance(proof, Unsure)
    assert proof.retry_at is None
    assert "remembers a client id for 7 days" in proof.reason
    assert armada.jobs == {}


def test_a_refusal_does_not_prove_that_the_first_was_refused(armada: ArmadaStub) -> None:
    armada.known_queues = set()
    proof = with_backend(armada, found)[-1]
    assert isinstance(proof, Unsure)
    assert proof.retry_at is None
    assert "could not find queue" in proof.reason


# --- watching ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        (State.QUEUED, Phase.WAITING),
        (State.SUBMITTED, Phase.WAITING),
        (State.LEASED, Phase.WAITING),
        (State.PENDING, Phase.WAITING),
        (State.RUNNING, Phase.RUNNING),
        (State.SUCCEEDED, Phase.SUCCEEDED),
        (State.FAILED, Phase.FAILED),
        (State.PREEMPTED, Phase.FAILED),
        (State.REJECTED, Phase.FAILED),
        (State.CANCELLED, Phase.CANCELLED),
        (42, Phase.WAITING),
    ],
)
def test_every_state_has_its_phase(armada: ArmadaStub, state: int, phase: Phase) -> None:
    (external_id,) = armada.seed("etl", "set")
    armada.states[JobKey.split(external_id).job_id] = state
    seen = with_backend(armada, lambda backend: one(backend, external_id))
    assert isinstance(seen, Observation)
    assert seen.phase is phase
    assert seen.external_state == ("STATE_42" if state == 42 else State.Name(state))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "error", "cause"),
    [
        (State.PREEMPTED, "preempted by a job of queue urgent", "preempted"),
        (State.REJECTED, "no node is so large", "rejected"),
        (State.FAILED, "container main was OOMKilled", "oom"),
        (State.FAILED, "Container main failed with exit code 137 because OutOfMemory", "oom"),
        (State.FAILED, "the room is empty", ""),
    ],
)
def test_a_failure_names_its_cause(armada: ArmadaStub, state: int, error: str, cause: str) -> None:
    (external_id,) = armada.seed("etl", "set")
    armada.move(external_id, state, error)
    seen = with_backend(armada, lambda backend: one(backend, external_id))
    assert (seen.cause, seen.detail["error"]) == (cause, error)
    assert error in seen.message


def test_an_unknown_id_is_gone_and_one_that_is_left_out_is_an_error(
    armada: ArmadaStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (external_id,) = armada.seed("etl", "set")
    known, absent = JobKey.split(external_id).job_id, "01" + "9" * 24
    real = armada.status

    def status(request: Any, context: Any) -> Any:
        answer = real(request, context)
        del answer.job_states[known]  # then a map of protobuf would answer 0, which is QUEUED
        return answer

    monkeypatch.setattr(armada, "status", status)
    gone = JobKey("etl", "set", absent).join()
    answers = with_backend(armada, lambda backend: backend.fetch([external_id, gone, "no-id"]))
    assert isinstance(answers[gone], Gone)
    assert isinstance(answers[external_id], RemoteError)
    assert isinstance(answers["no-id"], RemoteError)


def test_the_servers_own_limit_is_learnt(armada: ArmadaStub) -> None:
    armada.max_query_items = 7
    ids = armada.seed("etl", "set", 30)

    async def test(backend: ArmadaBackend) -> Any:
        first = await backend.fetch(ids)
        armada.forget_calls()
        return first, await backend.fetch(ids[: backend.bulk_limit]), backend.bulk_limit

    first, again, limit = with_backend(armada, test)
    assert (len(first), len(again), limit) == (30, 7, 7)
    assert armada.calls_per_method() == {"GetJobStatus": 1}


def test_five_hundred_jobs_are_one_call_and_their_errors_another(armada: ArmadaStub) -> None:
    ids = armada.seed("etl", "set", 500)
    for each in ids[:3]:
        armada.fail(each, "out of luck")

    async def test(backend: ArmadaBackend) -> Any:
        answers = await backend.fetch(ids)
        armada.forget_calls()
        await backend.fetch(ids)
        return answers

    answers = with_backend(armada, test)
    assert [answers[each].phase for each in ids[2:4]] == [Phase.FAILED, Phase.WAITING]
    assert armada.calls_per_method() == {"GetJobStatus": 1}
    assert [call.ids for call in armada.calls] == [497], "what has ended is not asked about"


def test_an_end_that_was_seen_stays(armada: ArmadaStub) -> None:
    (external_id,) = armada.seed("etl", "set")

    async def test(backend: ArmadaBackend) -> Any:
        armada.move(external_id, State.CANCELLED)
        first = await one(backend, external_id)
        armada.run(external_id)
        return first, await one(backend, external_id)

    first, again = with_backend(armada, test)
    assert first == again
    assert again.phase is Phase.CANCELLED


def test_an_end_is_not_told_without_its_reason_while_that_may_still_come(armada: ArmadaStub) -> None:
    (external_id,) = armada.seed("etl", "set")
    armada.fail(external_id, "out of luck")
    armada.fault("GetJobErrors", CODE.UNAVAILABLE, "busy")

    async def test(backend: ArmadaBackend) -> Any:
        return [await one(backend, external_id) for _ in range(2)]

    first, then = with_backend(armada, test)
    assert isinstance(first, RemoteError)
    assert then.message == "out of luck"


def test_a_reason_that_cannot_be_had_holds_no_end_up_for_ever(armada: ArmadaStub) -> None:
    (external_id,) = armada.seed("etl", "set")
    armada.fail(external_id)
    armada.fault("GetJobErrors", CODE.INTERNAL, "broken", times=None)

    async def test(backend: ArmadaBackend) -> Any:
        return [await one(backend, external_id) for _ in range(3)][-1]

    last = with_backend(armada, test)
    assert last.phase is Phase.FAILED
    assert last.message.startswith("why is not known: GetJobErrors got no clear answer")


def test_a_server_that_tells_neither_errors_nor_details_is_watched_all_the_same(armada: ArmadaStub) -> None:
    (external_id,) = armada.seed("etl", "set")
    armada.fail(external_id, "never told")
    for method in ("GetJobErrors", "GetJobDetails"):
        armada.fault(method, CODE.UNIMPLEMENTED, "Method not implemented!", times=None)
    seen = with_backend(armada, lambda backend: one(backend, external_id))
    assert (seen.phase, seen.message) == (Phase.FAILED, "failed, and Armada gave no reason")


def test_how_long_a_submission_is_looked_for_depends_on_what_can_be_listed(armada: ArmadaStub) -> None:
    backend = ArmadaBackend(ArmadaConnection(url=armada.address, call_timeout_s=20))
    assert backend._finder._settle_s == 30
    backend._finder._can_list = False
    assert backend._finder._settle_s == 20
    quick = ArmadaBackend(ArmadaConnection(url=armada.address, call_timeout_s=1))
    assert quick._finder._settle_s == 20, "a runner that was paused may send for ten seconds"


def test_where_a_job_runs_is_kept_and_nothing_of_its_description(armada: ArmadaStub) -> None:
    async def test(backend: ArmadaBackend) -> Any:
        external_id = await backend.submit(SPEC, TOKEN)
        armada.run(external_id)
        await one(backend, external_id)
        armada.forget_calls()
        return await one(backend, external_id)

    link = "https://lookout.example/?queue={queue}&set={job_set}&job={job_id}"
    seen = with_backend(armada, test, lookout_url_template=link)
    job_id = seen.detail["job_id"]
    assert set(seen.detail) == {
        *("job_id", "queue", "job_set", "namespace", "cluster", "node", "run_id", "started_at", "lookout")
    }
    assert seen.detail["lookout"] == f"https://lookout.example/?queue=etl&set=nightly&job={job_id}"
    assert seen.has_run
    assert armada.calls_per_method() == {"GetJobStatus": 1}, "nothing has changed"


def test_a_throttled_look_says_so(armada: ArmadaStub) -> None:
    armada.fault("GetJobStatus", CODE.RESOURCE_EXHAUSTED, "slow down")
    with pytest.raises(Throttled, match="slow down"):
        with_backend(armada, lambda backend: backend.fetch(["etl/set/x"]))


def test_a_connection_that_leads_nowhere_is_made_anew(armada: ArmadaStub) -> None:
    (external_id,) = armada.seed("etl", "set")
    armada.fault("GetJobStatus", hangs_s=30, times=2)

    async def test(backend: ArmadaBackend) -> Any:
        channels = []
        for _ in range(2):
            with pytest.raises(ArmadaError):
                await backend.fetch([external_id])
            channels.append(next(iter(backend.wire._channels.values()), None))
        return channels, await one(backend, external_id)

    channels, seen = with_backend(armada, test, call_timeout_s=0.3)
    assert channels[0] is not None
    assert channels[1] is None
    assert seen.phase is Phase.WAITING


# --- cancelling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [[], [""], ["  "], ["01abc", ""]])
def test_an_empty_id_is_never_sent(ids: list[str]) -> None:
    with pytest.raises(ValueError, match="would end the whole job set"):
        cancel_request("etl", "set", ids, "why")


@pytest.mark.parametrize("wrong", ["", "etl/set/", "etl/set/%20", "etl/set", "/set/01abc"])
def test_an_id_without_a_job_ends_no_job_set(armada: ArmadaStub, wrong: str) -> None:
    armada.seed("etl", "set", 3)
    refused = with_backend(armada, lambda backend: backend.cancel([wrong], "why"))
    assert isinstance(refused[wrong], RemoteError)
    assert with_backend(armada, lambda backend: backend.cancel([], "why")) == {}
    assert armada.cancelled_job_sets == []
    assert "CancelJobs" not in armada.calls_per_method()


def test_a_cancellation_is_one_call_a_job_set(armada: ArmadaStub) -> None:
    ids = [*armada.seed("etl", "one", 5), *armada.seed("etl", "two", 5)]
    assert with_backend(armada, lambda backend: backend.cancel(ids, "why")) == {}
    assert [call.ids for call in armada.calls] == [5, 5]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("wrong\n input", "wrong input"),
        ("x" * 60, "x" * 50),
        ("x" * 49 + "ü", "x" * 49),
        ("日" * 20, "日" * 16),
    ],
)
def test_a_reason_is_cut_at_fifty_bytes(reason: str, told: str) -> None:
    assert cancel_request("etl", "set", ["01abc"], reason).reason == told


def test_trouble_with_one_job_set_is_told_of_its_jobs_alone(armada: ArmadaStub) -> None:
    one_id, other = *armada.seed("etl", "one"), *armada.seed("etl", "two")
    armada.fault("CancelJobs", CODE.PERMISSION_DENIED, "not yours")
    failed = with_backend(armada, lambda backend: backend.cancel([one_id, other], "why"))
    assert set(failed) == {one_id}
    assert "not yours" in failed[one_id].message


# --- the way there ---------------------------------------------------------------------------------


def test_a_check_says_what_answered(armada: ArmadaStub) -> None:
    told = with_backend(armada, lambda backend: backend.check())
    assert told == f"Armada answered GetJobStatus at {armada.address}, without TLS"


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"token": "abc"}, "Bearer abc"),
        ({"username": "ana", "password": "pw"}, "Basic YW5hOnB3"),
        ({}, ""),
    ],
)
def test_every_call_says_who_asks(armada: ArmadaStub, options: dict[str, Any], sent: str) -> None:
    with_backend(armada, lambda backend: backend.check(), **options)
    assert [call.authorization for call in armada.calls] == [sent]


def test_a_token_file_is_read_again_when_it_changes(armada: ArmadaStub, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    armada.authorization = "Bearer second"

    async def test(backend: ArmadaBackend) -> None:
        with pytest.raises(NotSent, match="refused the credentials for SubmitJobs") as caught:
            await backend.submit(SPEC, TOKEN)
        assert "first" not in str(caught.value)
        path.write_text("second\n")
        await backend.submit(SPEC, TOKEN)
        path.unlink()
        with pytest.raises(ArmadaError, match=r"token file .* cannot be read"):
            await backend.check()

    with_backend(armada, test, token_file=path)


def test_a_backend_may_be_used_in_one_loop_after_another(armada: ArmadaStub) -> None:
    backend = ArmadaBackend(ArmadaConnection(url=armada.address))

    async def look() -> str:
        try:
            return await backend.check()
        finally:
            await backend.close()

    assert asyncio.run(look()) == asyncio.run(look())
