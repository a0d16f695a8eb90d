"""`jobrunner start batch`: what it submits, and what it refuses before anything is stored."""

import json
import signal
import sqlite3
from contextlib import closing

import pytest

from tests.cli.conftest import NAMED, CommandLine, submitted
from tests.stubs.batch_server import BatchStub

SPEC = """\
jobName: from-file
jobQueue: etl
jobDefinition: import:7
parameters: {day: monday, table: orders}
containerOverrides:
  environment:
    - {name: STAGE, value: test}
    - {name: LEVEL, value: info}
  vcpus: 2
retryStrategy: {attempts: 1, evaluateOnExit: [{onExitCode: "137", action: RETRY}]}
dependsOn: [{jobId: first}]
tags: {team: data}
"""


def request_of(aws: CommandLine, *arguments: str) -> dict[str, object]:
    """Return what would be submitted."""
    answer = aws("start", "batch", "--dry-run", *arguments)
    assert answer.code == 0, answer
    assert answer.says("Nothing was submitted", "token")
    request: dict[str, object] = json.loads(answer.out)
    return request


# --- the request -----------------------------------------------------------------------------------


def test_each_option_has_its_place_in_the_request(aws: CommandLine) -> None:
    given = ["--parameter", "day=monday", "--parameter", "empty=", "--env", "A=b=c", "--array-size", "10"]
    given += ["--attempts", "3", "--attempt-timeout", "90.5", "--depends-on", "a1", "--depends-on", "b2"]
    given += ["--tag", "team=data", "--share-identifier", "night"]
    assert request_of(aws, *NAMED, *given, "--", "python", "load.py", "--dry-run") == {
        "jobName": "nightly",
        "jobQueue": "etl",
        "jobDefinition": "import:7",
        "parameters": {"day": "monday", "empty": ""},
        "containerOverrides": {
            "environment": [{"name": "A", "value": "b=c"}],
            "command": ["python", "load.py", "--dry-run"],
        },
        "arrayProperties": {"size": 10},
        "retryStrategy": {"attempts": 3},
        "timeout": {"attemptDurationSeconds": 91},
        "dependsOn": [{"jobId": "a1"}, {"jobId": "b2"}],
        "tags": {"team": "data"},
        "shareIdentifier": "night",
    }


def test_options_come_over_the_spec_name_by_name(aws: CommandLine) -> None:
    (aws.directory / "job.yaml").write_text(SPEC)
    given = ["--job-name", "own", "--env", "STAGE=prod", "--env", "NEW=1", "--parameter", "day=friday"]
    given += ["--tag", "cost=low", "--attempts", "5", "--depends-on", "first", "--depends-on", "second"]
    assert request_of(aws, "--spec", "job.yaml", *given, "--", "ls") == {
        "jobName": "own",
        "jobQueue": "etl",
        "jobDefinition": "import:7",
        "parameters": {"day": "friday", "table": "orders"},
        "containerOverrides": {
            "environment": [
                {"name": "STAGE", "value": "prod"},
                {"name": "LEVEL", "value": "info"},
                {"name": "NEW", "value": "1"},
            ],
            "vcpus": 2,
            "command": ["ls"],
        },
        "retryStrategy": {"attempts": 5, "evaluateOnExit": [{"onExitCode": "137", "action": "RETRY"}]},
        "dependsOn": [{"jobId": "first"}, {"jobId": "second"}],
        "tags": {"team": "data", "cost": "low"},
    }


def test_what_a_spec_leaves_empty_is_filled_by_the_options(aws: CommandLine) -> None:
    (aws.directory / "job.yaml").write_text(
        SPEC.split("parameters", maxsplit=1)[0] + "parameters:\ncontainerOverrides:\n"
    )
    request = request_of(aws, "--spec", "job.yaml", "--parameter", "a=b", "--env", "C=d")
    assert request["parameters"] == {"a": "b"}
    assert request["containerOverrides"] == {"environment": [{"name": "C", "value": "d"}]}


def test_a_dry_run_needs_no_database_and_stores_nothing(aws: CommandLine) -> None:
    answer = aws(
        "start",
        "batch",
        *NAMED,
        "--dry-run",
        "--json",
        JOBRUNNER_DATABASE_URL="postgresql://no@127.0.0.1:1/x",
    )
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 1
    assert answer.json["jobName"] == "nightly"
    assert not aws.database.exists()


