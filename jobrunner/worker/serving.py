"""What this process can serve: the types that it can load, the connections that it has, its own host."""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobrunner import identity, registry
from jobrunner.clock import monotonic_s
from jobrunner.errors import JobrunnerError
from jobrunner.models import MonitorJob
from jobrunner.models.base_job import class_of
from jobrunner.settings import Settings
from jobrunner.sqltypes import BlobText
from jobrunner.terms import connection_of, maker_of
from jobrunner.worker.job import WorkerJob
from jobrunner.worklist import OF_SOME, Waiting, why_barred

Kind = tuple[str, str | None]
"""A job type, and the connection that the row names."""

_VERDICTS_MOST = 10_000  # connections are text in rows: anybody may write any number of them
_AGAIN_S = 60.0  # what could not be served is tried again after this: an extra may be installed meanwhile


@dataclass(frozen=True, slots=True)
class Unserved:
    """A kind of job that waits and is not served, and why not."""

    job_type: str
    connection: str | None
    why: str
    resources: Mapping[str, float] | None = None
    """What it asks for, if that is why."""
    is_of_some: bool = False
    """Whether it is said only of some: the held, the bound, those that a newer version stored."""

    def as_row(self) -> list[Any]:
        """Return it as the worker's row tells it."""
        row: list[Any] = [self.job_type, self.connection, self.why]
        if self.is_of_some:
            return [*row, OF_SOME]
        return row if self.resources is None else [*row, dict(self.resources)]


@dataclass(frozen=True, slots=True)
class Served:
    """Of what waits, what can be served here."""

    monitored: dict[Kind, int]
    """The types and connections of monitor jobs, and how many of each wait."""
    coded: list[str]
    """The types of jobs that run their own code."""
    host_ids: list[str]
    """Hosts to which some of them are bound, and which can be served from here."""
    unserved: list[Unserved]
    """Those that cannot be served, each with the reason."""
    unreadable: bool = False
    """Whether of some not even the type can be read."""


