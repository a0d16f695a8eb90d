"""What EventBridge says of jobs, by way of SQS: a hint to ask about them at once, and nothing more."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from jobrunner.backends.batch.connection import Aws
from jobrunner.logs import get_logger

log = get_logger(__name__)

_WAIT_S = 20  # the longest that SQS allows
_MESSAGES_MOST = 10  # the most that SQS gives at once


async def job_ids(aws: Aws, queue_url: str) -> AsyncIterator[str]:
    """Yield the ids of jobs of which an event came, for ever; a child's event tells of its array, too.

    A message is deleted when it was read, whatever it says: the poll remains the truth.
    Raises `AwsError` where the queue cannot be read.
    """
    while True:
        answer = await aws.call(
            "sqs",
            "receive_message",
            is_long=True,
            QueueUrl=queue_url,
            MaxNumberOfMessages=_MESSAGES_MOST,
            WaitTimeSeconds=_WAIT_S,
        )
        messages = answer.get("Messages") or []
        for message in messages:
            for job_id in ids_in(message.get("Body") or ""):
                yield job_id
        if messages:
            entries = [
                {"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]}
                for index, message in enumerate(messages)
            ]
            await aws.call("sqs", "delete_message_batch", QueueUrl=queue_url, Entries=entries)


def ids_in(body: str) -> Iterator[str]:
    """Yield the ids that a message speaks of: an event of EventBridge, as it is or wrapped by SNS."""
    event = _mapping(body)
    if "Message" in event:
        event = _mapping(event["Message"])
    detail = event.get("detail")
    job_id = detail.get("jobId") if isinstance(detail, dict) else None
    if not isinstance(job_id, str) or not job_id:
        log.debug("a message in the queue of events is about no job", length=len(body))
        return
    yield job_id
    parent = job_id.partition(":")[0].partition("#")[0]
    if parent != job_id:
        yield parent


def _mapping(text: object) -> dict[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
