"""Armada: one sweep over all of a runner's jobs, beside armada-client's own client.

The jobs are in a stub of Armada, in a process of its own, that answers after 30 ms.
"""

import math
from collections.abc import Iterator
from typing import Any

from bench.apart import found_by, serving_apart
from bench.armada_sweep import EVERY, FAIL_EVERY
from bench.places import Place, kind, url_of
from bench.report import Row
from bench.sweep_rows import beside, calls_of, memory_row, peer_row, slower, sweep_of, sweep_row
from bench.timing import ms
from jobrunner.backends.armada.backend import IDS_MOST

_STUB = "bench.armada_stub"
_THREADS, _BULK_THREADS = 32, 4


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield what a sweep costs us on both databases, and armada-client alone."""
    count, rounds = (1000, 1) if quick else (10_000, 5)
    most = math.ceil(count / IDS_MOST)
    sweeps: list[dict[str, Any]] = []
    for database in place.databases():
        with serving_apart(_STUB, count) as door:
            found = found_by("bench.armada_sweep", url_of(database), door, str(rounds))
        sweeps.append(sweep_of(found, "all"))
        for step, words, kinds in (
            ("all", f"all {count:,} change", 1),
            ("few", f"{count // EVERY} of {count:,} change", 1),
            ("run", f"all {count:,} begin to run", 2),  # where, is asked for once
        ):
            what = f"{kind(database)}: one sweep, {words}"
            yield sweep_row(what, sweep_of(found, step), most=kinds * most)
        yield _end_row(kind(database), sweep_of(found, "end"), most=3 * most)
        yield memory_row(kind(database), sweeps[-1])
    with serving_apart(_STUB, count) as door:
        for ids_a_call, threads in ((IDS_MOST, _BULK_THREADS), (1, _THREADS)):
            found = found_by("bench.armada_peers", str(ids_a_call), str(threads), door, "1" if quick else "2")
            words = "one id" if ids_a_call == 1 else f"{ids_a_call} ids"
            what = f"armada-client alone, {words} a call, {threads} threads"
            yield peer_row(what, found, beside(found, slower(sweeps)))


def _end_row(database: str, found: dict[str, Any], *, most: int) -> Row:
    """Return what it takes until jobs that failed have ended: where and why is asked for, too."""
    (wall_s,), (cpu_s,), ended = found["wall_s"], found["cpu_s"], found["jobs"] // FAIL_EVERY
    return Row(
        f"{database}: one sweep, {ended:,} of {found['jobs']:,} fail, and their ends are written",
        f"{calls_of(found)}, {wall_s:.2f} s; CPU with the database, the look at all included, "
        f"{ms(cpu_s / ended)} an end",
        f"<= {most:,} calls",
        max(found["calls"]) <= most,
        found,
    )