# --- what is refused -------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[str], *tuple[str, ...]]] = {
    "nothing at all": (
        [],
        "--job-name (jobName in the spec), --job-queue (jobQueue in the spec), --job-definition",
    ),
    "no queue": (
        ["--job-name", "a", "--job-definition", "d"],
        "A Batch job needs --job-queue (jobQueue in the spec).",
    ),
    "an empty name": ([*NAMED, "--job-name", ""], "needs --job-name"),
    "a name that Batch does not take": ([*NAMED, "--job-name", "a b"], "jobName is 'a b'"),
    "no parameter": ([*NAMED, "--parameter", "day"], "--parameter", "NAME=VALUE"),
    "no variable": ([*NAMED, "--env", "=x"], "--env", "NAME=VALUE"),
    "no tag": ([*NAMED, "--tag", "x"], "--tag", "NAME=VALUE"),
    "jobrunner's own tag": ([*NAMED, "--tag", "jobrunner-token=x"], "jobrunner"),
    "a secret variable": (
        [*NAMED, "--env", "DB_PASSWORD=hush"],
        "--env DB_PASSWORD holds what looks like a secret",
        "Secrets Manager",
    ),
    "a secret in a variable": ([*NAMED, "--env", "DB=pg://u:hush@h/x"], "--env DB holds", "secret"),
    "a secret parameter": ([*NAMED, "--parameter", "api_key=hush"], "--parameter api_key holds", "secret"),
    "a secret tag": ([*NAMED, "--tag", "token=hush"], "--tag token holds", "secret"),
    "a secret in the command": (
        [*NAMED, "--", "run", "--password=hush"],
        "secret",
        "containerOverrides.command[1]",
    ),
    "an array of one": ([*NAMED, "--array-size", "1"], "--array-size", "2<=x<=10000"),
    "an array of too many": ([*NAMED, "--array-size", "10001"], "--array-size", "2<=x<=10000"),
    "no size": ([*NAMED, "--array-size", "many"], "--array-size", "'many'"),
    "no attempts": ([*NAMED, "--attempts", "0"], "--attempts", "1<=x<=10"),
    "too many attempts": ([*NAMED, "--attempts", "11"], "--attempts", "1<=x<=10"),
    "an attempt too short": (
        [*NAMED, "--attempt-timeout", "59s"],
        "--attempt-timeout of 59 s",
        "60s or more",
    ),
    "no duration": ([*NAMED, "--attempt-timeout", "soon"], "--attempt-timeout", "no duration"),
    "no time to start": ([*NAMED, "--start-timeout", "0"], "--start-timeout", "more than 0"),
    "a cause that Batch does not tell": (
        [*NAMED, "--resubmit", "rejected=1"],
        "'rejected' is no cause of a failure here: known are preempted, oom",
    ),
    "a dependency on nothing": ([*NAMED, "--depends-on", " "], "--depends-on needs the id"),
    "an unknown connection": ([*NAMED, "--connection", "other"], 'no connection "other"'),
    "a stray word": ([*NAMED, "--parameter", "a=b", "c=d", "--", "ls"], "unexpected extra argument (c=d)"),
    "a name too long": ([*NAMED, "--name", "x" * 251], "--name", "250"),
    "no spec": (["--spec", "absent.yaml"], "The spec absent.yaml does not exist"),
    "a spec that is broken": (["--spec", "broken.yaml"], "broken.yaml, line 2"),
    "a key that there is not": (["--spec", "unknown.yaml", *NAMED], "jobQeue", "did you mean 'jobQueue'"),
    "a value of another kind": (["--spec", "kind.yaml", *NAMED], "parameters.day", "quotes"),
    "parameters that are a list": (
        ["--spec", "lists.yaml", *NAMED, "--parameter", "a=b"],
        "--parameter cannot be added to the spec, because its parameters is no mapping",
    ),
    "an environment that is a mapping": (
        ["--spec", "lists.yaml", *NAMED, "--env", "a=b"],
        "--env cannot be added to the spec, because its environment is no list of mappings",
    ),
    "dependencies that are texts": (
        ["--spec", "lists.yaml", *NAMED, "--depends-on", "a"],
        "--depends-on cannot be added",
    ),
    "a variable for many nodes": (["--spec", "nodes.yaml", *NAMED, "--env", "a=b"], "--env", "nodeOverrides"),
    "a command for many nodes": (["--spec", "nodes.yaml", *NAMED, "--", "ls"], "CMD", "nodeOverrides"),
    "an attachment to nothing": (["--attach", ""], "--attach needs the id"),
    "an attachment to what is no job": (["--attach", "not a job"], "'not a job'"),
    "an attachment that is described": (
        ["--attach", "a1", "--job-name", "x", "--env", "A=1", "--spec", "f", "--dry-run", "--", "ls"],
        "--attach watches a job that is there already, and --job-name, --env, --spec, --dry-run, CMD would",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_cannot_be_submitted_is_refused_in_one_sentence_and_nothing_is_stored(
    aws: CommandLine, mistake: str
) -> None:
    files = {
        "broken.yaml": "jobName: a\njobName: b\n",
        "unknown.yaml": "jobQeue: x\n",
        "kind.yaml": "parameters: {day: 1}\n",
        "lists.yaml": "parameters: [a]\ncontainerOverrides: {environment: {A: b}}\ndependsOn: [a]\n",
        "nodes.yaml": "nodeOverrides: {numNodes: 2}\n",
    }
    for name, text in files.items():
        (aws.directory / name).write_text(text)
    arguments, *words = REFUSED[mistake]
    answer = aws("start", "batch", *arguments)
    assert answer.is_refused(*words)
    assert "hush" not in answer.words
    if aws.database.exists():
        with closing(sqlite3.connect(aws.database)) as connection, connection:
            assert connection.execute("SELECT count(*) FROM job").fetchone() == (0,)


@pytest.mark.parametrize("arguments", [(*NAMED,), (*NAMED, "--dry-run"), ("--attach", "a1")])
def test_without_boto3_it_says_how_to_install_it(aws: CommandLine, arguments: tuple[str, ...]) -> None:
    (aws.directory / "boto3.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'boto3'\", name='boto3')\n"
    )
    answer = aws("start", "batch", *arguments)
    sentence = "AWS Batch needs boto3, which is not installed: pip install 'jobrunner[aws]'."
    assert answer.is_refused(sentence)
    assert not aws.database.exists()


def test_an_argument_that_is_no_text_is_refused(aws: CommandLine) -> None:
    assert aws("start", "batch", *NAMED, "--env", "A=\udcff", "--dry-run").is_refused("cannot be stored")
    assert aws("start", "process", "--name", "\udcff", "--", "true").is_refused("--name", "cannot be shown")


# --- a job in Batch --------------------------------------------------------------------------------


def test_a_job_is_submitted_once_and_watched_to_its_end(aws: CommandLine, batch: BatchStub) -> None:
    batch.runs_for_s = 0.5
    aws.environment |= {
        "JOBRUNNER_CONNECTIONS__OTHER__KIND": "batch",
        "JOBRUNNER_CONNECTIONS__OTHER__ENDPOINT_URL": batch.url,
    }
    given = ["--name", "own", "--poll-interval", "0.2", "--timeout", "1h", "--dag-id", "d", "--json"]
    answer = aws("start", "batch", *NAMED, *given, "--connection", "other", "--", "ls")
    assert answer.code == 0, answer
    first, last = map(json.loads, answer.out.splitlines())
    assert first["id"] == 1
    assert (last["state"], last["name"], last["external_state"]) == ("success", "own", "SUCCEEDED")
    assert (last["connection"], last["dag_id"], last["poll_interval"]) == ("other", "d", 0.2)
    assert last["deadline_at"] is not None
    (request,) = batch.submitted()
    assert request["jobName"].startswith("nightly")
    assert request["containerOverrides"]["command"] == ["ls"]


def test_a_failure_is_told_with_its_cause_and_shown_legibly(aws: CommandLine, batch: BatchStub) -> None:
    process, job_id = aws.begin_job("batch", *NAMED, "--poll-interval", "0.2", "--start-timeout", "1h")
    (batch_id,) = submitted(batch)
    batch.run(batch_id)
    batch.fail(batch_id, exit_code=137, reason="OutOfMemoryError: Container killed due to memory usage")
    _, words = process.communicate(timeout=60)
    assert process.returncode == 1, words
    assert "137" in words
    shown = aws("show", job_id).out
    assert "{" not in shown
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "3600" in lines["start_timeout"]
    assert "137" in lines["exit_code"]
    assert "import:7" in lines["jobDefinition"]


def test_a_job_of_somebody_else_is_watched(aws: CommandLine, batch: BatchStub) -> None:
    batch.seed_jobs(1)
    (batch_id,) = batch.job_ids()
    process, job_id = aws.begin_job("batch", "--attach", batch_id, "--poll-interval", "0.2")
    batch.run(batch_id)
    batch.succeed(batch_id)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 0, words
    assert batch.submitted() == []
    assert aws("show", job_id, "--json").json["external_id"] == batch_id


def test_a_stopped_monitor_leaves_the_job_to_be_attached_to(aws: CommandLine, batch: BatchStub) -> None:
    process, job_id = aws.begin_job("batch", *NAMED, "--poll-interval", "0.2")
    (batch_id,) = submitted(batch)
    aws.until(job_id, "external_id", batch_id)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130, words
    assert f"jobrunner attach {job_id}" in words
    batch.run(batch_id)
    batch.succeed(batch_id)
    assert aws("attach", job_id).code == 0
    assert len(batch.submitted()) == 1


def test_on_exit_kill_terminates_the_job(aws: CommandLine, batch: BatchStub) -> None:
    process, job_id = aws.begin_job("batch", *NAMED, "--poll-interval", "0.2", "--on-exit", "kill")
    (batch_id,) = submitted(batch)
    aws.until(job_id, "external_id", batch_id)
    batch.run(batch_id)
    process.send_signal(signal.SIGTERM)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 3, words
    assert batch.job(batch_id)["status"] == "FAILED"


def test_a_refusal_of_batch_is_shown_whole(aws: CommandLine, batch: BatchStub) -> None:
    batch.fault("SubmitJob", "access_denied", None)
    answer = aws("start", "batch", *NAMED)
    assert answer.code == 1
    assert answer.says("job 1 failed", "not authorized to perform: batch:SubmitJob")
