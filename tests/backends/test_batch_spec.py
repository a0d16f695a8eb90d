"""What is told of a Batch job that cannot be submitted as described, before anything is sent."""

from typing import Any

import pytest

from jobrunner import BatchMonitorJob
from jobrunner.backends.batch.spec import check_request, with_token
from jobrunner.errors import SpecError, UsageError

TOKEN = "0123456789abcdef0123456789abcdef"


def a_request(**changes: Any) -> dict[str, Any]:
    return {"jobName": "nightly", "jobQueue": "spot", "jobDefinition": "etl:7", **changes}


def told(request: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        check_request(request)
    return str(caught.value).removeprefix("The Batch job cannot be submitted as described: ")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"jobname": "x"}, "there is no key 'jobname' (did you mean 'jobName'?)."),
        ({"job_queue": "x"}, "there is no key 'job_queue' (did you mean 'jobQueue'?)."),
        (
            {"containerOverrides": {"enviroment": []}},
            "there is no key 'containerOverrides.enviroment' (did you mean 'environment'?).",
        ),
        (
            {"containerOverrides": {"environment": [{"name": "N", "valu": "1"}]}},
            "there is no key 'containerOverrides.environment[0].valu' (did you mean 'value'?).",
        ),
        (
            {"retryStrategy": {"evaluateOnExit": [{"onExitCode": "1"}]}},
            "retryStrategy.evaluateOnExit[0].action is missing.",
        ),
        (
            {"parameters": {"n": 5}},
            "parameters.n must be a text, and is the number 5: put it in quotes.",
        ),
        (
            {"parameters": {"flag": True}},
            "parameters.flag must be a text, and is the boolean True: put it in quotes.",
        ),
        ({"parameters": ["n=5"]}, "parameters must be a mapping, and is a list."),
        ({"dependsOn": "876da822"}, "dependsOn must be a list, and is the text '876da822'."),
        ({"propagateTags": "yes"}, "propagateTags must be true or false, and is the text 'yes'."),
        (
            {"schedulingPriorityOverride": 1.5},
            "schedulingPriorityOverride must be a whole number, and is the number 1.5.",
        ),
        ({"jobName": None}, "jobName is missing."),
        ({"jobQueue": " "}, "jobQueue is empty."),
        (
            {"arrayProperties": {"size": 1}},
            "arrayProperties.size is 1: an array has 2 to 10000 children.",
        ),
        (
            {"arrayProperties": {"size": 10001}},
            "arrayProperties.size is 10001: an array has 2 to 10000 children.",
        ),
        ({"retryStrategy": {"attempts": 11}}, "retryStrategy.attempts is 11: there are 1 to 10."),
        (
            {"timeout": {"attemptDurationSeconds": 59}},
            "timeout.attemptDurationSeconds is 59: the least is 60.",
        ),
        ({"tags": {"jobrunner-token": "mine"}}, "tags.jobrunner-token is jobrunner's own tag."),
        (
            {"tags": {f"key{n}": "v" for n in range(50)}},
            "tags has 50 of them: Batch takes 50, and one is jobrunner's own.",
        ),
        (
            {"dependsOn": [{"jobId": "1", "type": "LATER"}]},
            "dependsOn[0].type is 'LATER', and must be one of N_TO_N, SEQUENTIAL.",
        ),
    ],
)
def test_a_mistake_is_named_by_its_key(changes: dict[str, Any], sentence: str) -> None:
    assert told(a_request(**changes)) == sentence


@pytest.mark.parametrize("name", ["-nightly", "night ly", "", "n" * 129, "nächtlich"])
def test_a_name_that_batch_refuses_is_refused_here(name: str) -> None:
    assert told(a_request(jobName=name)).startswith(f"jobName is {name!r}: it begins with a letter or digit")


def test_everything_that_submitjob_takes_is_taken() -> None:
    request = a_request(
        parameters={"day": "2026-11-22"},
        containerOverrides={"command": ["etl"], "resourceRequirements": [{"type": "GPU", "value": "1"}]},
        arrayProperties={"size": 100},
        dependsOn=[{"jobId": "876da822", "type": "N_TO_N"}],
        retryStrategy={"attempts": 3, "evaluateOnExit": [{"onReason": "Host*", "action": "RETRY"}]},
        propagateTags=True,
        timeout={"attemptDurationSeconds": 60},
        tags={"team": "data"},
        shareIdentifier="a",
        schedulingPriorityOverride=7,
        eksPropertiesOverride={"podProperties": {"containers": [{"name": "main", "args": ["x"]}]}},
        ecsPropertiesOverride={"taskProperties": []},
        nodeOverrides={"numNodes": 2, "nodePropertyOverrides": []},
        consumableResourcePropertiesOverride={"consumableResourceList": []},
    )
    assert check_request(request) == request


