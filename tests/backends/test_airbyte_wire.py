"""The stub speaks Airbyte, and so do we: judged by the official SDK, and by schemas written by hand."""

import datetime as dt
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from airbyte_api import AirbyteAPI, api, models
from airbyte_api.errors import SDKError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tests.backends.airbyte_help import SPEC, a_backend, an_api, in_loop
from tests.stubs.airbyte_server import CONNECTION, WORKSPACE, AirbyteStub, serving

Status = Literal["pending", "queued", "running", "incomplete", "failed", "succeeded", "cancelled"]
JobType = Literal["sync", "reset", "refresh", "clear"]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?Z$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class JobResponse(_Strict):
    """What GET /jobs/{id}, POST /jobs and DELETE /jobs/{id} answer."""

    jobId: int  # noqa: N815  # Airbyte's own names
    status: Status
    jobType: JobType  # noqa: N815
    startTime: Time  # noqa: N815
    connectionId: str  # noqa: N815
    duration: Annotated[str, Field(pattern=r"^P")] | None = None
    lastUpdatedAt: Time | None = None  # noqa: N815
    bytesSynced: int | None = None  # noqa: N815
    rowsSynced: int | None = None  # noqa: N815


class JobsResponse(_Strict):
    """What GET /jobs answers."""

    data: list[JobResponse]
    next: str | None = None
    previous: str | None = None


class TokenResponse(_Strict):
    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int


class JobCreateRequest(_Strict):
    connectionId: Annotated[str, Field(pattern=r"^[0-9a-f-]{36}$")]  # noqa: N815
    jobType: JobType  # noqa: N815


class TokenRequest(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    client_id: str
    client_secret: str
    grant_type: Literal["client_credentials"]


class JobsQuery(BaseModel):
    """The query of GET /jobs; every value is text."""

    model_config = ConfigDict(extra="forbid")

    connectionId: UUID | None = None  # noqa: N815
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    offset: Annotated[int, Field(ge=0)] = 0
    jobType: JobType | None = None  # noqa: N815
    workspaceIds: Annotated[str, Field(pattern=r"^[0-9a-f-]{36}(,[0-9a-f-]{36})*$")] | None = None  # noqa: N815
    status: Status | None = None
    createdAtStart: dt.datetime | None = None  # noqa: N815
    createdAtEnd: dt.datetime | None = None  # noqa: N815
    updatedAtStart: dt.datetime | None = None  # noqa: N815
    updatedAtEnd: dt.datetime | None = None  # noqa: N815
    orderBy: Annotated[str, Field(pattern=r"^(createdAt|updatedAt)\|(ASC|DESC)$")] | None = None  # noqa: N815


@pytest.fixture
def stub() -> Iterator[AirbyteStub]:
    with serving() as served:
        yield served


def sdk_of(stub: AirbyteStub) -> AirbyteAPI:
    credentials = models.SchemeClientCredentials(
        client_id=stub.client_id, client_secret=stub.client_secret, token_url=f"{stub.url}/applications/token"
    )
    return AirbyteAPI(security=models.Security(client_credentials=credentials), server_url=stub.url)


def test_the_official_sdk_understands_the_stub(stub: AirbyteStub) -> None:
    sdk = sdk_of(stub)
    made = sdk.jobs.create_job(
        request=models.JobCreateRequest(connection_id=CONNECTION, job_type=models.JobTypeEnum.SYNC)
    ).job_response
    assert made is not None
    assert made.status is models.JobStatusEnum.RUNNING
    stub.succeed(made.job_id, rows=7, size=70)
    seen = sdk.jobs.get_job(request=api.GetJobRequest(job_id=made.job_id)).job_response
    assert seen is not None
    assert (seen.status, seen.rows_synced, seen.bytes_synced) == (models.JobStatusEnum.SUCCEEDED, 7, 70)
    assert seen.duration is not None
    assert seen.last_updated_at is not None
    other = stub.start(CONNECTION, "sync").id
    cancelled = sdk.jobs.cancel_job(request=api.CancelJobRequest(job_id=other)).job_response
    assert cancelled is not None
    assert cancelled.status is models.JobStatusEnum.CANCELLED
    listed = sdk.jobs.list_jobs(
        request=api.ListJobsRequest(
            connection_id=CONNECTION,
            limit=100,
            order_by="updatedAt|DESC",
            updated_at_start=dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1),
            status=models.JobStatusEnum.SUCCEEDED,
            workspace_ids=[WORKSPACE],
        )
    ).jobs_response
    assert listed is not None
    assert [job.job_id for job in listed.data] == [made.job_id]
    with pytest.raises(SDKError, match="404"):
        sdk.jobs.get_job(request=api.GetJobRequest(job_id=9))


@in_loop
async def test_we_understand_all_that_the_sdk_does(stub: AirbyteStub) -> None:
    """Each status of the SDK's closed enum has its meaning here."""
    async with an_api(stub) as ours:
        for status in models.JobStatusEnum:
            (job_id,) = stub.seed(status=status.value)
            job = await ours.get_job(job_id)
            assert job.status == status.value
            assert job.is_over == (status.value in {"failed", "succeeded", "cancelled"})


@in_loop
async def test_requests_and_answers_keep_to_the_schemas(
    stub: AirbyteStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[tuple[str, Any]] = []
    perform = AirbyteStub.perform

    def recorded(self: AirbyteStub, call: Any) -> Any:
        said = perform(self, call)
        answers.append((call.operation, said))
        return said

    monkeypatch.setattr(AirbyteStub, "perform", recorded)
    ids = [str(each) for each in stub.seed(10)]
    async with a_backend(stub, {"workspace_ids": WORKSPACE}) as backend:
        await backend.check()
        baseline = await backend.baseline(SPEC)
        made = await backend.submit(SPEC, "token")
        await backend.find(SPEC, "token", dt.datetime.now(dt.UTC), baseline=baseline)
        for _ in range(3):
            await backend.fetch([*ids, made])
        stub.succeed(int(ids[0]))
        await backend.fetch([*ids, made])
        await backend.cancel([made], "enough")
    answered: dict[str, type[BaseModel]] = {
        "token": TokenResponse,
        "list": JobsResponse,
        "get": JobResponse,
        "post": JobResponse,
        "delete": JobResponse,
    }
    asked: dict[str, type[BaseModel]] = {"token": TokenRequest, "post": JobCreateRequest}
    for operation, said in answers:
        TypeAdapter(answered[operation]).validate_python(said)
    for call in stub.calls:
        if call.operation in asked:
            TypeAdapter(asked[call.operation]).validate_python(call.body)
            assert call.content_type.startswith("application/json")
        else:
            assert call.body is None
        JobsQuery.model_validate(call.query)
    assert {operation for operation, _ in answers} == set(answered)
