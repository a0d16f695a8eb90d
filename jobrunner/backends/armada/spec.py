"""What an Armada job says: one item of a SubmitJobs request, checked before anything is stored."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobrunner.backends.armada.kubernetes import fill, to_json
from jobrunner.backends.armada.pod_spec import plain_pod_spec
from jobrunner.backends.armada.quantity import Mistake, amount_of
from jobrunner.backends.armada.wire import messages
from jobrunner.errors import SpecError

POD_SPEC_BYTES_MOST = 65_535
"""Source: the server's setting `maxPodSpecSizeBytes`, as it is shipped."""
JOB_SET_BYTES_MOST = 1023
"""Source: validateJobSetIdLength."""
URI_PREFIX = "jobrunner:"
"""What the external job URI of our submissions begins with; a token follows."""

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_SAME = "in Armada, requests and limits are the same"
_ITEM = "api.JobSubmitRequestItem"


def check_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's spec (`queue`, `jobSetId`, `item`) that is right as far as can be told here.

    Raises `SpecError`, which names the key that is wrong, and `UsageError` where armada-client is not
    installed.
    """
    try:
        wrong = next(_mistakes(spec), None)
    except Mistake as error:
        wrong = str(error)
    except UnicodeEncodeError as error:
        wrong = f"{error.object[:60]!r} is not valid Unicode: it holds half of a surrogate pair"
    if wrong is not None:
        raise SpecError(f"The Armada job cannot be submitted as described: {wrong}.")
    return {"queue": spec["queue"], "jobSetId": spec["jobSetId"], "item": dict(spec["item"])}


def plain_item(given: object) -> dict[str, Any]:
    """Return an item of a request as a JSON mapping, with its one pod spec under `podSpec`.

    `given`: a mapping, or armada-client's message (`JobSubmitRequestItem`). Raises `SpecError`.
    """
    descriptor = getattr(given, "DESCRIPTOR", None)
    if descriptor is not None:
        if descriptor.full_name != _ITEM:
            raise SpecError(
                f"A JobSubmitRequestItem was expected, and this is a message {descriptor.full_name}."
            )
        given = to_json(given)
    if not isinstance(given, Mapping):
        raise SpecError("An item of job_request_items is a mapping, or a JobSubmitRequestItem.")
    item = {_json_name(str(key)): value for key, value in given.items() if value is not None}
    if item.pop("clientId", None):
        raise SpecError(
            "clientId is jobrunner's own: leave it out, it is what makes a job be submitted once."
        )
    several = item.pop("podSpecs", None) or []
    single = item.pop("podSpec", None)
    pods = [*several, *([] if single is None else [single])]
    if len(pods) != 1:
        raise SpecError(f"A job of Armada has one pod spec, and this item has {len(pods)}.")
    return {**item, "podSpec": plain_pod_spec(pods[0])}


def item_of(
    pod_spec: object,
    namespace: str,
    priority: float,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
) -> dict[str, Any]:
    """Return the item that a pod spec and what goes with it make."""
    item = {
        "namespace": namespace,
        "priority": priority,
        "labels": dict(labels),
        "annotations": dict(annotations),
        "podSpec": plain_pod_spec(pod_spec),
    }
    return {key: value for key, value in item.items() if value != {}}


def one_item(items: Sequence[object]) -> dict[str, Any]:
    """Return the one item of `job_request_items`. Raises `SpecError`."""
    if isinstance(items, Mapping | str) or not isinstance(items, Sequence):
        raise SpecError("job_request_items is a list of one item.")
    if len(items) != 1:
        raise SpecError(
            f"job_request_items holds {len(items)} items, and a job here is one: make a job for each of them."
        )
    return plain_item(items[0])


def own_uri(spec: Mapping[str, Any], token: str) -> str | None:
    """Return the external job URI by which a submission can be found; None where the user has his own."""
    item = spec["item"]
    theirs = item.get("externalJobUri") or (item.get("annotations") or {}).get(
        "armadaproject.io/externalJobUri"
    )
    return None if theirs else f"{URI_PREFIX}{token}"


def request_of(spec: Mapping[str, Any], token: str) -> Any:
    """Return the SubmitJobs request of a spec under a token. Raises `SpecError`."""
    submit = messages("submit")
    try:
        request = submit.JobSubmitRequest(queue=spec["queue"], job_set_id=spec["jobSetId"])
        _fill_item(request.job_request_items.add(), spec["item"])
    except (KeyError, TypeError, AttributeError):
        # Nothing of ours stores such a row; whoever did is told, in place of a doubt without an end.
        raise SpecError("The row's spec is no Armada job: it needs queue, jobSetId and item.") from None
    except Mistake as error:
        raise SpecError(f"The Armada job cannot be submitted as described: {error}.") from None
    (item,) = request.job_request_items
    item.client_id = token
    uri = own_uri(spec, token)
    if uri is not None:
        item.external_job_uri = uri
    return request


def _fill_item(message: Any, item: Mapping[str, Any]) -> None:
    fill(message, {key: value for key, value in item.items() if key != "podSpec"}, "")
    fill(message.pod_specs.add(), item["podSpec"], "podSpec")


def _json_name(key: str) -> str:
    first, *rest = key.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _mistakes(spec: Mapping[str, Any]) -> Iterator[str]:
    for key, name in (("queue", "queue"), ("jobSetId", "job set")):
        if not isinstance(spec.get(key), str) or not spec[key].strip():
            yield f"the {name} is missing"
    if len(spec["jobSetId"].encode()) > JOB_SET_BYTES_MOST:
        yield f"the job set has {len(spec['jobSetId'].encode())} bytes, and {JOB_SET_BYTES_MOST} are the most"
    item: Any = spec.get("item")
    if not isinstance(item, Mapping) or not isinstance(item.get("podSpec"), Mapping):
        yield "its item is missing, or the item has no podSpec"
    namespace = item.get("namespace")
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        yield (
            f"namespace is {namespace!r}: it has lower-case letters, digits and -, at most 63 of them, and "
            "begins and ends with a letter or digit"
        )
    priority = item.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int | float):
        yield f"priority is {priority!r}, and must be a number"
    if not math.isfinite(priority) or priority < 0:
        yield f"priority is {priority:g}, and must be a number of at least 0 (0 is the most urgent)"
    yield from _of_pod(item["podSpec"])
    message = messages("submit").JobSubmitRequestItem()
    _fill_item(message, item)
    size = message.pod_specs[0].ByteSize()
    if size > POD_SPEC_BYTES_MOST:
        yield f"the pod spec has {size:,} bytes, and {POD_SPEC_BYTES_MOST:,} are the most that Armada takes"


def _of_pod(pod: Mapping[str, Any]) -> Iterator[str]:
    # First of all the shape: what follows may then rely on it.
    require_shape(pod)
    if not pod.get("containers"):
        yield "podSpec.containers is missing: a job runs at least one container"
    for kind in ("containers", "initContainers"):
        for index, container in enumerate(pod.get(kind) or ()):
            path = f"podSpec.{kind}[{index}]"
            for key in ("name", "image"):
                if not container.get(key):
                    yield f"{path}.{key} is missing"
            yield from _of_resources(container, path)


def require_shape(pod: Mapping[str, Any]) -> None:
    """Hold a pod spec against the message that it becomes. Raises `Mistake`, which names the key."""
    fill(messages("submit").JobSubmitRequestItem().pod_specs.add(), pod, "podSpec")


def _of_resources(container: Mapping[str, Any], path: str) -> Iterator[str]:
    """Find what Armada refuses. Source: validateResources."""
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    if not requests and not limits:
        yield (
            f"{path}.resources is missing: Armada needs requests and the same limits "
            "(resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 1, memory: 1Gi}})"
        )
    for name in dict.fromkeys((*requests, *limits)):
        for side, values in (("requests", requests), ("limits", limits)):
            if name not in values:
                yield f"{path}.resources.{side}.{name} is missing: {_SAME}"
            if amount_of(_quantity(values[name])) < 0:
                yield f"{path}.resources.{side}.{name} is {values[name]}, less than nothing"
        if amount_of(_quantity(requests[name])) != amount_of(_quantity(limits[name])):
            yield (
                f"{path}.resources.limits.{name} is {limits[name]}, and requests.{name} is "
                f"{requests[name]}: {_SAME}"
            )


def _quantity(value: Any) -> str:
    return str(value["string"] if isinstance(value, Mapping) else value)
