"""`jobrunner start armada`: what it submits, and what it refuses before anything is stored."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import CommandLine
from tests.helpers import until
from tests.stubs.armada_server import ArmadaStub, State, serving

POD = """\
containers:
  - name: main
    image: busybox
    resources:
      requests: {cpu: 500m, memory: 1Gi}
      limits: {cpu: 500m, memory: 1Gi}
"""
NAMED = ("--queue", "etl", "--job-set", "nightly", "--pod-spec", "pod.yaml")


@pytest.fixture
def armada(jobrunner: CommandLine) -> Iterator[ArmadaStub]:
    """The Armada that the command line reaches."""
    (jobrunner.directory / "pod.yaml").write_text(POD)
    with serving() as stub:
        jobrunner.environment["JOBRUNNER_CONNECTIONS__ARMADA_DEFAULT__URL"] = stub.address
        yield stub


def test_each_option_has_its_place(jobrunner: CommandLine, armada: ArmadaStub) -> None:
    given = ["--namespace", "data", "--priority", "3", "--label", "team=data", "--annotation", "a=b=c"]
    answer = jobrunner("start", "armada", *NAMED, *given, "--dry-run")
    assert answer.code == 0, answer
    assert answer.says("Nothing was submitted")
    spec = json.loads(answer.out)
    assert (spec["queue"], spec["jobSetId"]) == ("etl", "nightly")
    item = spec["item"]
    assert (item["namespace"], item["priority"], item["labels"]) == ("data", 3, {"team": "data"})
    assert item["annotations"] == {"a": "b=c"}
    assert item["podSpec"]["containers"][0]["resources"]["limits"] == {"cpu": "500m", "memory": "1Gi"}
    assert not jobrunner.database.exists()
    assert armada.jobs == {}


def test_a_pod_spec_may_come_from_standard_input(jobrunner: CommandLine, armada: ArmadaStub) -> None:
    answer = jobrunner("start", "armada", *NAMED[:-1], "-", "--dry-run", "--json", stdin=POD)
    assert answer.json["item"]["podSpec"]["containers"][0]["image"] == "busybox"


def test_a_job_is_submitted_and_watched_to_its_end(jobrunner: CommandLine, armada: ArmadaStub) -> None:
    process = jobrunner.begin(
        "start", "armada", *NAMED, "--name", "load", "--poll-interval", "0.1s", "--json"
    )
    _until(armada)
    (external_id,) = armada.external_ids()
    armada.succeed(external_id)
    out, words = process.communicate(timeout=60)
    assert process.returncode == 0, words
    last = json.loads(out.splitlines()[-1])
    assert (last["name"], last["external_id"]) == ("load", external_id)


def test_work_that_failed_by_a_named_cause_is_submitted_again(
    jobrunner: CommandLine, armada: ArmadaStub
) -> None:
    given = ["--resubmit", "preempted=1", "--resubmit", "oom=2", "--poll-interval", "0.1s", "--json"]
    process = jobrunner.begin("start", "armada", *NAMED, *given)
    _until(armada)
    armada.move(armada.external_ids()[0], State.PREEMPTED, "evicted")
    _until(armada, 2)
    armada.succeed(armada.external_ids()[1])
    out, words = process.communicate(timeout=60)
    assert process.returncode == 0, words
    last = json.loads(out.splitlines()[-1])
    assert (last["resubmit"], last["attempt"]) == ({"oom": 2, "preempted": 0}, 2)


def test_the_causes_of_the_command_line_are_those_of_the_class() -> None:
    from jobrunner.cli.options import Resubmission
    from jobrunner.cli.start_armada import armada as start_armada
    from jobrunner.cli.start_batch import batch as start_batch
    from jobrunner.models import ArmadaMonitorJob, BatchMonitorJob

    for command, job_class in ((start_armada, ArmadaMonitorJob), (start_batch, BatchMonitorJob)):
        (option,) = [each for each in command.params if each.name == "resubmit"]
        assert isinstance(option.type, Resubmission)
        assert option.type.causes == job_class.resubmit_causes


def test_the_link_to_lookout_is_shown(jobrunner: CommandLine, armada: ArmadaStub) -> None:
    (external_id,) = armada.seed("etl", "their set")
    armada.succeed(external_id)
    link = "https://lookout.example/?job={job_id}"
    jobrunner.environment["JOBRUNNER_CONNECTIONS__ARMADA_DEFAULT__LOOKOUT_URL_TEMPLATE"] = link
    assert jobrunner("start", "armada", "--attach", external_id).code == 0
    shown = jobrunner("show", "1")
    assert f"https://lookout.example/?job={armada.job(external_id).key.job_id}" in shown.out


def test_a_key_that_is_there_twice_is_named_with_its_line(jobrunner: CommandLine, armada: ArmadaStub) -> None:
    (jobrunner.directory / "pod.yaml").write_text(f"{POD}containers: []\n")
    assert jobrunner("start", "armada", *NAMED).is_refused("line 7", "'containers' is there twice")


def test_a_job_of_somebody_else_is_watched(jobrunner: CommandLine, armada: ArmadaStub) -> None:
    (external_id,) = armada.seed("etl", "their set")
    armada.fail(external_id, "out of luck")
    answer = jobrunner("start", "armada", "--attach", external_id)
    assert answer.code == 1
    assert answer.says("out of luck")
    assert "SubmitJobs" not in armada.calls_per_method()


def test_a_connection_can_be_tested(jobrunner: CommandLine, armada: ArmadaStub) -> None:
    answer = jobrunner("connections", "test", "armada_default")
    assert answer.code == 0, answer
    assert (
        answer.out == f"armada_default: ok: Armada answered GetJobStatus at {armada.address}, without TLS\n"
    )
    answer = jobrunner(
        "connections", "test", "armada_default", JOBRUNNER_CONNECTIONS__ARMADA_DEFAULT__TLS="true"
    )
    assert answer.code == 1
    assert answer.says("cannot be reached for GetJobStatus (Tls handshake failed", "look at `tls`")
    assert len(answer.words.splitlines()) == 1, "gRPC itself keeps quiet"
    armada.stop()
    answer = jobrunner("connections", "test", "armada_default")
    assert answer.code == 1
    assert answer.says(f"{armada.address} cannot be reached for GetJobStatus")


REFUSED: dict[str, tuple[list[str], str]] = {
    "nothing at all": ([], "An Armada job needs --queue, --job-set, --pod-spec."),
    "an empty queue": ([*NAMED, "--queue", " "], "An Armada job needs --queue."),
    "no such file": (
        ["--queue", "a", "--job-set", "b", "--pod-spec", "none"],
        "The spec none does not exist",
    ),
    "a namespace in capitals": ([*NAMED, "--namespace", "Data"], "namespace is 'Data'"),
    "a priority below zero": ([*NAMED, "--priority", "-1"], "--priority"),
    "no label": ([*NAMED, "--label", "x"], "NAME=VALUE"),
    "a secret annotation": (
        [*NAMED, "--annotation", "api_key=hush"],
        "--annotation api_key holds what looks like a",
    ),
    "a cause that there is not": (
        [*NAMED, "--resubmit", "preempt=3"],
        "'preempt' is no cause of a failure here: known are preempted, oom, rejected",
    ),
    "a cause without a number": ([*NAMED, "--resubmit", "oom"], "'oom' is no CAUSE=N"),
    "no number": ([*NAMED, "--resubmit", "oom=often"], "'oom=often' must be a number from 1 to 1000"),
    "a number below one": ([*NAMED, "--resubmit", "oom=0"], "'oom=0' must be a number from 1 to 1000"),
    "a number that is too large": ([*NAMED, "--resubmit", "oom=1001"], "from 1 to 1000"),
    "a cause twice": (
        [*NAMED, "--resubmit", "oom=1", "--resubmit", "oom=2"],
        "--resubmit oom is there twice: give it once",
    ),
    "somebody else's job again": (
        ["--attach", "a/b/c", "--resubmit", "oom=1"],
        "was submitted by somebody else, and only he can submit it again",
    ),
    "half an id": (["--attach", "01abc"], "--attach needs QUEUE/JOB_SET/JOB_ID"),
    "both": (["--attach", "a/b/c", "--queue", "a"], "--queue would describe a new one"),
    "a job set that is too long": ([*NAMED, "--job-set", "x" * 1024], "the job set has 1024 bytes"),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    jobrunner: CommandLine, armada: ArmadaStub, arguments: list[str], words: str
) -> None:
    assert jobrunner("start", "armada", *arguments).is_refused(words)
    assert not jobrunner.database.exists()


def test_a_pod_without_resources_is_refused(jobrunner: CommandLine, armada: ArmadaStub) -> None:
    Path(jobrunner.directory / "pod.yaml").write_text("containers: [{name: main, image: busybox}]\n")
    assert jobrunner("start", "armada", *NAMED).is_refused("podSpec.containers[0].resources is missing")


def test_an_unknown_queue_is_told_in_armadas_own_words(jobrunner: CommandLine, armada: ArmadaStub) -> None:
    armada.known_queues = set()
    answer = jobrunner("start", "armada", *NAMED)
    assert answer.code == 1
    assert answer.says('permission denied for SubmitJobs: could not find queue "etl"')


def _until(armada: ArmadaStub, count: int = 1) -> None:
    until(lambda: len(armada.jobs) >= count)
