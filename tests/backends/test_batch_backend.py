"""AWS Batch as boto3 really speaks to it, over HTTP to a stub with Batch's own habits."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.session
import pytest

from jobrunner.backends.base import Absent, Found, Gone, Observation, Unsure, sending_until
from jobrunner.backends.batch import BatchBackend, BatchConnection
from jobrunner.backends.batch.backend import ABSENT_AFTER_S, DESCRIBE_MOST, TERMINATE_MOST
from jobrunner.backends.batch.limiter import Lane, Limiter
from jobrunner.backends.batch.trouble import AwsError, Kind
from jobrunner.clock import monotonic_s, utcnow
from jobrunner.errors import NotSent, SettingsError, SubmitRejected, SubmitTooLate, Throttled
from jobrunner.settings import ConnectionSettings
from jobrunner.states import Phase
from tests.stubs.aws_wire import FaultKind
from tests.stubs.batch_server import BatchStub

SPEC = {"jobName": "nightly", "jobQueue": "queue", "jobDefinition": "definition"}
TOKEN = "0123456789abcdef0123456789abcdef"


pytestmark = pytest.mark.usefixtures("aws")


def with_backend(
    stub: BatchStub, test: Callable[[BatchBackend], Awaitable[Any]], *, more: Any = None, **options: Any
) -> Any:
    """Run a test with a backend on the stub, and close it after."""

    async def main() -> Any:
        connection = BatchConnection(endpoint_url=stub.url, **(more or {}))
        backend = BatchBackend(connection, **options)
        try:
            return await test(backend)
        finally:
            await backend.close()

    return asyncio.run(main())


# --- submitting ----------------------------------------------------------------------------------


def test_a_submission_is_one_request_with_its_token_in_the_name_and_a_tag(stub: BatchStub) -> None:
    external_id = with_backend(
        stub, lambda backend: backend.submit({**SPEC, "tags": {"team": "data"}}, TOKEN)
    )
    (submitted,) = stub.submitted()
    assert submitted["jobId"] == external_id
    assert submitted["jobName"] == f"nightly-{TOKEN}"
    assert submitted["tags"] == {"team": "data", "jobrunner-token": TOKEN}
    (call,) = stub.calls
    assert call.attempt == "attempt=1; max=1"


@pytest.mark.parametrize("kind", ["lost_answer", "server_error", "html"])
def test_a_submission_without_a_clear_answer_is_not_repeated_by_boto3(
    stub: BatchStub, kind: FaultKind
) -> None:
    stub.fault("SubmitJob", kind, times=None, performed=True)
    with pytest.raises(AwsError) as caught:
        with_backend(stub, lambda backend: backend.submit(SPEC, TOKEN))
    assert caught.value.kind is Kind.UNCLEAR
    assert len(stub.submitted()) == 1


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("throttled", Throttled, "TooManyRequestsException"),
        ("throttled_400", Throttled, "ThrottlingException"),
        ("access_denied", SubmitRejected, "is not authorized to perform: batch:SubmitJob"),
        ("unknown_token", SubmitRejected, "The security token included in the request is invalid"),
        ("expired_token", NotSent, "the AWS credentials for SubmitJob have expired"),
        ("clock_skew", NotSent, "this host's clock seems to be wrong"),
    ],
)
def test_a_refusal_says_whether_it_is_for_good(
    stub: BatchStub, kind: FaultKind, error: type[Exception], words: str
) -> None:
    stub.fault("SubmitJob", kind)
    with pytest.raises(error, match=words):
        with_backend(stub, lambda backend: backend.submit(SPEC, TOKEN))
    assert stub.submitted() == []


def test_a_throttled_submission_tells_for_how_long(stub: BatchStub) -> None:
    stub.fault("SubmitJob", "throttled", retry_after_s=7)
    with pytest.raises(Throttled) as caught:
        with_backend(stub, lambda backend: backend.submit(SPEC, TOKEN))
    assert caught.value.retry_after_s == 7


def test_an_unknown_queue_is_refused_in_batchs_own_words(stub: BatchStub) -> None:
    stub.set("known_queues", ["other"])
    words = (
        r"^ClientException: Error executing request, Exception : JobQueue queue not found\., RequestId: \S+$"
    )
    with pytest.raises(SubmitRejected, match=words):
        with_backend(stub, lambda backend: backend.submit(SPEC, TOKEN))


def test_a_page_for_people_is_no_answer_of_aws(stub: BatchStub) -> None:
    stub.fault("SubmitJob", "html", status=200)
    with pytest.raises(SubmitRejected, match=r"answered SubmitJob with 200 and an HTML page.*endpoint_url"):
        with_backend(stub, lambda backend: backend.submit(SPEC, TOKEN))


class _Mumbling(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_words: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize("operation", ["fetch", "find", "submit"])
def test_an_answer_that_says_nothing_is_none(operation: str) -> None:
    """Else every job would be gone, and every submission absent."""

    async def test(url: str) -> None:
        backend = BatchBackend(BatchConnection(endpoint_url=url), absent_after_s=0, checks_signatures=True)
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "fetch": lambda: backend.fetch(["876da822"]),
            "find": lambda: backend.find(SPEC, TOKEN, utcnow()),
            "submit": lambda: backend.submit(SPEC, TOKEN),
        }
        with pytest.raises(AwsError, match="is no answer of AWS Batch") as caught:
            await calls[operation]()
        assert caught.value.kind is Kind.UNCLEAR
        await backend.close()

    with HTTPServer(("127.0.0.1", 0), _Mumbling) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            asyncio.run(test(f"http://127.0.0.1:{server.server_port}"))
        finally:
            server.shutdown()
            thread.join()


def test_an_endpoint_that_nobody_listens_on_was_sent_nothing(stub: BatchStub) -> None:
    async def test() -> None:
        backend = BatchBackend(BatchConnection(endpoint_url="http://127.0.0.1:9"))
        try:
            with pytest.raises(NotSent, match=r"http://127\.0\.0\.1:9 cannot be reached for SubmitJob"):
                await backend.submit(SPEC, TOKEN)
        finally:
            await backend.close()

    asyncio.run(test())


def test_a_request_that_would_leave_too_late_does_not_leave(stub: BatchStub) -> None:
    async def test(backend: BatchBackend) -> None:
        with sending_until(monotonic_s() - 0.001), pytest.raises(SubmitTooLate):
            await backend.submit(SPEC, TOKEN)
        with sending_until(monotonic_s() + 10):
            await backend.submit(SPEC, TOKEN)

    with_backend(stub, test)
    assert stub.calls_per_operation() == {"SubmitJob": 1}


def test_only_submissions_are_held_to_that_moment(stub: BatchStub) -> None:
    async def test(backend: BatchBackend) -> None:
        with sending_until(monotonic_s() - 0.001):
            assert await backend.fetch(["876da822"])

    with_backend(stub, test)


def test_missing_credentials_are_waited_for_a_moment_and_then_end_it(
    stub: BatchStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)

    async def test(backend: BatchBackend) -> None:
        with pytest.raises(NotSent, match="no AWS credentials were found for SubmitJob"):
            await backend.submit(SPEC, TOKEN)
        monkeypatch.setattr("jobrunner.backends.batch.backend._NO_CREDENTIALS_S", 0.0)
        with pytest.raises(SubmitRejected, match="no AWS credentials were found for SubmitJob"):
            await backend.submit(SPEC, TOKEN)

    with_backend(stub, test)
    assert stub.calls == []


# --- finding -------------------------------------------------------------------------------------


def test_a_lost_answer_is_found_by_its_name_though_the_listing_lags(stub: BatchStub) -> None:
    stub.set("listing_lag_s", 0.2)
    stub.fault("SubmitJob", "lost_answer")

    async def test(backend: BatchBackend) -> list[Any]:
        with pytest.raises(AwsError):
            await backend.submit(SPEC, TOKEN)
        proofs: list[Any] = []
        while not proofs or isinstance(proofs[-1], Unsure):
            proofs.append(await backend.find(SPEC, TOKEN, utcnow()))
            await asyncio.sleep(0.02)
        return proofs

    proofs = with_backend(stub, test)
    assert isinstance(proofs[0], Unsure)
    assert proofs[-1] == Found(stub.submitted()[0]["jobId"])


def test_a_name_that_only_begins_the_same_is_not_ours(stub: BatchStub) -> None:
    async def test(backend: BatchBackend) -> Any:
        await backend.submit({**SPEC, "jobName": "nightly"}, TOKEN + "0")
        return await backend.find(SPEC, TOKEN, utcnow())

    assert isinstance(with_backend(stub, test), Unsure)


def test_every_page_of_the_listing_is_looked_through(stub: BatchStub) -> None:
    stub.set("page_size", 1)

    async def test(backend: BatchBackend) -> Any:
        external_id = await backend.submit(SPEC, TOKEN)
        for _ in range(3):
            await backend.submit(SPEC, TOKEN)  # the oldest is the one that counts
        return external_id, await backend.find(SPEC, TOKEN, utcnow())

    external_id, proof = with_backend(stub, test)
    assert proof == Found(external_id)
    assert stub.calls_per_operation()["ListJobs"] >= 4


def test_absent_is_said_only_after_a_late_submission_can_no_longer_arrive(
    stub: BatchStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    monkeypatch.setattr("jobrunner.backends.batch.backend.monotonic_s", lambda: now_s[0])

    async def test(backend: BatchBackend) -> list[Any]:
        proofs = []
        for passed_s in (0.0, 59.0, 61.0, ABSENT_AFTER_S - 1, ABSENT_AFTER_S):
            now_s[0] = 1000.0 + passed_s
            proofs.append(await backend.find(SPEC, TOKEN, utcnow()))
        return proofs

    *unsure, last = with_backend(stub, test, checks_signatures=True)
    assert all(isinstance(proof, Unsure) and proof.retry_at is not None for proof in unsure)
    assert last == Absent()
    assert ABSENT_AFTER_S >= 10 + 5 * 60 + 60


def test_an_endpoint_that_checks_no_signatures_can_never_prove_it(
    stub: BatchStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    monkeypatch.setattr("jobrunner.backends.batch.backend.monotonic_s", lambda: now_s[0])

    async def test(backend: BatchBackend) -> Any:
        first = await backend.find(SPEC, TOKEN, utcnow())
        now_s[0] += 1e6
        return first, await backend.find(SPEC, TOKEN, utcnow())

    first, last = with_backend(stub, test)
    assert isinstance(first, Unsure)
    assert first.retry_at is not None, "the listing may lag"
    assert isinstance(last, Unsure)
    assert last.retry_at is None
    assert "checks no signatures" in last.reason


@pytest.mark.parametrize(
    ("options", "checks"),
    [
        ({"region": "eu-west-1"}, True),
        ({"region": "cn-north-1"}, True),
        ({"region": "eu-west-1", "endpoint_url": "https://vpce-1.batch.eu-west-1.vpce.amazonaws.com"}, True),
        ({"region": "eu-west-1", "endpoint_url": "http://127.0.0.1:5000"}, False),
        ({"region": "eu-west-1", "endpoint_url": "https://amazonaws.com.example.org"}, False),
    ],
)
def test_amazons_own_endpoints_check_signatures(options: dict[str, Any], *, checks: bool) -> None:
    async def test() -> bool:
        backend = BatchBackend(BatchConnection(**options))
        try:
            return await backend.aws.checks_signatures()
        finally:
            await backend.close()

    assert asyncio.run(test()) is checks


# --- watching ------------------------------------------------------------------------------------


def test_a_hundred_jobs_are_one_call_and_each_gets_its_own_answer(stub: BatchStub) -> None:
    ids = stub.seed_jobs(DESCRIBE_MOST - 1)
    stub.succeed(ids[7])
    stub.fail(ids[8])
    answers = with_backend(stub, lambda backend: backend.fetch([*ids, "876da822"]))
    assert stub.calls_per_operation() == {"DescribeJobs": 1}
    phases = {each: answer.phase for each, answer in answers.items() if isinstance(answer, Observation)}
    assert phases == dict.fromkeys(ids, Phase.RUNNING) | {
        ids[7]: Phase.SUCCEEDED,
        ids[8]: Phase.FAILED,
    }
    assert isinstance(answers["876da822"], Gone)


def test_what_is_described_is_what_boto3_reads(stub: BatchStub) -> None:
    """Ours reads the JSON as it is: the service's description says that nothing in it is another thing."""
    shape = botocore.session.get_session().get_service_model("batch").operation_model("DescribeJobs")
    left, seen, kinds = [shape.output_shape], set(), set()
    while left:
        each = left.pop()
        if each.name in seen:
            continue
        seen.add(each.name)
        kinds.add(each.type_name)
        members = getattr(each, "members", {})
        for name, member in members.items():
            assert (member.serialization.get("name", name), member.serialization.get("location")) == (
                name,
                None,
            )
        parts = [getattr(each, part) for part in ("member", "value") if hasattr(each, part)]
        left += [*members.values(), *parts]
    assert kinds <= {"structure", "list", "map", "string", "integer", "long", "boolean", "float", "double"}

    (array,) = stub.seed_jobs(1)
    stub.retry(array)
    client = boto3.client("batch", endpoint_url=stub.url)
    wanted = client.describe_jobs(jobs=[array])["jobs"]
    client.close()

    async def test(backend: BatchBackend) -> Any:
        return await backend.aws.call("batch", "describe_jobs", jobs=[array])

    read = with_backend(stub, test)["jobs"]
    assert {key: value for key, value in read[0].items() if value is not None} == wanted[0]


