"""Queued jobs: a worker claims its share of those to watch, and starts those that run their own code."""

import random
from collections.abc import Hashable, Iterable, Mapping

from sqlalchemy import Connection, RowMapping

from jobrunner import identity, statements, worklist
from jobrunner.errors import DatabaseError, DatabaseUnavailable, UsageError
from jobrunner.executors.resting import Resting
from jobrunner.logs import get_logger
from jobrunner.resources import parsed, resources_in
from jobrunner.soundness import why_unreadable
from jobrunner.statements import Owner
from jobrunner.states import JobState
from jobrunner.worker.means import Means
from jobrunner.worker.serving import Kind, Served, Unserved
from jobrunner.worker.share import divided
from jobrunner.worker.taking import Taking
from jobrunner.worker.telling import Telling
from jobrunner.worklist import Waiting

log = get_logger(__name__)

_STEPS_MOST = 3_000  # jobs on their way to their submission: each must come to it within its step's time
_KINDS_MOST = 20  # types and connections of which jobs are claimed in one round: each is a statement
_ALONE_MOST = 50  # jobs that are claimed one by one in one round
_UNREADABLE_MOST = 100
_BOUND_MOST = 20_000  # jobs of this host whose records one round looks for
_FIRST_REST_S = 2.0


class Claiming:
    """Takes what waits, as far as it can be served here."""

    def __init__(self, means: Means, taking: Taking, telling: Telling) -> None:
        self._means = means
        self._taking = taking
        self._telling = telling
        self._refused: Resting[int] = Resting()
        """Jobs of which the database refused the claim, for what their rows hold."""
        self._unseen: dict[int, tuple[Kind, str]] = {}
        """Jobs of this host whose records cannot be seen from here, and why."""
        self.is_held_back = False
        """Whether more waits than may be on its way now, for connections that do take jobs."""

    async def claim(self) -> int:
        """Take some of the queued jobs, and return how many. Raises `DatabaseError`."""
        waiting = await self._means.read(worklist.waiting)
        self._unseen = await self._unseen_of(waiting)
        unseen: dict[Kind, list[str]] = {}
        for kind, why in self._unseen.values():
            unseen.setdefault(kind, []).append(why)
        served = self._means.serving.of(waiting, unseen)
        self._telling.unserved = served.unserved
        took, self.is_held_back = 0, False
        if served.unreadable:
            owner, resting = self._means.runner.owner, self._refused.resting()
            for job_id in await self._means.read(worklist.unreadable, owner, resting, _UNREADABLE_MOST):
                await self._end_unread(job_id, "its job_type, connection or host_id holds a blob, not a text")
        if served.monitored:
            took += await self._claim_monitored(served)
        if served.coded:
            await self._start_code(served.coded)  # it claims by itself: to look again at once is too early
        return took

    async def _unseen_of(self, waiting: list[Waiting]) -> dict[int, tuple[Kind, str]]:
        hosts = {each.host_id for each in waiting if isinstance(each.host_id, str)}
        here = [host for host in hosts if identity.can_serve(host)]
        if not here:
            return {}
        rows = await self._means.read(worklist.bound, here, identity.uid(), _BOUND_MOST)
        why = await self._means.sight.unseen(rows)
        return {
            row["id"]: ((row["job_type"], row["connection"]), why[row["id"]])
            for row in rows
            if row["id"] in why
        }

    async def _claim_monitored(self, served: Served) -> int:
        windows = self._taking.windows
        rooms = self._rooms(served.monitored)
        on_their_way = self._means.runner.steps - windows.slow
        waiting = sum(served.monitored[kind] for kind in rooms)
        most = min(await self._taking.share(waiting), _STEPS_MOST - on_their_way)
        if most <= 0:
            return 0
        took = 0
        for kind, part in divided(most, rooms).items():
            took += await self._taking.own(await self._claimed(kind, part, served.host_ids))
        return took

    def _rooms(self, waiting: Mapping[Kind, int]) -> dict[Kind, int]:
        """Return how many jobs of each kind may be claimed now: a connection that takes none gets no more."""
        windows, serving = self._taking.windows, self._means.serving
        of_group: dict[Hashable, dict[Kind, int]] = {}
        for kind, count in waiting.items():
            of_group.setdefault(serving.group_of(*kind), {})[kind] = count
        rooms: dict[Kind, int] = {}
        for group, kinds in of_group.items():
            why = windows.why_full(group)
            if why is not None:
                self._telling.unserved += [Unserved(*kind, why) for kind in kinds]
            elif windows.room(group) < sum(kinds.values()):
                self.is_held_back = True
            rooms |= divided(windows.room(group), kinds)
        # At random, where they are too many for one round.
        return rooms if len(rooms) <= _KINDS_MOST else dict(random.sample(list(rooms.items()), _KINDS_MOST))

    async def _claimed(self, kind: Kind, most: int, host_ids: list[str]) -> list[RowMapping]:
        """Claim jobs of one kind: together, and one by one where a row among them spoils that."""
        means, owner = self._means, self._means.runner.owner
        resting = [*self._refused.resting(), *self._unseen]
        try:
            return await means.write(statements.claim_many, owner, [kind], most, host_ids, resting)
        except DatabaseUnavailable:
            raise
        except DatabaseError as error:
            log.debug("jobs are claimed one by one", kind=kind, error=error)
        rows: list[RowMapping] = []
        most = min(most, _ALONE_MOST)
        # Those first that never failed: many that fail must not come round again and again before them.
        found = await means.read(worklist.candidates, *kind, owner, host_ids, self._refused.failed(), most)
        found = found or await means.read(worklist.candidates, *kind, owner, host_ids, resting, most)
        for job_id, host_id in found:
            try:
                row = await means.write(_claim_one, job_id, owner, host_id)
            except DatabaseUnavailable:
                raise
            except DatabaseError as error:
                if self._refused.rest(job_id) <= _FIRST_REST_S:
                    self._say("a job cannot be claimed for what its row holds", job_id, error=error)
                continue
            rows += [] if row is None else [row]
        return rows

    async def _start_code(self, job_types: list[str]) -> None:
        code, owner = self._means.code, self._means.runner.owner
        texts = set()
        for job_type, text in await self._means.read(worklist.asked, job_types, owner):
            why, resources = self._why_not(text)
            if why is not None:
                self._telling.unserved.append(Unserved(job_type, None, why, resources))
            elif code.has_room_for(resources):
                texts.add(text)
        if not texts:
            return
        ask, most = (worklist.queued, job_types, texts, owner), 10 * code.free
        rows = await self._means.read(*ask, self._without([*code.failed(), *self._refused.failed()]), most)
        if not rows:
            resting = [*code.resting(), *self._refused.resting()]
            rows = await self._means.read(*ask, self._without(resting), most)
        # At random among the oldest: others who choose at the same time shall choose differently.
        for row in random.sample(rows, len(rows)):
            why = why_unreadable(row, is_monitored=False)
            if why is not None:
                await self._end_unread(row["id"], why)
                continue
            resources = resources_in(row["spec"])
            if code.has_room_for(resources):
                await code.start(row["id"], None, resources)

    def _without(self, job_ids: Iterable[int]) -> set[int]:
        """Return the jobs with code that are not looked at: these, and those that were started."""
        return {*self._means.code.by_job.keys(), *job_ids}

    def _why_not(self, text: str | None) -> tuple[str | None, dict[str, float]]:
        """Return why code that asks for these resources is not run here, and the resources."""
        try:
            resources = parsed(text)
        except (UsageError, ValueError, RecursionError) as error:
            return f"what it asks for cannot be read: {error}", {}
        return self._means.code.why_not(resources), resources

    async def _end_unread(self, job_id: int, why: str) -> None:
        if self._refused.is_resting(job_id):
            return
        try:
            if await self._means.write(_fail_one, job_id, self._means.runner.owner, why):
                self._say("a job cannot be read: it ends", job_id, why=why)
            else:  # it is bound to another host, or somebody was first
                self._refused.rest(job_id)
        except DatabaseUnavailable:
            raise
        except DatabaseError as error:
            if self._refused.rest(job_id) <= _FIRST_REST_S:
                self._say("a job cannot be read, nor ended", job_id, why=why, error=error)

    def _say(self, event: str, job_id: int, **fields: object) -> None:
        self._means.runner.seldom.error(log, event, about=job_id, job=job_id, **fields)


def _claim_one(connection: Connection, job_id: int, owner: Owner, host_id: str | None) -> RowMapping | None:
    served = host_id if identity.can_serve(host_id) else None
    claim = statements.claim_queued(connection, job_id, owner, served)
    return None if claim is None else statements.get(connection, job_id)


def _fail_one(connection: Connection, job_id: int, owner: Owner, why: str) -> bool:
    """End a queued job as failed: it is claimed for that, as every end is an owner's."""
    claim = statements.claim_queued(connection, job_id, owner)
    return claim is not None and statements.end(connection, claim, JobState.FAILED, why)
