"""An outside system in memory, which does what it is told and goes wrong on order.

    outside = MemoryBackend(plan=Plan(run_for_s=0.2))
    outside.order(Fault.ANSWER_LOST, call="submit")
    outside.order(Fault.THROTTLE, times=3, retry_after_s=0.1)
    ...
    assert outside.submissions(token) == 1

It is the *outside*: one object may serve several runners at once, also on several threads, and
outlives them all; `close` only counts. Nothing in it runs by itself: a job moves when it is looked
at, by its `Plan`, or by hand through `advance`, `succeed` and `fail`.
"""

import asyncio
import datetime as dt
import itertools
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from jobrunner.backends.base import (
    Absent,
    Found,
    Gone,
    LogLine,
    Observation,
    Patience,
    RemoteError,
    Unsure,
    ensure_in_time,
)
from jobrunner.clock import monotonic_s, utcnow
from jobrunner.errors import SubmitTooLate
from jobrunner.states import Phase
from jobrunner.testing.faults import ALL_CALLS, CALLS_OF, Call, Fault, Order
from jobrunner.testing.work import MemoryJob, Plan

_PAUSE_LOOK_S = 0.005


class MemoryBackend:
    """A stateful double of an outside system; it keeps the contract of `Backend`.

    `plan` is how jobs behave; a job's spec may override its fields. `bulk_limit` is enforced:
    asking for more raises ValueError. `patience` is what runners read.

    `idempotent`: a second submission of a token returns the first one's job. By default it makes a
    second job, so that `submissions(token) == 1` proves what the runner did, not what we did for it.

    `absent_is_sure`: False makes `find` say `Unsure(None)` where it would say `Absent`.
    `absent_blocks`: once `find` has said `Absent`, a submission of that token raises `SubmitTooLate`,
    also one that was paused on its way; a new try takes a new token. False: `Absent` is a lie, unless
    the backend is `idempotent`.
    """

    def __init__(
        self,
        *,
        plan: Plan | None = None,
        bulk_limit: int = 100,
        patience: Patience | None = None,
        idempotent: bool = False,
        absent_is_sure: bool = True,
        absent_blocks: bool = True,
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        self.plan = plan or Plan()
        self.bulk_limit = bulk_limit
        self.patience = patience or Patience()
        self.idempotent = idempotent
        self.absent_is_sure = absent_is_sure
        self.absent_blocks = absent_blocks
        self.jobs: dict[str, MemoryJob] = {}
        """Every job that was made, by external id, since `forget` was called last."""
        self.calls: Counter[str] = Counter()
        """How many calls of each method arrived, spoiled ones included."""
        self.history: list[Call] = []
        """The calls one by one, oldest first."""
        self._clock = clock
        self._lock = threading.RLock()
        self._orders: list[Order] = []
        self._by_token: dict[str, list[str]] = {}
        self._closed_tokens: set[str] = set()
        self._numbers = itertools.count(1)
        self._streams: list[tuple[asyncio.AbstractEventLoop, asyncio.Queue[str | Exception]]] = []

    # The hand of the test.

    def order(
        self,
        fault: Fault,
        call: str = "fetch",
        times: int | None = 1,
        ids: Iterable[str] | None = None,
        *,
        message: str = "",
        retry_after_s: float | None = None,
        retry_at: dt.datetime | None = None,
        delay_s: float = 0.0,
        answer: Any = ...,
        certain: bool = False,
    ) -> Order:
        """Spoil the next `times` calls of `call` that name one of `ids`; None is all of them.

        Orders are served in the order they were given, one a call. Raises ValueError for a fault
        that the call cannot have. See `Fault` for what each does and which option it reads.
        """
        if call not in CALLS_OF.get(fault, ALL_CALLS):
            raise ValueError(f"{call} cannot go wrong by {fault!r}: see jobrunner.testing.Fault")
        order = Order(
            fault=fault,
            call=call,
            times=times,
            ids=None if ids is None else frozenset(ids),
            message=message or f"{fault} was ordered",
            retry_after_s=retry_after_s,
            retry_at=retry_at,
            delay_s=delay_s,
            answer=answer,
            certain=certain,
        )
        with self._lock:
            self._orders.append(order)
        return order

    def advance(
        self,
        external_id: str,
        phase: Phase,
        message: str = "",
        detail: Mapping[str, Any] | None = None,
        *,
        cause: str = "",
    ) -> None:
        """Put a job into `phase`, whatever its plan says; raises KeyError for an unknown id."""
        with self._lock:
            self.jobs[external_id].cause = cause
            self.jobs[external_id].move(phase, self._clock(), message, detail)

    def succeed(self, external_id: str, message: str = "") -> None:
        """Let a job end well."""
        self.advance(external_id, Phase.SUCCEEDED, message)

    def fail(self, external_id: str, message: str = "it failed") -> None:
        """Let a job end badly."""
        self.advance(external_id, Phase.FAILED, message)

    def write(self, external_id: str, *lines: str) -> None:
        """Append to a job's output."""
        with self._lock:
            self.jobs[external_id].lines += [LogLine(line, utcnow()) for line in lines]

    def tell(self, *external_ids: str) -> None:
        """Let all who listen to `events` hear of these jobs, true or not."""
        self._send(external_ids)

    def break_events(self, error: Exception) -> None:
        """Let `error` end each stream of events that is listened to now."""
        self._send([error])

    def forget(self) -> None:
        """Forget all jobs, tokens, calls and orders so far, for a test that goes on for long.

        A job that still runs is gone with the others; no external id is ever given again.
        """
        with self._lock:
            for each in (self.jobs, self.calls, self.history, self._orders, self._by_token):
                each.clear()
            self._closed_tokens.clear()

    @property
    def listeners(self) -> int:
        """How many streams of events are listened to now."""
        with self._lock:
            return len(self._streams)

    def submissions(self, token: str) -> int:
        """Return how many jobs were made under `token`."""
        with self._lock:
            return len(self._by_token.get(token, ()))

    def job_of(self, token: str) -> MemoryJob:
        """Return the one job of `token`, settled to now; AssertionError unless there is exactly one."""
        with self._lock:
            made = self._by_token.get(token, [])
            if len(made) != 1:
                raise AssertionError(f"{len(made)} jobs were made under token {token}, not one")
            job = self.jobs[made[0]]
            job.settle(self._clock())
            return job

    # The contract of Backend.

    async def submit(self, spec: Mapping[str, Any], token: str) -> str:
        """Make a job, unless the token's time is over."""
        order = await self._arrive("submit", (token,))
        with self._lock:
            if order is not None:
                if order.fault is Fault.GARBAGE:
                    return cast("str", None if order.answer is ... else order.answer)
                if order.fault is not Fault.ANSWER_LOST:
                    raise order.error()
            ensure_in_time()
            if token in self._closed_tokens:
                raise SubmitTooLate(f"token {token} was already said to be absent; nothing was sent")
            made = self._by_token.setdefault(token, [])
            if not (self.idempotent and made):
                made.append(self._make(spec, token))
            if order is not None:
                raise order.error()
            return made[0] if self.idempotent else made[-1]

    async def find(self, spec: Mapping[str, Any], token: str, since: dt.datetime) -> Found | Absent | Unsure:
        """Tell what became of a submission, by a listing that lags by `appear_after_s`."""
        order = await self._arrive("find", (token,))
        with self._lock:
            if order is None:
                return self._prove(spec, token, since)
            if order.fault is Fault.UNSURE:
                return Unsure(order.retry_at, order.message)
            if order.fault is Fault.GARBAGE:
                return cast("Absent", None if order.answer is ... else order.answer)
            raise order.error()

    async def fetch(self, ids: Sequence[str]) -> Mapping[str, Observation | Gone | RemoteError]:
        """Answer for each id; raises ValueError for more than `bulk_limit`."""
        order = await self._arrive("fetch", tuple(ids))
        with self._lock:
            answers = {external_id: self._look(external_id) for external_id in ids}
            if order is None:
                return answers
            if order.fault is Fault.GARBAGE and order.answer is not ...:
                return cast("Mapping[str, Observation]", order.answer)
            if order.fault is Fault.GARBAGE:
                garbage = {key: object() if order.concerns(key) else value for key, value in answers.items()}
                return cast("Mapping[str, Observation]", garbage | {"never-asked-for": Gone()})
            if order.fault is Fault.VANISH:
                gone = Gone(order.message, certain=order.certain)
                return {key: gone if order.concerns(key) else value for key, value in answers.items()}
            if order.fault is Fault.ERROR and order.ids is not None:
                error = RemoteError(order.message, order.retry_after_s)
                return {key: error if order.concerns(key) else value for key, value in answers.items()}
            raise order.error()

    async def cancel(self, ids: Sequence[str], reason: str) -> Mapping[str, RemoteError]:
        """Ask jobs to end; unknown and finished ones are none of our trouble."""
        order = await self._arrive("cancel", tuple(ids))
        refused: dict[str, RemoteError] = {}
        with self._lock:
            if order is not None:
                if order.fault is Fault.GARBAGE:
                    return cast("Mapping[str, RemoteError]", None if order.answer is ... else order.answer)
                if order.fault is Fault.ERROR and order.ids is not None:
                    refused = {
                        key: RemoteError(order.message, order.retry_after_s)
                        for key in ids
                        if order.concerns(key)
                    }
                elif order.fault is not Fault.ANSWER_LOST:
                    raise order.error()
            now_s = self._clock()
            for external_id in ids:
                job = self.jobs.get(external_id)
                if job is not None and external_id not in refused:
                    job.settle(now_s)
                    job.ask_to_end(reason, now_s)
            if order is not None and order.fault is Fault.ANSWER_LOST:
                raise order.error()
        return refused

    async def logs(self, external_id: str, since: dt.datetime | None) -> AsyncIterator[LogLine]:
        """Yield what `write` appended; an unknown id has no output."""
        self._note("logs", (external_id,))
        with self._lock:
            job = self.jobs.get(external_id)
            lines = [] if job is None else list(job.lines)
        for line in lines:
            if since is None or line.at is None or line.at >= since:
                yield line

    async def events(self) -> AsyncIterator[str]:
        """Yield what `tell` says from now on."""
        stream = (asyncio.get_running_loop(), asyncio.Queue[str | Exception]())
        with self._lock:
            self._streams.append(stream)
        try:
            while True:
                heard = await stream[1].get()
                if isinstance(heard, Exception):
                    raise heard
                yield heard
        finally:
            with self._lock:
                self._streams.remove(stream)

    async def close(self) -> None:
        """Only be counted: the outside outlives its callers."""
        self._note("close", ())

    # Inside.

    def _send(self, what: Iterable[str | Exception]) -> None:
        with self._lock:
            for loop, queue in self._streams:
                for each in what:
                    loop.call_soon_threadsafe(queue.put_nowait, each)

    def _make(self, spec: Mapping[str, Any], token: str) -> str:
        external_id = f"memory-{next(self._numbers)}"
        self.jobs[external_id] = MemoryJob(
            external_id, token, dict(spec), self.plan.overridden_by(spec), self._clock()
        )
        return external_id

    def _prove(self, spec: Mapping[str, Any], token: str, since: dt.datetime) -> Found | Absent | Unsure:
        for external_id in self._by_token.get(token, ()):
            hidden_s = self.jobs[external_id].visible_at_s() - self._clock()
            if hidden_s > 0:
                return Unsure(utcnow() + dt.timedelta(seconds=hidden_s), "the listing lags")
            return Found(external_id)
        listed_at = since + dt.timedelta(seconds=self.plan.overridden_by(spec).appear_after_s)
        if listed_at > max(since, utcnow()):
            return Unsure(listed_at, "the listing lags")
        if not self.absent_is_sure:
            return Unsure(None)
        if self.absent_blocks:
            self._closed_tokens.add(token)
        return Absent()

    def _look(self, external_id: str) -> Observation | Gone | RemoteError:
        job, now_s = self.jobs.get(external_id), self._clock()
        if job is None or job.visible_at_s() > now_s:
            return Gone()
        job.settle(now_s)
        return job.observation()

    def _note(self, method: str, keys: tuple[str, ...]) -> None:
        with self._lock:
            self.calls[method] += 1
            self.history.append(Call(method, keys, self._clock()))

    async def _arrive(self, method: str, keys: tuple[str, ...]) -> Order | None:
        """Note a call and let it wait as ordered; return an order that is still to be served."""
        self._note(method, keys)
        if method in {"fetch", "cancel"} and len(keys) > self.bulk_limit:
            raise ValueError(
                f"{method} was asked for {len(keys)} ids, more than bulk_limit {self.bulk_limit}"
            )
        with self._lock:
            order = next((each for each in self._orders if each.take(method, keys)), None)
            self._orders = [each for each in self._orders if each.times != 0]
        if order is None:
            await asyncio.sleep(0)  # as any call over a network, it lets others run
        elif order.fault is Fault.TIMEOUT:
            await asyncio.get_running_loop().create_future()
        elif order.fault is Fault.SLOW:
            await asyncio.sleep(order.delay_s)
        elif order.fault is Fault.LATE:
            while not order.is_released:  # noqa: ASYNC110  # the release may come from any thread
                await asyncio.sleep(_PAUSE_LOOK_S)
        else:
            return order
        return None
