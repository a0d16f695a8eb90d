"""`jobrunner start airbyte`: what it starts, what it attaches to, and what it refuses."""

import datetime as dt
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Answer, CommandLine
from tests.stubs.airbyte_server import CONNECTION, AirbyteStub, serving

NAMED = ("--connection-id", CONNECTION)


@pytest.fixture
def stub() -> Iterator[AirbyteStub]:
    with serving() as served:
        yield served


@pytest.fixture
def airbyte(jobrunner: CommandLine, stub: AirbyteStub) -> CommandLine:
    """The command line, and the Airbyte that it reaches."""
    prefix = "JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__"
    jobrunner.environment |= {
        f"{prefix}KIND": "airbyte",
        f"{prefix}URL": stub.url,
        f"{prefix}CLIENT_ID": stub.client_id,
        f"{prefix}CLIENT_SECRET": "${env:AIRBYTE_SECRET}",
        "AIRBYTE_SECRET": stub.client_secret,
    }
    return jobrunner


def started(stub: AirbyteStub) -> int:
    end_s = time.monotonic() + 30
    while not stub.job_ids():
        assert time.monotonic() < end_s
        time.sleep(0.05)
    return stub.job_ids()[0]


def test_a_job_is_started_and_watched_to_its_end(airbyte: CommandLine, stub: AirbyteStub) -> None:
    process, job_id = airbyte.begin_job("airbyte", *NAMED, "--min-rows", "1", "--poll-interval", "0.1s")
    stub.succeed(started(stub), rows=12)
    assert process.wait(30) == 0
    row = airbyte("show", job_id, "--json").json
    assert (row["state"], row["job_type"], row["external_state"]) == (
        "success",
        "AirbyteMonitorJob",
        "succeeded",
    )
    assert row["spec"] == {
        "connectionId": CONNECTION,
        "jobType": "sync",
        "onConflict": "adopt",
        "minRows": 1,
    }
    assert row["detail"]["rows"] == 12


def test_a_stopped_runner_leaves_the_job_alone(airbyte: CommandLine, stub: AirbyteStub) -> None:
    process, job_id = airbyte.begin_job("airbyte", *NAMED)
    airbyte.until(job_id, "external_state", "running")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) != 0
    assert stub.status(started(stub)) == "running"
    assert "delete" not in stub.counts()


def test_options_come_over_the_spec_and_a_dry_run_stores_nothing(airbyte: CommandLine) -> None:
    spec = {"connectionId": CONNECTION, "jobType": "reset", "minRows": 3}
    given = ["--job-type", "refresh", "--on-conflict", "fail", "--dry-run", "--json"]
    answer = airbyte("start", "airbyte", "--spec", "-", *given, stdin=json.dumps(spec))
    assert answer.code == 0, answer
    assert answer.says("Nothing was started.")
    assert answer.json == {
        "connectionId": CONNECTION,
        "jobType": "refresh",
        "onConflict": "fail",
        "minRows": 3,
    }
    assert not airbyte.database.exists()


FORMS = {
    "bare": "{id}",
    "between spaces": "  {id}\n",
    "a text of JSON": '"{id}"',
    "Airbyte's own answer": '{{"jobId": {id}, "status": "running"}}',
    "a job_id": '{{"job_id": "{id}"}}',
    "an id": '{{"id": {id}}}',
    "our own row": '{{"id": 1, "job_type": "AirbyteMonitorJob",\n "external_id": "{id}"}}',
    "the last of several lines": '{{"id": 4}}\n{{"jobId": {id}}}',
}


@pytest.mark.parametrize("form", FORMS)
def test_an_id_is_read_from_standard_input(airbyte: CommandLine, stub: AirbyteStub, form: str) -> None:
    (job_id,) = stub.seed(status="running")
    stub.succeed(job_id)
    answer = airbyte("start", "airbyte", "--attach", "-", "--json", stdin=FORMS[form].format(id=job_id))
    assert answer.code == 0, answer
    assert answer.json["external_id"] == str(job_id)
    assert "post" not in stub.counts()


