"""Writing how jobs ended: in bulk, as one burst of ends must not keep its jobs waiting for long."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobrunner.backends.base import Observation
from jobrunner.errors import DatabaseError, DatabaseUnavailable, SchemaError
from jobrunner.log_limits import Trouble
from jobrunner.logs import get_logger
from jobrunner.outcome import Ending, Verdict, write_ends
from jobrunner.owned import OwnedJob
from jobrunner.retry import Retry
from jobrunner.states import JobState

if TYPE_CHECKING:
    from jobrunner.runner import Runner

log = get_logger(__name__)

_CHUNK = 1_000  # rows a statement: it keeps SQLite's only writer for about 30 ms
_HELD_FIRST_S = 0.02  # our own beat may hold the row, and lets it go at once
_HELD_MOST_S = 1.0


@dataclass(slots=True, eq=False)
class _Waiting:
    """A job whose end is to be written."""

    owned: OwnedJob
    ending: Ending
    done: asyncio.Future[JobState | str]
    held: Retry = field(default_factory=lambda: Retry(first_s=_HELD_FIRST_S, most_s=_HELD_MOST_S))
    """Pauses while somebody holds its row locked."""


class Ends:
    """Writes the ends of a runner's jobs: one task, and in one statement what came during the last one.

    So an end that comes alone waits for nothing, and thousands that come together take few statements.
    A row that is held locked is passed over and tried again, and one that is refused is tried alone:
    neither holds up another. Until it is written, the job stays the runner's, and is beaten for.
    """

    def __init__(self, runner: "Runner") -> None:
        self._runner = runner
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None
        self._trouble = Trouble()

    async def write(self, owned: OwnedJob, last: Observation | Verdict) -> JobState | str:
        """Write how a job ended; return the state that stands, or why it was not ours to be written."""
        ending = Ending(owned.claim, owned.external_id, last, owned.cancellation.waited)
        done: asyncio.Future[JobState | str] = asyncio.get_running_loop().create_future()
        owned.is_ending = True
        with owned.waiting():
            self._add([_Waiting(owned, ending, done)])
            return await done

    def _add(self, some: Iterable[_Waiting]) -> None:
        self._waiting += some
        if self._writer is None:
            self._writer = self._runner.spawn(self._write(), is_step=True)

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
                        log.warning("ends cannot be written yet", jobs=len(some), error=error)
                    self._waiting[:0] = [each for each in some if not each.done.done()]
                    await retry.pause()
                else:
                    self._trouble.ends()
                    retry = self._retry()
        finally:
            self._writer = None

    def _retry(self) -> Retry:
        return Retry(most_s=self._runner.database.settings.heartrate)

    def _take(self) -> list[_Waiting]:
        """Take the next ones, of each job one: its former claim's end may wait beside its present one's."""
        some: dict[int, _Waiting] = {}
        left: list[_Waiting] = []
        for each in self._waiting:
            if each.done.done():
                continue
            if each.owned.over:
                each.done.set_result(f"Job {each.owned.job_id} was given up.")  # which was said
            elif len(some) < _CHUNK and each.owned.job_id not in some:
                some[each.owned.job_id] = each
            else:
                left.append(each)
        self._waiting = left
        return list(some.values())

    async def _write_some(self, some: list[_Waiting], *, plainly: bool = False) -> None:
        """Write these ends, as far as their rows take them. Raises what an outage raises."""
        me, endings = self._runner.owner.runner_id, [each.ending for each in some]
        try:
            outcomes = await self._runner.call(write_ends, me, endings, plainly=plainly)
        except (DatabaseUnavailable, SchemaError):
            raise
        except Exception as error:  # noqa: BLE001  # one row was refused, for whatever it holds
            await self._write_fewer(some, error, plainly=plainly)
            return
        held: list[_Waiting] = []
        for each in some:
            outcome = outcomes[each.owned.job_id]
            if each.done.done():
                continue
            if outcome is None:
                held.append(each)
            else:
                each.done.set_result(outcome)
        for each in held:
            asyncio.get_running_loop().call_later(each.held.next_s(), self._add, [each])

    async def _write_fewer(self, some: list[_Waiting], error: Exception, *, plainly: bool) -> None:
        """Find the row that spoils the others, and write of it what every database takes."""
        if len(some) > 1:
            middle = len(some) // 2
            await self._write_some(some[:middle])
            await self._write_some(some[middle:])
        elif not plainly:
            (only,) = some
            job_id = only.owned.job_id
            self._runner.seldom.error(
                log, "an end was refused as it was seen", about=job_id, job=job_id, error=error
            )
            await self._write_some(some, plainly=True)
        elif isinstance(error, DatabaseError):
            raise DatabaseUnavailable(str(error)) from error  # what it refuses now, it may take later
        elif not some[0].done.done():
            some[0].done.set_exception(error)
