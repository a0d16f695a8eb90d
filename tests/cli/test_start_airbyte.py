"""`jobrunner start airbyte`: what it starts, what it attaches to, and what it refuses."""

import json
import signal
import time
from collections.abc import Iterator

import pytest

from tests.cli.conftest import CommandLine
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
