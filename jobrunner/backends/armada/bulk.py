"""How many ids a call may have: as many as the server takes, which is learnt from its refusal."""

import re
from collections.abc import Awaitable, Callable

from jobrunner.backends.armada.trouble import TOO_LARGE, ArmadaError, Kind
from jobrunner.logs import get_logger

log = get_logger(__name__)

_OF_IDS = re.compile(r"(?:ids?|items?)\b|(?:many|\d) jobs\b", re.IGNORECASE)
_OF_A_RATE = re.compile(r"\brate\b|\bper (?:second|minute|hour)\b|/s\b", re.IGNORECASE)
_TOO_MANY = re.compile(
    r"too (?:many|large|long)|(?:more than|at most|exceeds) \d|\bmax|limit\w*\W+(?:\w+\W+){0,2}\d|"
    r"(?:over|exceed\w*)\W+(?:\w+\W+){0,2}limit",
    re.IGNORECASE,
)
_MOST = re.compile(
    r"(?:more than|at most|exceeds|(?:limit|max)\w*(?:\W+(?:of|is|allowed|number))*)\W*(\d+)\b", re.IGNORECASE
)


class Limits:
    """How many ids each method takes; `most`, where nothing else is known of it."""

    def __init__(self, most: int) -> None:
        self._any_most = most
        self._most: dict[str, int] = {}

    def of(self, method: str) -> int:
        """Return how many ids a call of a method may have, as far as is known."""
        return self._most.get(method, self._any_most)

    async def in_parts(
        self, method: str, ids: list[str], ask: Callable[[list[str]], Awaitable[None]]
    ) -> None:
        """Ask with as many ids a call as the server takes. Raises what `ask` raises."""
        while ids:
            some = ids[: self.of(method)]
            try:
                await ask(some)
            except ArmadaError as error:
                most = fewer_ids(error, len(some))
                if most is None:
                    raise
                log.info("Armada takes fewer ids a call", method=method, most=most, asked=len(some))
                self._most[method] = most
                continue
            ids = ids[len(some) :]


def fewer_ids(error: ArmadaError, asked: int) -> int | None:
    """Return how many ids a call may have, where an error says that `asked` were too many; else None.

    The server's own words are "request contained more than 500 jobIds", with the code UNKNOWN. Where a
    number cannot be read from the words it is the half.
    """
    words = error.details
    if asked <= 1 or error.kind not in {Kind.REFUSED, Kind.THROTTLED, Kind.UNCLEAR}:
        return None
    if TOO_LARGE.search(words):  # the answer, in bytes
        return asked // 2
    if not (_OF_IDS.search(words) and _TOO_MANY.search(words)) or _OF_A_RATE.search(words):
        return None
    told = [int(number) for number in _MOST.findall(words)]
    return next((most for most in told if 0 < most < asked), asked // 2)
