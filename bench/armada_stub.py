"""The tests' Armada in a process of its own: `python -m bench.armada_stub JOBS`."""

import sys

from bench.apart import ANSWER_S, serve
from tests.stubs.armada_server import ArmadaStub, State, serving

QUEUE, JOB_SET = "bench", "sweep"


class _Armada:
    """Armada as a benchmark moves it."""

    def __init__(self, stub: ArmadaStub) -> None:
        self._stub = stub

    def address(self) -> str:
        return self._stub.address

    def ids(self) -> list[str]:
        return self._stub.external_ids()

    def rest(self) -> None:
        pass  # it lists nothing by time

    def show(self, word: str, every: int) -> None:
        error = "container main failed with exit code 1" if word == "FAILED" else ""
        self._stub.move_all(State.Value(word), error, every=every)

    def counts(self) -> dict[str, int]:
        return self._stub.calls_per_method()

    def forget_calls(self) -> None:
        self._stub.forget_calls()


def _main(jobs: str) -> None:
    with serving(delay_s=ANSWER_S) as stub:
        stub.seed(QUEUE, JOB_SET, int(jobs))
        serve(_Armada(stub))


if __name__ == "__main__":
    _main(*sys.argv[1:])
