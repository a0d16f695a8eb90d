"""One look at all jobs of Armada: `python -m bench.armada_sweep URL DOOR ROUNDS`."""

import sys
from typing import Any

from bench.apart import reach
from bench.sweep import Step, tell
from jobrunner import ArmadaMonitorJob

EVERY = 250
"""Where few change: each so manieth."""
_ROUND = [Step("run", "RUNNING"), Step("few", "PENDING", EVERY), Step("all", "LEASED")]
FAIL_EVERY = 10
_END = [Step("end", "FAILED", FAIL_EVERY)]


def _attach(external_id: str, **options: Any) -> ArmadaMonitorJob:
    return ArmadaMonitorJob(external_id=external_id, **options)


def _main(url: str, door: str, rounds: str) -> None:
    outside = reach(door)
    behind = {"kind": "armada", "url": outside.address()}
    steps = _ROUND * int(rounds) + _END
    tell(url, outside, {"armada_default": behind}, _attach, first="QUEUED", steps=steps)


if __name__ == "__main__":
    _main(*sys.argv[1:])
