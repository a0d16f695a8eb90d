"""Processes of their own: a module that tells what it found, and a stub that others move through its door."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast
from xmlrpc.client import ServerProxy
from xmlrpc.server import SimpleXMLRPCServer

ANSWER_S = 0.03
"""How long a stub takes for each answer."""
_SETTINGS = ("AWS_", "JOBRUNNER_")


class Outside(Protocol):
    """What does the work of jobs, as a benchmark moves it; words for states are its own."""

    def address(self) -> str:
        """Return where it is called."""

    def ids(self) -> list[str]:
        """Return the external ids of all jobs."""

    def rest(self) -> None:
        """Let all changes so far be long ago."""

    def show(self, word: str, every: int) -> None:
        """Bring all jobs, or each so manieth, into a state."""

    def counts(self) -> dict[str, int]:
        """Return how many calls of each kind arrived."""

    def forget_calls(self) -> None:
        """Count anew."""


def found_by(*arguments: str, **environment: str) -> dict[str, Any]:
    """Run a module in a process of its own, with no settings but these, and return what it found."""
    others = {key: value for key, value in os.environ.items() if not key.startswith(_SETTINGS)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=others | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def serving_apart(module: str, jobs: int) -> Iterator[str]:
    """Let a module `serve` a stub with so many jobs in a process of its own; give the URL of its door."""
    command = [sys.executable, "-m", module, str(jobs)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())


def serve(outside: Outside) -> None:
    """Open a door to it, print the door's URL as JSON, and return at the end of stdin."""
    with SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False, allow_none=True) as door:
        door.register_instance(outside)
        threading.Thread(target=door.serve_forever, daemon=True).start()
        print(json.dumps(f"http://127.0.0.1:{door.server_address[1]}"), flush=True)
        sys.stdin.read()
        door.shutdown()


def reach(door: str) -> Outside:
    """Return what another process serves behind this door."""
    return cast("Outside", ServerProxy(door, allow_none=True))
