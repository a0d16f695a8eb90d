"""What is named by import path and loaded when used: job types, backends, executors.

So `jobrunner --help` imports none of them, and nothing imports upwards.
"""

import sys
import threading
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from jobrunner.bounded import Bounded
from jobrunner.clock import monotonic_s
from jobrunner.errors import UsageError, words_of
from jobrunner.logs import get_logger

log = get_logger(__name__)

JOB_TYPES = {
    "AirbyteMonitorJob": "jobrunner.models.airbyte_monitor_job:AirbyteMonitorJob",
    "ArmadaMonitorJob": "jobrunner.models.armada_monitor_job:ArmadaMonitorJob",
    "BatchMonitorJob": "jobrunner.models.batch_monitor_job:BatchMonitorJob",
    "ProcessMonitorJob": "jobrunner.models.process_monitor_job:ProcessMonitorJob",
    "WorkerJob": "jobrunner.worker.job:WorkerJob",
}
"""Our own job types; a third party's come by the entry-point group `jobrunner.jobs`."""

_AGAIN_S = 60.0
_broken_until_s: Bounded[str, float] = Bounded()
"""The job types that could not be imported, and until when they are left alone."""

_IMPORT_S = 5.0
"""How long an event loop waits for an import at first: one that takes longer goes on beside it."""
_importing: dict[str, "_Import"] = {}

BACKENDS = {
    "airbyte": "jobrunner.backends.airbyte:AirbyteBackend",
    "armada": "jobrunner.backends.armada:ArmadaBackend",
    "armada-jobservice": "jobrunner.backends.armada.jobservice_backend:JobServiceBackend",
    "batch": "jobrunner.backends.batch:BatchBackend",
    "process": "jobrunner.backends.process:ProcessBackend",
}
"""Our own backends, by the kind of connection; others come by the group `jobrunner.backends`."""

EXECUTORS = {
    "DaskExecutor": "jobrunner.executors.dask:DaskExecutor",
    "LocalExecutor": "jobrunner.executors.local:LocalExecutor",
}


def load(path: str) -> Any:
    """Import `module:Name`. Raises `UsageError`."""
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise UsageError(f"{path!r} names no class: write it as MODULE:CLASS.")
    module = load_module(module_name, path)
    try:
        return getattr(module, name)
    except AttributeError:
        raise UsageError(f"The module {module_name!r} has no {name!r}.") from None


def load_module(name: str, wanted_for: str | None = None) -> Any:
    """Import a module. Raises `UsageError` where it, or one that it needs, cannot be found."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(
            f"{name!r} is not the name of a module: write it with dots and no path, such as package.module."
        )
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"The module {error.name!r} for {wanted_for or name!r} cannot be found.") from error


def load_backend_class(kind: str) -> Any:
    """Return the class of a kind of backend. Raises `UsageError` on an unknown kind."""
    return _load_named(kind, BACKENDS, "jobrunner.backends", "kind of connection")


def load_executor_class(name: str) -> Any:
    """Return the class of an executor. Raises `UsageError` on an unknown name."""
    return _load_named(name, EXECUTORS, "jobrunner.executors", "executor")


def load_job_class(name: str) -> Any | None:
    """Return the class of a job type that is ours or installed; None when nobody knows it.

    A third party's class that cannot be imported is logged, and tried again after a minute: its rows can
    still be read and killed. An event loop is not held up by an import that does not end: it goes on on a
    thread, and the class is there when it is done.
    """
    if monotonic_s() < _broken_until_s.get(name, 0.0):
        return None
    try:
        if name in JOB_TYPES:
            return load(JOB_TYPES[name])
        entry = next(iter(entry_points(group="jobrunner.jobs", name=name)), None)
        if entry is None:
            return None
        return _imported_aside(name, entry) if _is_in_loop() else entry.load()
    except KeyboardInterrupt:
        if _is_in_loop():  # the module's: an event loop hears Ctrl-C in another way
            _say_broken(name, "KeyboardInterrupt")
            return None
        raise
    except BaseException as error:  # noqa: BLE001  # whatever the import of somebody's module raises
        _say_broken(name, words_of(error))
        return None


def _say_broken(name: str, why: str) -> None:
    _broken_until_s[name] = monotonic_s() + _AGAIN_S
    log.warning("a job type cannot be imported", job_type=name, error=why)


class _Import:
    """An import on a thread of its own."""

    def __init__(self, entry: EntryPoint) -> None:
        self._is_done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        from jobrunner.aside import begin

        begin(entry.load, self._on_end)
        self._is_done.wait(_IMPORT_S)

    def _on_end(self, value: Any, error: BaseException | None) -> None:
        self._value, self._error = value, error
        self._is_done.set()

    @property
    def is_done(self) -> bool:
        return self._is_done.is_set()

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


def _imported_aside(name: str, entry: EntryPoint) -> Any | None:
    """Return the class once its import has ended; None: not yet."""
    importing = _importing.get(name)
    if importing is None:
        importing = _importing[name] = _Import(entry)
        if not importing.is_done:
            log.warning("the import of a job type does not end: its jobs wait", job_type=name)
    if not importing.is_done:
        return None
    del _importing[name]
    return importing.result()


def _is_in_loop() -> bool:
    if "asyncio" not in sys.modules:  # importing it would take `jobrunner --help` a while
        return False
    from asyncio import _get_running_loop

    return _get_running_loop() is not None


def is_being_imported(name: str) -> bool:
    """Whether the class of a job type is not there yet, because its import does not end."""
    importing = _importing.get(name)
    return importing is not None and not importing.is_done


def job_type_names() -> list[str]:
    """Return the job types that can be loaded by name."""
    return sorted({*JOB_TYPES, *(entry.name for entry in entry_points(group="jobrunner.jobs"))})


def _load_named(name: str, ours: dict[str, str], group: str, what: str) -> Any:
    if name in ours:
        return load(ours[name])
    for entry in entry_points(group=group, name=name):
        try:
            return entry.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever the import of somebody's module raises
            raise UsageError(
                f"The {what} {name!r} cannot be imported: {words_of(error)}: correct or remove its package."
            ) from error
    raise UsageError(f"There is no {what} {name!r}: known are {', '.join(sorted(ours))}.")
