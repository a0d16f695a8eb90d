"""What the event streams of job sets say: a hint to ask about a job at once, and nothing more."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

from jobrunner.backends.armada.ids import JobKey
from jobrunner.backends.armada.trouble import Kind
from jobrunner.backends.armada.wire import Wire, messages
from jobrunner.clock import monotonic_s, utcnow
from jobrunner.errors import words_of
from jobrunner.logs import get_logger
from jobrunner.retry import Retry

log = get_logger(__name__)

STREAMS_MOST = 50
"""Job sets that are listened to at once; the others are polled as ever."""
SILENCE_S = 60.0
"""After so much silence a stream is opened again: one that was cut off says nothing more, for ever."""

_FORGET_S = 900.0  # a job set nobody asks about has no jobs of ours any more
_LOOK_S = 1.0
_BACK_S = 600.0  # how far before now a first stream begins: clocks differ, and it was opened late
_HINTS_MOST = 10_000
_TELLING = frozenset(
    {"leased", "pending", "running", "failed", "succeeded", "cancelled", "preempted", "lease_returned"}
)


class Listener:
    """Listens to the job sets of which somebody asked; after `silence_s` a stream is opened again."""

    def __init__(self, wire: Wire, silence_s: float = SILENCE_S) -> None:
        self._wire = wire
        self.silence_s = silence_s
        self._asked_s: dict[tuple[str, str], float] = {}
        self._last_id: dict[tuple[str, str], str] = {}
        self._from_the_first: set[tuple[str, str]] = set()
        self._streams: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._hints: asyncio.Queue[str] = asyncio.Queue(_HINTS_MOST)

    def listen_to(self, keys: Iterable[JobKey]) -> None:
        """Take note that these jobs are asked about."""
        now_s = monotonic_s()
        for key in keys:
            self._asked_s[key.queue, key.job_set] = now_s

    async def external_ids(self) -> AsyncIterator[str]:
        """Yield the external ids of jobs of which an event came, for ever."""
        try:
            while True:
                self._open_and_close()
                heard = None
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        heard = await self._hints.get()
                # Not within the timeout: it would cut off whoever takes it, when he takes his time.
                if heard is not None:
                    yield heard
        finally:
            await self.close()

    async def close(self) -> None:
        """End the streams."""
        tasks, self._streams = list(self._streams.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _open_and_close(self) -> None:
        now_s = monotonic_s()
        for job_set, asked_s in list(self._asked_s.items()):
            if now_s - asked_s > _FORGET_S:
                del self._asked_s[job_set]
                self._last_id.pop(job_set, None)
                self._from_the_first.discard(job_set)
                task = self._streams.pop(job_set, None)
                if task is not None:
                    task.cancel()
        for job_set in self._asked_s:
            if job_set not in self._streams and len(self._streams) < STREAMS_MOST:
                self._streams[job_set] = asyncio.create_task(
                    self._listen(job_set), name=f"events of {job_set[1]}"
                )

    async def _listen(self, job_set: tuple[str, str]) -> None:
        """Hear one job set, again and again. Trouble here is none in the watching."""
        retry = Retry(first_s=1.0)
        is_deaf = False
        while True:
            after = self._begin(job_set)
            try:
                heard = await self._hear(job_set, after)
            except Exception as error:  # noqa: BLE001  # whatever it is: it is polled all the same
                heard = 0
                if not is_deaf:
                    log.info(
                        "a job set is not heard", queue=job_set[0], job_set=job_set[1], error=words_of(error)
                    )
                is_deaf = True
                kind = getattr(error, "kind", None)
                if kind in {Kind.REFUSED, Kind.UNCLEAR} and self._last_id.get(job_set) in {None, after}:
                    self._begin_elsewhere(job_set)
                if kind in {Kind.PERMISSION, Kind.NOT_ARMADA}:
                    await asyncio.sleep(_FORGET_S)
            if heard:
                retry, is_deaf = Retry(first_s=1.0), False
            await retry.pause()

    async def _hear(self, job_set: tuple[str, str], after: str) -> int:
        """Hear one stream until it ends or falls silent; return how many messages came.

        `after`: the id of the message that it goes on from.
        """
        queue, job_set_id = job_set
        request = messages("event").JobSetRequest(
            queue=queue,
            id=job_set_id,
            watch=True,
            from_message_id=after,
            errorIfMissing=False,
        )
        stream = self._wire.stream("Event", "GetJobSetEvents", request)
        count = 0
        try:
            while True:
                async with asyncio.timeout(self.silence_s):
                    found = await anext(stream, None)
                if found is None:
                    return count
                count += 1
                if found.id:
                    self._last_id[job_set] = found.id
                self._tell(job_set, found.message)
        except TimeoutError:
            return count
        finally:
            await stream.aclose()  # type: ignore[attr-defined]  # it is a generator

    def _begin(self, job_set: tuple[str, str]) -> str:
        """Return the id of the message after which a stream is to go on."""
        if job_set in self._last_id:
            return self._last_id[job_set]
        return "" if job_set in self._from_the_first else _some_time_ago()

    def _begin_elsewhere(self, job_set: tuple[str, str]) -> None:
        """Begin the next stream elsewhere: its id may be too old, or of another form."""
        if self._last_id.pop(job_set, None) is None:
            self._from_the_first ^= {job_set}

    def _tell(self, job_set: tuple[str, str], message: Any) -> None:
        kind = message.WhichOneof("events")
        if kind not in _TELLING:
            return
        job_id = getattr(message, kind).job_id
        if job_id:
            with suppress(asyncio.QueueFull):  # then all are asked about soon enough
                self._hints.put_nowait(JobKey(*job_set, job_id).join())


def _some_time_ago() -> str:
    """Return an id of a message that may have come then: ids begin with the server's milliseconds.

    Without one, a stream tells all that ever happened in the job set.
    """
    return f"{int((utcnow().timestamp() - _BACK_S) * 1000)}:0:0:1"
