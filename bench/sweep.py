"""A runner that owns all jobs of one system outside, and what one look at all of them costs it.

For a process of its own, in which nothing else has grown.
"""

import asyncio
import gc
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, insert, select

from bench.apart import Outside
from bench.peers import resident_bytes
from jobrunner import statements
from jobrunner.clock import utcnow
from jobrunner.database import get_database
from jobrunner.models import MonitorJob
from jobrunner.models.rows import STORED_COLUMNS, refresh
from jobrunner.runner import Runner
from jobrunner.settings import configure
from jobrunner.statements import Claim, Owner, new_owner
from jobrunner.states import JobState
from jobrunner.worker.collector import calm

_INTERVAL_S = 3600.0  # nobody is looked at twice in a sweep
_HEARTRATE_S = 30.0
_LEAD_S = 1.0
_REST_S = 0.2
_CHUNK = 1000
_LOOK_S = 0.02
_GIVE_UP_S = 120.0

Attach = Callable[..., MonitorJob]
"""Makes a job for an external id, with the options of every job."""


@dataclass(frozen=True)
class Step:
    """One sweep: what is shown by all jobs, or each so manieth, that did not show it before.

    `is_rested`: the changes before it are long ago.
    """

    name: str
    word: str
    every: int = 1
    is_rested: bool = True


@dataclass
class _Found:
    """All sweeps of one name."""

    calls: list[int] = field(default_factory=list)
    operations: list[dict[str, int]] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def tell(
    url: str,
    outside: Outside,
    connections: Mapping[str, Mapping[str, Any]],
    attach: Attach,
    *,
    first: str,
    steps: Sequence[Step],
) -> None:
    """Print what the steps cost, by their names, as JSON, and end the process.

    `first`: the word that all jobs show at the beginning.
    """
    calm()  # as `jobrunner worker` does
    configure(database_url=url, connections=connections)
    asyncio.run(_tell(outside, attach, first, steps))


async def _tell(outside: Outside, attach: Attach, first: str, steps: Sequence[Step]) -> None:
    print(json.dumps(await _measure(outside, attach, first, steps)), flush=True)
    os._exit(0)  # its jobs need not be released one by one: the database goes, too


async def _measure(outside: Outside, attach: Attach, first: str, steps: Sequence[Step]) -> dict[str, Any]:
    ids = outside.ids()
    runner = Runner(get_database(), new_owner("LocalExecutor"))
    await runner.__aenter__()
    _own(runner, attach, ids[:1])  # by which everything is loaded, and connected
    await asyncio.to_thread(_wait_until_shown, runner, first)
    gc.collect()
    empty = resident_bytes()
    outside.forget_calls()
    for start in range(1, len(ids), _CHUNK):
        _own(runner, attach, ids[start : start + _CHUNK])
        await asyncio.sleep(0)
    await asyncio.to_thread(_wait_until_shown, runner, first)
    gc.collect()
    full = resident_bytes()
    await asyncio.sleep(_LEAD_S)
    loading = outside.counts()
    sweeps: dict[str, _Found] = {}
    for step in steps:
        await _sweep(runner, outside, step, sweeps.setdefault(step.name, _Found()))
    return {
        "sweeps": {name: vars(found) | {"jobs": len(ids)} for name, found in sweeps.items()},
        "loading": loading,
        "bytes_per_job": (full - empty) / (len(ids) - 1),
        "bytes_at_last": resident_bytes(),
    }


def _own(runner: Runner, attach: Attach, ids: Sequence[str]) -> None:
    """Store jobs as this runner's, all in one statement, and let him have them."""
    jobs = [attach(each, poll_interval=_INTERVAL_S, heartrate=_HEARTRATE_S) for each in ids]
    table, _ = statements.tables()
    mine = table.c.runner_id == runner.owner.runner_id
    with runner.database.write() as connection:
        last = connection.scalar(select(func.max(table.c.id)).where(mine)) or 0
        connection.execute(insert(table), [_claimed(job, runner.owner) for job in jobs])
        rows = connection.execute(select(table).where(mine, table.c.id > last)).mappings().all()
    by_external_id = {row["external_id"]: row for row in rows}
    for job in jobs:
        row = by_external_id[job.external_id]
        refresh(job, row)
        runner.take(Claim(row["id"], runner.owner.runner_id, row["claims"]), row, job)


def _claimed(job: MonitorJob, owner: Owner) -> dict[str, object]:
    stored = {key: getattr(job, key) for key in STORED_COLUMNS}
    claim = {"state": JobState.RUNNING, "runner_id": owner.runner_id, "claims": 1, "start_date": utcnow()}
    return stored | claim


async def _sweep(runner: Runner, outside: Outside, step: Step, found: _Found) -> None:
    """Note the calls, the seconds and the CPU seconds from "all are due" to "all rows show it"."""
    if step.is_rested:
        outside.rest()
    outside.show(step.word, step.every)
    outside.forget_calls()
    due_s = time.monotonic() + _LEAD_S
    for owned in runner.jobs.values():
        owned.channel.poller.watch(
            owned.job_id, owned.external_id or "", _INTERVAL_S, first_in_s=due_s - time.monotonic()
        )
    ids = outside.ids()[:: step.every] if step.every > 1 else None
    gc.collect()
    await asyncio.sleep(due_s - time.monotonic() - _LOOK_S)
    began_s = time.process_time()
    shown_s, watching_s = await asyncio.to_thread(_wait_until_shown, runner, step.word, ids)
    await asyncio.sleep(_REST_S)  # what is still done after the last write counts, too
    found.cpu_s.append(time.process_time() - began_s - watching_s)
    found.wall_s.append(shown_s - due_s)
    found.operations.append(outside.counts())
    found.calls.append(sum(found.operations[-1].values()))


def _wait_until_shown(runner: Runner, word: str, ids: Sequence[str] | None = None) -> tuple[float, float]:
    """Return when the rows, all or these, show the word, and the CPU seconds that it took to see it."""
    began_s = time.thread_time()
    table, _ = statements.tables()
    is_behind = table.c.external_state.is_distinct_from(word)
    if ids is not None:
        is_behind &= table.c.external_id.in_(ids)
    # The last first, which is the last to be written: while one is behind, it is soon found.
    behind = select(table.c.id).where(is_behind).order_by(table.c.id.desc()).limit(1)
    give_up_s = time.monotonic() + _GIVE_UP_S
    while True:
        with runner.database.read() as connection:
            one = connection.scalar(behind)
        now_s = time.monotonic()
        if one is None:
            return now_s, time.thread_time() - began_s
        if now_s > give_up_s:
            raise TimeoutError(f"job {one} does not show {word}")
        time.sleep(_LOOK_S)
