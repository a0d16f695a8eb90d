"""Which records of process jobs this worker sees: those that it does not see are not its to take."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from jobrunner import record_places

_LOOK_MOST_S = 5.0  # a disk that hangs keeps one thread, and no round of the worker
_NO_ANSWER = "its records cannot be looked at now: their disk does not answer"


class Sight:
    """Looks for the records of jobs whose work has begun on this host, on a thread."""

    def __init__(self) -> None:
        self._look: asyncio.Task[Any] | None = None

    async def unseen(self, rows: Iterable[Mapping[Any, Any]]) -> dict[int, str]:
        """Return of these jobs, all of this host, those whose records cannot be seen, each with the reason.

        `rows`: as `record_places.why_unseen` takes them, with their ids.
        """
        bound = [row for row in rows if row["host_id"] is not None]
        found = await self._looked(partial(_unseen, bound)) if bound else {}
        return dict.fromkeys((row["id"] for row in bound), _NO_ANSWER) if found is None else found

    async def living(self, rows: Sequence[Mapping[Any, Any]]) -> set[int]:
        """Return those of these jobs of which processes live here; all where that cannot be told now."""
        found = await self._looked(partial(_living, rows)) if rows else set()
        return {row["id"] for row in rows} if found is None else found

    async def _looked(self, look: partial[Any]) -> Any:
        """Return what a look finds; None: it, or an earlier one, still waits for a disk."""
        if self._look is not None and not self._look.done():
            return None
        self._look = asyncio.create_task(asyncio.to_thread(look))
        await asyncio.wait([self._look], timeout=_LOOK_MOST_S)
        return self._look.result() if self._look.done() else None


def _unseen(rows: Collection[Mapping[Any, Any]]) -> dict[int, str]:
    mark_of = cache(record_places.mark_of)
    found = {row["id"]: record_places.why_unseen(row, mark_of) for row in rows}
    return {job_id: why for job_id, why in found.items() if why is not None}


def _living(rows: Collection[Mapping[Any, Any]]) -> set[int]:
    from jobrunner.backends.process.tree import carried  # here: few workers ever ask

    records = {row["id"]: record_places.record_of(row) for row in rows}
    live = carried(records.values())
    return {job_id for job_id, record in records.items() if record in live}