REFUSED: dict[str, tuple[list[str], str, *tuple[str, ...]]] = {
    "nothing at all": ([], "", "An Airbyte job needs --connection-id (connectionId in the spec)."),
    "no UUID": (["--connection-id", "orders"], "", "connectionId is 'orders', which is no UUID"),
    "another type": ([*NAMED, "--job-type", "full"], "", "--job-type", "'full'"),
    "less than no rows": ([*NAMED, "--min-rows", "-1"], "", "--min-rows", "x>=0"),
    "a key that there is not": (["--spec", "-"], '{"connectionID": "x"}', "An Airbyte job needs"),
    "a misspelt key": (
        ["--spec", "-", *NAMED],
        '{"jobtype": "sync"}',
        "The spec of an Airbyte job has no 'jobtype': did you mean 'jobType'?",
    ),
    "an attachment to nothing": (["--attach", " "], "", "--attach needs the id of an Airbyte job."),
    "an attachment to a word": (["--attach", "seven"], "", "'seven' is no job id of Airbyte"),
    "an empty standard input": (["--attach", "-"], "", "Standard input is empty"),
    "JSON without an id": (["--attach", "-"], '{"a": 1}', "there is no jobId, external_id or id in it"),
    "a row without one": (
        ["--attach", "-"],
        '{"id": 3, "external_id": null}',
        "Standard input has a external_id without a value: the job has no id in Airbyte yet.",
    ),
    "our own row, before it has one": (
        ["--attach", "-"],
        '{"id": 3, "state": "running"}',
        "there is no jobId, external_id or id in it",
    ),
    "bottomless JSON": (["--attach", "-"], "[" * 100_000, "is no job id of Airbyte"),
    "a list": (["--attach", "-"], '[{"jobId": 7}]', "is no job id of Airbyte"),
    "a number of thousands of digits": (["--attach", "-"], "1" * 5000, "is no job id of Airbyte"),
    "too much": (["--attach", "-"], "7" * (1024 * 1024 + 1), "Standard input is larger than 1 MiB"),
    "a longest wait without back-off": (
        [*NAMED, "--max-retry-delay", "5m"],
        "",
        "max_retry_delay is the longest wait of exponential_backoff",
    ),
    "another version than the url's": (
        [*NAMED, "--api-version", "v2"],
        "",
        "The connection airbyte_default leads to v1 of Airbyte's API, not to v2",
    ),
    "a key twice in YAML": (
        ["--spec", "-"],
        f"connectionId: {CONNECTION}\njobType: sync\njobType: reset\n",
        "standard input, line 3",
        "the key 'jobType' is there twice",
    ),
    "an attachment that is described": (
        ["--attach", "7", *NAMED, "--dry-run"],
        "",
        "--attach watches a job that is there already, and --connection-id, --dry-run would",
    ),
    "an unknown connection": ([*NAMED, "--connection", "other"], "", 'no connection "other"'),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_cannot_be_started_is_refused_in_one_sentence_and_nothing_is_stored(
    airbyte: CommandLine, stub: AirbyteStub, mistake: str
) -> None:
    arguments, stdin, *words = REFUSED[mistake]
    assert airbyte("start", "airbyte", *arguments, stdin=stdin).is_refused(*words)
    assert stub.counts() == {}


def test_bytes_that_are_no_text_are_no_id(airbyte: CommandLine, stub: AirbyteStub) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobrunner.cli.main", "start", "airbyte", "--attach", "-"],
        cwd=airbyte.directory,
        env=airbyte.environment,
        input=b"\xff\xfe7",
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert Answer(done.returncode, done.stdout.decode(), done.stderr.decode()).is_refused("is no job id")
    assert stub.counts() == {}


def test_looks_become_rarer_up_to_the_longest_wait_that_is_given(airbyte: CommandLine) -> None:
    given = ["--exponential-backoff", "--max-retry-delay", "5m", "--dry-run", "--json"]
    answer = airbyte("start", "airbyte", *NAMED, *given)
    assert answer.json["maxRetryDelay"] == 300.0
    assert (
        airbyte("start", "airbyte", *NAMED, "--exponential-backoff", "--dry-run", "--json").json[
            "maxRetryDelay"
        ]
        == 600.0
    )


def test_a_spec_in_yaml_may_name_the_environment(airbyte: CommandLine, stub: AirbyteStub) -> None:
    (airbyte.directory / "sync.yaml").write_text(
        "connectionId: ${env:ORDERS}\njobType: ${env:KIND}\nonConflict: fail\nminRows: 1\n"
    )
    airbyte.environment |= {"ORDERS": CONNECTION, "KIND": "refresh"}
    process, job_id = airbyte.begin_job("airbyte", "--spec", "sync.yaml", "--poll-interval", "0.1s")
    made = started(stub)
    assert (stub.get(made).connection_id, stub.get(made).kind) == (CONNECTION, "refresh")
    stub.succeed(made)
    assert process.wait(30) == 0
    assert airbyte("show", job_id, "--json").json["spec"]["connectionId"] == "${env:ORDERS}"


def test_a_variable_that_is_not_set_fails_the_job_in_one_sentence(
    airbyte: CommandLine, stub: AirbyteStub
) -> None:
    answer = airbyte("start", "airbyte", "--connection-id", "${env:NOWHERE}")
    assert answer.code == 1
    assert answer.says("not accepted: the spec.connectionId needs the environment variable NOWHERE")
    assert "post" not in stub.counts()


def test_yaml_without_its_library_names_the_extra_of_airbyte(airbyte: CommandLine) -> None:
    error = "ModuleNotFoundError(\"No module named 'yaml'\", name='yaml')"
    (airbyte.directory / "yaml.py").write_text(f"raise {error}\n")
    (airbyte.directory / "sync.yaml").write_text(f"connectionId: {CONNECTION}\n")
    answer = airbyte("start", "airbyte", "--spec", "sync.yaml", "--dry-run")
    assert answer.is_refused("YAML needs PyYAML", "pip install 'jobrunner[airbyte]'")


def test_an_airbyte_connection_that_there_is_not_is_told_in_airbytes_words(
    airbyte: CommandLine, stub: AirbyteStub
) -> None:
    stub.known_connections = []
    for stub.lists_unknown_connections in (True, False):
        answer = airbyte("start", "airbyte", *NAMED)
        assert answer.code == 1
        assert answer.says(f"404 could not find connection {CONNECTION}")
    assert not stub.job_ids()


@pytest.mark.parametrize(("given", "days"), [([], 7), (["--timeout", "2d"], 2)])
def test_a_detached_job_has_seven_days_unless_told_otherwise(
    airbyte: CommandLine, given: list[str], days: int
) -> None:
    answer = airbyte("start", "airbyte", *NAMED, "--detach", "--json", *given)
    assert answer.code == 0, answer
    row = airbyte("show", str(answer.json["id"]), "--json").json
    created, deadline = (dt.datetime.fromisoformat(row[key]) for key in ("created_at", "deadline_at"))
    assert round((deadline - created).total_seconds() / 86400) == days
    assert row["state"] == "queued"


def test_the_connection_can_be_tested(airbyte: CommandLine, stub: AirbyteStub) -> None:
    answer = airbyte("connections", "test", "airbyte_default")
    assert (answer.code, answer.out) == (
        0,
        f"airbyte_default: ok: Airbyte answered GET /jobs at {stub.url}\n",
    )
    answer = airbyte("connections", "test", "airbyte_default", AIRBYTE_SECRET="wrong-and-private")
    assert answer.code == 1
    assert answer.says("Airbyte refused the client id or secret", "401 Invalid client credentials")
    assert "wrong-and-private" not in answer.words
    wrong = {"JOBRUNNER_CONNECTIONS__AIRBYTE_DEFAULT__URL": stub.root}
    answer = airbyte("connections", "test", "airbyte_default", **wrong)
    assert answer.says(f"ends with /api/public/v1: expected {stub.url}, not {stub.root}")
