"""AWS Batch: one sweep over all of a runner's jobs, beside boto3 alone; and how late an end is seen.

The jobs are in a stub of AWS Batch, in a process of its own, that answers after 30 ms.
"""

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from bench.batch_lag import INTERVAL_S, Watched, by_the_seeds_formula, ours
from bench.batch_peers import THREADS
from bench.places import Place, kind, url_of
from bench.report import Row
from bench.timing import median, percentile
from jobrunner.backends.batch.backend import DESCRIBE_MOST
from jobrunner.database import Database
from tests.stubs.aws_wire import REGION
from tests.stubs.batch_server import BatchStub, serving_apart

_ANSWER_S = 0.03
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
    sweeps: dict[str, dict[str, Any]] = {}
    for database in place.databases():
        sweeps[kind(database)] = found = _our_sweep(database, count, rounds)
        yield _sweep_row(f"{kind(database)}: one sweep, all {count:,} change", found, count)
        used = found["bytes_per_job"]
        yield Row(f"{kind(database)}: memory for {count:,} jobs", f"{used / 1000:.1f} kB a job", facts=found)
    # Beside the slower of the two.
    mine = max(sweeps.values(), key=lambda found: median(found["cpu_s"]))
    with serving_apart(delay_s=_ANSWER_S) as stub:
        stub.seed_jobs(count)
        yield _bare_row("boto3 alone, 100 ids a call, 4 threads", _peer("bulk", stub, rounds), mine, count)
        one = _peer("one", stub, 1 if quick else 3)
        yield _bare_row(f"boto3, one client, one id a call, {THREADS} threads", one, mine, count)
        yield _clients_row(stub, mine, count)


def _our_sweep(database: Database, count: int, rounds: int) -> dict[str, Any]:
    with serving_apart(delay_s=_ANSWER_S) as stub:
        stub.seed_jobs(count)
        return _run("bench.batch_sweep", url_of(database), stub.url, str(rounds))


def _peer(way: str, stub: BatchStub, rounds: int) -> dict[str, Any]:
    return _run("bench.batch_peers", way, stub.url, str(rounds))


def _run(*arguments: str) -> dict[str, Any]:
    """Run a module in a process of its own, with no settings but these, and return what it found."""
    others = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "JOBRUNNER_"))}
    aws = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": REGION}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=others | aws, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _sweep_row(what: str, found: dict[str, Any], count: int) -> Row:
    calls, most = max(found["calls"]), math.ceil(count / DESCRIBE_MOST)
    each = [cpu_s * 1000 / count for cpu_s in found["cpu_s"]]
    return Row(
        what,
        f"{calls} calls, {median(found['wall_s']):.2f} s; CPU for 1,000 jobs with the database: median "
        f"{median(each):.3f} s, least {min(each):.3f} s",
        f"<= {most} calls, < {_CPU_TARGET_S:g} s",
        calls <= most and median(each) < _CPU_TARGET_S,
        found | {"cpu_s_per_1000": median(each), "least_cpu_s_per_1000": min(each)},
    )


def _bare_row(what: str, found: dict[str, Any], mine: dict[str, Any], count: int) -> Row:
    return Row(
        f"{what}, no database: {count:,} jobs",
        f"{found['calls']:,} calls, {median(found['wall_s']):.2f} s; CPU for 1,000 jobs "
        f"{median(found['cpu_s']) * 1000 / count:.3f} s; {_beside(found, mine)}",
        facts=found,
    )


def _beside(found: dict[str, Any], mine: dict[str, Any]) -> str:
    calls = found["calls"] / max(mine["calls"])
    return f"{calls:.3g} times our calls, {median(found['cpu_s']) / median(mine['cpu_s']):.2g} times our CPU"


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
        f"{median(found['cpu_s']) * 1000 / count:.3f} s; {_beside(found, mine)}; {used / 1000:.0f} kB a job: "
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
    count = 100 if quick else 1000
    found = ours(count, _HOUR_S, arrive_within_s=600.0)
    yield Row(
        f"{count:,} jobs that came one by one, watched for 1 h",
        f"{found.looks / found.calls:.0f} ids a call; {found.calls:,} calls, {found.looks:,} looks",
        facts={"calls": found.calls, "looks": found.looks},
    )


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
