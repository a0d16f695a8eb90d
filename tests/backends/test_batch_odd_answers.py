"""Answers that AWS Batch never gives, but stand-ins for it do: only what is odd is lost."""

from typing import Any

import pytest

from jobrunner.backends.base import Gone, Observation
from jobrunner.backends.batch import BatchBackend
from jobrunner.backends.batch.connection import BatchConnection
from jobrunner.backends.batch.reading import observation_of
from jobrunner.backends.batch.trouble import AwsError
from jobrunner.states import Phase
from tests.stubs.aws_answers import AnsweredBatch


@pytest.fixture
def batch(aws: None) -> AnsweredBatch:
    return AnsweredBatch(BatchBackend(BatchConnection(region="eu-west-1")))


@pytest.mark.parametrize(
    "odd",
    [
        {"container": "busybox"},
        {"attempts": [None]},
        {"attempts": {"a": 1}},
        {"arrayProperties": {"size": 2, "statusSummary": {"SUCCEEDED": "two"}}},
        {"nodeProperties": {"numNodes": "many"}},
        {"createdAt": 10**18},
        {"container": {"exitCode": "137", "logStreamName": 7}},
        {"ecsProperties": {"taskProperties": 5}},
    ],
)
def test_a_job_with_an_odd_field_is_read_without_it(odd: dict[str, Any]) -> None:
    seen = observation_of({"jobId": "a", "status": "RUNNING", "jobName": "nightly", **odd})
    assert seen.phase is Phase.RUNNING
    assert seen.detail["job_name"] == "nightly"


def test_an_odd_job_hides_no_other_of_the_same_answer(batch: AnsweredBatch) -> None:
    jobs = [{"jobId": "a", "status": {}, "attempts": 7}, {"jobId": "b", "status": "SUCCEEDED"}]
    seen = batch.ask(lambda backend: backend.fetch(["a", "b", "c"]), DescribeJobs={"jobs": jobs})
    assert isinstance(seen["a"], Observation)
    assert seen["b"].phase is Phase.SUCCEEDED
    assert isinstance(seen["c"], Gone)


@pytest.mark.parametrize("jobs", ["", {}, [None], [{}], [{"jobId": 7}], [["a"]], None])
def test_what_is_no_list_of_jobs_makes_none_of_them_gone(batch: AnsweredBatch, jobs: Any) -> None:
    with pytest.raises(AwsError, match=r"no answer of AWS Batch|no clear answer"):
        batch.ask(lambda backend: backend.fetch(["a"]), DescribeJobs={"jobs": jobs})