def test_at_most_four_calls_are_under_way(stub: BatchStub) -> None:
    stub.set("delay_s", 0.05)

    async def test(backend: BatchBackend) -> None:
        await asyncio.gather(*(backend.fetch([str(number)]) for number in range(20)))

    with_backend(stub, test, more={"calls_per_s": 1000})
    assert 1 < stub.max_concurrency <= 4


def test_credentials_are_read_again_once_they_were_refused(
    stub: BatchStub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    path = tmp_path / "credentials"
    text = "[default]\naws_access_key_id = {}\naws_secret_access_key = secret\n"
    path.write_text(text.format("AKIAOLD"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setattr("jobrunner.backends.batch.connection._RENEW_AFTER_S", 0.0)

    async def test(backend: BatchBackend) -> None:
        await backend.fetch(["876da822"])
        stub.fault("DescribeJobs", "expired_token")
        with pytest.raises(AwsError, match="have expired"):
            await backend.fetch(["876da822"])
        path.write_text(text.format("AKIANEW"))
        await backend.fetch(["876da822"])

    with_backend(stub, test)
    assert [call.access_key for call in stub.calls] == ["AKIAOLD", "AKIAOLD", "AKIANEW"]


def test_a_role_is_assumed_once_for_all_calls(stub: BatchStub) -> None:
    async def test(backend: BatchBackend) -> None:
        for _ in range(3):
            await backend.fetch(["876da822"])

    with_backend(stub, test, more={"role_arn": "arn:aws:iam::123456789012:role/watcher"})
    assert stub.calls_per_operation() == {"AssumeRole": 1, "DescribeJobs": 3}
    assert {call.access_key for call in stub.calls if call.operation == "DescribeJobs"} == {"ASIAASSUMED"}


def test_a_role_without_credentials_to_assume_it_says_so(
    stub: BatchStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(AwsError, match="no AWS credentials were found for DescribeJobs"):
        with_backend(
            stub, lambda each: each.check(), more={"role_arn": "arn:aws:iam::123456789012:role/watcher"}
        )


def test_the_region_may_come_by_either_variable(stub: BatchStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")

    async def test(backend: BatchBackend) -> str:
        await backend.check()
        return backend.aws.region

    assert with_backend(stub, test) == "eu-central-1"
    assert with_backend(stub, test, more={"region": "us-east-1"}) == "us-east-1"
    monkeypatch.delenv("AWS_REGION")
    assert with_backend(stub, test) == "eu-west-1"


@pytest.mark.parametrize(
    ("environment", "options", "words"),
    [
        ({"AWS_DEFAULT_REGION": None}, {}, "no AWS region is set"),
        ({}, {"region": "eu west 1"}, "'eu west 1' is no name of an AWS region"),
        ({}, {"profile": "nope"}, "The config profile \\(nope\\) could not be found"),
        ({}, {"endpoint_url": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
        ({}, {"endpoint_url": "http://["}, "DescribeJobs cannot be asked for"),
    ],
)
def test_a_check_says_what_failed(
    environment: dict[str, str | None],
    options: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)

    async def test() -> None:
        backend = BatchBackend(BatchConnection(**options))
        try:
            with pytest.raises(AwsError, match=words):
                await backend.check()
        finally:
            await backend.close()

    asyncio.run(test())


def test_a_check_says_what_answered(stub: BatchStub) -> None:
    told = with_backend(stub, lambda backend: backend.check())
    assert told == f"AWS Batch answered DescribeJobs at {stub.url}"


# --- cancelling ----------------------------------------------------------------------------------


def test_jobs_are_terminated_fifty_a_call_with_the_reason(stub: BatchStub) -> None:
    ids = stub.seed_jobs(TERMINATE_MOST + 10)
    assert with_backend(stub, lambda each: each.cancel(ids, "wrong\ninput\tfile")) == {}
    assert stub.calls_per_operation() == {"TerminateJobs": 2}
    assert {stub.job(each)["statusReason"] for each in ids} == {"jobrunner: wrong input file"}


def test_an_id_that_could_not_be_terminated_is_told(stub: BatchStub) -> None:
    ids = stub.seed_jobs(3)
    stub.refuse(ids[1], "ServerException", "try again")
    failed = with_backend(stub, lambda each: each.cancel(ids, "no longer wanted"))
    assert {each: trouble.message for each, trouble in failed.items()} == {
        ids[1]: "ServerException: try again"
    }
    assert [stub.job(each)["status"] for each in ids] == ["FAILED", "RUNNING", "FAILED"]


def test_without_the_plural_they_are_terminated_one_by_one(stub: BatchStub) -> None:
    stub.set("has_plural", value=False)
    ids = stub.seed_jobs(3)

    async def test(backend: BatchBackend) -> None:
        for _ in range(2):
            assert await backend.cancel(ids, "no longer wanted") == {}

    with_backend(stub, test)
    assert {stub.job(each)["status"] for each in ids} == {"FAILED"}
    assert stub.calls_per_operation() == {"TerminateJobs": 1, "TerminateJob": 6}


def test_a_policy_that_knows_only_the_singular_is_enough(stub: BatchStub) -> None:
    stub.fault("TerminateJobs", "access_denied", times=None)
    ids = stub.seed_jobs(2)
    assert with_backend(stub, lambda each: each.cancel(ids, "no longer wanted")) == {}
    assert {stub.job(each)["status"] for each in ids} == {"FAILED"}


def test_a_throttled_termination_is_not_taken_for_done(stub: BatchStub) -> None:
    stub.fault("TerminateJobs", "throttled")
    ids = stub.seed_jobs(2)
    with pytest.raises(Throttled):
        with_backend(stub, lambda each: each.cancel(ids, "no longer wanted"))
    assert {stub.job(each)["status"] for each in ids} == {"RUNNING"}


# --- the connection's settings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regoin": "eu-west-1"}, r"there is no 'regoin' \(known: region, profile, role_arn"),
        ({"endpoint_url": "localhost:4566"}, "'endpoint_url' must be of the form http:// or https://"),
        ({"role_arn": "watcher"}, "'role_arn' must be of the form arn:aws:iam::123456789012:role/NAME"),
        ({"calls_per_s": 0}, "'calls_per_s' must be greater than 0"),
        ({"aws_secret_access_key": "hunter2"}, "holds no credentials, and 'aws_secret_access_key' looks"),
        ({"aws_access_key_id": "AKIA"}, "holds no credentials, and 'aws_access_key_id' looks like one"),
        ({"session_token": "hunter2"}, "holds no credentials, and 'session_token' looks like one"),
    ],
)
def test_a_wrong_setting_is_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        BatchBackend.from_connection(ConnectionSettings(kind="batch", **options))
    assert "hunter2" not in str(caught.value)


# --- the limiter ---------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The limiter's clock: it goes on when all wait, to the moment for which the first of them waits."""
    now_s = [50.0]
    waiting: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        due_s = now_s[0] + seconds
        waiting.append(due_s)
        try:
            while now_s[0] < due_s:
                await real(0)
                await real(0)
                if min(waiting) == due_s:
                    now_s[0] = due_s
        finally:
            waiting.remove(due_s)

    monkeypatch.setattr("jobrunner.backends.batch.limiter.monotonic_s", lambda: now_s[0])
    monkeypatch.setattr("jobrunner.backends.batch.limiter.asyncio", SimpleNamespace(sleep=sleep))
    return now_s


async def _left_at(limiter: Limiter, clock: list[float], lane: Lane, left: list[tuple[Lane, float]]) -> None:
    begun_s = clock[0]
    await limiter.turn(lane)
    left.append((lane, clock[0] - begun_s))


def _left(limiter: Limiter, clock: list[float], *lanes: Lane) -> list[tuple[Lane, float]]:
    """Let calls ask for their turns in this order, and return when they left, in that order."""
    left: list[tuple[Lane, float]] = []

    async def main() -> None:
        await asyncio.gather(*(_left_at(limiter, clock, lane, left) for lane in lanes))

    asyncio.run(main())
    return left


def test_the_limiter_spaces_calls(clock: list[float]) -> None:
    left = [after_s for _, after_s in _left(Limiter(10.0, burst=4), clock, *14 * [Lane.WATCH])]
    assert left[:4] == pytest.approx([0, 0, 0, 0], abs=0.1)
    assert 1.0 - 0.1 <= left[-1] <= 1.2 * 1.0 + 0.1
    assert left == sorted(left)


def test_a_line_of_submissions_takes_half_of_the_calls(clock: list[float]) -> None:
    left = _left(Limiter(10.0), clock, *100 * [Lane.SUBMIT], *5 * [Lane.WATCH])
    assert [lane for lane, _ in left[:11]].count(Lane.WATCH) == 5
    assert max(after_s for lane, after_s in left if lane is Lane.WATCH) < 1.5


def test_who_gives_up_its_place_delays_nobody(clock: list[float]) -> None:
    limiter = Limiter(10.0)
    left: list[tuple[Lane, float]] = []

    async def main() -> None:
        gone = [asyncio.create_task(limiter.turn(Lane.SUBMIT)) for _ in range(500)]
        await asyncio.sleep(0)
        for each in gone:
            each.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        await _left_at(limiter, clock, Lane.SUBMIT, left)

    asyncio.run(main())
    assert left[0][1] < 1.0


def test_the_limiter_gives_way_after_a_refusal(clock: list[float]) -> None:
    now_s = clock
    limiter = Limiter(10.0, burst=4)
    limiter.slow_down()
    limiter.slow_down()  # of the same moment
    assert limiter.per_s == 5.0
    for _ in range(60):
        now_s[0] += 2.0
        limiter.slow_down()
    assert limiter.per_s == 0.5, "it never stops altogether"
    for _ in range(100):
        limiter.speed_up()
    assert limiter.per_s == 10.0
