"""How fast and how evenly workers claim what waits, and take up what a killed one leaves."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from bench.places import Place
from bench.report import Row
from bench.worker_apart import a_worker, all_of, ask, at_work, count_of, store, until
from bench.worker_process import JOB_TYPE
from jobrunner.database import Database
from jobrunner.settings import Settings

WORKERS = 4
HEARTRATE_S = 5.0
_WITHIN_S = 10.0
_PATIENCE_S = 180.0
_BY_WORKER = f"SELECT runner_id, count(*) FROM job WHERE job_type = '{JOB_TYPE}' GROUP BY runner_id"
_A_ROUND = "WITH mine AS MATERIALIZED (SELECT job.id AS id FROM job WHERE job.state ="
_TOOK = "SELECT extract(epoch FROM max(at) - %s) FROM job_event WHERE reason = 'claimed'"

_ADOPTING = "SELECT extract(epoch FROM max(at) - min(at)) FROM job_event WHERE reason LIKE 'adopted%'"


def measure(place: Place, *, quick: bool) -> Iterator[Row]:
    """Yield the claiming, of work that was never submitted and of work that was, and the recovery."""
    jobs = 1_000 if quick else 10_000
    for is_outside in (True,) if quick else (False, True):
        with place.postgresql() as database:
            yield _claimed(database, jobs, is_outside=is_outside)
    for heartrate in (2.0,) if quick else (HEARTRATE_S, 30.0):
        with place.postgresql() as database:
            yield _recovered(database, jobs, heartrate)


def _claimed(database: Database, jobs: int, *, is_outside: bool) -> Row:
    with ExitStack() as stack:
        workers = [
            stack.enter_context(a_worker(database, heartrate=HEARTRATE_S, capacity=jobs))
            for _ in range(WORKERS)
        ]
        until(lambda: at_work(database) == WORKERS, "all workers look around", 60)
        stored_at = str(store(database, jobs, heartrate=30.0, poll_interval=30.0, is_outside=is_outside))
        until(lambda: count_of(database, "queued") == 0, "all are claimed", _PATIENCE_S)
        took_s = float(ask(database, _TOOK.replace("%s", f"'{stored_at}'::timestamptz")))
        shares = sorted(count for _, count in all_of(database, _BY_WORKER))
        claims = int(ask(database, f"SELECT sum(claims) FROM job WHERE job_type = '{JOB_TYPE}'"))
        events = int(ask(database, "SELECT count(*) FROM job_event WHERE reason = 'claimed'"))
        unsubmitted = f"SELECT count(*) FROM job WHERE job_type = '{JOB_TYPE}' AND external_id IS NULL"
        until(lambda: ask(database, unsubmitted) == 0, "all are submitted", _PATIENCE_S)
        told = [worker.tell() for worker in workers]
    fair = jobs / WORKERS
    doubled = max(claims, events) - jobs
    unfair = max(abs(share - fair) for share in shares) / fair if len(shares) == WORKERS else 1.0
    kind = "submitted before" if is_outside else "never submitted"
    kept = {
        f"< {_WITHIN_S:g} s": took_s < _WITHIN_S,
        "each within 20 % of a quarter": unfair <= 0.2,
        "claimed twice 0": doubled == 0,
    }
    rounds = sum(
        count
        for each in told
        for statement, count in each["statements"].items()
        if statement.startswith(_A_ROUND)
    )
    cpu_s = sum(each["cpu_s"] for each in told)
    return Row(
        f"PostgreSQL: {WORKERS} workers claim {jobs:,} queued jobs, {kind}",
        f"{took_s:.1f} s in {rounds} rounds; {', '.join(f'{share:,}' for share in shares)} jobs each; "
        f"claimed twice {doubled}",
        ", ".join(kept),
        all(kept.values()),
        {"took_s": took_s, "rounds": rounds, "shares": shares, "doubled": doubled, "workers_cpu_s": cpu_s},
    )


def _recovered(database: Database, jobs: int, heartrate: float) -> Row:
    """Measure from kill -9 of a worker that has all jobs until another has asked about each of them."""
    grace = Settings(database_url="sqlite:////nowhere").grace_multiplier
    most_s = grace * heartrate + 2 * heartrate
    options: dict[str, Any] = {"heartrate": heartrate, "capacity": jobs, "notes_ids": True}
    with a_worker(database, **options) as first:
        until(lambda: at_work(database) == 1, "the worker looks around", 60)
        store(database, jobs, heartrate=heartrate, poll_interval=heartrate, is_outside=True)
        until(lambda: first.tell()["looked_at"] == jobs, "all are watched", _PATIENCE_S)
        with a_worker(database, **options) as second:
            until(lambda: at_work(database) == 2, "the other worker looks around", 60)
            time.sleep(heartrate)
            idle = second.tell()["looked_at"]
            killed_s = time.monotonic()
            first.kill()
            until(lambda: second.tell()["looked_at"] == jobs, "all are watched again", most_s + _PATIENCE_S)
            took_s = time.monotonic() - killed_s
        adopted = int(ask(database, "SELECT count(*) FROM job_event WHERE reason LIKE 'adopted%'"))
        adopting_s = float(ask(database, _ADOPTING))
    return Row(
        f"PostgreSQL: kill -9 of a worker with {jobs:,} jobs, heartrate {heartrate:g} s, "
        "until all are watched again",
        f"{took_s:.1f} s, {took_s / heartrate:.2f} heartrates; {adopted:,} adopted",
        f"<= {most_s:.1f} s (grace + two heartrates)",
        took_s <= most_s and adopted == jobs and idle == 0,
        {"took_s": took_s, "heartrate_s": heartrate, "adopted": adopted, "adopting_s": adopting_s},
    )
