"""What outside systems put on the wire: an answer by the contract, or an error of the backend."""

import asyncio
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobrunner.backends.airbyte import AirbyteBackend, AirbyteConnection
from jobrunner.backends.airbyte.reading import failures_of
from jobrunner.backends.airbyte.tokens import life_of
from jobrunner.backends.airbyte.transport import Raw
from jobrunner.backends.armada import ArmadaBackend, ArmadaConnection
from jobrunner.backends.armada.ids import JobKey
from jobrunner.backends.armada.jobservice_backend import JobServiceBackend
from jobrunner.backends.armada.trouble import ArmadaError, Kind
from jobrunner.backends.armada.wire import messages
from jobrunner.backends.base import Gone, Observation, RemoteError
from jobrunner.backends.batch import BatchBackend
from jobrunner.backends.batch.connection import BatchConnection
from jobrunner.backends.batch.events import ids_in
from jobrunner.backends.process.looking import Look
from jobrunner.backends.process.records import RecordDirectory
from jobrunner.clock import utcnow
from jobrunner.errors import BackendError
from jobrunner.identity import host_id
from tests.fuzz.answers import ensure_answer, ensure_answers, ensure_error
from tests.fuzz.examples import TIMEOUT_S, examples
from tests.fuzz.texts import any_json, any_text, mutated
from tests.stubs.aws_answers import AnsweredBatch, as_body
from tests.stubs.moto_batch import use_aws_environment

pytestmark = pytest.mark.timeout(TIMEOUT_S)

# --- AWS Batch -----------------------------------------------------------------------------------

_CONTAINER = {
    "exitCode": 137,
    "reason": "OutOfMemoryError: Container killed due to memory usage",
    "logStreamName": "stream",
    "name": "main",
    "environment": [{"name": "DB_PASSWORD", "value": "hunter2"}],
    "logConfiguration": {
        "logDriver": "awslogs",
        "options": {"awslogs-group": "g", "awslogs-region": "eu-west-1"},
    },
}
_ATTEMPT = {
    "container": _CONTAINER,
    "statusReason": "Host EC2 (instance i-1) terminated.",
    "startedAt": 1790000001000,
    "stoppedAt": 1790000002000,
    "taskProperties": [{"containers": [_CONTAINER]}],
}
_STATUSES = ["SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED", "NEW"]
_JOB = {
    "jobArn": "arn:aws:batch:eu-west-1:123456789012:job/876da822",
    "jobId": "job-1",
    "jobName": "nightly",
    "jobQueue": "arn:aws:batch:eu-west-1:123456789012:job-queue/spot",
    "jobDefinition": "arn:aws:batch:eu-west-1:123456789012:job-definition/etl:7",
    "statusReason": "jobrunner: killed",
    "createdAt": 1790000000000,
    "startedAt": 1790000001000,
    "stoppedAt": 1790000002000,
    "isTerminated": True,
    "isCancelled": False,
    "container": _CONTAINER,
    "attempts": [_ATTEMPT],
    "eksAttempts": [{"containers": [_CONTAINER], "podName": "p", "statusReason": "x", "stoppedAt": 1}],
    "retryStrategy": {"attempts": 3},
    "arrayProperties": {"size": 4, "index": 2, "statusSummary": {"SUCCEEDED": 3, "FAILED": 1}},
    "nodeProperties": {"numNodes": 2, "mainNode": 0},
    "ecsProperties": {"taskProperties": [{"containers": [_CONTAINER]}]},
    "eksProperties": {"podProperties": {"containers": [_CONTAINER], "initContainers": [_CONTAINER]}},
}


@st.composite
def _jobs_of_batch(draw: st.DrawFn) -> dict[str, Any]:
    job = draw(mutated(_JOB))
    job = job if isinstance(job, dict) else {"container": job}
    return {**job, "jobId": "job-1", "status": draw(st.sampled_from(_STATUSES) | any_json(2))}


@pytest.fixture(scope="module")
def batch() -> Iterator[AnsweredBatch]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_aws_environment(monkeypatch)
        yield AnsweredBatch(BatchBackend(BatchConnection(region="eu-west-1")))


