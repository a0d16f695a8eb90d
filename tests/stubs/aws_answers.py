"""AWS without AWS: each request is answered before it leaves, with the very bytes that a test chooses."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

from jobrunner.backends.batch import BatchBackend
from jobrunner.backends.batch.limiter import Limiter


class AnsweredBatch:
    """A backend whose requests are answered before they leave, with the bytes that a test chooses."""

    def __init__(self, backend: BatchBackend) -> None:
        self.backend = backend
        self.answers: dict[str, tuple[int, str]] = {}
        self.backend.aws.limiter = Limiter(1e6, burst=1000)  # nobody is spared here
        client = self.backend.aws._client("batch", "eu-west-1")
        logs = self.backend.aws._client("logs", "eu-west-1")
        client.meta.events.register_first("before-send.batch.*", self._answer)
        logs.meta.events.register_first("before-send.cloudwatch-logs.*", self._answer)

    def _answer(self, request: Any, event_name: str, **_more: Any) -> Any:
        from botocore.awsrequest import AWSResponse

        status, text = self.answers[event_name.rpartition(".")[2]]
        return AWSResponse(request.url, status, {"content-type": "application/json"}, _Body(text))

    def ask(self, do: Callable[[BatchBackend], Any], status: int = 200, **answers: Any) -> Any:
        """Ask, and be answered with these values as JSON. Raises `BackendError`."""
        self.answers = {name: (status, as_body(value)) for name, value in answers.items()}
        return asyncio.run(do(self.backend))


class _Body:
    def __init__(self, text: str) -> None:
        self._content = text.encode(errors="surrogatepass")

    def stream(self) -> Iterator[bytes]:
        return iter([self._content])


def as_body(value: Any) -> str:
    """Return a value as JSON; a text is the body as it is."""
    return value if isinstance(value, str) else json.dumps(value)
