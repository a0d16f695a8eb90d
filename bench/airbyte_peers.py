"""The same jobs asked for in other ways, each in a process without jobrunner.

`python -m bench.airbyte_peers sdk|httpx|pages DOOR ROUNDS MOST`: a GET a job for the first MOST jobs,
through the official SDK or httpx; or all that changed by httpx, 100 a page, which is the bare limit.
"""

import datetime as dt
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx

from bench.apart import reach
from bench.peers import swept

THREADS = 5
"""So many requests a self-hosted server answers at a time."""
_CLIENT = {"client_id": "the-client", "client_secret": "hunter2"}
_PAGE = 100


def _sdk(url: str) -> Callable[[str], Any]:
    from airbyte_api import AirbyteAPI, api, models

    credentials = models.SchemeClientCredentials(**_CLIENT, token_url=f"{url}/applications/token")
    sdk = AirbyteAPI(security=models.Security(client_credentials=credentials), server_url=url)

    def look(job_id: str) -> Any:
        answer = sdk.jobs.get_job(request=api.GetJobRequest(job_id=int(job_id))).job_response
        return answer is not None and answer.status

    return look


def _httpx(url: str) -> Callable[[str], Any]:
    client = _let_in(url)
    return lambda job_id: client.get(f"{url}/jobs/{job_id}").raise_for_status().json()["status"]


def _pages(url: str) -> Callable[[int], Any]:
    client = _let_in(url)
    start = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
    since = f"{start:%Y-%m-%dT%H:%M:%SZ}"
    changed: dict[str, Any] = {"updatedAtStart": since, "orderBy": "updatedAt|DESC", "limit": _PAGE}

    def look(offset: int) -> Any:
        return (
            client.get(f"{url}/jobs", params=changed | {"offset": offset}).raise_for_status().json()["data"]
        )

    return look


def _let_in(url: str) -> httpx.Client:
    token = httpx.post(f"{url}/applications/token", json=_CLIENT).raise_for_status().json()["access_token"]
    return httpx.Client(headers={"Authorization": f"Bearer {token}"})


def _main(way: str, door: str, rounds: str, most: str) -> None:
    outside = reach(door)
    url, ids = outside.address(), outside.ids()
    if way == "pages":
        outside.show("incomplete", 1)
        look = _pages(url)
        asking: list[Callable[[], Any]] = [partial(look, offset) for offset in range(0, len(ids), _PAGE)]
        found = swept(asking, 1, int(rounds), jobs=len(ids))
    else:
        one = {"sdk": _sdk, "httpx": _httpx}[way](url)
        asking = [partial(one, each) for each in ids[: int(most)]]
        found = swept(asking, THREADS, int(rounds), jobs=len(asking), warm_up=10 * THREADS)
    print(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
