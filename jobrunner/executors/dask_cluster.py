"""The connection to a Dask cluster: who is there, and work for them. Its calls block: threads make them."""

import inspect
import logging
import signal
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jobrunner.errors import UsageError
from jobrunner.executors.signals import ignored
from jobrunner.extras import require

LOCAL = "local"
"""The address of a cluster that is started on this machine."""
CONNECT_S = 10.0
"""Seconds for which the scheduler is tried to be reached."""
_CALL_S = 5.0
_LOGGERS = ("distributed", "distributed.client", "tornado", "asyncio")


@dataclass(frozen=True, slots=True)
class Seat:
    """What one Dask worker offers."""

    threads: int
    resources: Mapping[str, float]


class Gone(Exception):
    """The scheduler cannot be reached."""


class Cluster:
    """A Dask cluster by its scheduler's address. Raises `UsageError` where that cannot be reached."""

    def __init__(self, address: str) -> None:
        self._distributed: Any = require("distributed", "dask", "A worker with --executor dask")
        for name in _LOGGERS:  # what goes wrong there, we say in our own words
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._local: Any = None
        self._client: Any = None
        self.address = address
        if address == LOCAL:
            with ignored(signal.SIGINT):  # Ctrl-C at the terminal is meant for us, and not for its processes
                self._local = self._distributed.LocalCluster(
                    dashboard_address=None, silence_logs=logging.CRITICAL, processes=True
                )
            self.address = self._local.scheduler_address
        try:
            self._connect(CONNECT_S)
        except Gone as error:
            self.close()
            raise UsageError(f"The Dask scheduler at {address} cannot be reached: {error}.") from error

    def workers(self) -> dict[str, Seat]:
        """Return who is there, by address. Raises `Gone`."""
        if self._client is None or self._client.status != "running":
            raise Gone("the connection was lost")
        try:
            info = self._client.sync(self._ask, callback_timeout=_CALL_S)
        except Exception as error:
            self.drop()
            raise Gone(_words_of(error)) from error
        return {
            address: Seat(each["nthreads"], each.get("resources") or {})
            for address, each in info["workers"].items()
            if each.get("status", "running") in {"running", "paused"}
        }

    async def _ask(self) -> Any:
        # Without a number, versions that know it tell of five workers at most.
        knows = "n_workers" in inspect.signature(self._client.scheduler_info).parameters
        ask = self._client.scheduler.identity
        return await (ask(n_workers=-1) if knows else ask())

    def submit(self, function: Callable[[Any], str | None], order: Any, key: str, **options: Any) -> Any:
        """Have a function called once on the cluster; return its future. Raises `Gone`."""
        try:
            return self._client.submit(
                function, order, key=f"jobrunner-{key}-{uuid.uuid4()}", pure=False, retries=0, **options
            )
        except Exception as error:
            raise Gone(_words_of(error)) from error

    def reach_again(self) -> None:
        """Reach the scheduler once more. What was begun before is not known any more. Raises `Gone`."""
        self.drop()
        self._connect(_CALL_S)

    def drop(self) -> None:
        """Forget the connection, and all that was begun over it."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # whatever it raises, it is of no use any more
                client.close(timeout=1)

    def close(self) -> None:
        """Give up the connection, and the cluster on this machine."""
        self.drop()
        if self._local is not None:
            with suppress(Exception):
                self._local.close(timeout=_CALL_S)

    def _connect(self, timeout_s: float) -> None:
        try:
            self._client = self._distributed.Client(self.address, timeout=timeout_s, set_as_default=False)
        except Exception as error:  # of many kinds, by what is wrong with the address
            raise Gone(_words_of(error)) from error


def _words_of(error: BaseException) -> str:
    """Return what an error says, in its first line."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