def test_the_token_stands_in_the_name_and_in_a_tag() -> None:
    named = with_token(a_request(tags={"team": "data"}), TOKEN)
    assert named["jobName"] == f"nightly-{TOKEN}"
    assert named["tags"] == {"team": "data", "jobrunner-token": TOKEN}
    long = with_token(a_request(jobName="n" * 128), TOKEN)["jobName"]
    assert (len(long), long.endswith(f"-{TOKEN}")) == (128, True)


def test_the_jobs_arguments_become_the_request() -> None:
    job = BatchMonitorJob(
        "nightly",
        "spot",
        "etl:7",
        parameters={"day": "1"},
        container_overrides={"environment": [{"name": "N", "value": "1"}]},
        array_properties={"size": 5},
        depends_on=[{"jobId": "1"}],
        retry_strategy={"attempts": 2},
        attempt_timeout=90.5,
        share_identifier="a",
        scheduling_priority_override=3,
        propagate_tags=True,
        tags={"team": "data"},
        timeout=3600,
    )
    assert job.spec == a_request(
        parameters={"day": "1"},
        containerOverrides={"environment": [{"name": "N", "value": "1"}]},
        arrayProperties={"size": 5},
        dependsOn=[{"jobId": "1"}],
        retryStrategy={"attempts": 2},
        timeout={"attemptDurationSeconds": 91},
        shareIdentifier="a",
        schedulingPriorityOverride=3,
        propagateTags=True,
        tags={"team": "data"},
    )
    assert (job.name, job.timeout, job.connection) == ("nightly", 3600, "batch_default")


def test_a_whole_request_makes_the_same_job() -> None:
    request = a_request(
        timeout={"attemptDurationSeconds": 60},
        eksPropertiesOverride={"podProperties": {}},
        consumableResourcePropertiesOverride={"consumableResourceList": []},
    )
    job = BatchMonitorJob.from_request(request, dag_id="etl")
    assert (job.spec, job.dag_id) == (request, "etl")


def test_a_secret_in_the_environment_is_refused() -> None:
    overrides = {"environment": [{"name": "DB_PASSWORD", "value": "hunter2"}]}
    with pytest.raises(SpecError, match=r"containerOverrides\.environment\[0\]\.value") as caught:
        BatchMonitorJob("nightly", "spot", "etl:7", container_overrides=overrides)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "external_id",
    ["876da822-4198-45f2-a252-6cea32512ea8", "876da822-4198-45f2-a252-6cea32512ea8:7", "876da822#1"],
)
def test_a_job_of_somebody_else_is_attached_to_by_its_id(external_id: str) -> None:
    job = BatchMonitorJob.attach(external_id, timeout=60)
    assert (job.external_id, job.spec, job.name) == (external_id, {}, external_id)


@pytest.mark.parametrize("external_id", ["", "nightly job", "876da822:x", "arn:aws:batch:eu-west-1:1:job/8"])
def test_what_is_no_job_id_is_refused(external_id: str) -> None:
    with pytest.raises(UsageError, match="is no jobId of AWS Batch"):
        BatchMonitorJob.attach(external_id)


def test_an_attached_job_takes_no_description_of_a_new_one() -> None:
    with pytest.raises(UsageError, match="jobQueue would describe a new one"):
        BatchMonitorJob(job_queue="spot", external_id="876da822")


def test_output_is_chosen_by_child_or_by_node() -> None:
    job = BatchMonitorJob.attach("876da822")
    assert [job.log_id(), job.log_id(child=3), job.log_id(node=0)] == ["876da822", "876da822:3", "876da822#0"]
    with pytest.raises(UsageError, match="--child or --node"):
        job.log_id(child=1, node=1)


def test_a_child_that_the_array_does_not_have_is_refused() -> None:
    job = BatchMonitorJob("nightly", "spot", "etl:7", array_properties={"size": 3}, external_id=None)
    assert job.log_id(child=2).endswith(":2")
    for child in (3, -1):
        with pytest.raises(UsageError, match="has 3 children: give --child 0 to --child 2"):
            job.log_id(child=child)
    attached = BatchMonitorJob.attach("876da822")
    attached.detail = {"nodes": {"count": 4, "main": 0}}
    with pytest.raises(UsageError, match="has 4 nodes: give --node 0 to --node 3"):
        attached.log_id(node=4)
    with pytest.raises(UsageError, match="has no children: leave --child away"):
        attached.log_id(child=0)
