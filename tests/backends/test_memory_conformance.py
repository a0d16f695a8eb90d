from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from jobrunner.testing import MemoryBackend, Plan
from jobrunner.testing.conformance import BackendConformance, Harness


class _MemoryConformance(BackendConformance):
    idempotent = False
    plan = Plan()
    absent_is_sure = True

    @asynccontextmanager
    async def harness(self) -> AsyncIterator[Harness]:
        backend = MemoryBackend(
            plan=self.plan, bulk_limit=3, idempotent=self.idempotent, absent_is_sure=self.absent_is_sure
        )

        async def succeed(external_id: str) -> None:
            backend.succeed(external_id)

        async def fail(external_id: str) -> None:
            backend.fail(external_id)

        yield Harness(
            backend=backend,
            spec=lambda: {"wait_for_s": 0.0},
            succeed=succeed,
            fail=fail,
            unknown_id="memory-0000",
            submit_is_idempotent=self.idempotent,
            deadline_s=2.0,
            look_every_s=0.002,
        )


class TestMemoryBackendConforms(_MemoryConformance):
    pass


class TestAnIdempotentMemoryBackendConforms(_MemoryConformance):
    idempotent = True


class TestALaggingMemoryBackendConforms(_MemoryConformance):
    plan = Plan(appear_after_s=0.03, wait_for_s=0.01, cancel_takes_s=0.02)


class TestAMemoryBackendThatIsNeverSureConforms(_MemoryConformance):
    absent_is_sure = False
