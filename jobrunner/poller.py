"""Bulk watching of one connection: who is due is asked about together.

Everything here runs on the thread of the event loop, except `progress_by_s`, which any thread may read.
"""

import asyncio
import math
import random as random_module
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from jobrunner.backends.base import Backend, RemoteError
from jobrunner.backends.checks import Answer, seconds_of
from jobrunner.backends.guarded import GuardedBackend, guarded
from jobrunner.clock import monotonic_s
from jobrunner.connection_health import ERROR_CAP_S, ConnectionHealth
from jobrunner.due_queue import DueQueue, Watch
from jobrunner.errors import Throttled, words_of
from jobrunner.hearsay import Hearsay
from jobrunner.log_limits import Seldom
from jobrunner.logs import get_logger

log = get_logger(__name__)

SLACK_S = 5.0
"""How much later than promised an attempt may be completed: the loop has other things to do, too."""

_JITTER = 0.05
_WINDOW = 0.1  # who is due within this share of the interval travels along ...
_WINDOW_MOST_S = 1.0  # ... and within this time
_BREATH = 500  # answers after which others have their turn: a kill must not wait for 100,000 of them
_NAP_MOST_S = 2.0  # asyncio's timers stand still while a laptop sleeps, due times do not
_NOW_S = 0.001
_ERRORS_MOST = 16


@dataclass(slots=True)
class _Call:
    """One question under way: the watches by external id."""

    batch: dict[str, list[Watch]]
    sent_s: float
    deadline_s: float
    round: int

    def watches(self) -> list[Watch]:
        return [watch for watches in self.batch.values() for watch in watches]


