"""What goes wrong on the way to Armada: proxies, missing methods, given clients, and secrets in answers."""

import asyncio
import base64
import functools
import pickle
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from armada_client.asyncio_client import ArmadaAsyncIOClient
from armada_client.client import ArmadaClient

from jobrunner.backends.armada import ArmadaBackend, ArmadaConnection
from jobrunner.backends.armada.trouble import ArmadaError, Kind
from jobrunner.backends.base import Found
from jobrunner.errors import BackendError, NotSent, SettingsError, SubmitRejected, Throttled, UsageError
from jobrunner.models.armada_monitor_job import ArmadaMonitorJob
from jobrunner.settings import ConnectionSettings, configure, get_settings
from tests.backends.test_armada_backend import TOKEN, found, with_backend
from tests.backends.test_armada_conformance import SPEC
from tests.stubs.armada_server import ArmadaStub, serving
from tests.stubs.http2_proxy import answering

CODE = grpc.StatusCode
POD = SPEC["item"]["podSpec"]  # type: ignore[index]


@pytest.fixture
def armada() -> Iterator[ArmadaStub]:
    with serving() as stub:
        yield stub


def of_submission(url: str) -> BackendError:
    async def main() -> BackendError:
        backend = ArmadaBackend(ArmadaConnection(url=url, call_timeout_s=5))
        try:
            with pytest.raises(BackendError) as raised:
                await backend.submit(SPEC, TOKEN)
        finally:
            await backend.close()
        return raised.value

    return asyncio.run(main())


# --- a proxy in between ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_proxy_that_could_not_pass_a_submission_on_leaves_a_doubt(status: int) -> None:
    """Armada may have taken it before the proxy lost it: to call it refused would lose the job."""
    with answering(status) as url:
        error = of_submission(url)
    assert isinstance(error, ArmadaError)
    assert error.kind is Kind.UNCLEAR
    assert str(error).startswith(f"a proxy before {url} ")
    assert str(status) in str(error)


def test_a_proxy_that_throttles_is_waited_for() -> None:
    with answering(429) as url:
        assert isinstance(of_submission(url), Throttled)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "refused the credentials"), (403, "refused SubmitJobs"), (404, "not as Armada does")],
)
def test_a_proxy_that_says_no_is_told(status: int, words: str) -> None:
    with answering(status) as url:
        error = of_submission(url)
    assert isinstance(error, SubmitRejected)
    assert words in str(error)


# --- methods that are not there ----------------------------------------------------------------------


def test_a_server_without_health_is_armada_all_the_same(armada: ArmadaStub) -> None:
    armada.fault("Health", CODE.UNIMPLEMENTED, "Method not implemented!", times=None)

    async def test(backend: ArmadaBackend) -> Exception:
        return await backend.wire._why_unreachable("SubmitJobs")

    assert isinstance(with_backend(armada, test), NotSent)


@pytest.mark.parametrize("code", [CODE.PERMISSION_DENIED, CODE.INVALID_ARGUMENT, CODE.UNIMPLEMENTED])
def test_who_may_not_list_proves_a_submission_by_its_client_id(
    armada: ArmadaStub, code: grpc.StatusCode
) -> None:
    armada.fault("GetJobStatusUsingExternalJobUri", code, "not for you", times=None)
    armada.fault("SubmitJobs", CODE.UNAVAILABLE, "gone", performed=True)

    async def test(backend: ArmadaBackend) -> Any:
        with pytest.raises(ArmadaError):
            await backend.submit(SPEC, TOKEN)
        return await found(backend)

    assert with_backend(armada, test)[-1] == Found(armada.external_ids()[0])
    assert len(armada.jobs) == 1


async def submitted(spec: dict[str, Any], backend: ArmadaBackend) -> str:
    return await backend.submit(spec, TOKEN)


def test_a_row_that_is_no_job_of_armada_is_refused_and_not_in_doubt(armada: ArmadaStub) -> None:
    specs: list[dict[str, Any]] = [{}, {"queue": "etl"}, {"queue": "etl", "jobSetId": "set", "item": 7}]
    for spec in specs:
        with pytest.raises(SubmitRejected, match="The row's spec is no Armada job"):
            with_backend(armada, functools.partial(submitted, spec))
    assert armada.calls == []


# --- secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"username": "ana", "password": "hunter2"}, {"token": "hunter2"}], ids=["basic", "bearer"]
)
def test_what_a_server_repeats_of_the_credentials_is_not_told(
    armada: ArmadaStub, options: dict[str, Any]
) -> None:
    armada.authorization = "nobody's"
    with pytest.raises(SubmitRejected) as refused:
        with_backend(armada, lambda backend: backend.submit(SPEC, TOKEN), **options)
    told = str(refused.value)
    assert "***" in told
    assert "hunter2" not in told
    assert base64.b64encode(b"ana:hunter2").decode() not in told


