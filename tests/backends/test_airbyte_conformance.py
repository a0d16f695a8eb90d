"""Airbyte keeps the contract of a backend, asked one by one and by lists."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

from jobrunner.backends.airbyte import AirbyteBackend, AirbyteConnection
from jobrunner.testing.conformance import BackendConformance, Harness
from tests.stubs.airbyte_server import CONNECTION, serving


class TestAirbyteBackendConforms(BackendConformance):
    few: ClassVar[int] = 3

    @asynccontextmanager
    async def harness(self) -> AsyncIterator[Harness]:
        with serving() as stub:
            stub.one_at_a_time = False
            options = AirbyteConnection.model_validate(
                {"url": stub.url, "client_id": stub.client_id, "client_secret": stub.client_secret}
            )
            backend = AirbyteBackend(options, few=self.few, doubt_s=0.3, fresh_s=0.0)

            async def succeed(external_id: str) -> None:
                stub.succeed(int(external_id))

            async def fail(external_id: str) -> None:
                stub.fail(int(external_id))

            yield Harness(
                backend=backend,
                spec=lambda: {"connectionId": CONNECTION, "jobType": "sync"},
                succeed=succeed,
                fail=fail,
                unknown_id="9000",
                submit_is_idempotent=False,
                absent_blocks_late_submit=False,
                deadline_s=10.0,
                look_every_s=0.02,
            )
            await backend.close()


class TestAirbyteBackendConformsByLists(TestAirbyteBackendConforms):
    few = 0
