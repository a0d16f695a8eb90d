"""What an Armada job may say, in all the forms in which it is said."""

import json
from pathlib import Path
from typing import Any

import pytest
from armada_client.armada import submit_pb2
from armada_client.k8s.io.api.core.v1 import generated_pb2 as core_v1

from jobrunner.backends.armada.kubernetes import fill, to_json
from jobrunner.backends.armada.pod_spec import plain_pod_spec
from jobrunner.backends.armada.spec import check_spec, item_of, one_item, request_of
from jobrunner.errors import SpecError
from jobrunner.models.armada_monitor_job import ArmadaMonitorJob

YAML = """\
terminationGracePeriodSeconds: 30
nodeSelector: {disk: ssd}
containers:
  - name: main
    image: busybox
    command: [sh, -c, "echo hello"]
    env:
      - name: STAGE
        value: test
      - name: PASSWORD
        valueFrom: {secretKeyRef: {name: db, key: password}}
    ports: [{containerPort: 8080}]
    livenessProbe: {httpGet: {path: /, port: web}, periodSeconds: 5}
    readinessProbe: {tcpSocket: {port: 8080}}
    resources:
      requests: {cpu: 0.5, memory: 1Gi}
      limits: {cpu: 500m, memory: 1024Mi}
    volumeMounts: [{name: scratch, mountPath: /tmp}]
volumes:
  - name: scratch
    emptyDir: {}
  - name: config
    configMap: {name: settings, optional: true}
"""
RESOURCES = {"requests": {"cpu": 1}, "limits": {"cpu": 1}}
CONTAINER = {"name": "main", "image": "busybox", "resources": RESOURCES}


def message_of(pod: Any) -> core_v1.PodSpec:
    message = core_v1.PodSpec()
    fill(message, pod, "")
    return message


def test_ordinary_kubernetes_yaml_becomes_the_message_of_the_wire() -> None:
    message = message_of(plain_pod_spec(YAML))
    container = message.containers[0]
    assert container.resources.requests["cpu"].string == "0.5"
    assert container.resources.limits["memory"].string == "1024Mi"
    assert (
        container.livenessProbe.handler.httpGet.port.type,
        container.livenessProbe.handler.httpGet.port.strVal,
    ) == (
        1,
        "web",
    )
    assert container.readinessProbe.handler.tcpSocket.port.intVal == 8080
    assert message.volumes[0].volumeSource.HasField("emptyDir")
    assert message.volumes[1].volumeSource.configMap.localObjectReference.name == "settings"
    assert container.env[1].valueFrom.secretKeyRef.localObjectReference.name == "db"
    assert message.nodeSelector["disk"] == "ssd"


def test_every_form_says_the_same(tmp_path: Path) -> None:
    plain = plain_pod_spec(YAML)
    path = tmp_path / "pod.yaml"
    path.write_text(YAML)
    assert plain_pod_spec(json.dumps(plain)) == plain_pod_spec(path) == plain_pod_spec(plain) == plain
    assert message_of(plain_pod_spec(message_of(plain))) == message_of(plain)
    assert to_json(message_of(plain))["volumes"][0] == {"name": "scratch", "emptyDir": {}}


def test_a_request_item_may_be_a_mapping_or_the_official_message() -> None:
    plain = {"namespace": "etl", "priority": 2, "labels": {"a": "b"}, "pod_spec": {"containers": [CONTAINER]}}
    message = submit_pb2.JobSubmitRequestItem(namespace="etl", priority=2, labels={"a": "b"})
    message.pod_specs.add().CopyFrom(message_of({"containers": [CONTAINER]}))
    one, other = (
        request_of(check_spec({"queue": "q", "jobSetId": "s", "item": one_item([each])}), "t")
        for each in (plain, message)
    )
    assert one == other
    assert one.job_request_items[0].client_id == "t"


def job(pod: Any = None, **options: Any) -> dict[str, Any]:
    given = {"namespace": "default", "priority": 0.0, "labels": {}, "annotations": {}, **options}
    queue, job_set = given.pop("queue", "q"), given.pop("job_set", "s")
    item = item_of(pod or {"containers": [CONTAINER]}, **given)
    return check_spec({"queue": queue, "jobSetId": job_set, "item": item})


def test_equal_amounts_are_equal_however_they_are_written() -> None:
    for one, other in (("1", "1000m"), ("1Gi", "1024Mi"), (1, "1"), ("1e3", "1k"), (0.5, "500m")):
        resources = {"requests": {"cpu": one}, "limits": {"cpu": other}}
        assert job({"containers": [{**CONTAINER, "resources": resources}]})


def container(**changes: Any) -> dict[str, Any]:
    return {"containers": [{**CONTAINER, **changes}]}


