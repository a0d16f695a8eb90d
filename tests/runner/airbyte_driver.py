"""The driver script, for a job of Airbyte: `airbyte` in the order is the connection.

`before send` and `after send` are here when POST /jobs leaves, and when its answer is there. `doubt_s`: for
how long a submission in doubt is looked for; `call_s`: how long a call may take.
"""

import json
import sys
from typing import Any

from jobrunner import submission
from jobrunner.backends.airbyte import AirbyteBackend
from jobrunner.models import MonitorJob
from jobrunner.settings import configure
from tests.runner import airbyte_jobs, driver
from tests.stubs.airbyte_server import CONNECTION


def _job(_order: dict[str, Any], options: dict[str, Any]) -> MonitorJob:
    return airbyte_jobs.QuickAirbyteJob(CONNECTION, poll_interval=0.1, **options)


def _arm_wire(strike: driver.Strike) -> None:
    from httpx import AsyncHTTPTransport

    real = AsyncHTTPTransport.handle_async_request

    async def send(transport: Any, request: Any) -> Any:
        if request.method != "POST" or not request.url.path.endswith("/jobs"):
            return await real(transport, request)
        strike.at("before")
        answer = await real(transport, request)
        strike.at("after")
        return answer

    setattr(AsyncHTTPTransport, "handle_async_request", send)  # noqa: B010  # a method is not to be assigned


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    setattr(driver, "_job", _job)  # noqa: B010  # it is another type of job
    setattr(driver, "ProcessBackend", AirbyteBackend)  # noqa: B010  # the backend that is struck
    setattr(driver.Strike, "_arm_wire", _arm_wire)  # noqa: B010  # another library sends
    setattr(submission, "SEND_WITHIN_S", airbyte_jobs.SEND_WITHIN_S)  # noqa: B010  # not a name of that module
    setattr(airbyte_jobs, "DOUBT_S", order.get("doubt_s", airbyte_jobs.DOUBT_S))  # noqa: B010  # it is a constant
    setattr(airbyte_jobs, "CALL_S", order.get("call_s", airbyte_jobs.CALL_S))  # noqa: B010  # as above
    configure(connections={"airbyte_default": order["airbyte"]})
    sys.exit(driver.main())