class Poller:
    """Watches jobs of one backend and hands each answer to `on_answer(job_id, external_id, answer)`.

    Each watched job gets one answer an attempt. A call takes at most `bulk_limit` distinct ids, at
    most `concurrency` calls are under way, and each ends within the backend's `patience.call_s`.
    `on_health(readable, message)` is called when the connection becomes unreadable and readable again.
    Both callbacks are called on the event loop and must be quick. The backend stays the caller's to close.
    """

    def __init__(
        self,
        backend: Backend | GuardedBackend,
        on_answer: Callable[[int, str, Answer], None],
        *,
        name: str = "",
        concurrency: int = 4,
        on_health: Callable[[bool, str], None] | None = None,
        clock: Callable[[], float] = monotonic_s,
        random: random_module.Random | None = None,
    ) -> None:
        self._backend = guarded(backend, name)
        self._on_answer = on_answer
        self._name = name
        self._concurrency = concurrency
        self._clock = clock
        self._random = random or random_module.Random()  # noqa: S311  # jitter, not a secret
        self._call_s = self._backend.patience.call_s
        self._seldom = Seldom()
        self._watches: dict[int, Watch] = {}
        self._queue: DueQueue[Watch] = DueQueue()
        self._hearsay = Hearsay(clock)
        self._health = ConnectionHealth(name, self._random, on_health)
        self._calls: dict[asyncio.Task[None], _Call] = {}
        self._wake = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stopped.set()
        self._closed = False
        self._progress_by_s = math.inf

    def __len__(self) -> int:
        return len(self._watches)

    @property
    def progress_by_s(self) -> float:
        """When the next attempt will have been completed, on `monotonic_s`; infinite with nothing to watch.

        It stays in the past when the loop is stuck: whoever beats for the jobs then leaves them out.
        """
        return self._progress_by_s

    def watch(self, job_id: int, external_id: str, interval_s: float, *, first_in_s: float = 0.0) -> None:
        """Ask about a job every `interval_s` seconds from `first_in_s` on, or change how it is asked."""
        if not interval_s > 0:
            raise ValueError(f"interval_s is a number of seconds above 0, not {interval_s}")
        watch = self._watches.get(job_id)
        if watch is None or watch.external_id != external_id:
            self.forget(job_id)
            watch = self._watches[job_id] = Watch(job_id, external_id, interval_s)
            self._hearsay.add(watch)
        elif not watch.entry:  # being asked about right now
            watch.interval_s = interval_s
            watch.hurried |= first_in_s < interval_s
            return
        watch.interval_s = interval_s
        self._queue.put(watch, self._clock() + first_in_s)
        self._changed()

    def pace(self, job_id: int, interval_s: float) -> None:
        """Ask about a job every `interval_s` seconds, from the look after the next one on."""
        watch = self._watches.get(job_id)
        if watch is not None and interval_s > 0:
            watch.interval_s = interval_s

    def forget(self, job_id: int) -> None:
        """Ask about a job no longer, and drop an answer that is still to come."""
        watch = self._watches.pop(job_id, None)
        if watch is not None:
            self._queue.drop(watch)
            self._hearsay.remove(watch)
            self._promise()

    def hurry(self, job_id: int) -> None:
        """Ask about a job at once; an answer under way may be older than the hint, so another follows."""
        watch = self._watches.get(job_id)
        if watch is None:
            return
        now_s = self._clock()
        if not watch.entry:
            watch.hurried = True
        elif watch.due_s > now_s:
            self._queue.put(watch, now_s)
            self._changed()

    def hurry_external(self, external_id: str) -> None:
        """Ask soon about the jobs of an external id of which something was heard; an unknown one is ignored.

        What is heard may be a flood of lies: it adds at most one call, of at most `bulk_limit` ids, in
        `hearsay.GAP_S`, and a job that was just asked about rests for `hearsay.REST_S`.
        """
        if self._hearsay.hear(external_id):
            self._wake.set()

    async def run(self) -> None:
        """Ask and hand out answers until cancelled or closed; what is watched stays watched."""
        if not self._stopped.is_set():
            raise RuntimeError("this poller is running already")
        self._stopped.clear()
        try:
            async with asyncio.TaskGroup() as group:
                while not self._closed:
                    if self._heard_in_s() <= 0:
                        for watch in self._hearsay.take(self._backend.bulk_limit):
                            self.hurry(watch.job_id)
                    wait_s = self._wait_s()
                    if wait_s < _NOW_S:
                        self._send(group)
                    else:
                        await self._nap(min(wait_s, self._heard_in_s()))
                for task in self._calls:
                    task.cancel()
        finally:
            for call in self._calls.values():
                for watch in self._current(call):
                    self._queue.put(watch, self._clock())
            self._calls.clear()
            self._promise()
            self._stopped.set()

    async def close(self) -> None:
        """End `run`, with the calls that are under way, and forget all jobs."""
        self._closed = True
        self._wake.set()
        await self._stopped.wait()
        self._watches.clear()
        self._hearsay.clear()
        self._queue = DueQueue()
        self._promise()

    def _changed(self) -> None:
        self._promise()
        self._wake.set()

    def _promise(self) -> None:
        first = self._queue.first()
        if not self._watches:
            self._progress_by_s = math.inf
        elif self._calls:
            self._progress_by_s = min(call.deadline_s for call in self._calls.values()) + SLACK_S
        elif first is not None:
            self._progress_by_s = max(first.due_s, self._health.hold_until_s) + SLACK_S

    def _wait_s(self) -> float:
        first = self._queue.first()
        # In trouble one call alone tries whether it is over.
        is_narrow = self._health.failures or self._backend.blocks
        if first is None or len(self._calls) >= (1 if is_narrow else self._concurrency):
            return math.inf
        return max(first.due_s, self._health.hold_until_s) - self._clock()

    def _heard_in_s(self) -> float:
        # Hints wait until there is room: else they would pile up, and all be asked about at once.
        has_room = len(self._calls) < self._concurrency and not self._health.failures
        return self._hearsay.wait_s() if has_room else math.inf

    async def _nap(self, wait_s: float) -> None:
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(None if wait_s == math.inf else min(wait_s, _NAP_MOST_S)):
                await self._wake.wait()

    def _send(self, group: asyncio.TaskGroup) -> None:
        now_s = self._clock()
        call = _Call(self._take(now_s), now_s, now_s + self._call_s, self._health.round)
        self._calls[group.create_task(self._ask(call))] = call
        self._promise()

    def _take(self, now_s: float) -> dict[str, list[Watch]]:
        """Take those due now or soon: at most `bulk_limit` ids, and fewer of those that failed before.

        Halving is how one id that spoils every call it is in comes to be asked about alone.
        """
        batch: dict[str, list[Watch]] = {}
        most = limit = self._backend.bulk_limit
        until_s = -math.inf
        while (watch := self._queue.first()) is not None:
            if not batch:
                until_s = now_s + max(_NOW_S, min(watch.interval_s * _WINDOW, _WINDOW_MOST_S))
            limit = min(limit, max(1, most >> watch.errors))
            if watch.due_s > until_s or (len(batch) >= limit and watch.external_id not in batch):
                break
            self._queue.pop_first()
            watch.hurried = False
            watch.asked_s = now_s
            batch.setdefault(watch.external_id, []).append(watch)
        return batch

    async def _ask(self, call: _Call) -> None:
        throttled = False
        task = asyncio.current_task()
        assert task is not None  # for the type checker
        try:
            answers = await self._backend.fetch(list(call.batch))
        except Throttled as error:
            throttled = True
            answers = _all_failed(call.batch, words_of(error), seconds_of(error.retry_after_s))
        except Exception as error:  # noqa: BLE001  # whatever a backend raises is an answer that did not come
            answers = _all_failed(call.batch, words_of(error))
        self._calls.pop(task, None)
        await self._settle(call, answers, throttled=throttled)
        self._changed()

    async def _settle(self, call: _Call, answers: Mapping[str, Answer], *, throttled: bool) -> None:
        now_s = self._clock()
        failed = [answer for answer in answers.values() if isinstance(answer, RemoteError)]
        throttled = throttled or any(answer.retry_after_s is not None for answer in failed)
        in_trouble = throttled or (len(failed) == len(answers) and self._is_of_the_connection(call))
        if in_trouble:
            interval_s = min(watch.interval_s for watch in call.watches())
            self._health.fail(call.round, failed, now_s, interval_s=interval_s, throttled=throttled)
        elif len(failed) < len(answers):
            self._health.succeed(call.round, now_s)
        stretch = self._random.uniform(1 - _JITTER, 1 + _JITTER)  # one for all: who travels together stays so
        for number, watch in enumerate(self._current(call), start=1):
            interval_s = watch.interval_s
            if not isinstance(answers[watch.external_id], RemoteError):
                watch.errors = 0
            elif throttled:
                interval_s = 0.0
            else:
                watch.errors = min(watch.errors + 1, _ERRORS_MOST)
                if not in_trouble:
                    interval_s = min(interval_s * 2**watch.errors, max(interval_s, ERROR_CAP_S))
            due_s = now_s if watch.hurried else max(now_s, call.sent_s + interval_s * stretch)
            self._queue.put(watch, due_s)
            self._hand_over(watch, answers[watch.external_id])
            if number % _BREATH == 0:
                self._promise()
                await asyncio.sleep(0)

    def _is_of_the_connection(self, call: _Call) -> bool:
        """Whether a call without any good answer says something about more than its one job."""
        if len(call.batch) > 1 or len(call.watches()) >= len(self._watches):
            return True
        (only,) = call.batch
        return not self._health.suspects(only)

    def _current(self, call: _Call) -> Iterable[Watch]:
        """Yield whom the call still concerns: a job may be forgotten, or have another id, by now."""
        return (watch for watch in call.watches() if self._watches.get(watch.job_id) is watch)

    def _hand_over(self, watch: Watch, answer: Answer) -> None:
        try:
            self._on_answer(watch.job_id, watch.external_id, answer)
        except Exception as error:  # noqa: BLE001  # one job's trouble must not end the watching of the others
            known = {"connection": self._name, "job": watch.job_id, "exc_info": error}
            self._seldom.error(log, "an answer was not taken", about=watch.job_id, **known)


def _all_failed(ids: Iterable[str], message: str, retry_after_s: float | None = None) -> dict[str, Answer]:
    return dict.fromkeys(ids, RemoteError(message, retry_after_s))