@given(_jobs_of_batch())
@examples(250)
def test_any_job_of_batch_is_read_and_spoils_no_other(batch: AnsweredBatch, job: dict[str, Any]) -> None:
    told = {"jobs": [job, {"jobId": "job-2", "status": "RUNNING"}]}
    ids = ["job-1", "job-2", "job-3"]
    answers = batch.ask(lambda backend: backend.fetch(ids), DescribeJobs=told)
    ensure_answers(answers, ids)
    assert isinstance(answers["job-1"], Observation)
    assert isinstance(answers["job-2"], Observation)
    assert isinstance(answers["job-3"], Gone)
    assert "hunter2" not in str(answers)


_of_lists = st.one_of(
    mutated(
        {"jobs": [_JOB], "jobSummaryList": [{"jobId": "job-1", "jobName": "a", "createdAt": 1}], "jobId": "x"}
    ),
    mutated({"errors": [{"job": "job-1", "code": "x", "message": "y"}], "message": "no", "__type": "Some"}),
    any_json(),
    st.sampled_from(
        ["<html>", "", "[" * 100_000, "null", '{"jobs": null}', '{"jobs": [null]}', '{"jobs": [{}]}']
    ),
)


@given(_of_lists, st.sampled_from([200, 200, 200, 400, 403, 429, 500]))
@examples(150)
def test_any_answer_of_batch_is_read_or_an_error_of_the_backend(
    batch: AnsweredBatch, told: Any, status: int
) -> None:
    spec = {"jobName": "a", "jobQueue": "q", "jobDefinition": "d"}
    for call in (
        lambda backend: backend.fetch(["job-1"]),
        lambda backend: backend.submit(spec, "0" * 32),
        lambda backend: backend.find(spec, "0" * 32, utcnow()),
        lambda backend: backend.cancel(["job-1", "job-2"], "no"),
        lambda backend: backend.check(),
    ):
        names = ("DescribeJobs", "SubmitJob", "ListJobs", "TerminateJobs", "TerminateJob")
        batch.backend._has_plural = True
        try:
            answer = batch.ask(call, status, **dict.fromkeys(names, told))
        except BackendError as error:
            ensure_error(error)
            continue
        if isinstance(answer, Mapping):
            assert all(isinstance(each, (Observation, Gone, RemoteError)) for each in answer.values())
            is_gone = any(isinstance(each, Gone) for each in answer.values())
            assert not is_gone or (isinstance(told, dict) and isinstance(told["jobs"], list))


@given(_jobs_of_batch(), mutated([{"timestamp": 1790000000000, "message": "a\nb"}]))
@examples(60)
def test_the_output_of_any_job_of_batch_is_read_or_an_error_of_the_backend(
    batch: AnsweredBatch, job: dict[str, Any], lines: Any
) -> None:
    async def read(backend: BatchBackend) -> None:
        async for line in backend.logs("job-1", None):
            assert isinstance(line.text, str)

    try:
        batch.ask(read, DescribeJobs={"jobs": [job]}, GetLogEvents={"events": lines})
    except BackendError as error:
        ensure_error(error)


@given(
    st.one_of(
        any_text, mutated({"detail": {"jobId": "a:1"}, "Message": '{"detail": {"jobId": "b#2"}}'}).map(repr)
    )
)
@examples(60)
def test_any_message_in_the_queue_of_events_is_ids_or_nothing(body: str) -> None:
    assert all(isinstance(each, str) for each in ids_in(body))


# --- Airbyte -------------------------------------------------------------------------------------

_AIRBYTE_JOB = {
    "jobId": 7,
    "status": "running",
    "jobType": "sync",
    "connectionId": "3f4c1f9e-6d0a-4a6f-9a57-0a6f2c1f7d11",
    "startTime": "2026-03-01T12:00:00Z",
    "lastUpdatedAt": 1790000000000,
    "duration": "PT1H2M3S",
    "rowsSynced": 10,
    "bytesSynced": "1000",
}
_FAILURES = {
    "attempts": [
        {"attempt": {"failureSummary": {"failures": [{"failureOrigin": "source", "externalMessage": "no"}]}}}
    ],
    "data": [_AIRBYTE_JOB],
}


