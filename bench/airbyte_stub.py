"""The tests' Airbyte in a process of its own: `python -m bench.airbyte_stub JOBS`."""

import sys

from bench.apart import ANSWER_S, serve
from tests.stubs.airbyte_server import AirbyteStub, serving

_LONG_AGO_S = 3600.0


class _Airbyte:
    """Airbyte as a benchmark moves it."""

    def __init__(self, stub: AirbyteStub) -> None:
        self._stub = stub

    def address(self) -> str:
        return self._stub.url

    def ids(self) -> list[str]:
        return [str(each) for each in self._stub.job_ids()]

    def rest(self) -> None:
        self._stub.age(_LONG_AGO_S)

    def show(self, word: str, every: int) -> None:
        self._stub.move_all(word, every=every)

    def counts(self) -> dict[str, int]:
        return self._stub.counts()

    def forget_calls(self) -> None:
        self._stub.forget_calls()


def _main(jobs: str) -> None:
    with serving() as stub:
        stub.seed(int(jobs))
        stub.age(_LONG_AGO_S)
        stub.delay_s = ANSWER_S
        serve(_Airbyte(stub))


if __name__ == "__main__":
    _main(*sys.argv[1:])
