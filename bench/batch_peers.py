"""boto3 asked for the same jobs in three other ways, each in a process without jobrunner.

`python -m bench.batch_peers one|each|bulk STUB_URL ROUNDS`: a call a job through one shared client; a
client a job, as each of Airflow's deferred tasks makes its own; 100 ids a call, which is the bare limit.
"""

import gc
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import boto3
from botocore.config import Config

from bench.peers import resident_bytes, swept
from tests.stubs.batch_server import reach

THREADS = 32
_BULK, _BULK_THREADS = 100, 4


def _one(url: str, ids: Sequence[str], rounds: int) -> dict[str, Any]:
    client = _client(boto3.session.Session(), url, THREADS)
    return swept([partial(_look, client, [each]) for each in ids], THREADS, rounds, jobs=len(ids))


def _bulk(url: str, ids: Sequence[str], rounds: int) -> dict[str, Any]:
    client = _client(boto3.session.Session(), url, _BULK_THREADS)
    some = [ids[start : start + _BULK] for start in range(0, len(ids), _BULK)]
    return swept([partial(_look, client, each) for each in some], _BULK_THREADS, rounds, jobs=len(ids))


def _each(url: str, ids: Sequence[str], rounds: int) -> dict[str, Any]:
    session = boto3.session.Session()
    _look(_client(session, url, 1), ids[:1])  # what all share is loaded
    gc.collect()
    empty, began, began_cpu = resident_bytes(), time.perf_counter(), time.process_time()
    clients = [_client(session, url, 1) for _ in ids]
    setup_s, setup_cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    asking = [partial(_look, client, [each]) for client, each in zip(clients, ids, strict=True)]
    found = swept(asking, THREADS, rounds, jobs=len(ids))
    gc.collect()
    used = (resident_bytes() - empty) / len(ids)
    return found | {"setup_s": setup_s, "setup_cpu_s": setup_cpu_s, "bytes_per_job": used}


def _client(session: Any, url: str, connections: int) -> Any:
    config = Config(retries={"total_max_attempts": 1}, max_pool_connections=connections)
    return session.client("batch", region_name="eu-west-1", endpoint_url=url, config=config)


def _look(client: Any, ids: Sequence[str]) -> Any:
    return client.describe_jobs(jobs=ids)["jobs"]


if __name__ == "__main__":
    _ways = {"one": _one, "each": _each, "bulk": _bulk}
    print(json.dumps(_ways[sys.argv[1]](sys.argv[2], reach(sys.argv[2]).job_ids(), int(sys.argv[3]))))
