"""The stub speaks Airbyte, and so do we: judged by the official SDK, and by schemas written by hand."""

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from airbyte_api import AirbyteAPI, api, models
from airbyte_api.errors import SDKError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from jobrunner.backends.airbyte import AirbyteBackend
from jobrunner.backends.base import Observation
from jobrunner.states import Phase
from tests.backends.airbyte_help import SPEC, a_backend, an_api, in_loop
from tests.stubs.airbyte_jobs import OPEN
from tests.stubs.airbyte_server import CONNECTION, PREFIX, WORKSPACE, AirbyteStub, Call, serving

Status = Literal["pending", "queued", "running", "incomplete", "failed", "succeeded", "cancelled"]
JobType = Literal["sync", "reset", "refresh", "clear"]
Uuid = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
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


class ConnectionResponse(BaseModel):
    """What GET /connections/{id} answers, as far as it is read."""

    model_config = ConfigDict(extra="allow", strict=True)

    connectionId: Uuid  # noqa: N815
    workspaceId: Uuid  # noqa: N815
    name: str


class _Failure(_Strict):
    failureOrigin: str | None = None  # noqa: N815
    failureType: str | None = None  # noqa: N815
    externalMessage: str | None = None  # noqa: N815
    internalMessage: str | None = None  # noqa: N815


class _Summary(_Strict):
    failures: list[_Failure]


class _Attempt(BaseModel):
    failureSummary: _Summary | None  # noqa: N815


class _AttemptInfo(BaseModel):
    attempt: _Attempt


class ReasonsResponse(BaseModel):
    """What the config API answers to POST /jobs/get_without_logs, as far as it is read."""

    job: dict[str, Any]
    attempts: list[_AttemptInfo]


class JobCreateRequest(_Strict):
    connectionId: Uuid  # noqa: N815
    jobType: JobType  # noqa: N815


class TokenRequest(_Strict):
    """Some of Airbyte's specifications have the one name for the kind of grant, OAuth has the other."""

    client_id: str
    client_secret: str
    grant_type: Literal["client_credentials"]
    hyphened: Literal["client_credentials"] = Field(alias="grant-type")


class ReasonsRequest(_Strict):
    id: Annotated[int, Field(ge=1)]


class Nothing(_Strict):
    """No body, and no query."""


class JobsQuery(BaseModel):
    """The query of GET /jobs; every value is text, and a list has commas here."""

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


@dataclass(frozen=True)
class Route:
    """One thing that may be asked for: where, with what, and what is answered."""

    method: str
    path: str
    answers: type[BaseModel]
    body: type[BaseModel] = Nothing
    query: type[BaseModel] = Nothing


UUID_PATTERN = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
ROUTES = {
    "token": Route("POST", f"{PREFIX}/applications/token", TokenResponse, TokenRequest),
    "list": Route("GET", f"{PREFIX}/jobs", JobsResponse, query=JobsQuery),
    "get": Route("GET", f"{PREFIX}/jobs/[1-9][0-9]*", JobResponse),
    "post": Route("POST", f"{PREFIX}/jobs", JobResponse, JobCreateRequest),
    "delete": Route("DELETE", f"{PREFIX}/jobs/[1-9][0-9]*", JobResponse),
    "connection": Route("GET", f"{PREFIX}/connections/{UUID_PATTERN}", ConnectionResponse),
    "reasons": Route("POST", "/api/v1/jobs/get_without_logs", ReasonsResponse, ReasonsRequest),
}


