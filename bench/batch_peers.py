"""boto3 asked for the same jobs in three other ways, each in a process without jobrunner.

`python -m bench.batch_peers one|each|bulk STUB_URL ROUNDS`: a call a job through one shared client; a
client a job, as each of Airflow's deferred tasks makes its own; 100 ids a call, which is the bare limit.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.stubs.batch_server import reach

THREADS = 32
_BULK, _BULK_THREADS = 100, 4


def resident_bytes() -> int:
    """Return the memory of this process; where the system does not tell, the most that it had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _one(url: str, ids: Sequence[str], rounds: int) -> dict[str, object]:
    client = _client(boto3.session.Session(), url, THREADS)
    return _swept([partial(client.describe_jobs, jobs=[each]) for each in ids], THREADS, rounds)


def _bulk(url: str, ids: Sequence[str], rounds: int) -> dict[str, object]:
    client = _client(boto3.session.Session(), url, _BULK_THREADS)
    some = [ids[start : start + _BULK] for start in range(0, len(ids), _BULK)]
    return _swept([partial(client.describe_jobs, jobs=each) for each in some], _BULK_THREADS, rounds)


def _each(url: str, ids: Sequence[str], rounds: int) -> dict[str, object]:
    session = boto3.session.Session()
    _client(session, url, 1).describe_jobs(jobs=[ids[0]])  # what all share is loaded
    gc.collect()
    empty, began, began_cpu = resident_bytes(), time.perf_counter(), time.process_time()
    clients = [_client(session, url, 1) for _ in ids]
    setup_s, setup_cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    asking = [partial(client.describe_jobs, jobs=[each]) for client, each in zip(clients, ids, strict=True)]
    found = _swept(asking, THREADS, rounds)
    gc.collect()
    used = (resident_bytes() - empty) / len(ids)
    return found | {"setup_s": setup_s, "setup_cpu_s": setup_cpu_s, "bytes_per_job": used}


def _client(session: Any, url: str, connections: int) -> Any:
    config = Config(retries={"total_max_attempts": 1}, max_pool_connections=connections)
    return session.client("batch", region_name="eu-west-1", endpoint_url=url, config=config)


def _swept(asking: Sequence[Callable[[], Any]], threads: int, rounds: int) -> dict[str, object]:
    """Make all calls, `rounds` times and once before, which connects."""
    first: dict[str, float] = {}
    wall_s, cpu_s = [], []
    with ThreadPoolExecutor(threads) as pool:
        for number in range(rounds + 1):
            gc.collect()
            began, began_cpu = time.perf_counter(), time.process_time()
            for answer in pool.map(lambda ask: ask(), asking):
                assert answer["jobs"]
            took, used = time.perf_counter() - began, time.process_time() - began_cpu
            if number == 0:
                first = {"first_wall_s": took, "first_cpu_s": used}
            else:
                wall_s.append(took)
                cpu_s.append(used)
    return {"calls": len(asking), "wall_s": wall_s, "cpu_s": cpu_s, **first}


if __name__ == "__main__":
    _ways = {"one": _one, "each": _each, "bulk": _bulk}
    print(json.dumps(_ways[sys.argv[1]](sys.argv[2], reach(sys.argv[2]).job_ids(), int(sys.argv[3]))))
