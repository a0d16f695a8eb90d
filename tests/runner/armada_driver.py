"""The driver of monitors, for a job of Armada (`armada`: the address) and the points around its request."""

import json
import sys
from typing import Any

from jobrunner.backends.armada.wire import Wire
from jobrunner.models import MonitorJob
from jobrunner.settings import configure
from tests.runner import driver
from tests.runner.armada_jobs import POD, QuickArmadaJob


class _Strike(driver.Strike):
    def _arm_wire(self) -> None:
        real = Wire.call

        async def call(wire: Wire, service: str, method: str, *arguments: Any, **options: Any) -> Any:
            if method != "SubmitJobs":
                return await real(wire, service, method, *arguments, **options)
            self.at("before")
            answer = await real(wire, service, method, *arguments, **options)
            self.at("after")
            return answer

        setattr(Wire, "call", call)  # noqa: B010  # a method is not to be assigned


def _job(_order: dict[str, Any], options: dict[str, Any]) -> MonitorJob:
    return QuickArmadaJob("nightly", "etl", "set", POD, poll_interval=0.1, **options)


if __name__ == "__main__":
    url = json.loads(sys.argv[1])["armada"]
    configure(connections={"armada_default": {"kind": "armada", "url": url, "call_timeout_s": 5}})
    setattr(driver, "Strike", _Strike)  # noqa: B010  # a class is not to be assigned
    setattr(driver, "_job", _job)  # noqa: B010
    sys.exit(driver.main())
