"""`ArmadaMonitorJob`: a job of Armada."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakValueDictionary

from jobrunner import registry
from jobrunner.backends.base import Backend
from jobrunner.errors import UsageError
from jobrunner.models.monitor_job import MonitorJob
from jobrunner.settings import ConnectionSettings, get_settings

if TYPE_CHECKING:
    from jobrunner.backends.armada.connection import ArmadaConnection

_LABEL_MOST = 250
_CLIENT, _JOB_SERVICE = "client", "job service"
_KEPT = "_clients_given"

# What a process was given in place of a connection's own channel, by what is given and for which
# connection: for jobs of that connection which were read from their rows, and so have nothing of their own.
# The jobs hold it; nothing of it is stored or sent anywhere.
_given: WeakValueDictionary[tuple[str, str], Any] = WeakValueDictionary()


class ArmadaMonitorJob(MonitorJob):
    """A job of Armada: submitted once, watched 500 a call, cancelled by its id.

    `queue`, `job_set_id` and `pod_spec` (a mapping, a text in YAML or JSON, a `pathlib.Path`, or
    armada-client's message) describe it, with `namespace`, `priority` (0 is the most urgent), `labels`
    and `annotations`; or `job_request_items`, a list of one item, has all of that but queue and job set.
    `armada_client` (armada-client's, or a gRPC channel) and `job_service_client` (the old JobService's, for
    watching) are used in this process in place of the connection's own; another process that takes the job
    over uses the connection. A job of somebody else is watched by
    `attach`. Raises `SpecError`, which names the key that is wrong, and `UsageError` where armada-client is
    not installed.
    """

    backend_kind: ClassVar[str] = "armada"
    resubmit_causes: ClassVar[Sequence[str] | None] = ("preempted", "oom", "rejected")

    def __init__(
        self,
        name: str | None = None,
        queue: str | None = None,
        job_set_id: str | None = None,
        pod_spec: Any = None,
        job_request_items: Sequence[Any] | None = None,
        armada_client: Any = None,
        job_service_client: Any = None,
        namespace: str | None = None,
        priority: float | None = None,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        *,
        executor: Any = None,
        heartrate: float | None = None,
        external_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        described = {
            "queue": queue,
            "job_set_id": job_set_id,
            "pod_spec": pod_spec,
            "job_request_items": job_request_items,
            "namespace": namespace,
            "priority": priority,
            "labels": labels,
            "annotations": annotations,
        }
        given = [key for key, value in described.items() if value is not None]
        if external_id is not None:
            if given:
                raise UsageError(
                    f"The job {external_id} is there already, and is only watched: {given[0]} would describe "
                    "a new one."
                )
            spec, label = {}, _id_in(external_id)
        else:
            spec, label = _spec_of(described), f"{queue}/{job_set_id}"
        kwargs["name"] = (name or label)[:_LABEL_MOST]
        _check_clients(armada_client, job_service_client)
        super().__init__(executor, heartrate, spec=spec, external_id=external_id, **kwargs)
        self._keep(_CLIENT, armada_client)
        self._keep(_JOB_SERVICE, job_service_client)

    @classmethod
    def attach(cls, queue: str, job_set_id: str, job_id: str, **options: Any) -> Self:
        """Return a job that watches the Armada job with this id, which somebody else submitted.

        It obeys kills and timeouts as any other. `options`: those of every job, and the two clients.
        Raises `UsageError`.
        """
        from jobrunner.backends.armada.ids import JobKey

        try:
            external_id = JobKey(queue, job_set_id, job_id).join()
        except (ValueError, TypeError, AttributeError):
            raise UsageError("An Armada job has a queue, a job set and an id: give all three.") from None
        return cls(external_id=external_id, **options)

    @classmethod
    def make_backend(cls, connection: ConnectionSettings) -> Backend:
        """Return the backend behind a connection, with the clients that this process was given for it."""
        client = _given.get((_CLIENT, _mark(connection)))
        job_service = _given.get((_JOB_SERVICE, _mark(connection)))
        if client is None and job_service is None:
            return super().make_backend(connection)
        return _backend_with(connection, client, job_service)

    def _check_connection(self, connection: ConnectionSettings) -> None:
        """Refuse settings that are wrong; with a client of its own, the job needs no url."""
        marks = ((what, _mark(connection)) for what in (_CLIENT, _JOB_SERVICE))
        if self._clients() or any(mark in _given for mark in marks):
            _options_with_clients(connection)
        elif getattr(type(self).make_backend, "__func__", None) is _MAKE_BACKEND:
            registry.load_backend_class(connection.kind).check_connection(connection)

    def own_way(self) -> Hashable:
        """Return the clients that this job was given, as they are told apart."""
        clients = self._clients()
        return tuple(sorted((what, id(client)) for what, client in clients.items())) or None

    def backend_behind(self, connection: ConnectionSettings) -> Backend:
        """Return the backend behind a connection, with the clients that this job was given."""
        clients = self._clients()
        if not clients:
            return super().backend_behind(connection)
        return _backend_with(connection, clients.get(_CLIENT), clients.get(_JOB_SERVICE))

    def __getstate__(self) -> dict[str, Any]:
        # Channels and credentials never travel: where the job arrives, its connection is used.
        return {key: value for key, value in self.__dict__.items() if key != _KEPT}

    def _clients(self) -> dict[str, Any]:
        found: dict[str, Any] = self.__dict__.get(_KEPT, {})
        return found

    def _keep(self, what: str, client: Any) -> None:
        if client is None:
            return
        _, connection = get_settings().connection(self.connection, self.backend_kind)
        # As long as this job is there, and no longer.
        self.__dict__.setdefault(_KEPT, {})[what] = client
        _given[what, _mark(connection)] = client


_MAKE_BACKEND = ArmadaMonitorJob.make_backend.__func__  # type: ignore[attr-defined]  # a class method has one


def _check_clients(armada_client: Any, job_service_client: Any) -> None:
    """Refuse what is none of the official classes, before anything is stored. Raises `UsageError`."""
    if armada_client is not None:
        from jobrunner.backends.armada.wire import is_usable

        if not is_usable(armada_client):
            raise UsageError(
                f"This {type(armada_client).__name__} cannot be used as armada_client: give an ArmadaClient, "
                "an ArmadaAsyncIOClient or a gRPC channel."
            )
    if job_service_client is not None:
        from jobrunner.backends.armada.jobservice import JobServiceClient

        if not isinstance(job_service_client, JobServiceClient):
            raise UsageError(
                f"This {type(job_service_client).__name__} cannot be used as job_service_client: give a "
                "JobServiceClient of jobrunner.backends.armada.jobservice."
            )


def _backend_with(connection: ConnectionSettings, client: Any, job_service: Any) -> Backend:
    """Return a backend with the clients that were given; what was not given is the connection's own."""
    from jobrunner.backends.armada.backend import ArmadaBackend
    from jobrunner.backends.armada.jobservice_backend import JobServiceBackend

    has_url = "url" in connection.options
    is_job_service = connection.kind != ArmadaMonitorJob.backend_kind
    options = _options_with_clients(connection)
    watch = None
    if job_service is not None or (is_job_service and has_url):
        watch = JobServiceBackend(options, client=job_service)
    if client is None and watch is not None and (is_job_service or not has_url):
        return watch  # nobody is there who would take or cancel a job
    return ArmadaBackend(options, given=client, watch=watch)


_NOWHERE = "localhost:50051"


def _options_with_clients(connection: ConnectionSettings) -> "ArmadaConnection":
    """Return a connection's options where clients were given, which need no url. Raises `SettingsError`."""
    from jobrunner.backends.armada.connection import ArmadaConnection

    return ArmadaConnection.of(
        ConnectionSettings(kind=connection.kind, **{"url": _NOWHERE, **connection.options})
    )


def _mark(connection: ConnectionSettings) -> str:
    """Return what tells two connections apart."""
    return repr((connection.kind, sorted(connection.options.items(), key=lambda item: item[0])))


def _spec_of(described: Mapping[str, Any]) -> dict[str, Any]:
    from jobrunner.backends.armada.spec import check_spec, item_of, one_item

    items, pod_spec = described["job_request_items"], described["pod_spec"]
    if (items is None) is (pod_spec is None):
        raise UsageError("An Armada job needs a pod_spec or job_request_items, one of the two.")
    if items is not None:
        alone = ("namespace", "priority", "labels", "annotations")
        twice = next((key for key in alone if described[key] is not None), None)
        if twice is not None:
            raise UsageError(f"{twice} stands in the item of job_request_items: give it there alone.")
        item = one_item(items)
    else:
        item = item_of(
            pod_spec,
            described["namespace"] or "default",
            described["priority"] or 0,
            described["labels"] or {},
            described["annotations"] or {},
        )
    return check_spec({"queue": described["queue"], "jobSetId": described["job_set_id"], "item": item})


def _id_in(external_id: str) -> str:
    from jobrunner.backends.armada.ids import JobKey

    try:
        return JobKey.split(external_id).job_id
    except ValueError as error:
        raise UsageError(f"{error}.") from None
