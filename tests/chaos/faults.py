"""Faults: what was done, when it held, whom it excuses, and how it is taken back."""

import heapq
import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psycopg

HEARTRATE_S = 2.0
GRACE_S = 2.1 * HEARTRATE_S
CALL_S = 4.0
"""After so long without an answer, a call to the database is given up."""
AWAY = (psycopg.Error, sqlite3.Error)
"""What a client is told while the database is away."""
RECOVERS_S = 10.0
"""What was cut off reaches the database again within this time."""


@dataclass(slots=True)
class Fault:
    """One fault: what it was, when it held (time.time()), and whom others may take for dead by it."""

    kind: str
    from_s: float
    until_s: float = float("inf")
    pids: frozenset[int] = frozenset()
    writers: frozenset[str] = frozenset()
    silences_all: bool = False
    is_database_away: bool = False
    loses_answers: bool = False
    """Whether a statement may be done, and its answer not arrive."""
    is_consequence: bool = False
    """Whether nobody did it: it came of another fault."""

    def end(self) -> None:
        self.until_s = time.time()

    def silences(self, pid: int | None, writer: str | None) -> bool:
        """Whether by this fault this process beats for nobody."""
        return self.silences_all or pid in self.pids or writer in self.writers

    def overlaps(self, from_s: float, until_s: float) -> bool:
        return self.from_s <= until_s and self.until_s >= from_s


@dataclass
class Faults:
    """All faults so far, and those that are to be taken back."""

    log: list[Fault] = field(default_factory=list)
    wrongs: list[str] = field(default_factory=list)
    """What was wrong at once, each a sentence."""
    _later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def note(self, kind: str, **whom: object) -> Fault:
        fault = Fault(kind, time.time(), **whom)  # type: ignore[arg-type]  # its own fields
        self.log.append(fault)
        return fault

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), do))

    def take_back(self, *, all_of_them: bool = False) -> None:
        """Take back what is due."""
        while self._later and (all_of_them or self._later[0][0] <= time.monotonic()):
            heapq.heappop(self._later)[2]()

    def silencing(self, pid: int | None, writer: str | None, from_s: float, until_s: float) -> list[Fault]:
        """Return the faults by which this process did not beat at some time of these."""
        return [each for each in self.log if each.silences(pid, writer) and each.overlaps(from_s, until_s)]