_bodies = st.one_of(
    mutated(_AIRBYTE_JOB).map(as_body),
    mutated(_FAILURES).map(as_body),
    mutated({"data": [_AIRBYTE_JOB], "next": "x"}).map(as_body),
    any_json().map(as_body),
    any_text,
    st.sampled_from(
        ["<html>no</html>", "[" * 100_000, "9" * 10_000, '{"jobId": 7, "status": "failed"}', "NaN"]
    ),
)
_headers = st.dictionaries(
    st.sampled_from(["date", "retry-after", "content-type"]),
    any_text
    | st.sampled_from(
        ["Sun, 01 Mar 2026 12:00:00 GMT", "120", "-1", "nan", "1e999", "text/html", "9" * 5000]
    ),
)
_raws = st.builds(
    Raw, st.sampled_from([200, 204, 301, 400, 401, 403, 404, 409, 418, 429, 500, 503]), _headers, _bodies
)


@given(st.lists(_raws, min_size=1, max_size=4), st.booleans())
@examples(150)
def test_any_answer_of_airbyte_is_read_or_an_error_of_the_backend(raws: list[Raw], has_client: bool) -> None:
    left = list(raws)

    async def send(*_args: Any, **_kwargs: Any) -> Raw:
        return left.pop() if len(left) > 1 else left[0]

    async def ask() -> None:
        who = (
            {"client_id": "me", "client_secret": "s3cr3t/Horse"} if has_client else {"token": "s3cr3t/Horse"}
        )
        options = AirbyteConnection.model_validate({"url": "http://127.0.0.1:1/api/public/v1", **who})
        backend = AirbyteBackend(options, fresh_s=0.0, doubt_s=0.0)
        backend.api._transport.send = send  # type: ignore[method-assign]
        spec = {"connectionId": _AIRBYTE_JOB["connectionId"], "jobType": "sync", "onConflict": "adopt"}
        try:
            for call in (
                lambda: backend.fetch(["7", "8", "x"]),
                lambda: backend.baseline(spec),
                lambda: backend.submit(spec, "0" * 32),
                lambda: backend.find(spec, "0" * 32, utcnow(), baseline="5"),
                lambda: backend.cancel(["7"], "no"),
                backend.check,
            ):
                try:
                    answer = await asyncio.wait_for(call(), 20)
                except BackendError as error:
                    ensure_error(error)
                    continue
                if isinstance(answer, Mapping) and "8" in answer:
                    ensure_answers(answer, ["7", "8", "x"])
        finally:
            await backend.close()

    asyncio.run(ask())


@given(mutated(_FAILURES))
@examples(60)
def test_any_reason_for_a_failure_is_words_or_nothing(answer: Any) -> None:
    for failure in failures_of(answer):
        assert failure.words


@given(mutated({"expires_in": 3600, "expiresIn": 1}), any_text)
@examples(60)
def test_any_token_has_a_life_of_finite_seconds(data: Any, token: str) -> None:
    if isinstance(data, dict):
        assert 0 <= life_of(data, token, None) < math.inf


# --- Armada --------------------------------------------------------------------------------------

_KEY = JobKey("queue", "set", "01h3w2wtdchtc80hgyp782shrv")
_short = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)  # what protobuf has for a text
_states = st.integers(-(2**31), 2**31 - 1) | st.integers(0, 12)


@st.composite
def _armada_answers(draw: st.DrawFn) -> dict[str, Any]:
    job = messages("job")
    ids = st.sampled_from([_KEY.job_id, "", "other"])
    details = job.JobDetailsResponse()
    for job_id in draw(st.lists(ids, max_size=2)):
        one = details.job_details[job_id]
        one.namespace, one.cancel_reason, one.cancel_user = draw(_short), draw(_short), draw(_short)
        one.latest_run_id = draw(_short)
        one.submitted_ts.seconds = draw(st.integers(-(2**63), 2**63 - 1))
        one.submitted_ts.nanos = draw(st.integers(-(2**31), 2**31 - 1))
        run = one.job_runs.add()
        run.cluster, run.node, run.run_id = draw(_short), draw(_short), draw(_short)
        run.started_ts.seconds = draw(st.integers(-(2**63), 2**63 - 1))
    return {
        "GetJobStatus": job.JobStatusResponse(job_states=draw(st.dictionaries(ids, _states))),
        "GetJobErrors": job.JobErrorsResponse(job_errors=draw(st.dictionaries(ids, _short))),
        "GetJobDetails": details,
    }


