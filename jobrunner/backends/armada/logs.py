"""An Armada job's output, from the Binoculars of its cluster: while its pod is there, and no longer."""

import datetime as dt
import re
from collections.abc import AsyncIterator
from typing import Any

from jobrunner.backends.armada.ids import JobKey
from jobrunner.backends.armada.trouble import ArmadaError, Kind
from jobrunner.backends.armada.wire import Wire, messages
from jobrunner.backends.base import LogLine
from jobrunner.errors import LogsUnavailable, Throttled

_CHOOSE = re.compile(r"container name must be specified.*choose one of: \[(?P<names>[^\]]*)\]", re.IGNORECASE)
_CUT_BYTES = 1_500_000  # Binoculars gives 2,000,000 bytes at most, time stamps included, and drops the rest
_PAGES_MOST = 1000


async def lines(wire: Wire, external_id: str, since: dt.datetime | None) -> AsyncIterator[LogLine]:
    """Yield a job's output, one container after the other, from `since` on.

    Raises `LogsUnavailable` with the reason where there is none, `Throttled`, and `ArmadaError` where
    there was no clear answer.
    """
    if wire.options.binoculars_url is None:
        raise LogsUnavailable(
            "Armada itself keeps no output: give the connection a `binoculars_url`, or read it where the "
            "cluster's log agent sends it to."
        )
    try:
        key = JobKey.split(external_id)
    except ValueError as error:
        raise LogsUnavailable(f"{error}.") from None
    namespace, cluster = await _where(wire, key)
    address = wire.options.binoculars_url.replace("{cluster}", cluster)
    try:
        async for line in _of_container(wire, address, key, namespace, "", since):
            yield line
    except ArmadaError as error:
        found = _CHOOSE.search(error.details)
        if found is None:
            raise _of_reading(error) from error
        for name in found["names"].replace(",", " ").split():
            try:
                async for line in _of_container(wire, address, key, namespace, name, since):
                    yield line
            except ArmadaError as of_one:
                raise _of_reading(of_one) from of_one


async def _where(wire: Wire, key: JobKey) -> tuple[str, str]:
    """Return the job's namespace and the cluster that it runs in."""
    request = messages("job").JobDetailsRequest(job_ids=[key.job_id], expand_job_run=True)
    try:
        answer = await wire.call("Jobs", "GetJobDetails", request)
    except ArmadaError as error:
        raise _of_reading(error) from error
    if key.job_id not in answer.job_details:
        raise LogsUnavailable(f"Armada does not know the job {key.job_id}, and so not where its output is.")
    found = answer.job_details[key.job_id]
    runs = [run for run in found.job_runs if run.run_id == found.latest_run_id] or list(found.job_runs)
    if not runs:
        raise LogsUnavailable("It has no output yet: it runs in no cluster.")
    return found.namespace or "default", runs[0].cluster


async def _of_container(
    wire: Wire, address: str, key: JobKey, namespace: str, container: str, since: dt.datetime | None
) -> AsyncIterator[LogLine]:
    from_time = since.isoformat().replace("+00:00", "Z") if since is not None else ""
    last, at_last = "", 0  # the time of the last line, and how many lines have that time
    last_order = ("", "")
    for _ in range(_PAGES_MOST):
        found = await _page(wire, address, key, namespace, container, from_time)
        # Kubernetes counts whole seconds: what was yielded already comes once more.
        new = [line for line in found if _order(line.timestamp) > last_order]
        again = [line for line in found if line.timestamp == last][at_last:]
        for line in (*again, *new):
            yield LogLine(line.line.rstrip("\r\n"), _moment(line.timestamp), container)
            at_last = at_last + 1 if line.timestamp == last else 1
            last, last_order = line.timestamp, _order(line.timestamp)
        if not (again or new) or sum(len(line.line) + 31 for line in found) < _CUT_BYTES:
            return
        from_time = last


async def _page(
    wire: Wire, address: str, key: JobKey, namespace: str, container: str, from_time: str
) -> list[Any]:
    request = messages("binoculars").LogRequest(
        job_id=key.job_id, pod_number=0, pod_namespace=namespace, since_time=from_time
    )
    request.log_options.SetInParent()  # the server writes into it
    if container:
        request.log_options.container = container
    answer = await wire.call("Binoculars", "Logs", request, address=address)
    return list(answer.log)


def _of_reading(error: ArmadaError) -> Exception:
    if error.kind is Kind.THROTTLED:
        return Throttled(str(error))
    if error.kind in {Kind.REFUSED, Kind.PERMISSION, Kind.NOT_ARMADA, Kind.CREDENTIALS}:
        return LogsUnavailable(f"The output cannot be read: {error}.")
    return error


def _order(timestamp: str) -> tuple[str, str]:
    """Return what sorts times of one zone: a fraction may have fewer digits than nine."""
    whole, _, fraction = timestamp.rstrip("Z").partition(".")
    return whole, fraction.ljust(9, "0")


def _moment(text: str) -> dt.datetime | None:
    # Nanoseconds are more than Python's own parser takes.
    try:
        return dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    except ValueError:
        return None
