"""AWS Batch keeps the contract of a backend: on a stub with Batch's own habits, and on moto."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jobrunner.backends.batch import BatchBackend, BatchConnection
from jobrunner.testing.conformance import BackendConformance, Harness
from tests.stubs.batch_server import BatchStub, serving
from tests.stubs.moto_batch import MotoBatch, moto_batch

SPEC = {"jobName": "nightly", "jobQueue": "queue", "jobDefinition": "definition"}


@pytest.mark.usefixtures("aws")
class _BatchConforms(BackendConformance):
    @asynccontextmanager
    async def at(self, outside: BatchStub | MotoBatch, **options: Any) -> AsyncIterator[Harness]:
        backend = BatchBackend(BatchConnection(endpoint_url=outside.url), **options)

        async def succeed(external_id: str) -> None:
            outside.succeed(external_id)

        async def fail(external_id: str) -> None:
            outside.fail(external_id)

        yield Harness(
            backend=backend,
            spec=lambda: SPEC,
            succeed=succeed,
            fail=fail,
            unknown_id="876da822-4198-45f2-a252-6cea32512ea8",
            submit_is_idempotent=False,
            absent_blocks_late_submit=False,
            deadline_s=10.0,
            look_every_s=0.02,
        )
        await backend.close()


class TestBatchBackendConforms(_BatchConforms):
    @asynccontextmanager
    async def harness(self) -> AsyncIterator[Harness]:
        with serving(appear_after_s=0.05, listing_lag_s=0.1, terminate_takes_s=0.05) as stub:
            async with self.at(stub, absent_after_s=0.5, checks_signatures=True) as harness:
                yield harness


class TestBatchBackendConformsOnMoto(_BatchConforms):
    @asynccontextmanager
    async def harness(self) -> AsyncIterator[Harness]:
        with moto_batch() as moto:
            async with self.at(moto) as harness:
                yield harness
