"""The processes that chaos strikes: workers, and a Dask cluster; whoever ends is started again."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.pooler import PgBouncer
from tests.proxy import TcpProxy

ROOT = Path(__file__).parents[2]
TAKEN_FOR_DEAD, NO_DATABASE = 4, 2
"""Exit codes, as docs/cli.md has them."""
_AGAIN_S = (0.2, 3.0)
"""How long a process that ended is away, as a service manager would have it."""


@dataclass(slots=True)
class Place:
    """Where one process after another runs, each under a name of its own."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    proxy: TcpProxy | None = None
    """Between it and the database."""
    pooler: PgBouncer | None = None
    """Between it and the proxy."""
    kind: str = "worker"
    """worker, Dask worker or scheduler"""
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    started_s: float = 0.0
    """time.time()"""
    again_s: float = 0.0
    """time.monotonic() when it is started again."""
    said_before: int = 0
    """Bytes that former processes had said when this one started."""
    expected: set[int] = field(default_factory=set)
    """The exit codes that what was done to it can lead to."""
    is_struck: bool = False
    """Whether something is being done to it."""

    @property
    def writer(self) -> str:
        """The name under which the present process writes to the database."""
        return f"{self.name}.{self.starts}"

    @property
    def words(self) -> Path:
        """The file of all that its processes said."""
        return self.directory / f"{self.name}.words"

    @property
    def has_begun(self) -> bool:
        """Whether the present process, or the one that just ended, has said that it takes jobs."""
        return b" takes jobs" in self.words.read_bytes()[self.said_before :]

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        self.starts += 1
        self.started_s = time.time()
        self.expected.clear()
        self.is_struck = False
        if self.proxy is not None:
            self.proxy.is_silent = False
        with self.words.open("ab") as words:
            self.said_before = words.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.command],
                cwd=self.directory,
                env={**os.environ, **self.environment, "PGAPPNAME": self.writer},
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
            )

    def send(self, number: int, *expected: int) -> None:
        """Send a signal, which may lead to these exit codes."""
        self.expected |= set(expected)
        if self.process is not None:
            self.process.send_signal(number)


class Processes:
    """All places, and what came of their processes."""

    def __init__(self, directory: Path, rng: random.Random, on_end: Callable[[Place], object]) -> None:
        self.directory = directory
        self._on_end = on_end
        self.places: list[Place] = []
        self.odd_ends: list[str] = []
        """Processes that ended in a way that nothing done to them explains."""
        self._rng = rng
        self._is_over = False

    def add(self, place: Place) -> Place:
        self.places.append(place)
        place.start()
        return place

    def at_peace(self, *kinds: str) -> list[Place]:
        """Return the places of these kinds that are up and left alone: one of them may be struck."""
        return [each for each in self.places if each.kind in kinds and each.is_up and not each.is_struck]

    def look(self) -> None:
        """Take note of what ended, and start it again when it is time."""
        now_s = time.monotonic()
        for place in self.places:
            if place.is_up:
                continue
            if place.process is not None:
                self._on_end(place)
                place.process = None
                place.again_s = now_s + self._rng.uniform(*_AGAIN_S)
            elif now_s >= place.again_s and not self._is_over:
                place.start()

    def stop(self, timeout_s: float = 60.0) -> None:
        """Stop all of them as a service manager would; what does not end is an odd end."""
        self._is_over = True
        for place in self.places:
            if place.is_up and place.kind == "worker":
                place.send(signal.SIGTERM, 0, -signal.SIGTERM)
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s and any(each.is_up for each in self.places if each.kind == "worker"):
            time.sleep(0.05)
        self.look()
        for place in self.places:
            if place.is_up and place.kind == "worker":
                self.odd_ends.append(f"{place.writer} did not end within {timeout_s:g} s of SIGTERM")
        self.kill()

    def kill(self) -> None:
        """Leave nothing behind: neither them, nor what they started."""
        self._is_over = True
        for place in self.places:
            if place.process is not None:
                place.process.kill()
                place.process.wait()
        for each in psutil.process_iter(["cwd"]):
            if (each.info["cwd"] or "").startswith(str(self.directory)):
                with suppress(psutil.Error):
                    each.kill()


def a_worker(
    name: str,
    directory: Path,
    environment: Mapping[str, str],
    proxy: TcpProxy | None,
    pooler: PgBouncer | None,
) -> Place:
    """Return a place for `jobrunner worker`."""
    command = (
        *("jobrunner.cli.main", "worker", "--import", "tests.chaos.kinds", "--name", name),
        *("--processes", "2", "--drain-timeout", "5s"),
    )
    return Place(name, command, environment, directory, proxy, pooler)


def a_cluster(
    directory: Path, environments: Sequence[Mapping[str, str]], proxies: Sequence[TcpProxy | None]
) -> list[Place]:
    """Return places for a scheduler, the worker that spreads jobs over a cluster, and the Dask workers.

    The environments and the proxies: of the spreading worker, and of each Dask worker.
    """
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    scheduler = ("dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    spreading = (
        *("jobrunner.cli.main", "worker", "--import", "tests.chaos.kinds", "--name", "dask"),
        *("--executor", "dask", "--dask-address", address, "--drain-timeout", "5s"),
    )
    each = (
        *("dask", "worker", address, "--host", "127.0.0.1", "--no-dashboard", "--no-nanny"),
        *("--nthreads", "2", "--death-timeout", "15"),
    )
    return [
        Place("scheduler", scheduler, {}, directory, kind="scheduler"),
        Place("dask", spreading, environments[0], directory, proxies[0]),
        *(
            Place(f"dask{number}", each, environment, directory, proxy, kind="Dask worker")
            for number, (environment, proxy) in enumerate(zip(environments[1:], proxies[1:], strict=True), 1)
        ),
    ]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
