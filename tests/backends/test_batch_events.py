"""EventBridge's events by way of SQS, on moto: hints, however many and however wrong."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from jobrunner.backends.batch import BatchBackend, BatchConnection
from jobrunner.backends.batch.events import ids_in
from jobrunner.backends.batch.trouble import AwsError
from tests.runner.support import soon
from tests.stubs.moto_batch import MotoBatch, moto_batch


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch, aws: None) -> Iterator[MotoBatch]:
    monkeypatch.setattr("jobrunner.backends.batch.events._WAIT_S", 1)
    with moto_batch() as served:
        yield served


def heard(moto: MotoBatch, queue_url: str, count: int) -> list[str]:
    """Return so many ids as they are heard."""

    async def main() -> list[str]:
        backend = BatchBackend(BatchConnection(endpoint_url=moto.url, events_queue_url=queue_url))
        found: list[str] = []
        try:
            events = backend.events()
            async with asyncio.timeout(20):
                while len(found) < count:
                    found.append(await anext(events))
                # The last ones are deleted once they were all handed out.
                after = asyncio.ensure_future(anext(events))
                await soon(lambda: not waiting(moto, queue_url))
                after.cancel()
        finally:
            await backend.close()
        return found

    return asyncio.run(main())


def waiting(moto: MotoBatch, queue_url: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    client = moto.client("sqs")
    told = client.get_queue_attributes(QueueUrl=queue_url, AttributeNames=names)["Attributes"]
    client.close()
    return sum(int(told[name]) for name in names)


def test_the_jobs_of_events_are_named_and_the_messages_deleted(moto: MotoBatch) -> None:
    batch = moto.client("batch")
    ids = [
        batch.submit_job(jobName="n", jobQueue="queue", jobDefinition="definition")["jobId"]
        for _ in range(12)
    ]
    batch.close()
    queue_url = moto.make_queue()
    for each in ids:
        moto.announce(queue_url, each)
    assert sorted(heard(moto, queue_url, len(ids))) == sorted(ids)
    assert waiting(moto, queue_url) == 0


def test_what_is_no_event_is_read_over_and_deleted(moto: MotoBatch) -> None:
    queue_url = moto.make_queue()
    client = moto.client("sqs")
    bodies = ["not json", "[]", "7", '{"detail": 7}', '{"detail": {"jobId": 7}}', "[" * 100_000]
    event = '{"detail": {"jobId": "876da822"}}'
    for body in (*bodies, event):
        client.send_message(QueueUrl=queue_url, MessageBody=body)
    client.close()
    assert heard(moto, queue_url, 1) == ["876da822"]
    assert waiting(moto, queue_url) == 0


def test_a_childs_event_tells_of_its_array_and_sns_may_stand_between() -> None:
    event = json.dumps({"source": "aws.batch", "detail": {"jobId": "876da822:3", "status": "FAILED"}})
    assert list(ids_in(event)) == ["876da822:3", "876da822"]
    assert list(ids_in(json.dumps({"Type": "Notification", "Message": event}))) == [
        "876da822:3",
        "876da822",
    ]
    assert list(ids_in(json.dumps({"detail": {"jobId": "876da822#1"}}))) == ["876da822#1", "876da822"]


def test_a_queue_that_is_not_there_says_so(moto: MotoBatch) -> None:
    async def main() -> None:
        url = f"{moto.url}/123456789012/nope"
        backend = BatchBackend(BatchConnection(endpoint_url=moto.url, events_queue_url=url))
        try:
            with pytest.raises(AwsError, match="The specified queue does not exist"):
                await anext(backend.events())
        finally:
            await backend.close()

    asyncio.run(main())


def test_without_a_queue_there_are_no_events() -> None:
    assert not hasattr(BatchBackend(BatchConnection()), "events")
