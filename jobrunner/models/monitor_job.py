"""`MonitorJob`: a job whose work happens elsewhere; we submit it, watch it, cancel it."""

import uuid
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

from jobrunner import registry
from jobrunner.backends.base import Backend, Observation
from jobrunner.clock import INTERVAL_LEAST, SECONDS_MOST, is_duration, is_interval
from jobrunner.errors import SpecError, UsageError
from jobrunner.models.base_job import BaseJob, check_spec
from jobrunner.models.plain_code import check_plain
from jobrunner.redaction import find_secret
from jobrunner.settings import ConnectionSettings, get_settings
from jobrunner.text import brief


class MonitorJob(BaseJob, abstract=True, adoptable=True):
    """A job that a backend does. Abstract: a subclass names its `backend_kind` and makes the `spec`.

    `spec`: what to submit, JSON; a secret in it is refused. `connection`: the name of a configured
    connection; without it `<kind>_default`. `poll_interval`: seconds between looks. `start_timeout`:
    seconds from the submission within which the work must have started, or it is cancelled and the
    job fails, saying what it waited for. `resubmit`: how often work that failed is submitted again, by
    the cause that its backend names (`{"preempted": 3, "oom": 1}`). `external_id`: work that is there
    already; then nothing is submitted, and it is watched from the start. Raises `SpecError`,
    `SettingsError` and `UsageError`.
    """

    backend_kind: ClassVar[str] = ""
    """The kind of connection by which its backend is found."""
    default_poll_interval: ClassVar[float] = 10.0
    """Seconds between looks, where neither the job nor the settings say."""
    resubmit_causes: ClassVar[Sequence[str] | None] = None
    """The causes that its backend names, for which work may be submitted again; None: whatever they are."""
    runs_on_this_host: ClassVar[bool] = False
    """Whether the work is bound to the host that submits it."""

    def __init__(
        self,
        executor: Any = None,
        heartrate: float | None = None,
        *,
        spec: dict[str, Any] | None = None,
        poll_interval: float | None = None,
        start_timeout: float | None = None,
        resubmit: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        check_spec(spec)  # first: what holds itself could not be searched
        secret = find_secret(spec)
        if secret is not None:
            raise SpecError(
                f"The spec holds what looks like a secret at {secret}, and everybody who reads the database "
                "would see it: leave it to the connection, or to the environment in which the work runs."
            )
        settings = get_settings()
        interval = (
            poll_interval or settings.poll_interval_for(type(self).__name__) or self.default_poll_interval
        )
        if poll_interval is not None and not is_interval(poll_interval):
            raise UsageError(
                f"A poll interval of {brief(poll_interval, 100)} s cannot be kept: give seconds, at least "
                f"{INTERVAL_LEAST:g} and at most {SECONDS_MOST:g}."
            )
        if start_timeout is not None and not is_duration(start_timeout):
            raise UsageError(
                f"A start timeout of {brief(start_timeout, 100)} s cannot be kept: give seconds, more than "
                f"0 and at most {SECONDS_MOST:g}."
            )
        self._check_resubmit(resubmit, kwargs.get("external_id"))
        if self.backend_kind:
            kwargs["connection"] = settings.connection(kwargs.get("connection"), self.backend_kind)[0]
        kwargs.setdefault("submit_token", uuid.uuid4().hex)
        super().__init__(
            executor,
            heartrate,
            spec=spec or {},
            poll_interval=interval,
            start_timeout=start_timeout,
            resubmit=dict(resubmit) if resubmit else None,
            **kwargs,
        )

    @classmethod
    def _check_resubmit(cls, resubmit: object, external_id: str | None) -> None:
        if resubmit is None:
            return
        if not isinstance(resubmit, Mapping):
            raise UsageError(
                f"{brief(resubmit, 100)} does not say how often work is submitted again: give a count for "
                "each cause, such as {'preempted': 3}."
            )
        for cause, count in resubmit.items():
            if not isinstance(cause, str):
                raise UsageError(f"{brief(cause, 100)} is not a cause of failure: give its name, as text.")
            if cls.resubmit_causes is not None and cause not in cls.resubmit_causes:
                known = ", ".join(cls.resubmit_causes) or "none"
                raise UsageError(
                    f"No {cls.__name__} ever fails by the cause {brief(cause, 100)}: known are {known}."
                )
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise UsageError(
                    f"After {brief(cause, 100)} it cannot be submitted again {brief(count, 100)} times: "
                    "give 0 or more."
                )
        if resubmit and external_id is not None:
            raise UsageError(
                f"The job {external_id} was submitted by somebody else, and only he can submit it again: "
                "leave resubmit out."
            )

    def _check_before_storing(self) -> None:
        """Refuse a connection by which this job could never be served, too. Raises `UsageError`."""
        super()._check_before_storing()
        check_plain(type(self), ("judge", "look_interval_s"))
        if not self.backend_kind:
            return
        _, connection = get_settings().connection(self.connection, self.backend_kind)
        self._check_connection(connection)

    def _check_connection(self, connection: ConnectionSettings) -> None:
        """Refuse what its backend refuses; one that a subclass makes in its own way is not known here."""
        cls = type(self)
        makes_its_own = cls.backend_behind is not MonitorJob.backend_behind
        if makes_its_own or getattr(cls.make_backend, "__func__", None) is not _MAKE_BACKEND:
            return
        check = getattr(registry.load_backend_class(connection.kind), "check_connection", None)
        if check is not None:
            check(connection)

    def own_way(self) -> Hashable:
        """Return what this job has of its own on the way to its backend; None: its connection says all.

        Jobs of one connection with the same answer share one backend in a runner.
        """
        return None

    def backend_behind(self, connection: ConnectionSettings) -> Backend:
        """Return the backend behind a connection, for this job and all with its `own_way`."""
        return type(self).make_backend(connection)

    @classmethod
    def make_backend(cls, connection: ConnectionSettings) -> Backend:
        """Return the backend behind a connection; one serves all jobs of this connection in a runner."""
        backend: Backend = registry.load_backend_class(connection.kind).from_connection(connection)
        return backend

    def run(self) -> None:
        """Submit the work once and watch it in this process until it ends.

        Raises `JobFailed`, `JobKilled` or `JobLost` as it ended, `Released` when this process was
        told to stop first (the work goes on, and may be attached to), and what `BaseJob.run` raises.
        """
        executor = self.executor
        if not hasattr(executor, "run_monitor_job"):
            executor = registry.load_executor_class("LocalExecutor")()
        executor.run_monitor_job(self)

    def poke(self) -> bool:
        """Look at the work once, and write nothing: True when it is done, False while it is not.

        Raises `JobFailed` when it failed or was cancelled, `JobKilled` and `JobLost` as the row says,
        `BackendError` when nothing can be seen of it, `DatabaseError` when the row cannot be read.
        """
        is_done: bool = registry.load("jobrunner.poking:poke")(self)
        return is_done

    def judge(self, observation: Observation) -> Observation:
        """Return what an observation means for this job: for types that ask more of their work's success."""
        return observation

    def look_interval_s(self, watched_s: float) -> float | None:  # noqa: ARG002  # for types that use it
        """Return the seconds until the next look after so long a watch; None: `poll_interval`."""
        return None

    def has_a_say(self) -> bool:
        """Whether `judge` or `look_interval_s` may say anything; a runner keeps no object that has no say."""
        cls = type(self)
        return not (cls.judge is MonitorJob.judge and cls.look_interval_s is MonitorJob.look_interval_s)

    def log_id(self, *, child: int | None = None, node: int | None = None) -> str:
        """Return the external id under which `Backend.logs` has the output of the job, or of a part of it.

        `child`, `node`: which part, counted from 0, where a job of this type has parts. Empty while
        nothing of the job is outside yet. Raises `UsageError` for a part that it does not have.
        """
        if child is not None or node is not None:
            raise UsageError(
                f"A {type(self).__name__} has no children or nodes: leave --child and --node away."
            )
        return self.external_id or ""


_MAKE_BACKEND = MonitorJob.make_backend.__func__  # type: ignore[attr-defined]  # a class method has one
