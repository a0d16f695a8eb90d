"""What watching 1,000, 10,000 and 100,000 jobs costs one worker."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.places import Place
from bench.report import Row
from bench.scale_plot import draw
from bench.worker_apart import Apart, a_worker, ask, at_work, count_of, store, until
from jobrunner.database import Database

HEARTRATE_S = 30.0
_MINUTES = {1_000: 1, 10_000: 1, 100_000: 5}
_PLOT = Path(__file__).parents[1] / "docs" / "cost-a-job.svg"
_SETTLE_S = HEARTRATE_S + 5.0  # until each job was beaten for and asked about in its turn
_LOOK_S = 1.0
_CLAIM_WITHIN_S = 600.0
_AGE = "SELECT max(extract(epoch FROM clock_timestamp() - latest_heartbeat)) FROM job WHERE state = 'running'"


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield what so many jobs cost, and what one of them does."""
    found: list[dict[str, Any]] = []
    for jobs, minutes in _MINUTES.items():
        if quick and jobs > 10_000:
            continue
        seconds = 30 if quick else 60 * minutes
        found.append(_measured(place, jobs, seconds))
        yield _row(found[-1])
    yield _flat(found)
    if not quick:
        draw(_PLOT, {each["jobs"]: cost_of(each) for each in found})


def _measured(place: Place, jobs: int, seconds: int) -> dict[str, Any]:
    with place.postgresql() as database, a_worker(database, capacity=jobs, heartrate=HEARTRATE_S) as worker:
        until(lambda: at_work(database) == 1, "the worker looks around", 60)
        empty = worker.tell()
        store(database, jobs, heartrate=HEARTRATE_S, poll_interval=HEARTRATE_S, is_outside=True)
        began_s = time.monotonic()
        until(lambda: count_of(database, "queued") == 0, "all are claimed", _CLAIM_WITHIN_S, _LOOK_S)
        claimed_s = time.monotonic() - began_s
        time.sleep(_SETTLE_S)
        return _watched(database, worker, empty, seconds) | {"jobs": jobs, "claimed_s": claimed_s}


def _watched(database: Database, worker: Apart, empty: dict[str, Any], seconds: int) -> dict[str, Any]:
    before, began_s = worker.tell(), time.monotonic()
    oldest_s = 0.0
    while time.monotonic() - began_s < seconds:
        time.sleep(_LOOK_S)
        oldest_s = max(oldest_s, float(ask(database, _AGE)))
    after, took_s = worker.tell(), time.monotonic() - began_s
    threads = {
        name: (used - before["cpu_s_by_thread"].get(name, 0.0)) / took_s
        for name, used in after["cpu_s_by_thread"].items()
    }
    return {
        "seconds": took_s,
        "cpu_share": (after["cpu_s"] - before["cpu_s"]) / took_s,
        "cpu_share_by_thread": threads,
        "oldest_beat_s": oldest_s,
        "looks_per_s": (after["looks"] - before["looks"]) / took_s,
        "calls": after["calls"] - before["calls"],
        "resident_bytes": after["resident_bytes"],
        "most_bytes": after["most_bytes"],
        "empty_bytes": empty["resident_bytes"],
    }


def _row(found: dict[str, Any]) -> Row:
    jobs = found["jobs"]
    late = found["oldest_beat_s"] / HEARTRATE_S
    kept = {
        "no beat later than 1.2 heartrates": late <= 1.2,
        "< 20 % of a core": found["cpu_share"] < 0.2,
        "< 250 MB": found["most_bytes"] < 250e6,
    }
    return Row(
        f"PostgreSQL: one worker, {jobs:,} jobs, heartrate and poll {HEARTRATE_S:g} s, "
        f"over {found['seconds']:.0f} s",
        f"{found['cpu_share']:.1%} of a core, {found['most_bytes'] / 1e6:.0f} MB at most; the oldest beat "
        f"{late:.2f} heartrates; all claimed within {found['claimed_s']:.1f} s",
        ", ".join(kept),
        all(kept.values()),
        found | {"kept": kept},
    )


def _flat(found: list[dict[str, Any]]) -> Row:
    costs = {each["jobs"]: cost_of(each) for each in found}
    first, last = (costs[each["jobs"]] for each in (found[0], found[-1]))
    told = "; ".join(f"{jobs:,}: {cpu:.3f} ms, {kept:.1f} kB" for jobs, (cpu, kept) in costs.items())
    return Row(
        "the cost of one job: CPU a minute, and memory beyond the empty worker's",
        told,
        "flat: not dearer among many",
        last[0] <= 1.25 * first[0] and last[1] <= 1.25 * first[1],
        {"ms_per_minute_and_kb_by_jobs": costs},
    )


def cost_of(found: dict[str, Any]) -> tuple[float, float]:
    """Return what one job costs: milliseconds of CPU a minute, and kilobytes of memory."""
    cpu_ms = found["cpu_share"] * 60 / found["jobs"] * 1000
    return cpu_ms, (found["resident_bytes"] - found["empty_bytes"]) / found["jobs"] / 1000
