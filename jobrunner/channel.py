"""One connection as a runner uses it: its backend, its poller, and cancellations sent in bulk."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

from jobrunner import unexpected
from jobrunner.backends.base import Backend, Gone, Observation
from jobrunner.backends.calls import end_or_leave
from jobrunner.backends.checks import Answer
from jobrunner.backends.guarded import guarded
from jobrunner.clock import monotonic_s
from jobrunner.errors import words_of
from jobrunner.log_limits import Seldom, Trouble
from jobrunner.logs import get_logger
from jobrunner.poller import Poller
from jobrunner.retry import Retry
from jobrunner.turns import Turns

log = get_logger(__name__)

_GATHER_S = 0.02  # cancellations wished within this time travel together
_CANCELS_AT_ONCE = 4
_REFUSED_MOST = 10_000  # ids of which it is remembered how often a cancellation that held them failed
_CLOSE_S = 5.0  # a backend that hangs must not keep a runner from ending
_EVENTS_A_TURN = 100  # then others have theirs: a backend may have many events at hand
_TURN_S = 0.01
_EVENTS_AGAIN_S = 1.0  # before a stream of events that has ended is opened again, and twice that, and so on
_POLLERS_MOST = 5  # in succession: one that crashes again and again is not started any more
_POLLER_RUNS_WELL_S = 600.0


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
        self.backend = guarded(backend, name)
        self.patience = self.backend.patience
        self.trouble: str | None = None
        """Why the connection cannot be read now; None: it can."""
        self._on_health = on_health
        self.poller = Poller(self.backend, on_answer, name=name, on_health=self._on_change)
        self._is_closed = False
        self._crashes = Retry(first_s=0.1)
        self._poll()
        self._is_deaf = False
        self._deafness = Trouble()
        self.turns = Turns(lambda: self.backend.submissions_at_once)
        """Of its jobs that are to be submitted, or looked for."""
        self.seldom = Seldom()
        """What is said of this connection again and again."""
        self._listening: asyncio.Task[None] | None = None
        if self.backend.has_events:
            self._listening = asyncio.create_task(self._listen(), name=f"events {name}")
        self._wishes: dict[str, _Wish] = {}
        self._refused: OrderedDict[str, int] = OrderedDict()
        self._asking: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(_CANCELS_AT_ONCE)

    def _on_change(self, good: bool, message: str) -> None:
        self.trouble = None if good else message
        self._on_health(self, good, message)

    def _poll(self) -> None:
        self._polling_since_s = monotonic_s()
        self._polling = asyncio.create_task(self.poller.run(), name=f"poll {self.name}")
        self._polling.add_done_callback(self._on_polled)

    def _on_polled(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        unexpected.note("a poller crashed", error, self.seldom, connection=self.name)
        if monotonic_s() - self._polling_since_s > _POLLER_RUNS_WELL_S:
            self._crashes = Retry(first_s=0.1)
        if self._is_closed:
            return
        if self._crashes.count < _POLLERS_MOST:
            asyncio.get_running_loop().call_later(self._crashes.next_s(), self._poll_again)
        else:  # the jobs fall silent, as their poller did, and others take them
            self._on_change(good=False, message=f"the watching crashed: {words_of(error)}")

    def _poll_again(self) -> None:
        if not self._is_closed:
            self._poll()

    async def _listen(self) -> None:
        """Hurry the jobs of which the backend hears, until closed. Trouble here is none in the watching."""
        task = asyncio.current_task()
        retry = Retry(first_s=_EVENTS_AGAIN_S)
        while not self._is_closed:  # its cancellation may have been swallowed
            trouble: str | None = None  # one that ends without an error has nothing to tell, for now
            try:
                await self._hear()
            except asyncio.CancelledError:
                if task is None or task.cancelling():
                    raise
                trouble = "it was cancelled from within"
            except Exception as error:  # noqa: BLE001  # whatever a backend raises: it is polled all the same
                trouble = words_of(error)
            if not self._is_deaf:
                retry = Retry(first_s=_EVENTS_AGAIN_S)
            if trouble is not None:
                self._is_deaf = True
                if self._deafness.begins():
                    log.warning("events are not heard", connection=self.name, error=trouble)
            await retry.pause()

    async def _hear(self) -> None:
        count = 0
        async with aclosing(self.backend.events()) as stream:
            async for external_id in stream:
                self._is_deaf = False
                if self._deafness.ends():
                    log.info("events are heard again", connection=self.name)
                self.poller.hurry_external(external_id)
                count += 1
                if count % _EVENTS_A_TURN == 0:
                    await asyncio.sleep(_TURN_S)

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

    async def take_back(self, external_id: str, reason: str, within_s: float | None = None) -> bool:
        """End a job that is no row's; True when it was seen to have ended, False after `within_s` seconds."""
        retry = Retry(first_s=0.2)
        give_up_s = None if within_s is None else monotonic_s() + within_s
        while give_up_s is None or monotonic_s() < give_up_s:
            trouble = await self.cancel(external_id, reason)
            if trouble is not None:
                known = {"connection": self.name, "external_id": external_id, "error": trouble}
                self.seldom.warning(log, "cancel not taken", about=external_id, **known)
            with suppress(Exception):  # whatever a backend raises: it is looked at again
                answer = (await self.backend.fetch([external_id]))[external_id]
                if isinstance(answer, Observation) and answer.phase.is_final:
                    return True
                if trouble is None and isinstance(answer, Gone):
                    return True
            await retry.pause()
        return False

    async def _gather(self) -> None:
        await asyncio.sleep(_GATHER_S)
        wishes, self._wishes = self._wishes, {}
        together: dict[tuple[str, int], list[str]] = {}
        for external_id, wish in wishes.items():
            together.setdefault((wish.reason, self._refused.get(external_id, 0)), []).append(external_id)
        for (reason, refusals), ids in together.items():
            # Fewer and fewer of those that failed: so one that spoils every call comes to be asked for alone.
            most = max(1, min(self.backend.bulk_limit, len(ids)) >> refusals)
            for start in range(0, len(ids), most):
                batch = {each: wishes[each].trouble for each in ids[start : start + most]}
                self._start(self._send(batch, reason))

    async def _send(self, batch: dict[str, asyncio.Future[str | None]], reason: str) -> None:
        troubles: dict[str, str] = dict.fromkeys(batch, "the runner is stopping")
        try:
            async with self._free:
                troubles = await self.backend.cancel(list(batch), reason)
            self._note(list(batch), failed=False)
        except Exception as error:  # noqa: BLE001  # whatever a backend raises: it is asked again
            troubles = dict.fromkeys(batch, words_of(error))
            self._note(list(batch), failed=True)
        finally:  # nobody waits for an answer that does not come
            for external_id, asked in batch.items():
                if not asked.done():
                    asked.set_result(troubles.get(external_id))

    def _note(self, ids: Sequence[str], *, failed: bool) -> None:
        for external_id in ids:
            count = self._refused.pop(external_id, 0)
            if failed:
                self._refused[external_id] = min(count + 1, 16)
        while len(self._refused) > _REFUSED_MOST:
            self._refused.popitem(last=False)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def is_making_progress(self) -> bool:
        """Whether the poller completes its attempts by the time it scheduled; for any thread."""
        return monotonic_s() <= self.poller.progress_by_s

    async def close(self) -> None:
        """End the watching and give the backend back; the work outside goes on."""
        self._is_closed = True
        try:
            async with asyncio.timeout(_CLOSE_S):
                while self._asking:
                    await asyncio.wait(self._asking)
                await self.poller.close()
        except Exception as error:  # noqa: BLE001  # whatever it is, the others are closed
            log.warning("not closed well", connection=self.name, error=words_of(error))
        finally:
            for task in (*self._asking, self._polling):
                task.cancel()
        try:
            if self._listening is not None and not await end_or_leave(self._listening):
                log.warning("events never end", connection=self.name)
            await self.backend.close(_CLOSE_S)
        except Exception as error:  # noqa: BLE001  # whatever a backend raises, the others are closed
            log.warning("not closed well", connection=self.name, error=words_of(error))
