"""A Batch job's output from CloudWatch Logs, and the sentence where there is none."""

import asyncio
import datetime as dt
from typing import Any

import pytest

from jobrunner.backends.base import LogLine
from jobrunner.backends.batch import BatchBackend, BatchConnection, logs
from jobrunner.errors import LogsUnavailable, Throttled
from tests.stubs.batch_server import BatchStub
from tests.stubs.moto_batch import moto_batch

pytestmark = pytest.mark.usefixtures("aws")


def read(url: str, external_id: str, since: dt.datetime | None = None) -> tuple[list[LogLine], str]:
    """Return the lines, and the sentence where one came."""

    async def main() -> tuple[list[LogLine], str]:
        backend = BatchBackend(BatchConnection(endpoint_url=url))
        found: list[LogLine] = []
        try:
            async for line in backend.logs(external_id, since):
                found.append(line)  # noqa: PERF401  # those before an error count
        except LogsUnavailable as error:
            return found, str(error)
        finally:
            await backend.close()
        return found, ""

    return asyncio.run(main())


def texts(lines: list[LogLine]) -> list[str]:
    return [line.text for line in lines]


def test_the_output_of_a_running_job_is_read_with_its_times(stub: BatchStub) -> None:
    (job,) = stub.seed_jobs(1)
    stub.write_log(job, ["part 1", "part 2\npart 3", ""])
    lines, sentence = read(stub.url, job)
    assert (texts(lines), sentence) == (["part 1", "part 2", "part 3", ""], "")
    assert {line.source for line in lines} == {""}
    times = [line.at for line in lines if line.at is not None]
    assert (len(times), times) == (4, sorted(times))


def test_a_long_output_is_read_page_by_page(stub: BatchStub) -> None:
    (job,) = stub.seed_jobs(1)
    wanted = [f"line {number}" for number in range(25_000)]
    stub.write_log(job, wanted)
    lines, _ = read(stub.url, job)
    assert texts(lines) == wanted
    assert stub.calls_per_operation()["GetLogEvents"] >= 3


def test_pages_that_go_round_in_a_circle_are_no_output_without_an_end(
    stub: BatchStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = stub.seed_jobs(1)
    stub.write_log(job, ["part 1"])
    ask, asked = logs._ask, []

    async def ask_for_pages(aws: Any, service: str, operation: str, **params: Any) -> Any:
        if operation != "get_log_events":
            return await ask(aws, service, operation, **params)
        asked.append(params.get("nextToken"))
        assert len(asked) < 100
        return {"events": [{"message": "again", "timestamp": 1}], "nextForwardToken": f"f/{len(asked) % 3}"}

    monkeypatch.setattr(logs, "_ask", ask_for_pages)
    lines, sentence = read(stub.url, job)
    assert texts(lines) == ["again"] * 4
    assert sentence.startswith("CloudWatch Logs gives output without an end: the stream ")


def test_reading_may_begin_where_it_ended(stub: BatchStub) -> None:
    (job,) = stub.seed_jobs(1)
    stub.write_log(job, ["part 1", "part 2", "part 3"])
    lines, _ = read(stub.url, job)
    again, _ = read(stub.url, job, since=lines[1].at)
    assert texts(again) == ["part 2", "part 3"]


def test_every_attempt_is_there_oldest_first_and_named(stub: BatchStub) -> None:
    (job,) = stub.seed_jobs(1)
    old = "definition/default/attempt-one"
    stub.write_log(job, ["second try"])
    stub.amend(
        job,
        attempts=[{"container": {"exitCode": 1, "logStreamName": old}, "statusReason": "exited"}],
    )
    with stub._lock:
        stub._logs["/aws/batch/job", old] = [{"timestamp": 1, "message": "first try", "ingestionTime": 1}]
    lines, sentence = read(stub.url, job)
    assert [(line.source, line.text) for line in lines] == [
        ("attempt 1", "first try"),
        ("attempt 2", "second try"),
    ]
    assert sentence == ""


def test_an_array_asks_which_child_and_a_child_is_read(stub: BatchStub) -> None:
    (array,) = stub.seed_jobs(1)
    stub.amend(array, arrayProperties={"size": 3, "statusSummary": {"RUNNING": 3}}, container=None)
    lines, sentence = read(stub.url, array)
    assert (lines, sentence) == (
        [],
        "It has 3 children, and each has its own output: choose one with --child 0 to --child 2.",
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"container": None, "status": "RUNNABLE"}, "It has no output yet: it is RUNNABLE."),
        (
            {"container": None, "status": "FAILED", "statusReason": "Dependent Job failed"},
            "It has no output: no container of it has started (Dependent Job failed).",
        ),
        (
            {"container": {"logStreamName": "x", "logConfiguration": {"logDriver": "splunk"}}},
            "Its log driver is splunk, and its output is not in CloudWatch Logs.",
        ),
        (
            {"container": None, "eksProperties": {"podProperties": {"podName": "x"}}},
            (
                "It runs on EKS, where the output goes to whatever the cluster's log agent sends it to, and "
                "AWS Batch does not say where that is."
            ),
        ),
        (
            {"container": None, "nodeProperties": {"numNodes": 4, "mainNode": 0}},
            "It has 4 nodes, and each has its own output: choose one with --node 0 to --node 3.",
        ),
        (
            {"container": {"logStreamName": "definition/default/nothing"}},
            (
                "CloudWatch Logs has no stream definition/default/nothing in /aws/batch/job: nothing was "
                "written to it yet, or it was deleted."
            ),
        ),
    ],
)
def test_where_there_is_none_a_sentence_says_why(
    stub: BatchStub, fields: dict[str, object], sentence: str
) -> None:
    (job,) = stub.seed_jobs(1)
    stub.amend(job, **fields)
    assert read(stub.url, job) == ([], sentence)