@pytest.mark.parametrize("token", ["", " \n", "se\ncret", "sécret", "sec\x00ret"])
def test_a_token_that_no_header_can_have_is_refused_and_not_shown(token: str) -> None:
    told = {"kind": "armada", "url": "a:1", "token": token}
    with pytest.raises(SettingsError, match="'token' is no token") as refused:
        ArmadaConnection.of(ConnectionSettings.model_validate(told))
    assert not token.strip() or token not in str(refused.value)


def test_a_line_end_after_a_token_is_left_out(armada: ArmadaStub) -> None:
    with_backend(armada, lambda backend: backend.check(), token="abc\n")
    assert armada.calls[0].authorization == "Bearer abc"


# --- clients that are given ----------------------------------------------------------------------------


def test_a_closed_client_is_told_at_once(armada: ArmadaStub) -> None:
    channel = grpc.insecure_channel(armada.address)
    client = ArmadaClient(channel)
    channel.close()

    async def main() -> None:
        backend = ArmadaBackend(ArmadaConnection(url=armada.address), given=client)
        with pytest.raises(SubmitRejected, match=r"SubmitJobs could not be made: .*closed"):
            await backend.submit(SPEC, TOKEN)

    asyncio.run(main())


def test_an_asyncio_client_of_another_loop_is_told_and_not_waited_for(armada: ArmadaStub) -> None:
    async def made() -> ArmadaAsyncIOClient:
        return ArmadaAsyncIOClient(grpc.aio.insecure_channel(armada.address))

    async def main(client: ArmadaAsyncIOClient) -> None:
        backend = ArmadaBackend(ArmadaConnection(url=armada.address), given=client)
        with pytest.raises(SubmitRejected, match="belongs to another event loop: give a blocking"):
            await backend.submit(SPEC, TOKEN)

    asyncio.run(main(asyncio.run(made())))
    assert armada.jobs == {}


@pytest.mark.parametrize("wrong", ["localhost:50051", 7, object()])
def test_what_is_no_client_is_refused_before_anything_is_stored(wrong: object) -> None:
    with pytest.raises(UsageError, match="cannot be used as armada_client: give an ArmadaClient"):
        ArmadaMonitorJob("nightly", "etl", "set", POD, armada_client=wrong)
    with pytest.raises(UsageError, match="cannot be used as job_service_client: give a JobServiceClient"):
        ArmadaMonitorJob("nightly", "etl", "set", POD, job_service_client=wrong)


def test_each_job_has_the_client_that_it_was_given(armada: ArmadaStub) -> None:
    configure(database_url="sqlite:///nowhere.db")
    with (
        serving() as other,
        grpc.insecure_channel(armada.address) as one_channel,
        grpc.insecure_channel(other.address) as other_channel,
    ):
        one, two = (
            ArmadaMonitorJob("nightly", "etl", "set", POD, armada_client=ArmadaClient(channel))
            for channel in (one_channel, other_channel)
        )

        async def submit(job: ArmadaMonitorJob) -> None:
            _, behind = get_settings().connection(job.connection, job.backend_kind)
            backend = job.backend_behind(behind)
            await backend.submit(job.spec or {}, TOKEN)
            await backend.close()

        asyncio.run(submit(one))
        assert (len(armada.jobs), len(other.jobs)) == (1, 0)
        asyncio.run(submit(two))
        assert (len(armada.jobs), len(other.jobs)) == (1, 1)
        assert one.own_way() != two.own_way()


def test_a_job_travels_without_its_client(armada: ArmadaStub) -> None:
    with grpc.insecure_channel(armada.address) as channel:
        job = ArmadaMonitorJob("nightly", "etl", "set", POD, armada_client=ArmadaClient(channel))
        arrived = pickle.loads(pickle.dumps(job))
    assert (arrived.spec, arrived.own_way()) == (job.spec, None)
    assert job.own_way() is not None


def test_a_job_of_somebody_else_cannot_be_submitted_again() -> None:
    with pytest.raises(UsageError, match="was submitted by somebody else"):
        ArmadaMonitorJob.attach("etl", "set", "01abc", resubmit={"preempted": 1})


def test_a_policy_names_causes_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"by the cause 'preempt': known are preempted, oom, rejected"):
        ArmadaMonitorJob("nightly", "etl", "set", POD, resubmit={"preempt": 1})
