"""One look at all jobs of Airbyte: `python -m bench.airbyte_sweep URL DOOR ROUNDS`."""

import sys
from collections.abc import Iterator

from bench.apart import reach
from bench.sweep import Step, tell
from jobrunner import AirbyteMonitorJob

CLIENT = {"client_id": "the-client", "client_secret": "hunter2"}
"""Whom the stub lets in."""
EVERY = 250
"""Where few change: each so manieth."""


def _steps(rounds: int) -> Iterator[Step]:
    there, back = "incomplete", "running"
    for _ in range(rounds):
        yield Step("all", there)
        yield Step("next", back, EVERY, is_rested=False)
        yield Step("few", there, EVERY)
        there, back = back, there


def _main(url: str, door: str, rounds: str) -> None:
    outside = reach(door)
    behind = {"kind": "airbyte", "url": outside.address(), **CLIENT}
    steps = list(_steps(int(rounds)))
    tell(url, outside, {"airbyte_default": behind}, AirbyteMonitorJob.attach, first="running", steps=steps)


if __name__ == "__main__":
    _main(*sys.argv[1:])