@pytest.mark.parametrize(
    ("pod", "options", "words"),
    [
        ({}, {}, "podSpec.containers is missing"),
        ({"containers": [{"name": "a", "image": "b"}]}, {}, r"podSpec.containers\[0\].resources is missing"),
        (container(image=None), {}, r"podSpec.containers\[0\].image is missing"),
        (container(resources={"limits": {"cpu": 1}}), {}, r"resources.requests.cpu is missing"),
        (
            container(resources={"requests": {"cpu": 1}, "limits": {"cpu": 2}}),
            {},
            "limits.cpu is 2, and requests.cpu is 1: in Armada, requests and limits are the same",
        ),
        (
            container(resources={"requests": {"cpu": "1 core"}}),
            {},
            "requests.cpu is '1 core', which is no quantity",
        ),
        (container(resources={"requests": {"cpu": True}}), {}, "requests.cpu is no quantity"),
        (container(resources={"requests": {"cpu": -1}, "limits": {"cpu": -1}}), {}, "less than nothing"),
        (
            container(comand=["x"]),
            {},
            r"there is no key 'podSpec.containers\[0\].comand' \(did you mean 'command'",
        ),
        (container(command="x"), {}, r"containers\[0\].command must be a list, and is the text 'x'"),
        (container(args=[1]), {}, r"args\[0\] must be a text, and is the number 1: put it in quotes"),
        (container(args=[[1]]), {}, r"args\[0\] must be a text, and is a list\.$"),
        (container(args={"a": 1}), {}, r"args must be a list, and is a mapping\.$"),
        (container(tty="yes"), {}, "tty must be true or false"),
        (
            container(env=[{"name": "A", "value": "x" * 70_000}]),
            {},
            "and 65,535 are the most that Armada takes",
        ),
        (None, {"namespace": "Data Team"}, "namespace is 'Data Team'"),
        (None, {"priority": -1}, "priority is -1"),
        (None, {"priority": float("nan")}, "priority is nan"),
        (None, {"labels": {"a": 1}}, "labels.a must be a text"),
        (None, {"queue": " "}, "the queue is missing"),
        (None, {"job_set": None}, "the job set is missing"),
        (None, {"job_set": "x" * 1024}, "the job set has 1024 bytes"),
    ],
)
def test_what_armada_would_refuse_is_named_before_it_is_sent(
    pod: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        job(pod if pod is not None and pod != {} else ({"volumes": []} if pod == {} else None), **options)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("pod.yaml", r"is the text 'pod.yaml' \(a file is given as a pathlib.Path\)"),
        ("a: [", "The pod spec, line 1: "),
        ("[1, 2]", "this is a list"),
        ("apiVersion: v1\nkind: Pod\nspec: {}", "This is a whole Pod of Kubernetes"),
        (Path("/nowhere/pod.yaml"), "The pod spec /nowhere/pod.yaml cannot be read"),
        (submit_pb2.JobSubmitRequest(), "this is a message api.JobSubmitRequest"),
        (7, "this is the number 7"),
    ],
)
def test_what_is_no_pod_spec_is_told(given: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        plain_pod_spec(given)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "holds 0 items"),
        ([{}, {}], "holds 2 items"),
        ([{"client_id": "mine", "pod_spec": {}}], "clientId is jobrunner's own"),
        ([{"namespace": "x"}], "this item has 0"),
        ([{"pod_spec": {}, "podSpecs": [{}]}], "this item has 2"),
        ({"pod_spec": {}}, "is a list of one item"),
    ],
)
def test_job_request_items_are_one(items: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        one_item(items)


def test_a_job_refuses_a_secret_and_tells_where() -> None:
    pod = container(env=[{"name": "DB_PASSWORD", "value": "hush"}])
    with pytest.raises(
        SpecError, match=r"looks like a secret at item.podSpec.containers\[0\].env\[0\].value"
    ):
        ArmadaMonitorJob("nightly", "etl", "set", pod)


# --- texts that would lose something, and dictionaries of the official client's -------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "containers: []\nrestartPolicy: Never\ncontainers: [{name: a}]\n",
            "the key 'containers' is there twice",
        ),
        ('{"containers": [], "containers": []}', "the key 'containers' is there twice"),
        ("containers:\n- {name: a, name: b}\n", "line 2: .*the key 'name' is there twice"),
        ("containers: [{name: a, 1: b}]\n", "the key '1' is no text, put it in quotes"),
        (
            "a: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]\n",
            "nested too deeply",
        ),
        (
            "".join(
                f"{each}: &{each} [{', '.join([f'*{last}' if last else 'x'] * 9)}]\n"
                for last, each in zip(["", *"abcde"], "abcdef", strict=True)
            ),
            "has more than 100,000 values",
        ),
    ],
)
def test_a_text_that_would_lose_something_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        plain_pod_spec(text)


def test_a_file_with_a_key_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(f"{YAML}containers: []\n")
    line = len(YAML.splitlines()) + 1
    with pytest.raises(SpecError, match=rf"pod.yaml, line {line}: the key 'containers' is there twice"):
        plain_pod_spec(path)


def test_a_dictionary_of_the_official_message_is_a_pod_spec() -> None:
    """MessageToDict has its own way with quantities, int-or-string fields, inlined structs, large numbers."""
    from google.protobuf.json_format import MessageToDict

    message = message_of(plain_pod_spec(YAML))
    theirs = MessageToDict(message)
    assert theirs["terminationGracePeriodSeconds"] == "30"
    assert "volumeSource" in theirs["volumes"][0]
    assert message_of(plain_pod_spec(theirs)) == message
    assert job(theirs)