def test_a_job_that_batch_forgot_has_no_output_any_more(stub: BatchStub) -> None:
    assert read(stub.url, "876da822") == (
        [],
        "AWS Batch does not know the job 876da822 any more, and so not where its output is.",
    )


def test_the_jobs_own_group_is_read(stub: BatchStub) -> None:
    (job,) = stub.seed_jobs(1)
    stub.write_log(job, ["elsewhere"], group="/etl/jobs")
    stream = stub.job(job)["container"]["logStreamName"]
    settings = {"logDriver": "awslogs", "options": {"awslogs-group": "/etl/jobs"}}
    stub.amend(job, container={"logStreamName": stream, "logConfiguration": settings})
    assert texts(read(stub.url, job)[0]) == ["elsewhere"]


def test_the_containers_of_an_ecs_task_are_named(stub: BatchStub) -> None:
    (job,) = stub.seed_jobs(1)
    containers = [{"name": "main", "logStreamName": "main/1"}, {"name": "proxy", "logStreamName": "proxy/1"}]
    stub.amend(job, container=None, ecsProperties={"taskProperties": [{"containers": containers}]})
    with stub._lock:
        for name in ("main", "proxy"):
            event = {"timestamp": 1, "message": f"from {name}", "ingestionTime": 1}
            stub._logs["/aws/batch/job", f"{name}/1"] = [event]
    assert [(line.source, line.text) for line in read(stub.url, job)[0]] == [
        ("attempt 1 main", "from main"),
        ("attempt 1 proxy", "from proxy"),
    ]


def test_each_container_of_a_task_is_read_where_it_logs_to(stub: BatchStub) -> None:
    (job,) = stub.seed_jobs(1)
    elsewhere = {"logDriver": "awslogs", "options": {"awslogs-group": "/etl/main"}}
    containers = [
        {"name": "proxy", "logStreamName": "proxy/1", "logConfiguration": {"logDriver": "splunk"}},
        {"name": "main", "logStreamName": "main/1", "logConfiguration": elsewhere},
    ]
    ended = {"containers": [{"name": "main", "logStreamName": "main/0", "exitCode": 1}]}
    stub.amend(
        job,
        container=None,
        ecsProperties={"taskProperties": [{"containers": containers}]},
        attempts=[{"taskProperties": [ended], "stoppedAt": 1}],
    )
    with stub._lock:
        for stream, text in (("main/0", "first try"), ("main/1", "second try")):
            stub._logs["/etl/main", stream] = [{"timestamp": 1, "message": text, "ingestionTime": 1}]
    assert read(stub.url, job) == (
        [
            LogLine("first try", dt.datetime.fromtimestamp(0.001, dt.UTC), "attempt 1"),
            LogLine("second try", dt.datetime.fromtimestamp(0.001, dt.UTC), "attempt 2 main"),
        ],
        "",
    )


def test_what_may_not_be_read_is_a_sentence_and_throttling_is_tried_again(stub: BatchStub) -> None:
    (job,) = stub.seed_jobs(1)
    stub.write_log(job, ["part 1"])
    stub.fault("GetLogEvents", "access_denied")
    lines, sentence = read(stub.url, job)
    assert lines == []
    assert sentence.startswith("The output cannot be read: permission denied for GetLogEvents: User: ")
    stub.fault("GetLogEvents", "throttled")
    with pytest.raises(Throttled):
        read(stub.url, job)


def test_the_output_on_moto_is_read_too() -> None:
    with moto_batch() as moto:
        batch = moto.client("batch")
        job = batch.submit_job(jobName="n", jobQueue="queue", jobDefinition="definition")["jobId"]
        moto.run(job)
        assert read(moto.url, job)[1].startswith("CloudWatch Logs has no stream ")
        moto.write_log(job, ["part 1", "part 2"])
        assert texts(read(moto.url, job)[0]) == ["part 1", "part 2"]
        batch.close()