class Serving:
    """Says of a job whether this process can serve it, and why not.

    `job_types`, `connections`: serve only these; none: all that there are. `watches`, `runs_code`: whether
    it has any place for monitor jobs, and for jobs that run their own code.
    """

    def __init__(
        self,
        settings: Settings,
        job_types: Collection[str] = (),
        connections: Collection[str] = (),
        clock: Callable[[], float] = monotonic_s,
        *,
        watches: bool = True,
        runs_code: bool = True,
    ) -> None:
        self._settings = settings
        self._job_types = frozenset(job_types)
        self._connections = frozenset(connections)
        self._clock = clock
        self._watches = watches
        self._runs_code = runs_code
        self._verdicts: dict[tuple[str, str | None, bool], tuple[float, str | None]] = {}
        self._forget_at_s = 0.0

    def of(self, waiting: Iterable[Waiting], unseen: Mapping[Kind, Sequence[str]] | None = None) -> Served:
        """Tell what of the jobs that wait can be served.

        `unseen`: those of this host whose records cannot be seen, by their kind: why, of each.
        """
        monitored: dict[Kind, int] = {}
        coded: dict[str, None] = {}
        hosts: dict[str, None] = {}
        unserved: dict[Unserved, None] = {}
        unreadable = False
        for each in waiting:
            kind = each.job_type, each.connection
            if each.is_unreadable:
                unreadable = True
                if isinstance(each.host_id, BlobText):  # whose it is, nobody knows: it cannot even be ended
                    unserved[Unserved(*kind, "its host_id cannot be read", is_of_some=True)] = None
                continue
            why = self.why_not(*kind, is_watched=each.is_watched)
            if why is not None:
                unserved[Unserved(*kind, why)] = None
                continue
            why = why_barred(each.needs, is_held=each.is_held) or self._why_not_here(each)
            if why is not None:
                unserved[Unserved(*kind, why, is_of_some=True)] = None
                continue
            if each.host_id is not None:
                hosts[each.host_id] = None
            if self.is_monitored(each.job_type):
                monitored[kind] = monitored.get(kind, 0) + each.count
            else:
                coded[each.job_type] = None
        for kind, reasons in (unseen or {}).items():
            if kind in monitored:
                unserved[Unserved(*kind, reasons[0], is_of_some=True)] = None
                monitored[kind] -= len(reasons)
        monitored = {kind: count for kind, count in monitored.items() if count > 0}
        return Served(monitored, list(coded), list(hosts), list(unserved), unreadable)

    def is_monitored(self, job_type: str) -> bool:
        """Whether jobs of this type are watched; the others run their own code."""
        job_class = class_of(job_type)
        return job_class is not None and issubclass(job_class, MonitorJob)

    def why_not(self, job_type: str, connection: str | None, *, is_watched: bool) -> str | None:
        """Return why such a job cannot be served here; None: it can, as far as can be told before.

        `is_watched`: whether it watches work outside, as its row says: also where its class is not known.
        """
        being_imported = f"the class of {job_type} is still being imported here"
        if registry.is_being_imported(job_type):
            return being_imported
        known = self._verdicts.get((job_type, connection, is_watched))
        if known is None or known[0] < self._clock():
            why = self._why_not(job_type, connection, is_watched=is_watched)
            if registry.is_being_imported(job_type):  # it was begun just now, and says nothing yet
                return being_imported
            known = self._note(job_type, connection, why, is_watched=is_watched)
        return known[1]

    def group_of(self, job_type: str, connection: str | None) -> Hashable:
        """Return what jobs that share one way to the outside have in common, of monitor jobs served here."""
        job_class: Any = class_of(job_type)
        try:
            name, _ = connection_of(self._settings, job_class, connection)
            return maker_of(job_class), name
        except JobrunnerError:  # whoever owns such a job says so
            return job_class, connection

    def refuse(self, job_type: str, connection: str | None, why: str) -> None:
        """Take note that such a job could not be watched after all: it is left alone for a while."""
        self._note(job_type, connection, why, is_watched=True)

    def _note(
        self, job_type: str, connection: str | None, why: str | None, *, is_watched: bool
    ) -> tuple[float, str | None]:
        now_s = self._clock()
        if now_s >= self._forget_at_s:
            self._forget_at_s = now_s + _AGAIN_S
            self._verdicts = {kind: known for kind, known in self._verdicts.items() if known[0] >= now_s}
        if len(self._verdicts) >= _VERDICTS_MOST:
            self._verdicts.clear()
        verdict = self._verdicts[job_type, connection, is_watched] = (now_s + _AGAIN_S, why)
        return verdict

    def _why_not(self, job_type: str, connection: str | None, *, is_watched: bool) -> str | None:
        if self._job_types and job_type not in self._job_types:
            return f"this worker serves only {', '.join(sorted(self._job_types))}"
        job_class = class_of(job_type)
        if job_class is not None and issubclass(job_class, WorkerJob):
            return "a worker runs itself"
        if job_class is None and is_watched:
            return "its type cannot be loaded here: install what registers it, or give --import"
        if job_class is None or not issubclass(job_class, MonitorJob):
            # The row may name the class; who loads it says what is wrong with it.
            return None if self._runs_code else "it runs no jobs with code"
        return self._why_not_watched(job_class, connection)

    def _why_not_watched(self, job_class: type[MonitorJob], connection: str | None) -> str | None:
        if not self._watches:
            return "it watches no jobs itself"
        try:
            name, _ = connection_of(self._settings, job_class, connection)
            maker_of(job_class)
        except JobrunnerError as error:
            return str(error)
        if self._connections and name not in self._connections:
            return f"this worker serves only the connections {', '.join(sorted(self._connections))}"
        return None

    def _why_not_here(self, waiting: Waiting) -> str | None:
        """Return why jobs of a kind that is served here wait for another host or user; None: they do not."""
        # Code is started anew: only what watches a process can go by what an earlier boot has left.
        can_serve = identity.can_serve if self.is_monitored(waiting.job_type) else is_bound_here
        if not can_serve(waiting.host_id):
            return "it is bound to another host"
        if waiting.host_uid not in {None, identity.uid()}:
            return f"it is bound to the user {identity.username(waiting.host_uid)}"
        return None


def is_bound_here(host_id: str | None) -> bool:
    """Whether a job may run on this host as it is now."""
    return host_id is None or host_id == identity.host_id()


def path_of(row: Mapping[Any, Any]) -> str | None:
    """Return the import path by which `jobrunner start MODULE:CLASS` stored a job, if it did."""
    spec = row["spec"]
    path = spec.get("class") if isinstance(spec, dict) else None
    return path if isinstance(path, str) and ":" in path else None
