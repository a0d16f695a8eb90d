"""AWS Batch: one sweep over all of a runner's jobs, beside boto3 alone; and how late an end is seen.

The jobs are in a stub of AWS Batch, in a process of its own, that answers after 30 ms.
"""

import math
import resource
from collections.abc import Iterator
from typing import Any

from bench.apart import ANSWER_S, found_by
from bench.batch_lag import INTERVAL_S, Watched, by_the_seeds_formula, one_by_one_row, ours
from bench.batch_peers import THREADS
from bench.places import Place, kind, url_of
from bench.report import Row
from bench.sweep_rows import beside, memory_row, peer_row, slower, sweep_of, sweep_row
from bench.timing import median, percentile
from jobrunner.backends.batch.backend import DESCRIBE_MOST
from jobrunner.database import Database
from tests.stubs.aws_wire import REGION
from tests.stubs.batch_server import BatchStub, serving_apart

_AWS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": REGION}
_CPU_TARGET_S = 0.15  # for 1,000 jobs
_LAG_TARGET_S = INTERVAL_S + 1
_MEMORY_MOST = 8e9
_CLIENT_BYTES = 300e3  # as measured
_FILES_A_CLIENT = 1.1  # a connection each, and some to spare
_HOUR_S = 3600.0


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield what a sweep costs us on both databases and boto3 alone, and the time from end to answer."""
    for count in (1000,) if quick else (1000, 10_000):
        yield from _sweeps(place, count, quick=quick)
    yield from _lags(quick=quick)


# --- one sweep -------------------------------------------------------------------------------------


def _sweeps(place: Place, count: int, *, quick: bool) -> Iterator[Row]:
    rounds = 3 if quick else 7
    sweeps: list[dict[str, Any]] = []
    for database in place.databases():
        found = _our_sweep(database, count, rounds)
        sweeps.append(found)
        what = f"{kind(database)}: one sweep, all {count:,} change"
        yield sweep_row(what, found, most=math.ceil(count / DESCRIBE_MOST), cpu_target_s=_CPU_TARGET_S)
        yield memory_row(kind(database), found)
    mine = slower(sweeps)
    with serving_apart(delay_s=ANSWER_S) as stub:
        stub.seed_jobs(count)
        bulk = _peer("bulk", stub, rounds)
        yield peer_row("boto3 alone, 100 ids a call, 4 threads", bulk, beside(bulk, mine))
        one = _peer("one", stub, 1 if quick else 3)
        yield peer_row(f"boto3, one client, one id a call, {THREADS} threads", one, beside(one, mine))
        yield _clients_row(stub, mine, count)


def _our_sweep(database: Database, count: int, rounds: int) -> dict[str, Any]:
    with serving_apart(delay_s=ANSWER_S) as stub:
        stub.seed_jobs(count)
        found = found_by("bench.batch_sweep", url_of(database), stub.url, str(rounds), **_AWS)
    return sweep_of(found, "all")


def _peer(way: str, stub: BatchStub, rounds: int) -> dict[str, Any]:
    return found_by("bench.batch_peers", way, stub.url, str(rounds), **_AWS)


def _clients_row(stub: BatchStub, mine: dict[str, Any], count: int) -> Row:
    what = f"boto3, one client a job of one session, {THREADS} threads, no database: {count:,} jobs"
    lacking = _lacking(count)
    if lacking:
        return Row(what, f"not measured: {lacking}")
    found = _peer("each", stub, 1)
    used = found["bytes_per_job"]
    return Row(
        what,
        f"made in {found['setup_cpu_s']:.1f} CPU s, first sweep {found['first_cpu_s']:.1f} CPU s; then "
        f"{found['calls']:,} calls, {median(found['wall_s']):.2f} s; CPU for 1,000 jobs "
        f"{median(found['cpu_s']) * 1000 / count:.3f} s; {beside(found, mine)}; {used / 1000:.0f} kB a job: "
        f"{used / mine['bytes_per_job']:.0f} times our memory",
        facts=found,
    )


def _lacking(clients: int) -> str:
    """Return what there is not enough of for so many clients."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < clients * _FILES_A_CLIENT:
        return f"only {files:,} open files are allowed, and each client has a connection"
    if clients * _CLIENT_BYTES > _MEMORY_MOST:
        return f"it would take {clients * _CLIENT_BYTES / 1e9:.0f} GB"
    return ""


# --- from the end of a job to the answer that says so ----------------------------------------------


def _lags(*, quick: bool) -> Iterator[Row]:
    for words, runs_for_s, count in (
        ("60 s", 60.0, 200 if quick else 2000),
        ("1 h", _HOUR_S, 100 if quick else 1000),
        ("48 h", 48 * _HOUR_S, 20 if quick else 200),
    ):
        found = ours(count, runs_for_s, arrive_within_s=INTERVAL_S)
        yield _lag_row(words, found, by_the_seeds_formula(max(count, 1000), runs_for_s))
    yield one_by_one_row(100 if quick else 1000, DESCRIBE_MOST)


def _lag_row(words: str, found: Watched, seeds: Watched) -> Row:
    late = percentile(found.lags_s, 99)
    return Row(
        f"from the end to its answer, {len(found.lags_s):,} jobs of {words}, poll interval {INTERVAL_S:g} s",
        f"ours p50 {percentile(found.lags_s, 50):.1f} s, p99 {late:.1f} s; by the seed's formula p50 "
        f"{percentile(seeds.lags_s, 50):.1f} s, p99 {percentile(seeds.lags_s, 99):.1f} s",
        f"p99 <= {_LAG_TARGET_S:g} s",
        late <= _LAG_TARGET_S,
        {
            "p50_s": percentile(found.lags_s, 50),
            "p99_s": late,
            "max_s": max(found.lags_s),
            "seed_p50_s": percentile(seeds.lags_s, 50),
            "seed_p99_s": percentile(seeds.lags_s, 99),
            "calls": found.calls,
            "looks": found.looks,
        },
    )