class Witness:
    """Hears each request that arrives and what is answered, and holds both against the schemas."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.faults: list[str] = []

    def hear(self, call: Call) -> None:
        self.calls.append(call)
        route = ROUTES[call.operation]
        assert call.method == route.method
        assert re.fullmatch(route.path, call.path)
        TypeAdapter(route.body).validate_python({} if call.body is None else call.body)
        assert (call.body is None) == (route.body is Nothing)
        route.query.model_validate(call.query)
        if call.body is not None:
            expected = ("application/json", "application/x-www-form-urlencoded")
            assert call.content_type.startswith(expected if call.operation == "token" else expected[0])
        assert bool(call.authorization) == (call.operation != "token")

    def answer(self, call: Call, said: Any) -> None:
        TypeAdapter(ROUTES[call.operation].answers).validate_python(said)

    @contextmanager
    def noting(self, call: Call) -> Iterator[None]:
        try:
            yield
        except (AssertionError, ValidationError, KeyError) as error:
            self.faults.append(f"{call.method} {call.path}: {error}")

    def seen(self, operation: str) -> list[Call]:
        return [call for call in self.calls if call.operation == operation]


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    """Hold each request, and each answer to one that was let in, against the schemas; `faults` tells."""
    found = Witness()
    perform = AirbyteStub.perform

    def checked(self: AirbyteStub, call: Call) -> Any:
        with found.noting(call):
            found.hear(call)
        said = perform(self, call)
        with found.noting(call):
            found.answer(call, said)
        return said

    monkeypatch.setattr(AirbyteStub, "perform", checked)
    return found


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


# --- our requests, and the stub's answers ----------------------------------------------------------


async def settled(backend: AirbyteBackend, ids: Sequence[str]) -> None:
    """Ask until each job was seen, and no reconciliation is under way."""
    while True:
        answers = await backend.fetch(ids)
        if backend._feed._reconciling is None and all(
            isinstance(each, Observation) for each in answers.values()
        ):
            return


@pytest.mark.parametrize("takes", ["json", "form"])
@in_loop
async def test_a_request_for_a_token_keeps_to_its_schema_as_json_and_as_a_form(
    stub: AirbyteStub, witness: Witness, takes: Literal["json", "form"]
) -> None:
    stub.token_takes = takes
    async with a_backend(stub) as backend:
        await backend.check()
    call = witness.seen("token")[-1]
    assert call.content_type == (
        "application/json" if takes == "json" else "application/x-www-form-urlencoded"
    )
    assert not witness.faults


@pytest.mark.parametrize("kind", ["sync", "reset", "refresh", "clear"])
@in_loop
async def test_a_job_of_each_type_is_asked_for_looked_for_and_cancelled_by_the_schemas(
    stub: AirbyteStub, witness: Witness, kind: str
) -> None:
    spec = {**SPEC, "jobType": kind}
    async with a_backend(stub, {"workspace_ids": WORKSPACE}) as backend:
        baseline = await backend.baseline(spec)
        made = await backend.submit(spec, "token")
        await backend.find(spec, "token", dt.datetime.now(dt.UTC), baseline=baseline)
        await backend.fetch([made])
        await backend.cancel([made], "enough")
        await backend.fetch([made])
    (post,) = witness.seen("post")
    assert post.body == {"connectionId": CONNECTION, "jobType": kind}
    assert {call.operation for call in witness.calls} == {"token", "list", "post", "get", "delete"}
    assert not witness.faults


@pytest.mark.parametrize(
    "workspaces", [(), (WORKSPACE,), (WORKSPACE, "c0ffee00-0000-4000-8000-000000000002"), None]
)
@in_loop
async def test_all_that_watching_many_asks_for_keeps_to_the_schemas(
    stub: AirbyteStub, witness: Witness, workspaces: tuple[str, ...] | None
) -> None:
    """None: the server demands them, and they are found out."""
    stub.lists_need_workspaces = workspaces is None
    ids = [str(each) for each in stub.seed(130)]
    async with a_backend(stub, {"workspace_ids": workspaces or ()}) as backend:
        await settled(backend, ids)
        for each in ids[:110]:
            stub.succeed(int(each))
        stub.fail(int(ids[120]), {"failureOrigin": "source", "externalMessage": "no"})
        answers = await backend.fetch(ids)
    assert {each.phase for each in answers.values() if isinstance(each, Observation)} == {
        *(Phase.SUCCEEDED, Phase.FAILED, Phase.RUNNING)
    }
    queries = [call.query for call in witness.seen("list")]
    assert {query["status"] for query in queries if "status" in query} == set(OPEN)
    assert any("updatedAtStart" in query and query["orderBy"] == "updatedAt|DESC" for query in queries)
    assert {query["offset"] for query in queries} >= {"0", "100"}
    named = {query.get("workspaceIds") for query in queries}
    first = {None} if not workspaces else set()
    assert named == first | ({",".join(workspaces or (WORKSPACE,))} if workspaces != () else set())
    assert len(witness.seen("reasons")) == 1
    assert not witness.faults


@in_loop
async def test_all_that_watching_few_asks_for_keeps_to_the_schemas(
    stub: AirbyteStub, witness: Witness
) -> None:
    job_id = stub.start(CONNECTION, "sync").id
    async with a_backend(stub) as backend:
        await backend.fetch([str(job_id)])
        stub.fail(job_id, {"failureOrigin": None, "failureType": None, "internalMessage": "no"})
        await backend.fetch([str(job_id)])
    assert {call.operation for call in witness.calls} == {"token", "get", "connection", "reasons"}
    assert not witness.faults


def test_the_schemas_refuse_what_airbyte_does_not_know(stub: AirbyteStub) -> None:
    """That they pass says something only when they can fail."""
    token = {"client_id": "a", "client_secret": "b", "grant_type": "client_credentials"}
    wrong: list[tuple[type[BaseModel], dict[str, Any]]] = [
        (JobCreateRequest, {"connectionId": CONNECTION, "jobType": "sync", "jobConfiguration": {}}),
        (JobCreateRequest, {"connectionId": "orders", "jobType": "sync"}),
        (JobCreateRequest, {"connectionId": CONNECTION, "jobType": "full"}),
        (TokenRequest, {**token, "grant-type": "client_credentials", "scope": "all"}),
        (ReasonsRequest, {"id": "7"}),
        (JobsQuery, {"limit": "101"}),
        (JobsQuery, {"ids": "1,2"}),
        (JobsQuery, {"orderBy": "updatedAt DESC"}),
        (JobResponse, {**stub.shown(stub.start(CONNECTION, "sync")), "jobId": "1001"}),
    ]
    for schema, given in wrong:
        with pytest.raises(ValidationError):
            schema.model_validate(given)
