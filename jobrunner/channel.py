"""One connection as a runner uses it: its backend, its poller, and cancellations sent in bulk."""

import asyncio
from collections.abc import Callable

from jobrunner.backends.base import Backend, Patience, patience_of
from jobrunner.clock import monotonic_s
from jobrunner.logs import get_logger
from jobrunner.poller import Answer, Poller

log = get_logger(__name__)

_GATHER_S = 0.02  # cancellations wished within this time travel together


class Channel:
    """The way to one backend, shared by all of a runner's jobs of that connection."""

    def __init__(
        self,
        name: str,
        backend: Backend,
        on_answer: Callable[[int, str, Answer], None],
        on_health: Callable[["Channel", bool, str], None],
    ) -> None:
        self.name = name
        self.backend = backend
        self.patience: Patience = patience_of(backend)
        self.poller = Poller(
            backend, on_answer, name=name, on_health=lambda good, message: on_health(self, good, message)
        )
        self._polling = asyncio.create_task(self.poller.run(), name=f"poll {name}")
        self._wishes: dict[str, str] = {}
        self._asking: asyncio.Task[None] | None = None

    async def cancel(self, external_id: str, reason: str) -> None:
        """Ask the backend to end one job, together with others that are wished now.

        Whether it did is for the poller to see: what goes wrong here is logged, and asked again.
        """
        if not external_id:
            raise ValueError("an empty id could mean every job there is")
        self._wishes[external_id] = reason
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name=f"cancel {self.name}")
        # Shielded: others wait for the same call.
        await asyncio.shield(self._asking)

    async def _ask(self) -> None:
        await asyncio.sleep(_GATHER_S)
        while self._wishes:
            (_, reason), *_ = self._wishes.items()
            ids = [each for each, why in self._wishes.items() if why == reason][
                : max(1, self.backend.bulk_limit)
            ]
            for each in ids:
                del self._wishes[each]
            try:
                async with asyncio.timeout(self.patience.call_s):
                    troubles = await self.backend.cancel(ids, reason)
            except Exception as error:  # noqa: BLE001  # whatever a backend raises: it is asked again
                log.warning(
                    "cancel not taken",
                    connection=self.name,
                    jobs=len(ids),
                    error=f"{type(error).__name__}: {error}",
                )
                continue
            for external_id, trouble in troubles.items():
                log.warning(
                    "cancel not taken", connection=self.name, external_id=external_id, error=trouble.message
                )

    def is_making_progress(self) -> bool:
        """Whether the poller completes its attempts by the time it scheduled; for any thread."""
        return monotonic_s() <= self.poller.progress_by_s

    async def close(self) -> None:
        """End the watching and give the backend back; the work outside goes on."""
        if self._asking is not None:
            await asyncio.wait([self._asking], timeout=self.patience.call_s)
        await self.poller.close()
        self._polling.cancel()
        await asyncio.gather(self._polling, return_exceptions=True)
        await self.backend.close()
