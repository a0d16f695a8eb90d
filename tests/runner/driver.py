"""A real monitor process: `driver.py ORDER` runs or attaches to a job as the order says, and tells of it.

It prints `started ID`, and at its end `outcome …`. `at` orders a signal to itself at one point of the
submission: `before begin_submit`, `after begin_submit`, `before submit`, `after submit`,
`before record_submitted`, `after record_submitted`.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from typing import Any

from jobrunner import statements
from jobrunner.backends.process import ProcessBackend
from jobrunner.errors import ClaimLost, JobEndedBadly, JobrunnerError, Released
from jobrunner.executors.local import LocalExecutor
from jobrunner.models import BaseJob, ProcessMonitorJob


def say(*words: Any) -> None:
    print(*words, flush=True)  # noqa: T201


def stop_at(point: str, number: int) -> None:
    """Send this process a signal at the first passage of a point."""
    when, _, name = point.partition(" ")
    owner = ProcessBackend if name == "submit" else statements
    real = getattr(owner, name)
    passed = threading.Event()

    def strike() -> None:
        if not passed.is_set():
            passed.set()
            say("at", point)
            os.kill(os.getpid(), number)

    if name == "submit":

        async def submit(*arguments: Any) -> Any:
            if when == "before":
                strike()
            answer = await real(*arguments)
            if when == "after":
                strike()
            return answer

        ProcessBackend.submit = submit  # type: ignore[method-assign]
        return

    def write(connection: Any, *arguments: Any) -> Any:
        if when == "before":
            strike()
        answer = real(connection, *arguments)
        if when == "after":
            if connection.in_transaction():
                connection.commit()
            strike()
        return answer

    setattr(statements, name, write)


def main() -> int:
    logging.basicConfig(level=logging.WARNING)
    order = json.loads(sys.argv[1])
    if "at" in order:
        stop_at(order["at"], order["signal"])
    executor = LocalExecutor(
        on_exit=order.get("on_exit", "release"), on_started=lambda job_id: say("started", job_id)
    )
    try:
        if "attach" in order:
            executor.attach(order["attach"])
            job_id = order["attach"]
        else:
            job = ProcessMonitorJob(
                order["command"],
                executor=executor,
                heartrate=order.get("heartrate", 0.5),
                poll_interval=0.1,
                stop_grace=5,
            )
            job.run()
            job_id = job.id
    except Released as error:
        say("outcome released", error.signal)
    except ClaimLost:
        say("outcome claim lost")
    except JobEndedBadly as error:
        say("outcome", type(error).__name__, error)
    except JobrunnerError as error:
        say("outcome error", type(error).__name__, error)
    else:
        say("outcome", BaseJob.get(job_id).state)
    say("handlers", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
