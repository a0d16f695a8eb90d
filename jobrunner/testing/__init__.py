"""Help for testing jobs and backends.

`MemoryBackend` is an outside system inside the process, with trouble to order. The tests that a
backend of your own must pass are in `jobrunner.testing.conformance`, which alone needs pytest.
"""

from jobrunner.testing.faults import Call, Fault, Order
from jobrunner.testing.jobs import MemoryMonitorJob, use_backend
from jobrunner.testing.memory import MemoryBackend
from jobrunner.testing.work import MemoryJob, Plan

__all__ = [
    "Call",
    "Fault",
    "MemoryBackend",
    "MemoryJob",
    "MemoryMonitorJob",
    "Order",
    "Plan",
    "use_backend",
]