@given(_armada_answers(), st.sampled_from([None, *Kind]), st.sampled_from(["GetJobStatus", "GetJobErrors"]))
@examples(120)
def test_any_answer_of_armada_is_read_or_an_error_of_the_backend(
    told: dict[str, Any], trouble: Kind | None, where: str
) -> None:
    async def call(_service: str, method: str, _request: Any, **_more: Any) -> Any:
        if trouble is not None and method == where:
            raise ArmadaError("Armada said no", trouble)
        return told[method]

    async def ask() -> None:
        backend = ArmadaBackend(ArmadaConnection(url="127.0.0.1:1", lookout_url_template="http://x/{job_id}"))
        backend.wire.call = call  # type: ignore[method-assign,assignment]
        ids = [_KEY.join(), "no id", "queue/set/"]
        try:
            ensure_answers(await backend.fetch(ids), ids)
        except BackendError as error:
            ensure_error(error)
        finally:
            await backend.close()

    asyncio.run(ask())


@given(_states, _short)
@examples(60)
def test_any_answer_of_the_jobservice_is_read(state: int, error: str) -> None:
    from jobrunner.backends.armada.jobservice.jobservice_pb2 import JobServiceResponse

    backend = JobServiceBackend(ArmadaConnection(url="127.0.0.1:1"))
    ensure_answer(backend._answer_of(JobServiceResponse(state=state, error=error), _KEY))  # type: ignore[arg-type]


@given(any_text)
@examples(60)
def test_any_external_id_of_armada_is_a_key_or_refused(external_id: str) -> None:
    try:
        key = JobKey.split(external_id)
    except ValueError:
        return
    assert JobKey.split(key.join()) == key


# --- commands on this host -----------------------------------------------------------------------

_HOST = host_id()
_START = {
    "by": "wrapper",
    "host": _HOST,
    "at": "2026-03-01T12:00:00Z",
    "wrapper": [2**30, 5],
    "command": [2**30 + 1, 6],
    "stop_grace_s": 0.1,
}
_EXIT = {"at": "2026-03-01T12:00:00Z", "code": 1, "signal": 9, "error": None, "disk_full": False}
_CANCEL = {"at": "x", "reason": "killed", "asked_s": 1.0, "tree": [[2**30 + 1, 6]]}


def _records(template: dict[str, Any]) -> st.SearchStrategy[bytes | None]:
    host = st.sampled_from([_HOST, "a/b/c", "", "//", "a/b/c/d", _HOST.upper()])
    changed = st.builds(
        lambda record, name: (
            {**record, "host": name} if isinstance(record, dict) and "host" in record else record
        ),
        mutated(template),
        host,
    )
    return st.one_of(
        st.none(), changed.map(lambda record: json.dumps(record).encode()), st.binary(max_size=30)
    )


@given(_records(_START), _records(_EXIT), _records(_CANCEL), st.booleans())
@example(json.dumps({**_START, "command": [10**30, 6]}).encode(), None, None, False)
@example(json.dumps({**_START, "wrapper": [2**31, 6]}).encode(), None, None, False)
@example(json.dumps(_START).encode(), None, json.dumps({**_CANCEL, "tree": [[-1, 5]]}).encode(), False)
@examples(150)
def test_any_record_of_a_command_is_read_or_an_error_of_the_backend(
    tmp_path: Path, start: bytes | None, ended: bytes | None, cancel: bytes | None, is_directory: bool
) -> None:
    directory = tmp_path / "record"
    directory.mkdir(exist_ok=True)
    for name, content in (("start", start), ("exit", ended), ("cancel", cancel)):
        path = directory / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
    if is_directory:
        (directory / "exit").unlink(missing_ok=True)
        (directory / "exit").mkdir()
    try:
        answer = Look().at(str(directory))
        ensure_answer(answer)
    finally:
        if is_directory:
            (directory / "exit").rmdir()


@given(any_text)
@examples(60)
def test_any_external_id_of_a_command_is_looked_at(external_id: str) -> None:
    ensure_answer(Look().at(external_id))
    try:
        directory = RecordDirectory.for_token("/tmp/nowhere", external_id)
    except ValueError:
        return
    assert Path(directory.path).parent == Path("/tmp/nowhere")
