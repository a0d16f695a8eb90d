"""Strikes at the database, and at the way to it."""

import time
from contextlib import suppress

from tests.chaos import demotion
from tests.chaos.faults import AWAY, RECOVERS_S
from tests.chaos.processes import NO_DATABASE, TAKEN_FOR_DEAD
from tests.chaos.strikes.hand import Hand
from tests.chaos.switches import NAMES_FAIL, NAMES_HANG

_NAMES_S = (4.0, 14.0)
_DEMOTED_S = (1.0, 8.0)


class DatabaseStrikes(Hand):
    """Outages, demotions, connections cut and half open, names that are not resolved, full disks."""

    def restart_the_database(self) -> None:
        assert self.postgres is not None
        fault = self.faults.note("restart of PostgreSQL", is_database_away=True, loses_answers=True)
        self.postgres.stop()
        time.sleep(self.rng.choice([0.0, 0.0, 1.0, 3.0]))
        self.postgres.start()
        fault.end()

    def cut_connections(self) -> None:
        """End a worker's connections to the database; it may connect again at once."""
        place = self.one_of("worker", "Dask worker")
        if place is None or place.proxy is None:
            return
        self.faults.note("connections to the database cut", loses_answers=True).end()
        place.expected.add(NO_DATABASE)  # if it is only about to start
        place.proxy.cut()

    def leave_connections_half_open(self) -> None:
        """Let nothing through between a worker and the database, and say so to neither."""
        place = self.one_of("worker", "Dask worker")
        if place is None or place.proxy is None:
            return
        fault = self.faults.note(
            "connections to the database half open", writers=frozenset({place.writer}), loses_answers=True
        )
        proxy, process = place.proxy, place.process
        place.is_struck = True
        place.expected |= {TAKEN_FOR_DEAD, NO_DATABASE}
        proxy.is_silent = True

        def go_on() -> None:
            proxy.cut()
            proxy.is_silent = False
            place.is_struck &= place.process is not process
            fault.end()
            fault.until_s += RECOVERS_S

        self.faults.later(self.rng.uniform(3.0, 12.0), go_on)

    def kill_the_pooler(self) -> None:
        """Kill PgBouncer, and start it again in a moment: no grace passes meanwhile."""
        place = self.one_of("worker")
        if place is None or place.pooler is None:
            return
        pooler = place.pooler
        fault = self.faults.note("kill -9 of PgBouncer", loses_answers=True)
        place.expected.add(NO_DATABASE)  # if it is only about to start
        pooler.kill()
        time.sleep(self.rng.uniform(0.0, 0.5))
        pooler.start()
        fault.end()

    def turn_sessions_read_only(self) -> None:
        """Demote the primary: all sessions stay, and are told that they may not write. Nobody may.

        As nobody can write, nobody can be taken for dead: it excuses no adoption.
        """
        assert self.postgres is not None
        if self.postgres.is_read_only:
            return
        fault = self.faults.note("PostgreSQL demoted, and back", is_database_away=True)
        self.postgres.demote()

        def promote() -> None:
            assert self.postgres is not None
            self.postgres.promote()
            fault.end()

        self.faults.later(self.rng.uniform(*_DEMOTED_S), promote)

    def leave_a_worker_on_an_old_primary(self) -> None:
        """Let the sessions that a worker has now never write again; a new one may. It excuses nothing.

        So it is where an address leads to another primary now. A pooler would have to notice by itself.
        """
        place = self.one_of("worker", "Dask worker")
        if place is None or place.pooler is not None:
            return
        with suppress(*AWAY):
            if demotion.demote(self.url, place.writer):
                self.faults.note("sessions of a worker left on an old primary").end()
                place.expected.add(NO_DATABASE)  # if it is only about to start

    def let_names_hang(self) -> None:
        """Let the resolver be silent. Who starts finds no database; it excuses no beat that is late."""
        self.for_a_while(NAMES_HANG, "names are not resolved: no answer", _NAMES_S, is_database_away=True)

    def let_names_fail(self) -> None:
        """Let the resolver fail, as when no name server can be reached."""
        self.for_a_while(NAMES_FAIL, "names are not resolved: failure", _NAMES_S, is_database_away=True)

    def fill_the_disk(self) -> None:
        """Leave no byte free where the SQLite file is."""
        assert self.small_disk is not None
        ballast = self.small_disk / "ballast"
        if ballast.exists():
            return
        fault = self.faults.note("disk of SQLite full", is_database_away=True)
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

        def empty() -> None:
            ballast.unlink()
            fault.end()

        self.faults.later(self.rng.uniform(1.0, 8.0), empty)
