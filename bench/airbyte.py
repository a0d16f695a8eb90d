"""Airbyte: one sweep over all of a runner's jobs, beside a GET a job through the official SDK and httpx.

The jobs are in a stub of Airbyte, in a process of its own, that answers after 30 ms, five requests at a time.
"""

import math
from collections.abc import Iterator
from typing import Any

from bench.airbyte_peers import THREADS
from bench.airbyte_sweep import EVERY
from bench.apart import found_by, serving_apart
from bench.batch_lag import one_by_one_row
from bench.places import Place, kind, url_of
from bench.report import Row
from bench.sweep_rows import beside, memory_row, peer_row, slower, sweep_of, sweep_row
from jobrunner.backends.airbyte.backend import BULK
from jobrunner.backends.airbyte.client import PAGE

_STUB = "bench.airbyte_stub"
_PEERS = {
    "sdk": f"the SDK (airbyte-api), one GET a job, {THREADS} threads",
    "httpx": f"httpx, one GET a job, {THREADS} threads",
    "pages": f"httpx alone, what changed, {PAGE} a page",
}


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield what a sweep costs us on both databases, and the SDK and httpx alone."""
    count, rounds, most = (1000, 1, 250) if quick else (10_000, 3, 10_000)
    few: list[dict[str, Any]] = []
    every: list[dict[str, Any]] = []
    pages = math.ceil((count + 1) / PAGE)  # the last one is short
    for database in place.databases():
        with serving_apart(_STUB, count) as door:
            found = found_by("bench.airbyte_sweep", url_of(database), door, str(rounds))
        name = kind(database)
        few.append(sweep_of(found, "few"))
        every.append(sweep_of(found, "all"))
        yield sweep_row(f"{name}: one sweep, {count // EVERY} of {count:,} change", few[-1], most=1)
        yield sweep_row(f"{name}: one sweep, all {count:,} change", every[-1], most=pages)
        yield sweep_row(f"{name}: the sweep after that, within 90 s", sweep_of(found, "next"))
        yield memory_row(name, every[-1])
    with serving_apart(_STUB, count) as door:
        for way, what in _PEERS.items():
            found = found_by("bench.airbyte_peers", way, door, "1", str(most))
            besides = f"where all change {beside(found, slower(every))}"
            if way != "pages":
                besides = f"{besides}; where few do {beside(found, slower(few))}"
            yield peer_row(what, found, besides)
    yield one_by_one_row(100 if quick else 1000, BULK)
