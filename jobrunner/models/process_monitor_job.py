"""`ProcessMonitorJob`: a command on this host, supervised."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jobrunner.errors import SpecError
from jobrunner.models.monitor_job import MonitorJob
from jobrunner.statements import PROTOCOL
from jobrunner.text import storable


class ProcessMonitorJob(MonitorJob):
    """A command on this host, in a session of its own, that outlives its monitor.

    `command`: the program and its arguments, no shell. `cwd`: where it runs; the default is here.
    `env`: variables added to this process's environment. `stop_grace`: seconds between SIGTERM and
    SIGKILL on a kill. Raises `SpecError` when the command cannot be run as given.
    """

    backend_kind: ClassVar[str] = "process"
    default_poll_interval: ClassVar[float] = 1.0
    runs_on_this_host: ClassVar[bool] = True

    def __init__(
        self,
        command: Sequence[str] = (),
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        *,
        stop_grace: float = 10.0,
        executor: Any = None,
        heartrate: float | None = None,
        **kwargs: Any,
    ) -> None:
        from jobrunner.backends.process.spec import check_spec

        spec = check_spec(
            {
                "command": list(command),
                "cwd": _directory(cwd),
                "env": dict(env or {}),
                "stop_grace_s": stop_grace,
            }
        )
        # jobrunner 0.1 knows neither that the work belongs to a user, nor where its records are.
        kwargs.setdefault("needs", PROTOCOL)
        kwargs.setdefault("name", storable(os.path.basename(spec.command[0]), 250))  # noqa: PTH119
        super().__init__(executor, heartrate, spec=spec.model_dump(exclude_none=True), **kwargs)


def _directory(cwd: str | os.PathLike[str] | None) -> str:
    try:
        return os.path.abspath(cwd if cwd is not None else os.curdir)  # noqa: PTH100  # `..` is resolved too
    except FileNotFoundError:
        raise SpecError("The working directory was removed: give the whole path of another as cwd.") from None
