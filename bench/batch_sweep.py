"""A runner that owns jobs of AWS Batch, and what one look at all of them costs it.

A process of its own, in which nothing else has grown: `python -m bench.batch_sweep URL STUB_URL ROUNDS`.
"""

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Sequence

from sqlalchemy import func, insert, select

from bench.batch_peers import resident_bytes
from jobrunner import BatchMonitorJob, statements
from jobrunner.clock import utcnow
from jobrunner.database import get_database
from jobrunner.models.rows import STORED_COLUMNS, refresh
from jobrunner.runner import Runner
from jobrunner.settings import configure
from jobrunner.statements import Claim, Owner, new_owner
from jobrunner.states import JobState
from tests.stubs.batch_server import BatchStub, reach

_INTERVAL_S = 3600.0  # nobody is looked at twice in a sweep
_LEAD_S = 1.0
_REST_S = 0.2
_CHUNK = 1000
_LOOK_S = 0.02
_GIVE_UP_S = 120.0


async def _measure(url: str, stub: BatchStub, rounds: int) -> dict[str, object]:
    configure(
        database_url=url,
        connections={"batch_default": {"kind": "batch", "endpoint_url": stub.url, "region": "eu-west-1"}},
    )
    ids = stub.job_ids()
    runner = Runner(get_database(), new_owner("LocalExecutor"))
    await runner.__aenter__()
    _own(runner, ids[:1])  # by which everything is loaded, and connected
    await asyncio.to_thread(_wait_until_shown, runner, "RUNNING")
    gc.collect()
    empty = resident_bytes()
    for start in range(1, len(ids), _CHUNK):
        _own(runner, ids[start : start + _CHUNK])
        await asyncio.sleep(0)
    await asyncio.to_thread(_wait_until_shown, runner, "RUNNING")
    gc.collect()
    full = resident_bytes()
    sweeps = [await _sweep(runner, stub, "RUNNING" if number % 2 else "RUNNABLE") for number in range(rounds)]
    return {
        "calls": [each[0] for each in sweeps],
        "wall_s": [each[1] for each in sweeps],
        "cpu_s": [each[2] for each in sweeps],
        "bytes_per_job": (full - empty) / (len(ids) - 1),
        "bytes_at_last": resident_bytes(),
    }


def _own(runner: Runner, ids: Sequence[str]) -> None:
    """Store jobs as this runner's, all in one statement, and let him have them."""
    jobs = [BatchMonitorJob.attach(each, poll_interval=_INTERVAL_S, heartrate=30.0) for each in ids]
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


def _claimed(job: BatchMonitorJob, owner: Owner) -> dict[str, object]:
    stored = {key: getattr(job, key) for key in STORED_COLUMNS}
    claim = {"state": JobState.RUNNING, "runner_id": owner.runner_id, "claims": 1, "start_date": utcnow()}
    return stored | claim


async def _sweep(runner: Runner, stub: BatchStub, status: str) -> tuple[int, float, float]:
    """Return the calls, the seconds and the CPU seconds from "all are due" to "all rows show it"."""
    stub.bump(status)
    stub.forget_calls()
    due_s = time.monotonic() + _LEAD_S
    for owned in runner.jobs.values():
        owned.channel.poller.watch(
            owned.job_id, owned.external_id or "", _INTERVAL_S, first_in_s=due_s - time.monotonic()
        )
    gc.collect()
    await asyncio.sleep(due_s - time.monotonic() - _LOOK_S)
    began_s = time.process_time()
    shown_s, watching_s = await asyncio.to_thread(_wait_until_shown, runner, status)
    await asyncio.sleep(_REST_S)  # what is still done after the last write counts, too
    cpu_s = time.process_time() - began_s - watching_s
    return stub.calls_per_operation()["DescribeJobs"], shown_s - due_s, cpu_s


def _wait_until_shown(runner: Runner, status: str) -> tuple[float, float]:
    """Return when all rows show the status, and the CPU seconds that this thread took to see it."""
    began_s = time.thread_time()
    table, _ = statements.tables()
    is_behind = table.c.external_state.is_distinct_from(status)
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
            raise TimeoutError(f"job {one} does not show {status}")
        time.sleep(_LOOK_S)


async def _main(url: str, stub_url: str, rounds: str) -> None:
    print(json.dumps(await _measure(url, reach(stub_url), int(rounds))), flush=True)
    os._exit(0)  # its jobs need not be released one by one: the database goes, too


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
