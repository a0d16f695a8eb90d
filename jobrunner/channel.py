"""One connection as a runner uses it: its backend, its poller, and cancellations sent in bulk."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from jobrunner.backends.base import Backend, Gone, Observation, Patience, patience_of
from jobrunner.clock import monotonic_s
from jobrunner.errors import BackendError, words_of
from jobrunner.logs import get_logger
from jobrunner.poller import Answer, Poller
from jobrunner.retry import Retry

log = get_logger(__name__)

_T = TypeVar("_T")

_GATHER_S = 0.02  # cancellations wished within this time travel together
_CANCELS_AT_ONCE = 4
_CLOSE_S = 5.0  # a backend that hangs must not keep a runner from ending
_EVENTS_A_TURN = 100  # then others have theirs: a backend may have many events at hand
_TURN_S = 0.01
_EVENTS_AGAIN_S = 1.0  # before a stream of events that has ended is opened again, and twice that, and so on


@dataclass(slots=True)
class _Wish:
    reason: str
    trouble: asyncio.Future[str | None]
    """What stood in the way of asking, or None: it was asked."""


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
        self.trouble: str | None = None
        """Why the connection cannot be read now; None: it can."""
        self._on_health = on_health
        self.poller = Poller(backend, on_answer, name=name, on_health=self._on_change)
        self._polling = asyncio.create_task(self.poller.run(), name=f"poll {name}")
        self._polling.add_done_callback(self._on_polled)
        self._is_deaf = False
        self._listening: asyncio.Task[None] | None = None
        events = getattr(backend, "events", None)
        if events is not None:
            self._listening = asyncio.create_task(self._listen(events), name=f"events {name}")
        self._wishes: dict[str, _Wish] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(_CANCELS_AT_ONCE)

    def _on_change(self, good: bool, message: str) -> None:
        self.trouble = None if good else message
        self._on_health(self, good, message)

    def _on_polled(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:  # the jobs fall silent, as their poller did, and others take them
            log.error("the poller crashed", connection=self.name, error=error, exc_info=error)

    async def _listen(self, events: Callable[[], AsyncIterator[str]]) -> None:
        """Hurry the jobs of which the backend hears, for ever. Trouble here is none in the watching."""
        task = asyncio.current_task()
        retry = Retry(first_s=_EVENTS_AGAIN_S)
        while True:
            trouble: str | None = None  # one that ends without an error has nothing to tell, for now
            try:
                await self._hear(events())
            except asyncio.CancelledError:
                if task is None or task.cancelling():
                    raise
                trouble = "it was cancelled from within"
            except Exception as error:  # noqa: BLE001  # whatever a backend raises: it is polled all the same
                trouble = words_of(error)
            if not self._is_deaf:
                retry = Retry(first_s=_EVENTS_AGAIN_S)
            if trouble is not None and not self._is_deaf:
                self._is_deaf = True
                log.warning("events are not heard", connection=self.name, error=trouble)
            await retry.pause()

    async def _hear(self, stream: AsyncIterator[str]) -> None:
        count = 0
        try:
            async for external_id in stream:
                if self._is_deaf:
                    self._is_deaf = False
                    log.info("events are heard again", connection=self.name)
                if isinstance(external_id, str):
                    self.poller.hurry_external(external_id)
                count += 1
                if count % _EVENTS_A_TURN == 0:
                    await asyncio.sleep(_TURN_S)
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    async def ask(self, call: Awaitable[_T]) -> _T:
        """Await a call to the backend within its patience; raises what it raises, or `BackendError`."""
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(self.patience.call_s):
                return await call
        except TimeoutError as error:
            raise BackendError(str(error) or f"no answer within {self.patience.call_s:g} s") from error
        except asyncio.CancelledError:
            if task is not None and task.cancelling():
                raise
            raise BackendError("the call was cancelled from within") from None

    async def cancel(self, external_id: str, reason: str) -> str | None:
        """Ask the backend to end one job, together with others that are wished now.

        Returns what stood in the way of the asking; None: it was asked. Whether the job ends is for the
        poller to see.
        """
        if not external_id:
            raise ValueError("an empty id could mean every job there is")
        wish = self._wishes.get(external_id)
        if wish is None:
            wish = self._wishes[external_id] = _Wish(reason, asyncio.get_running_loop().create_future())
            if len(self._wishes) == 1:
                self._start(self._gather())
        return await asyncio.shield(wish.trouble)  # others may wait for the same answer

    async def take_back(self, external_id: str, reason: str) -> None:
        """End a job that is no row's, and return when it was seen to have ended."""
        retry = Retry(first_s=0.2)
        while True:
            trouble = await self.cancel(external_id, reason)
            if trouble is not None:
                log.warning("cancel not taken", connection=self.name, external_id=external_id, error=trouble)
            with suppress(Exception):  # whatever a backend raises: it is looked at again
                answer = (await self.ask(self.backend.fetch([external_id]))).get(external_id)
                if isinstance(answer, Observation) and answer.phase.is_final:
                    return
                if trouble is None and isinstance(answer, Gone):
                    return
            await retry.pause()

    async def _gather(self) -> None:
        await asyncio.sleep(_GATHER_S)
        wishes, self._wishes = self._wishes, {}
        by_reason: dict[str, list[str]] = {}
        for external_id, wish in wishes.items():
            by_reason.setdefault(wish.reason, []).append(external_id)
        most = max(1, self.backend.bulk_limit)
        for reason, ids in by_reason.items():
            for start in range(0, len(ids), most):
                batch = {each: wishes[each].trouble for each in ids[start : start + most]}
                self._start(self._send(batch, reason))

    async def _send(self, batch: dict[str, asyncio.Future[str | None]], reason: str) -> None:
        async with self._free:
            try:
                troubles = await self.ask(self.backend.cancel(list(batch), reason))
                told = {each: trouble.message for each, trouble in troubles.items()}
            except Exception as error:  # noqa: BLE001  # whatever a backend raises: it is asked again
                told = dict.fromkeys(batch, words_of(error))
        for external_id, asked in batch.items():
            if not asked.done():
                asked.set_result(told.get(external_id))

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def is_making_progress(self) -> bool:
        """Whether the poller completes its attempts by the time it scheduled; for any thread."""
        return monotonic_s() <= self.poller.progress_by_s

    async def close(self) -> None:
        """End the watching and give the backend back; the work outside goes on."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                while self._asking:
                    await asyncio.wait(self._asking)
                if self._listening is not None:
                    self._listening.cancel()
                    await asyncio.wait([self._listening])
                await self.poller.close()
                await self.backend.close()
        except Exception as error:  # noqa: BLE001  # whatever a backend raises, the others are closed
            log.warning("not closed well", connection=self.name, error=words_of(error))
        finally:
            for task in (*self._asking, self._polling, self._listening):
                if task is not None:
                    task.cancel()
