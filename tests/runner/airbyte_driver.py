"""The driver script, for a job of Airbyte: `airbyte` in the order is the connection."""

import json
import sys
from typing import Any

from jobrunner.backends.airbyte import AirbyteBackend
from jobrunner.models import MonitorJob
from jobrunner.settings import configure
from tests.runner import driver
from tests.runner.airbyte_jobs import QuickAirbyteJob
from tests.stubs.airbyte_server import CONNECTION


def _job(_order: dict[str, Any], options: dict[str, Any]) -> MonitorJob:
    return QuickAirbyteJob(CONNECTION, poll_interval=0.1, **options)


if __name__ == "__main__":
    setattr(driver, "_job", _job)  # noqa: B010  # it is another type of job
    setattr(driver, "ProcessBackend", AirbyteBackend)  # noqa: B010  # the backend that is struck
    configure(connections={"airbyte_default": json.loads(sys.argv[1])["airbyte"]})
    sys.exit(driver.main())
