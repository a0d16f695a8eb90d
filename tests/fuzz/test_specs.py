"""Specs from outside, as values and as files: a spec that can be stored, or one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.backends.airbyte.spec import AirbyteSpec
from jobrunner.backends.armada.pod_spec import plain_pod_spec
from jobrunner.backends.armada.spec import check_spec as check_armada
from jobrunner.backends.armada.spec import one_item
from jobrunner.backends.batch.spec import check_request
from jobrunner.backends.process.spec import check_spec as check_process
from jobrunner.cli.spec_file import read_spec
from jobrunner.errors import UsageError
from jobrunner.models import AirbyteMonitorJob, ArmadaMonitorJob, BatchMonitorJob, ProcessMonitorJob
from jobrunner.redaction import find_secret
from jobrunner.resources import checked
from tests.fuzz.examples import TIMEOUT_S, examples
from tests.fuzz.messages import ensure_message
from tests.fuzz.texts import any_json, any_number, any_scalar, any_text, mutated

pytestmark = pytest.mark.timeout(TIMEOUT_S)

PROCESS = {
    "command": ["/bin/true", "a"],
    "cwd": "/",
    "env": {"A": "b"},
    "records_dir": "/tmp/nowhere",
    "stop_grace_s": 1.5,
}
BATCH = {
    "jobName": "nightly",
    "jobQueue": "queue",
    "jobDefinition": "etl:7",
    "parameters": {"day": "1"},
    "containerOverrides": {"command": ["a"], "environment": [{"name": "A", "value": "b"}], "vcpus": 1},
    "arrayProperties": {"size": 3},
    "dependsOn": [{"jobId": "x", "type": "SEQUENTIAL"}],
    "retryStrategy": {"attempts": 2, "evaluateOnExit": [{"action": "RETRY", "onReason": "x"}]},
    "timeout": {"attemptDurationSeconds": 60},
    "tags": {"a": "b"},
    "propagateTags": True,
    "shareIdentifier": "s",
    "schedulingPriorityOverride": 3,
}
AIRBYTE = {
    "connectionId": "3f4c1f9e-6d0a-4a6f-9a57-0a6f2c1f7d11",
    "jobType": "sync",
    "onConflict": "adopt",
    "minRows": 1,
    "maxRetryDelay": 3.5,
}
POD = {
    "containers": [
        {
            "name": "main",
            "image": "busybox",
            "command": ["true"],
            "env": [{"name": "A", "value": "b"}],
            "ports": [{"containerPort": 80}],
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": 1, "memory": "1Gi"}},
            "livenessProbe": {"httpGet": {"port": 80}},
        }
    ],
    "volumes": [{"name": "v", "emptyDir": {}}],
    "terminationGracePeriodSeconds": 5,
    "restartPolicy": "Never",
    "tolerations": [{"key": "a", "operator": "Exists"}],
}
ARMADA = {
    "queue": "q",
    "jobSetId": "set",
    "item": {
        "namespace": "default",
        "priority": 1.0,
        "labels": {"a": "b"},
        "annotations": {},
        "podSpec": POD,
    },
}


def _refused(do: Callable[[], Any]) -> Any:
    """Return what it gave; None where it was refused, by the rules for messages."""
    try:
        return do()
    except UsageError as error:
        ensure_message(str(error))
        return None


@given(mutated(PROCESS))
@examples(150)
def test_any_spec_of_a_command_is_checked(spec: Any) -> None:
    if isinstance(spec, dict):
        _refused(lambda: check_process(spec))


@given(mutated(BATCH))
@examples(200)
def test_any_spec_of_a_batch_job_is_checked(spec: Any) -> None:
    if isinstance(spec, dict):
        _refused(lambda: check_request(spec))


@given(mutated(AIRBYTE))
@examples(150)
def test_any_spec_of_an_airbyte_job_is_checked(spec: Any) -> None:
    if isinstance(spec, dict):
        found = _refused(lambda: AirbyteSpec.checked(spec))
        assert found is None or AirbyteSpec.checked(found.as_row()) == found


@given(mutated(ARMADA))
@examples(200)
def test_any_spec_of_an_armada_job_is_checked(spec: Any) -> None:
    if isinstance(spec, dict):
        _refused(lambda: check_armada(spec))


@given(mutated(POD), mutated([ARMADA["item"]]))
@examples(100)
def test_any_pod_spec_and_any_item_becomes_plain_or_is_refused(pod: Any, items: Any) -> None:
    found = _refused(lambda: plain_pod_spec(pod))
    assert found is None or isinstance(found, dict)
    _refused(lambda: one_item(items))


# --- the jobs themselves -------------------------------------------------------------------------

_numbers_of_a_job = st.fixed_dictionaries(
    {},
    optional={
        "heartrate": any_number,
        "poll_interval": any_number,
        "timeout": any_number,
        "start_timeout": any_number,
        "name": any_text,
        "dag_id": any_text,
        "resubmit": st.dictionaries(st.sampled_from(["preempted", "oom", "x"]), any_scalar, max_size=2),
        "external_id": any_text,
    },
)


@given(mutated(BATCH, most=2), _numbers_of_a_job)
@examples(100)
def test_any_batch_job_is_made_and_stored_or_refused(
    sqlite_database: object, spec: Any, options: Any
) -> None:
    given_as = spec if isinstance(spec, dict) else {"parameters": spec}
    job = _refused(lambda: BatchMonitorJob.from_request(given_as, **{**options, "external_id": None}))
    if job is not None:
        assert find_secret(job.spec) is None
        _refused(job.store)


@given(
    st.lists(st.sampled_from(["/bin/true", ""]) | any_text, max_size=3),
    st.none() | any_text,
    st.dictionaries(any_text, any_text, max_size=2),
    any_number,
    _numbers_of_a_job,
)
@examples(100)
def test_any_command_is_made_and_stored_or_refused(
    sqlite_database: object, command: Any, cwd: Any, env: Any, stop_grace: Any, options: Any
) -> None:
    options.pop("start_timeout", None)
    job = _refused(lambda: ProcessMonitorJob(command, cwd, env, stop_grace=stop_grace, **options))
    if job is not None:
        _refused(job.store)


def _unnamed(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in {"name", "external_id"}}


@given(mutated(AIRBYTE, most=2), mutated(ARMADA, most=2), _numbers_of_a_job)
@examples(60)
def test_any_airbyte_and_armada_job_is_made_or_refused(
    sqlite_database: object, monkeypatch: pytest.MonkeyPatch, airbyte: Any, armada: Any, options: Any
) -> None:
    monkeypatch.setenv("JOBRUNNER_CONNECTIONS__ARMADA_DEFAULT__URL", "127.0.0.1:1")
    if isinstance(airbyte, dict):
        job = _refused(lambda: AirbyteMonitorJob.from_spec(airbyte, **{**options, "resubmit": None}))
        if job is not None:
            _refused(job.store)
    if isinstance(armada, dict) and isinstance(armada.get("item"), dict):
        item = armada["item"]
        made = _refused(
            lambda: ArmadaMonitorJob(
                None,
                armada.get("queue"),
                armada.get("jobSetId"),
                job_request_items=[item],
                **_unnamed(options),
            )
        )
        if made is not None:
            _refused(made.store)


@given(any_json(8) | st.dictionaries(any_text, any_number, max_size=3))
@examples(60)
def test_any_resources_are_checked(resources: Any) -> None:
    found = _refused(lambda: checked(resources))
    assert found is None or all(count > 0 for count in found.values())


# --- files ---------------------------------------------------------------------------------------


def _as_yaml(value: Any) -> str:
    import yaml

    return str(yaml.dump(value, allow_unicode=True))


_pieces = st.lists(
    st.sampled_from(
        [
            "a",
            ":",
            " ",
            "\n",
            "- ",
            "{",
            "}",
            "[",
            "]",
            "&x ",
            "*x",
            "!!int ",
            "!!python/name:os.system ",
            "|",
            ">",
            "? ",
            "<<",
            "%YAML 9",
            "---\n",
            "'",
            '"',
            "\\",
            "\t",
            "#",
            "0o9",
            "2026-02-30",
            ".nan",
            "~",
            ",",
            "\x00",
        ]
    ),
    max_size=25,
).map("".join)
_contents = st.one_of(
    st.binary(max_size=60),
    _pieces.map(str.encode),
    mutated(BATCH).map(lambda value: json.dumps(value).encode()),
    mutated(BATCH).map(lambda value: _as_yaml(value).encode(errors="surrogatepass")),
    st.sampled_from(
        [
            b"[" * 5000,
            b"- " * 5000,
            b'{"a":' * 5000,
            b"a: &a [*a]",
            b"9" * 10_000,
            b"\xff\xfea",
            b'{"a": 1, "a": 2}',
            b"\xef\xbb\xbfa: 1",
            b"a: " + b"9" * 5000,
            b"a: !!timestamp x",
            b"a: !!binary x",
            b"? [a]: b",
            b"a: 0x" + b"f" * 5000,
            b'"\\ud800": 1',
            b"- &a [x,x,x,x,x,x]\n- &b [*a,*a,*a,*a,*a]\n- &c [*b,*b,*b,*b,*b]\n- &d [*c,*c,*c,*c]\nb: 1",
        ]
    ),
)


@given(_contents, st.sampled_from(["spec.yaml", "spec.json", "spec"]))
@examples(250)
def test_any_file_is_a_spec_or_refused_with_its_name(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    try:
        spec = read_spec(str(path))
    except UsageError as error:
        ensure_message(str(error), str(path))
    else:
        json.dumps(spec, allow_nan=False).encode()
