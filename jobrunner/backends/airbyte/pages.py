"""Where people see a job in Airbyte."""

from collections.abc import Iterable
from contextlib import suppress

from jobrunner.backends.airbyte.client import Api
from jobrunner.backends.airbyte.memory import Known
from jobrunner.backends.airbyte.trouble import AirbyteError
from jobrunner.bounded import Bounded


class Pages:
    """Makes the links, which name the workspace of the job's connection: that is asked for once."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._workspaces: Bounded[str, str | None] = Bounded()

    async def point_to(self, jobs: Iterable[Known], *, may_ask: bool) -> None:
        """Give each job its link. `may_ask`: a request for a workspace is worth it, there are few jobs."""
        root, own = self._api.options.pages, self._api.options.workspace_ids
        if root is None:
            return
        for known in jobs:
            if known.page is None and known.job is not None and known.job.connection_id:
                connection_id = known.job.connection_id
                workspace = str(own[0]) if len(own) == 1 else await self._of(connection_id, may_ask=may_ask)
                if workspace:
                    place = f"{root}/workspaces/{workspace}/connections/{connection_id}"
                    known.page = f"{place}/timeline?jobId={known.job.id}"

    async def _of(self, connection_id: str, *, may_ask: bool) -> str | None:
        if connection_id not in self._workspaces and may_ask:
            self._workspaces[connection_id] = None  # asked once, whatever comes of it
            with suppress(AirbyteError):
                self._workspaces[connection_id] = await self._api.workspace_of(connection_id)
        return self._workspaces.get(connection_id)
