"""Writes about a runner's jobs in bulk: a burst must not keep its jobs waiting, nor one row the others."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from sqlalchemy import Connection

from jobrunner.errors import DatabaseUnavailable, SchemaError
from jobrunner.log_limits import Trouble
from jobrunner.logs import get_logger
from jobrunner.owned import OwnedJob
from jobrunner.retry import Retry

if TYPE_CHECKING:
    from jobrunner.runner import Runner

log = get_logger(__name__)

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

_CHUNK = 1_000  # rows a statement: it keeps SQLite's only writer for about 30 ms
_HELD_FIRST_S = 0.02  # our own beat may hold the row, and lets it go at once
_HELD_MOST_S = 1.0


@dataclass(frozen=True, slots=True)
class Bulk(Generic[_Item, _Answer]):
    """What is written in bulk, and what its answers mean.

    `write(connection, runner_id, items)`: one item a job; the answers by the jobs' ids, and None for one that
    is to be tried again, as somebody holds its row locked.
    `given_up(owned)`: the answer for a job that is no longer this runner's.
    `refused(owned, item, error)`: what to write in place of an item that the database refuses; None: the same
    again, later. What it raises is raised for that job alone.
    """

    name: str
    """What is written, in the plural, as the log says it."""
    write: Callable[[Connection, str, Sequence[_Item]], Mapping[int, _Answer | None]]
    given_up: Callable[[OwnedJob], _Answer]
    refused: Callable[[OwnedJob, _Item, Exception], _Item | None]
    is_step: bool
    """Whether a runner that is told to stop waits until it is written."""


@dataclass(slots=True, eq=False)
class _Waiting(Generic[_Item, _Answer]):
    """What is to be written for one job."""

    owned: OwnedJob
    item: _Item
    done: asyncio.Future[_Answer]
    later: Retry = field(default_factory=lambda: Retry(first_s=_HELD_FIRST_S, most_s=_HELD_MOST_S))
    """Pauses while somebody holds its row locked."""


class BulkWriter(Generic[_Item, _Answer]):
    """Writes for a runner's jobs: one task, and in one statement what came during the last one.

    So what comes alone waits for nothing, and thousands that come together take few statements. A row that
    is held locked is passed over and tried again, and one that is refused is tried alone: neither holds up
    another.
    """

    def __init__(self, runner: "Runner", bulk: Bulk[_Item, _Answer]) -> None:
        self._runner = runner
        self._bulk = bulk
        self._waiting: list[_Waiting[_Item, _Answer]] = []
        self._writer: asyncio.Task[None] | None = None
        self._trouble = Trouble()

    async def write(self, owned: OwnedJob, item: _Item) -> _Answer:
        """Write an item for a job, and return the answer; raises what `refused` raises."""
        done: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        with owned.waiting():
            self._add([_Waiting(owned, item, done)])
            return await done

    def _add(self, some: Iterable[_Waiting[_Item, _Answer]]) -> None:
        self._waiting += some
        if self._writer is None:
            self._writer = self._runner.spawn(self._write(), is_step=self._bulk.is_step)

    async def _write(self) -> None:
        retry = self._retry()
        try:
            while self._waiting:
                some = self._take()
                try:
                    if some:
                        await self._write_some(some)
                except (DatabaseUnavailable, SchemaError) as error:
                    if self._trouble.begins():
                        log.warning(f"{self._bulk.name} cannot be written yet", jobs=len(some), error=error)
                    self._waiting[:0] = [each for each in some if not each.done.done()]
                    await retry.pause()
                else:
                    self._trouble.ends()
                    retry = self._retry()
        finally:
            self._writer = None

    def _retry(self) -> Retry:
        return Retry(most_s=self._runner.database.settings.heartrate)

    def _take(self) -> list[_Waiting[_Item, _Answer]]:
        """Take the next ones, of each job one: that of a former claim may wait beside the present one's."""
        some: dict[int, _Waiting[_Item, _Answer]] = {}
        left: list[_Waiting[_Item, _Answer]] = []
        for each in self._waiting:
            if each.done.done():
                continue
            if each.owned.over:
                each.done.set_result(self._bulk.given_up(each.owned))
            elif len(some) < _CHUNK and each.owned.job_id not in some:
                some[each.owned.job_id] = each
            else:
                left.append(each)
        self._waiting = left
        return list(some.values())

    async def _write_some(self, some: list[_Waiting[_Item, _Answer]]) -> None:
        """Write these, as far as their rows take them. Raises what an outage raises."""
        me, items = self._runner.owner.runner_id, [each.item for each in some]
        try:
            answers = await self._runner.call(self._bulk.write, me, items)
        except (DatabaseUnavailable, SchemaError):
            raise
        except Exception as error:  # noqa: BLE001  # one row was refused, for whatever it holds
            await self._write_fewer(some, error)
            return
        for each in some:
            answer = answers[each.owned.job_id]
            if answer is None:
                self._write_later(each)
            elif not each.done.done():
                each.done.set_result(answer)

    def _write_later(self, each: _Waiting[_Item, _Answer]) -> None:
        asyncio.get_running_loop().call_later(each.later.next_s(), self._add, [each])

    async def _write_fewer(self, some: list[_Waiting[_Item, _Answer]], error: Exception) -> None:
        """Find the row that spoils the others, and go on without it."""
        if len(some) > 1:
            middle = len(some) // 2
            await self._write_some(some[:middle])
            await self._write_some(some[middle:])
            return
        (only,) = some
        try:
            instead = self._bulk.refused(only.owned, only.item, error)
        except Exception as final:  # noqa: BLE001  # it is raised where the item came from
            if not only.done.done():
                only.done.set_exception(final)
            return
        if instead is None:
            self._write_later(only)
        else:
            only.item = instead
            await self._write_some(some)
