"""The jobs of the chaos: what takes minutes outside takes seconds, and code that notes what it did.

A worker learns of them by `--import tests.chaos.kinds`.
"""

import math
import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy.orm import Session

from jobrunner import AirbyteMonitorJob, ArmadaMonitorJob, BaseJob, BatchMonitorJob, submission
from jobrunner.backends.airbyte import AirbyteBackend, AirbyteConnection
from jobrunner.backends.armada import ArmadaBackend, ArmadaConnection
from jobrunner.backends.base import Backend, Observation, Patience
from jobrunner.backends.batch import BatchBackend, BatchConnection
from jobrunner.settings import ConnectionSettings
from tests.chaos.hostile import AS_PLANNED, HostileBatchBackend, goes_wrong, raise_anything, raise_or_hang
from tests.chaos.odd_text import any_of_it

SEND_WITHIN_S = 2.0
SIGNATURE_LIFETIME_S = 3.0
_LISTING_LAG_S = 0.5
_ABSENT_AFTER_S = (
    SEND_WITHIN_S + SIGNATURE_LIFETIME_S + 1.0 + _LISTING_LAG_S
)  # X-Amz-Date tells whole seconds
_DOUBT_S = 15.0  # longer than a POST can be on its way here
_SETTLE_S = 1.0
_PATIENCE = Patience(call_s=4.0, appear_s=20.0, vanish_s=20.0)
_CONNECTS_S = 5.0  # Airbyte's own: a call that ended sooner would be in doubt, though no connection was made

setattr(submission, "SEND_WITHIN_S", SEND_WITHIN_S)  # noqa: B010  # not a name of that module


class ChaosBatchJob(BatchMonitorJob, job_type="ChaosBatchJob"):
    """A job of AWS Batch whose absence can be told within seconds."""

    default_poll_interval = 1.0
    backend_class: ClassVar[type[BatchBackend]] = BatchBackend

    @classmethod
    def make_backend(cls, connection: ConnectionSettings) -> Backend:
        backend = cls.backend_class(
            BatchConnection.of(connection), absent_after_s=_ABSENT_AFTER_S, checks_signatures=True
        )
        backend.patience = _PATIENCE
        return backend


class ChaosHostileJob(ChaosBatchJob, job_type="ChaosHostileJob"):
    """A job of AWS Batch whose backend and hooks go wrong at times."""

    backend_class = HostileBatchBackend

    def judge(self, observation: Observation) -> Observation:
        # A success that was not judged is a failure: few are enough.
        if goes_wrong(0.05 if observation.phase.is_final else 0.5):
            if random.random() < 0.5:
                raise_anything()
            return random.choice([None, 7, "fine"])  # type: ignore[return-value]  # on purpose
        return observation

    def look_interval_s(self, watched_s: float) -> float | None:
        if goes_wrong():
            if random.random() < 0.5:
                raise_anything()
            return random.choice([math.nan, -1.0, math.inf, "soon"])  # type: ignore[return-value]  # on purpose
        return super().look_interval_s(watched_s)

    def heartbeat_callback(self, session: Session | None = None) -> None:
        if goes_wrong():
            raise_or_hang(8.0)

    def on_kill(self) -> None:
        if goes_wrong():
            raise_or_hang(4.0)


class ChaosArmadaJob(ArmadaMonitorJob, job_type="ChaosArmadaJob"):
    """A job of Armada whose submission is in doubt for a second only."""

    default_poll_interval = 1.0

    @classmethod
    def make_backend(cls, connection: ConnectionSettings) -> Backend:
        backend = ArmadaBackend(ArmadaConnection.of(connection), settle_s=_SETTLE_S)
        backend.patience = _PATIENCE
        return backend


class ChaosAirbyteJob(AirbyteMonitorJob, job_type="ChaosAirbyteJob"):
    """A job of Airbyte whose submission is in doubt for seconds only."""

    default_poll_interval = 1.0

    @classmethod
    def make_backend(cls, connection: ConnectionSettings) -> Backend:
        backend = AirbyteBackend(AirbyteConnection.of(connection), doubt_s=_DOUBT_S, fresh_s=10.0)
        backend.patience = replace(_PATIENCE, call_s=_CONNECTS_S + 3.0)
        return backend


class _Code(BaseJob, abstract=True):
    """Code that beats for so many seconds; `notes` is the file in which it says what it does."""

    def __init__(
        self, notes: str = "", seconds: float = 1.0, *, succeeds: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.notes, self.seconds, self.succeeds = notes, seconds, succeeds

    def _execute(self) -> None:
        self._note(f"begin {os.getpid()}")
        end_s = time.monotonic() + self.seconds
        while time.monotonic() < end_s:
            time.sleep(0.1)  # the work
            self.heartbeat(only_if_necessary=True)
        self._note("end")
        if not self.succeeds:
            raise ValueError(f"{AS_PLANNED}: {any_of_it(random.Random())}")

    def on_kill(self) -> None:
        if goes_wrong():
            raise_anything()

    def _note(self, words: str) -> None:
        with Path(self.notes).open("a") as file:
            file.write(f"{words}\n")


class ChaosCodeJob(_Code, job_type="ChaosCodeJob"):
    """Code that must run once."""


class ChaosAgainJob(_Code, job_type="ChaosAgainJob", adoptable=True):
    """Code that stands running twice."""
