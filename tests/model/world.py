"""One database under a clock of its own, and what must hold after each statement that reaches it."""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, event, insert, select

from jobrunner import statements
from jobrunner.database import Database
from jobrunner.errors import DatabaseError, DatabaseUnavailable
from jobrunner.statements import Claim, Sighting
from jobrunner.states import JobState
from tests.helpers import plain_connection
from tests.model.outside import Broken, Kind, Outside

HEARTRATE = 10.0
GRACE = 2.1
STEP_S = 5.0
"""How far time goes in one step; whoever lives and reaches the database beats in each."""

# Decades away from the clock of the host that runs the test: no host's clock may matter.
_START = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
_CLOCKS = ("strftime('%Y-%m-%d %H:%M:%f', 'now')", "clock_timestamp()")

_T = TypeVar("_T")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One statement, and on whose behalf: what the invariants are judged by."""

    name: str
    runner_id: str | None = None
    claims: tuple[Claim, ...] = ()
    seen: tuple[Sighting, ...] = ()
    token: str | None = None
    external_id: str | None = None
    hosts: tuple[str, ...] = ()
    served: frozenset[str] = frozenset()


@dataclass(slots=True)
class Memory:
    """What the world knows beside the rows: by it, not by the rows, promises are judged."""

    tails: dict[int, JobState] = field(default_factory=dict)
    last_event: int = 0
    granted: dict[tuple[int, int], str] = field(default_factory=dict)
    beaten_s: dict[Claim, float] = field(default_factory=dict)
    untold: set[int] = field(default_factory=set)  # jobs of which their starter does not know that they stand
    wished: set[int] = field(default_factory=set)
    spoiled: set[int] = field(default_factory=set)  # jobs of which the database lost what it acknowledged


Mutate = Callable[[str, str], str]
"""Gets the name of the statement that is running, and its SQL, and returns what is sent."""

Judge = Callable[["World", Step, Mapping[int, Row], Sequence[Row]], None]
"""Compares the rows before a step with those after it; gets the events that it appended."""


class World:
    """The database, its clock, the outside, and the judge."""

    def __init__(self, database: Database, judge: "Judge", mutate: "Mutate | None" = None) -> None:
        self._judge = judge
        self.database, self._mutate = database, mutate
        self.outside = Outside()
        self.now_s = 0.0
        self.database_clock_s = 0.0
        self.is_down = False
        self.locked: int | None = None
        self._lock: Any = None
        self._running: str | None = None
        self.memory = Memory()
        self.rows: dict[int, Row] = {}
        self._before_last: tuple[list[Row], list[Row]] | None = None
        self._events: list[Row] = []
        with database.write() as connection:
            job, job_event = statements.tables()
            connection.execute(delete(job_event))
            connection.execute(delete(job))

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Let every statement see the world's clock, and the mutant."""
        event.listen(self.database.engine, "before_cursor_execute", self._rewrite, retval=True)
        try:
            yield
        finally:
            event.remove(self.database.engine, "before_cursor_execute", self._rewrite)

    def _rewrite(self, _conn: Any, _cursor: Any, sql: str, parameters: Any, *_rest: Any) -> tuple[str, Any]:
        if self._running is not None and self._mutate is not None:
            sql = self._mutate(self._running, sql)
        for clock in _CLOCKS:
            sql = sql.replace(clock, self._moment())
        return sql, parameters

    def _moment(self) -> str:
        now = _START + dt.timedelta(seconds=self.database_clock_s)
        text = now.replace(tzinfo=None).isoformat(" ", "milliseconds")
        return f"'{text}'" if self.database.is_sqlite else f"'{text}+00'::timestamptz"

    # --- statements -----------------------------------------------------------------------------

    def run(self, step: Step, call: Callable[[Connection], _T]) -> _T:
        """Run one statement, and judge what it did. Raises `DatabaseError`, and `Broken`."""
        if self.is_down:
            raise DatabaseUnavailable("it is down")
        self._running = step.name
        try:
            with self.database.write() as connection:
                answer = call(connection)
        except DatabaseError:
            if self.locked is None:
                raise Broken("no statement fails", step.name) from None
            if step.name in SKIPPING or not self._touches_locked(step):
                raise Broken("a locked row holds up nobody else", step.name) from None
            raise
        finally:
            self._running = None
        before, events = self.rows, self._events
        self._read()
        if self.rows != before or len(self._events) != len(events):
            self._before_last = (list(before.values()), events)
            self._judge(self, step, before, self._events[len(events) :])
        return answer

    def read(self, name: str, call: Callable[[Connection], _T]) -> _T:
        """Ask the database by a statement that changes nothing."""
        self._running = name
        try:
            with self.database.read() as connection:
                return call(connection)
        finally:
            self._running = None

    def _touches_locked(self, step: Step) -> bool:
        return not (step.claims or step.seen) or self.locked in {
            *(claim.job_id for claim in step.claims),
            *(seen.job_id for seen in step.seen),
        }

    def _read(self) -> None:
        job, job_event = statements.tables()
        with self.database.read() as connection:
            found = connection.execute(select(job).order_by(job.c.id)).mappings()
            self.rows = {row["id"]: dict(row) for row in found}
            newer = job_event.c.id > self.memory.last_event
            some = connection.execute(select(job_event).where(newer).order_by(job_event.c.id)).mappings()
            self._events = self._events + [dict(row) for row in some]
        self.memory.last_event = self._events[-1]["id"] if self._events else 0

    def acknowledge(self, claim: Claim) -> None:
        """The owner was told that his claim, or his beat, stands."""
        self.memory.beaten_s[claim] = self.now_s
        self.memory.untold.discard(claim.job_id)

    def stands(self, claim: Claim) -> bool:
        """Return whether a claim is in force, by the rows."""
        row = self.rows.get(claim.job_id)
        return row is not None and (row["runner_id"], row["claims"], row["state"]) == (
            claim.runner_id,
            claim.claims,
            JobState.RUNNING,
        )

    def pass_time(self, seconds: float) -> None:
        """Let all clocks go on."""
        self.now_s += seconds
        self.database_clock_s += seconds

    def put_clock_to(self, moment: dt.datetime) -> None:
        """Put the database's clock to a moment."""
        self.database_clock_s = (moment - _START).total_seconds()

    # --- what befalls the database ----------------------------------------------------------------

    def fail_over(self) -> bool:
        """Lose the last commit; False: there is none to lose."""
        if self._before_last is None:
            return False
        self.unlock()
        rows, events = self._before_last
        job, job_event = statements.tables()
        with self.database.write() as connection:
            connection.execute(delete(job_event))
            connection.execute(delete(job))
            if rows:
                connection.execute(insert(job), rows)
            if events:
                connection.execute(insert(job_event), events)
        lost = {job_id for job_id, row in self.rows.items() if row not in rows}
        self._before_last, self._events = None, []
        memory = self.memory
        memory.last_event = 0
        self._read()
        memory.tails = {row["job_id"]: JobState(row["to_state"]) for row in self._events}
        memory.spoiled |= lost
        memory.untold &= self.rows.keys()
        memory.beaten_s = {claim: at for claim, at in memory.beaten_s.items() if claim.job_id not in lost}
        memory.granted = {
            (job_id, claims): runner_id
            for (job_id, claims), runner_id in memory.granted.items()
            if job_id in self.rows and claims <= self.rows[job_id]["claims"]
        }
        memory.wished = {
            job_id for job_id in memory.wished if (self.rows.get(job_id) or {}).get("kill_requested_at")
        }
        return True

    def lock(self, job_id: int) -> None:
        """Hold a row in a session of somebody's own."""
        self.unlock()
        self._lock = plain_connection(str(self.database.settings.database_url))
        self._lock.execute("BEGIN")
        self._lock.execute(f"SELECT 1 FROM job WHERE id = {job_id} FOR UPDATE")
        self.locked = job_id

    def unlock(self) -> None:
        """Let it go."""
        if self._lock is not None:
            with closing(self._lock):
                self._lock.execute("ROLLBACK")
        self._lock, self.locked = None, None

    def kill_by_sql(self, job_id: int) -> None:
        """Kill as any client of the database can."""
        flag = f"kill_requested_at = {self._moment()}"
        update = f"UPDATE job SET {flag} WHERE id = {job_id} AND kill_requested_at IS NULL"
        alive = "state IN ('queued', 'running')"
        self.run(Step("kill by SQL"), lambda conn: conn.exec_driver_sql(f"{update} AND {alive}").rowcount)

    def kind_of(self, job_id: int) -> Kind:
        """Return by what kind of system a job's work is done."""
        return Kind(self.rows[job_id]["connection"])


SKIPPING = frozenset(
    {"beat", "claim_many", "adopt_many", "lose_many", "release_many", "observe_many", "end_many"}
)
"""The statements that pass over a locked row."""
