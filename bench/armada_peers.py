"""armada-client's own client asked for the same jobs, in a process without jobrunner.

`python -m bench.armada_peers IDS_A_CALL THREADS DOOR ROUNDS`
"""

import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
from armada_client.client import ArmadaClient

from bench.apart import reach
from bench.peers import swept


def _main(ids_a_call: str, threads: str, door: str, rounds: str) -> None:
    outside, most = reach(door), int(ids_a_call)
    ids = [each.rpartition("/")[2] for each in outside.ids()]
    client = ArmadaClient(grpc.insecure_channel(outside.address()))
    some = [ids[start : start + most] for start in range(0, len(ids), most)]
    asking = [partial(_look, client, each) for each in some]
    print(json.dumps(swept(asking, int(threads), int(rounds), jobs=len(ids))))


def _look(client: Any, ids: Sequence[str]) -> Any:
    return client.get_job_status(ids).job_states


if __name__ == "__main__":
    _main(*sys.argv[1:])
