"""A Batch job's output, from CloudWatch Logs: every attempt, every container, a child or a node."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobrunner.backends.base import LogLine
from jobrunner.backends.batch.connection import Aws
from jobrunner.backends.batch.reading import attempts_of, containers_of, moment_of
from jobrunner.backends.batch.shapes import fitting_job
from jobrunner.backends.batch.trouble import AwsError, Kind
from jobrunner.bounded import Pages
from jobrunner.errors import BackendError, LogsUnavailable, Throttled

_MISSING = "ResourceNotFoundException"
_EMPTY_PAGES_MOST = 20  # one after the other
_PAGES_MOST = 100_000  # each has up to a megabyte
_EMPTY_PAUSE_S = 0.2  # the service allows 10 calls a second, and to all who ask together 25
_DRIVER = "awslogs"  # what Batch uses where the job definition says nothing


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream of CloudWatch Logs. `source` tells it from the job's others; empty where there is one."""

    name: str
    group: str
    region: str
    source: str


async def lines(aws: Aws, external_id: str, since: dt.datetime | None) -> AsyncIterator[LogLine]:
    """Yield a job's output, one attempt after the other, from `since` on.

    Raises `LogsUnavailable` with the reason where there is none, or, at its end, where a stream is
    missing; `Throttled`, and `AwsError` where CloudWatch Logs gave no clear answer.
    """
    answer = await _ask(aws, "batch", "describe_jobs", jobs=[external_id])
    job = next((each for each in answer["jobs"] if each["jobId"] == external_id), None)
    if job is None:
        raise LogsUnavailable(
            f"AWS Batch does not know the job {external_id} any more, and so not where its output is."
        )
    job = fitting_job(job)
    streams = list(_streams(job, aws.options.log_group))
    if not streams:
        raise LogsUnavailable(_why_none(job))
    missing: list[str] = []
    for stream in streams:
        try:
            async for line in _lines_of(aws, stream, since):
                yield line
        except AwsError as error:
            if error.code != _MISSING:
                raise
            missing.append(f"{stream.name} in {stream.group}")
    if missing:
        raise LogsUnavailable(
            f"CloudWatch Logs has no stream {', '.join(missing)}: nothing was written to it yet, or it was "
            "deleted."
        )


async def _lines_of(aws: Aws, stream: Stream, since: dt.datetime | None) -> AsyncIterator[LogLine]:
    question: dict[str, Any] = {
        "logGroupName": stream.group,
        "logStreamName": stream.name,
        "startFromHead": True,
    }
    if since is not None:
        question["startTime"] = int(since.timestamp() * 1000)
    empty = 0
    pages = Pages(f"the stream {stream.name} in {stream.group}", _PAGES_MOST)
    while True:
        page = await _ask(aws, "logs", "get_log_events", region=stream.region, **question)
        # CloudWatch may give empty pages before the last one. Of an expired stream it gives nothing else, and
        # each time another token.
        empty = 0 if page.get("events") else empty + 1
        for event in page.get("events") or ():
            for text in event.get("message", "").splitlines() or [""]:
                yield LogLine(text, moment_of(event.get("timestamp")), stream.source)
        token = page.get("nextForwardToken")
        if token is None or token == question.get("nextToken"):  # the same again: that was the end
            return
        if empty >= _EMPTY_PAGES_MOST:
            raise LogsUnavailable(
                f"CloudWatch Logs gave {empty} empty pages of the stream {stream.name} in {stream.group}, "
                "and no end of it: its events have expired, or were deleted."
            )
        if empty:
            await asyncio.sleep(_EMPTY_PAUSE_S)
        try:
            pages.go_on(token)
        except BackendError as error:
            raise LogsUnavailable(f"CloudWatch Logs gives output without an end: {error}.") from None
        question["nextToken"] = token


async def _ask(aws: Aws, service: str, operation: str, *, region: str = "", **params: Any) -> dict[str, Any]:
    try:
        return await aws.call(service, operation, region=region, **params)
    except AwsError as error:
        if error.kind is Kind.THROTTLED:
            raise Throttled(str(error), retry_after_s=error.retry_after_s) from error
        if error.kind is Kind.PERMISSION:
            raise LogsUnavailable(f"The output cannot be read: {error}.") from error
        raise


def _streams(job: Mapping[str, Any], log_group: str) -> Iterator[Stream]:
    """Yield the streams of a job, the oldest attempt's first; the last attempt's stand in the job, too."""
    # An attempt names its containers, and the job alone says how they log.
    settings_of = {each.get("name"): each.get("logConfiguration") or {} for each in containers_of(job)}
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for number, part in enumerate([*attempts_of(job), job], start=1):
        containers = list(containers_of(part))
        for container in containers:
            name = container.get("logStreamName")
            if name and name not in found:
                words = [f"attempt {number}", str(container.get("name") or "")]
                source = " ".join(words[: 1 + (len(containers) > 1)])
                found[name] = source, settings_of.get(container.get("name"), {})
    for name, (source, settings) in found.items():
        if settings.get("logDriver", _DRIVER) != _DRIVER:
            continue
        options = settings.get("options") or {}
        group, region = options.get("awslogs-group") or log_group, options.get("awslogs-region") or ""
        yield Stream(name, group, region, source if len(found) > 1 else "")


def _why_none(job: Mapping[str, Any]) -> str:
    status = job.get("status")
    size = (job.get("arrayProperties") or {}).get("size")
    if size:
        return _choose(size, "children", "--child")
    nodes = (job.get("nodeProperties") or {}).get("numNodes")
    if nodes:
        return _choose(nodes, "nodes", "--node")
    if job.get("eksProperties"):
        return (
            "It runs on EKS, where the output goes to whatever the cluster's log agent sends it to, and "
            "AWS Batch does not say where that is."
        )
    for container in containers_of(job):
        driver = (container.get("logConfiguration") or {}).get("logDriver", _DRIVER)
        if driver != _DRIVER:
            return f"Its log driver is {driver}, and its output is not in CloudWatch Logs."
    if status in {"SUCCEEDED", "FAILED"}:
        reason = job.get("statusReason")
        return "It has no output: no container of it has started" + (f" ({reason})." if reason else ".")
    return f"It has no output yet: it is {status}."


def _choose(count: int, parts: str, option: str) -> str:
    which = f"{option} 0 to {option} {count - 1}"
    return f"It has {count} {parts}, and each has its own output: choose one with {which}."
