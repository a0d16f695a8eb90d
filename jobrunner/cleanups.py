"""The `on_kill` of watched jobs: called before their work is cancelled, and waited for in bounded time."""

import asyncio
from typing import TYPE_CHECKING

from jobrunner.hooks import Hooks
from jobrunner.log_limits import Seldom
from jobrunner.logs import get_logger
from jobrunner.models.own_run import call_on_kill, has_on_kill
from jobrunner.owned import OwnedJob

if TYPE_CHECKING:
    from jobrunner.models import MonitorJob

log = get_logger(__name__)


async def clean_up(hooks: Hooks, owned: OwnedJob, most_s: float, seldom: Seldom) -> None:
    """Call the job's own `on_kill`, once, and wait for it for `most_s` seconds.

    In a mass kill they wait for each other. One whose turn has not come by then is not called: the log says
    so, and the message with which the job ends.
    """
    if owned.job is None or not has_on_kill(owned.job):
        return
    if owned.on_kill is None:
        owned.on_kill = hooks.call(owned.job, "on_kill", lambda: _call(owned, owned.job), most_s)
    call = owned.on_kill
    try:
        await asyncio.wait([call.ended], timeout=most_s)
    finally:  # also where the runner is told to stop: then the next owner calls it
        others = len(call.kind.under_way)
        hooks.withdraw(call, f"{others} others were under way for the {most_s:g} s that a kill waits")
    if call.why_not is not None and owned.uncleaned is None:
        owned.uncleaned = f"its on_kill was not called: {call.why_not}"
        seldom.error(log, "on_kill was not called", about=owned.job_id, job=owned.job_id, reason=call.why_not)


def _call(owned: OwnedJob, job: "MonitorJob | None") -> None:
    if job is not None and not owned.over:  # else it came to be another's while it waited for its turn
        call_on_kill(job)
