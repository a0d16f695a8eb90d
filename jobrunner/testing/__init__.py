"""Help for testing jobs and backends.

`MemoryBackend` is an outside system inside the process, with trouble to order, and `HostileBackend` one
whose own code is wrong. The tests that a backend of your own must pass are in
`jobrunner.testing.conformance`, which alone needs pytest.
"""

from jobrunner.testing.faults import Call, Fault, Order
from jobrunner.testing.hostile import HostileBackend
from jobrunner.testing.jobs import MemoryMonitorJob, use_backend
from jobrunner.testing.memory import MemoryBackend
from jobrunner.testing.spoiling import Misbehaviour
from jobrunner.testing.work import MemoryJob, Plan

__all__ = [
    "Call",
    "Fault",
    "HostileBackend",
    "MemoryBackend",
    "MemoryJob",
    "MemoryMonitorJob",
    "Misbehaviour",
    "Order",
    "Plan",
    "use_backend",
]
