"""Armada keeps the contract of a backend: on a stub with Armada's own habits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from jobrunner.backends.armada import ArmadaBackend, ArmadaConnection, JobKey
from jobrunner.testing.conformance import BackendConformance, Harness
from tests.stubs.armada_server import serving

RESOURCES = {"cpu": 1, "memory": "1Gi"}
SPEC = {
    "queue": "etl",
    "jobSetId": "nightly",
    "item": {
        "namespace": "default",
        "podSpec": {
            "containers": [
                {
                    "name": "main",
                    "image": "busybox",
                    "resources": {"requests": RESOURCES, "limits": RESOURCES},
                }
            ]
        },
    },
}


class TestArmadaBackendConforms(BackendConformance):
    @asynccontextmanager
    async def harness(self) -> AsyncIterator[Harness]:
        with serving(appear_after_s=0.05, cancel_takes_s=0.05) as stub:
            backend = ArmadaBackend(ArmadaConnection(url=stub.address), settle_s=0.3)

            async def succeed(external_id: str) -> None:
                stub.succeed(external_id)

            async def fail(external_id: str) -> None:
                stub.fail(external_id)

            yield Harness(
                backend=backend,
                spec=lambda: SPEC,
                succeed=succeed,
                fail=fail,
                unknown_id=JobKey("etl", "nightly", "01" + "9" * 24).join(),
                deadline_s=10.0,
                look_every_s=0.02,
            )
            await backend.close()
